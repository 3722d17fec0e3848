//! The `udp` backend: overlay packets in plain UDP datagrams, carried by a process instead of the kernel.
//!
//! The wire format is Go flannel's: one IP packet is the payload of one datagram, with nothing around it.
//! Everything else is made for speed: the kernel passes super-packets of up to 64 KB over the TUN, which are sent as
//! one train of datagrams (`segment`), and received trains are merged again (`coalesce`). Offloads that a kernel lacks
//! are left out one by one ([`datapath::Path`] shows which are used).
//!
//! ```text
//!   pods ── routes ── TUN ─► segment ─► forward ─► socket ── underlay
//!                      ▲                              │
//!                      └──── coalesce ◄── forward ◄───┘
//! ```
//!
//! The decisions are pure: `packet`, `segment`, `coalesce` and `forward` do no I/O. A worker thread moves the packets
//! (`engine`); once it runs it allocates nothing and waits for no lock. A faster path for single peers can be added in
//! front of it at any time: packets that it does not handle still come to the TUN.

mod backend;
mod coalesce;
mod config;
mod counters;
mod driver;
mod engine;
mod forward;
mod options;
mod packet;
mod passage;
mod path;
mod peer;
mod segment;
mod socket;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing;
mod threads;
mod tun;
mod vnet;
mod worker;

pub use backend::UdpBackend;
pub use config::UdpConfig;
pub use options::UdpOptions;
pub use path::Layout;

/// The datapath without the backend: for a program that makes the TUN, the sockets and the table of peers itself
/// ([`Engine`](datapath::Engine)), or that does something else with packets than to forward them
/// ([`Passage`](datapath::Passage)).
///
/// TUN and sockets belong to the network namespace of the thread that opens them
/// ([`Netns::run`](flannel_core::netns::Netns::run)); the engine's threads may be in any.
pub mod datapath {
    pub use crate::counters::{Counters, DropReason, Flow, PeerCounters, PeerSnapshot, Snapshot};
    pub use crate::engine::{Engine, EngineOptions};
    pub use crate::forward::{
        ForwardingTable, Inbound, Lookup, Outbound, OwnerLookup, Owners, Peer, PeerIndex, Sender, TableCell,
        TableReader, TableSpec,
    };
    pub use crate::packet::icmp::IcmpError;
    pub use crate::packet::{Fragment, HeaderError, IpHeader};
    pub use crate::passage::{Batch, Cipher, Opened, Passage, Plain, Sealed};
    pub use crate::path::{Path, SocketPath};
    pub use crate::socket::{ErrorSocket, SocketError, SocketOptions, UnderlaySocket};
    pub use crate::threads::{EngineEvent, EventHook, ThreadOptions, Threads};
    pub use crate::tun::{Tun, TunError, TunOptions};
}
