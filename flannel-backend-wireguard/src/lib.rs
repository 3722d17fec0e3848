//! The WireGuard backend for [`flannel_core`]: pod packets travel between nodes encrypted and authenticated.
//!
//! # Where everything is
//! - [`key`]: keys, whose secrets no output shows.
//! - [`device`]: what a WireGuard device contains as a value, the changes that lead from one to another, and the trait of
//!   those who make them.
//! - [`userspace`]: a device in this process, for kernels without WireGuard.

pub mod device;
pub mod key;
pub mod userspace;
