//! Nodes behind NATs: how they are found, how two of them reach each other, and who forwards where they can't. Pure.
//!
//! A node behind a NAT opens its sessions itself and keeps them open; the device learns from authenticated packets where it
//! is. What is left are pairs of such nodes, of which each drops what it did not ask for:
//!
//! ```text
//!   A behind NAT a        P is public                 B behind NAT b
//!   keeps P's session     sees A at a:51820, B at     reads in P's record where it is seen itself (so it is behind
//!   open                  b:40000; record: Nat.Seen   a NAT: Nat.Behind), and where A is
//!
//!   A tries b:40000, B tries a:51820: each opens its own NAT for the other ([`pair`])
//!   where that fails, both take the relay that is nearest to both ([`relay`])
//! ```
//!
//! Both ends of a pair must take the same way, since a device accepts a source from one peer only. So each choice is made of
//! what both know: the records, and the handshake, which is complete on both ends at the same moment.

mod observer;
mod pair;
mod record;
mod relay;

pub use record::{MOST_RELAYS, MOST_SEEN, NatData};

pub(crate) use observer::{Observer, Sight, seen_behind};
pub(crate) use pair::{FAST, MISSES, Pair, View};
pub(crate) use relay::{Table, agree};

/// What an operator says of this node and NATs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NatOptions {
    /// This node is behind a NAT, which it would find out by itself where a public node of ours sees it.
    pub behind: bool,
    /// This node, which others reach, forwards packets between nodes behind NATs that can't reach each other.
    pub relay: bool,
}

impl NatOptions {
    /// What an operator says: whether the node is behind a NAT, and whether it is a relay.
    pub fn new(behind: bool, relay: bool) -> Self {
        Self { behind, relay }
    }
}
