//! What a backend tells of its network, so that it can be probed.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::PathProofs;
use crate::addr::{Family, MacAddr, PerFamily};
use crate::status::Sessions;

/// How a backend's network is probed; from [`Network::probing`](crate::backend::Network::probing).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Probing {
    /// What answers in a peer's subnet.
    pub answers: Answers,
    /// The tunnel to the peers, if there is one.
    pub tunnel: Option<Arc<dyn Tunnel>>,
    /// How many bytes of headers the backend adds to a packet in each family, 0 if it has no tunnel. Where that is known,
    /// operators learn what size on the underlay passes.
    pub overhead: PerFamily<u32>,
    /// Where the proof goes that the devices of this node do not complete checksums, if the backend acts on it.
    pub checksums: Option<ChecksumSwitch>,
    /// What the tunnel itself knows of each peer. Verdicts about peers that do not answer name it.
    pub sessions: Sessions,
    /// Where the proofs go about the ways to single peers, if the loop acts on them.
    pub proofs: Option<PathProofs>,
}

impl Probing {
    /// Probes of a network whose nodes answer like this.
    pub fn new(answers: Answers) -> Self {
        let (tunnel, overhead, checksums) = (None, PerFamily::default(), None);
        Self { answers, tunnel, overhead, checksums, sessions: Sessions::default(), proofs: None }
    }

    /// Sets the tunnel to the peers.
    #[must_use]
    pub fn tunnel(self, tunnel: Arc<dyn Tunnel>) -> Self {
        Self { tunnel: Some(tunnel), ..self }
    }

    /// Sets how many bytes of headers the backend adds to a packet in each family.
    #[must_use]
    pub fn overhead(self, overhead: impl Fn(Family) -> u32) -> Self {
        Self { overhead: PerFamily::from_fn(|family| Some(overhead(family))), ..self }
    }

    /// Sets where the proof goes that the devices of this node do not complete checksums.
    #[must_use]
    pub fn checksums(self, checksums: Option<ChecksumSwitch>) -> Self {
        Self { checksums, ..self }
    }

    /// Sets what reads the sessions of the tunnel with peers.
    #[must_use]
    pub fn sessions(self, sessions: Sessions) -> Self {
        Self { sessions, ..self }
    }

    /// Sets where the proofs go about the ways to single peers.
    #[must_use]
    pub(crate) fn proofs(self, proofs: PathProofs) -> Self {
        Self { proofs: Some(proofs), ..self }
    }
}

/// What answers in a peer's subnet, for this node's own subnet likewise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answers {
    /// The first address of the subnet (`.0`), which each node has on a device of its own. Probes come from this node's.
    Base,
    /// Nothing for sure. Probes go to the address after the first (`.1`), which the bridge of the pods has if there is
    /// one, with a hop limit of 1: a peer that would forward the packet says so (ICMP *time exceeded*), which is an
    /// answer, too.
    Bridge,
}

/// The tunnel of a backend that wraps pods' packets into UDP.
pub trait Tunnel: fmt::Debug + Send + Sync {
    /// The UDP port on which every node receives what is for pods of a family.
    fn port(&self, family: Family) -> u16;

    /// The payload of a datagram that carries an IP packet to a node. `to` is the MAC of the node's device, where the
    /// tunnel has such; `None` is for every device, whatever its MAC. Returns `None` if it can't be done.
    fn wrap(&self, family: Family, to: Option<MacAddr>, packet: &[u8]) -> Option<Vec<u8>>;
}

/// The switch that a prober turns when it has proven that the devices of this node do not complete checksums. A backend
/// that acts on it has the same switch. Clones are one switch.
#[derive(Debug, Clone, Default)]
pub struct ChecksumSwitch(Arc<Switch>);

#[derive(Debug, Default)]
struct Switch {
    proof: Mutex<Option<String>>,
    turned: Notify,
}

impl ChecksumSwitch {
    /// Turns it, for this reason. The first reason stays.
    pub fn turn_off(&self, proof: &str) {
        let mut known = self.0.proof.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            *known = Some(proof.to_owned());
            self.0.turned.notify_one();
        }
    }

    /// Why it was turned; `None` if it wasn't.
    pub fn proof(&self) -> Option<String> {
        self.0.proof.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns once it is turned. One who waits is told, and a turn while nobody waits is told to the next one.
    pub async fn turned(&self) {
        self.0.turned.notified().await;
    }
}
