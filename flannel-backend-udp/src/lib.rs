//! The `udp` backend: overlay packets in plain UDP datagrams, carried by a process instead of the kernel.
//!
//! The wire format is Go flannel's: one IP packet is the payload of one datagram, with nothing around it.
//! Everything else is made to be fast: the kernel hands super-packets of up to 64 KB over the TUN, which
//! go out as one train of datagrams ([`segment`]), and trains that come in are put together again
//! ([`coalesce`]). What a kernel can't do is done without, step by step ([`engine::Path`] tells).
//!
//! ```text
//!   pods ── routes ── TUN ─► segment ─► forward ─► socket ── underlay
//!                      ▲                              │
//!                      └──── coalesce ◄── forward ◄───┘
//! ```
//!
//! The decisions are pure: [`packet`], [`segment`], [`coalesce`] and [`forward`] do no I/O. A worker
//! thread moves the bytes ([`engine`]); it allocates nothing and waits for nobody once it runs. A faster
//! path for single peers can be put in front at any time: what it doesn't take still comes to the TUN.

mod backend;
pub mod coalesce;
mod config;
pub mod counters;
mod driver;
pub mod engine;
pub mod forward;
mod options;
pub mod packet;
mod peer;
pub mod segment;
pub mod socket;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing;
pub mod tun;
pub mod vnet;
mod worker;

pub use backend::UdpBackend;
pub use config::UdpConfig;
pub use engine::{Engine, EngineEvent, EngineOptions, Layout, Path};
pub use forward::{ForwardingTable, Peer, TableSpec};
pub use options::UdpOptions;
pub use socket::{SocketOptions, UnderlaySocket};
pub use tun::{Tun, TunOptions};
