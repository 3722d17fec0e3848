//! Core.
pub mod addr;
pub mod backend;
pub mod config;
pub mod dataplane;
pub mod gojson;
pub mod kernel;
pub mod lease;
pub mod subnet;
pub mod subnet_file;
pub mod underlay;
