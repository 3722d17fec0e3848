//! The WireGuard backend for [`flannel_core`]: pod packets travel between nodes encrypted and authenticated.
//!
//! # The way of a packet
//! A packet to a pod of another node takes the route `subnet dev flannel-wg`. The device knows which peer has that
//! address (its *allowed IPs*), encrypts the packet for the key of that peer, and sends it in UDP to where the peer was
//! last heard from. The other node accepts it only from the key that has its source address. Below the routes is a
//! blackhole for the whole network: no packet for a pod leaves this node unencrypted, whatever happens to the device.
//!
//! # What this crate adds to the core
//! [`WireguardBackend`] implements [`flannel_core::backend::Backend`]. It has the key of this node in a file
//! ([`key_file`]), publishes its public key, and gives the reconcile loop a driver that holds devices, keys, peers and
//! routes. Devices, file and lease data are those of Go flannel, so that both can share a cluster and take over from each
//! other on a node; a restart of this agent keeps the sessions.
//!
//! # Where everything is
//! - [`key`]: keys, whose secrets no output shows.
//! - [`device`]: what a WireGuard device contains as a value, the changes that lead from one to another, and the trait of
//!   those who make them. [`kernel`] has the kernel's devices, [`provider`] says who makes devices.
//! - [`userspace`]: a device in this process, for kernels without WireGuard ([`Implementation`]).
//! - `plan`: which changes lead to what is desired (pure); `peer`: what a lease needs (pure); `config` (pure).
//! - `tunnel`: one device with what is held in it; `driver`: all of them in the loop. `roster` (the peers that a device should
//!   have) and `seen` (those that it had last) let a change of one lease look at one peer. Both are pure.
//! - `rotation`: how nodes change their keys without losing a packet (pure); `driver/rotate` carries it out.
//! - [`nat`]: how nodes behind NATs reach each other, and who forwards where they can't (pure); `driver/nat` carries it out.

mod backend;
mod config;
pub mod device;
mod driver;
pub mod kernel;
pub mod key;
pub mod key_file;
pub mod nat;
mod peer;
mod plan;
pub mod provider;
mod roster;
mod rotation;
mod seen;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tunnel;
pub mod userspace;

pub use backend::WireguardBackend;
pub use config::{Mode, WireguardConfig};
pub use nat::NatOptions;
pub use peer::{NextKey, WireguardData};
pub use provider::Implementation;
