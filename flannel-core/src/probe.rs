//! Probes: packets by which an agent finds out whether its peers are reached, and if not, why.
//!
//! The agent visits its peers one after the other, with a few packets each: through the overlay and on the underlay,
//! small ones and such that fill the MTU. Where an answer is missing it looks closer, and a pure table turns what was
//! answered into a [`Verdict`] with evidence. What acts on a verdict is told apart from it: the switch for a broken checksum offload
//! (`vxlan`'s `tx_checksum`), and the proofs about the ways to single peers ([`PathProofs`](crate::proofs::PathProofs)).
//!
//! - `status`: the results as values. `options`: what an embedder sets. What a backend tells is
//!   [`Probing`](crate::backend::Probing).
//! - `verdict`: the table. `advice`: what it says in words, and what to do. `track`: what is known of one peer, and what to do next.
//!   `watch`: what shows that a verdict may be over. `ladder`: the largest packet that passes. `kind`: the kinds of packets. `pace`: intervals and budget. `gate`: readiness that waits for peers. All pure.
//! - `packet`, `sockets`, `engine`: the bytes, the sockets, and the task that has both.
//!
//! # What is sent, and what it takes
//! - ICMP echo requests, by a ping socket where `net.ipv4.ping_group_range` permits one, else by a raw socket, which
//!   takes `CAP_NET_RAW`. Without both the echo is left out, and the status says so.
//! - UDP datagrams to a closed port ([`CLOSED_PORT`]). Their answer is ICMP *port unreachable*, which the kernel passes
//!   to any socket that asks for it (`IP_RECVERR`), so they take no privilege.
//! - TCP connections to the closed port, only when nothing else is answered: a reset is an answer that a filter of
//!   ICMP lets through.

mod advice;
mod engine;
mod gate;
mod kind;
mod ladder;
mod options;
mod pace;
mod packet;
mod sockets;
mod status;
mod track;
mod verdict;
mod watch;

pub(crate) use engine::{ProbeEvent, Prober};
pub use options::{ProbeInterval, ProbeOptions, ReadyPeers};
pub use packet::EchoRequest;
pub use status::{
    Carriage, FamilyProbe, PeerProbe, ProbeList, ProbeStatus, ProbeTotals, RTT_BUCKETS, Verdict,
    VerdictCounts, WayProbe,
};

/// The port to which UDP datagrams and TCP connections go. It is assigned to tcpmux (RFC 1078), which nobody has run for
/// decades, and lies below the ports that the kernel gives to sockets.
pub const CLOSED_PORT: u16 = 1;
