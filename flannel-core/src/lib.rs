//! Core.
pub mod addr;
pub mod dataplane;
pub mod kernel;
pub mod netlink;
