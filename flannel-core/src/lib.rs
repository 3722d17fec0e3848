//! Core.
pub mod addr;
pub mod backend;
pub mod config;
pub mod dataplane;
pub mod gojson;
pub mod kernel;
pub mod lease;
pub mod peers;
pub mod reconcile;
pub mod subnet;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
