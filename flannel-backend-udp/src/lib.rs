//! The `udp` backend: overlay packets in plain UDP datagrams, carried by a process instead of the kernel.
//!
//! The wire format is Go flannel's: one IP packet is the payload of one datagram, with nothing around it.
//! Everything else is made to be fast: the kernel hands super-packets of up to 64 KB over the TUN, which
//! go out as one train of datagrams (`segment`), and trains that come in are put together again
//! (`coalesce`). What a kernel can't do is done without, step by step ([`datapath::Path`] tells).
//!
//! ```text
//!   pods ── routes ── TUN ─► segment ─► forward ─► socket ── underlay
//!                      ▲                              │
//!                      └──── coalesce ◄── forward ◄───┘
//! ```
//!
//! The decisions are pure: `packet`, `segment`, `coalesce` and `forward` do no I/O. A worker
//! thread moves the bytes (`engine`); it allocates nothing and waits for nobody once it runs. A faster
//! path for single peers can be put in front at any time: what it doesn't take still comes to the TUN.

mod backend;
mod coalesce;
mod config;
mod counters;
mod driver;
mod engine;
mod forward;
mod options;
mod packet;
mod peer;
mod segment;
mod socket;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing;
mod tun;
mod vnet;
mod worker;

pub use backend::UdpBackend;
pub use config::UdpConfig;
pub use engine::Layout;
pub use options::UdpOptions;

/// The datapath without the backend: for a program that makes the TUN, the sockets and the table of peers itself.
///
/// TUN and sockets belong to the network namespace of the thread that opens them
/// ([`Netns::run`](flannel_core::netns::Netns::run)); the engine's threads may be in any.
pub mod datapath {
    pub use crate::counters::{DropReason, Flow, PeerSnapshot, Snapshot};
    pub use crate::engine::{Engine, EngineEvent, EngineOptions, EventHook, Path, SocketPath};
    pub use crate::forward::{ForwardingTable, Peer, TableSpec};
    pub use crate::socket::{ErrorSocket, SocketError, SocketOptions, UnderlaySocket};
    pub use crate::tun::{Tun, TunError, TunOptions};
}
