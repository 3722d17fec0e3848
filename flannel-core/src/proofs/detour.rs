//! Which peers are reached by a detour, and for how long. Pure: time is an argument.
//!
//! A detour begins with the proof that a tunnel is blocked, and ends once packets that were sent by hand have got through that
//! tunnel for a while. A tunnel that is blocked again soon afterwards must prove itself for twice as long.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::addr::{Family, PerFamily};
use crate::lease::LeaseKey;

/// For how long a tunnel must let packets through before a detour ends: at first, and at most.
const PROOF: Duration = Duration::from_secs(60);
const LONGEST_PROOF: Duration = Duration::from_secs(16 * 60);
/// A tunnel that is blocked again within this time after a detour was not open for good.
const SOON: Duration = Duration::from_secs(10 * 60);
/// For how long a peer that no way leads to stays with its own tunnel.
const REST: Duration = Duration::from_secs(60);
/// For how long a further way is taken at least, whatever comes back by it: a peer whose packets are blocked, too, has to prove that
/// by itself first. After the last way there is only the peer's own, which is blocked, so that one gets longer.
const PATIENCE: Duration = Duration::from_secs(10);
const LAST_PATIENCE: Duration = Duration::from_secs(60);
/// After which time a detour ends although nothing can be tried by hand, and for how long what was seen of a family counts.
const UNTRIED: Duration = Duration::from_secs(10 * 60);

/// The detours of a network.
#[derive(Debug, Default)]
pub(super) struct Detours {
    /// The kinds of the backends for detours round this node's own tunnel, the preferred first.
    ways: Arc<[String]>,
    peers: BTreeMap<LeaseKey, Peer>,
}

/// A peer whose tunnel was blocked.
#[derive(Debug)]
struct Peer {
    /// `None` if it is reached by its own tunnel.
    detour: Option<Detour>,
    /// For how long its tunnel must let packets through.
    proof: Duration,
    /// When the last detour ended with an open tunnel.
    returned: Option<Instant>,
    /// Until when no detour is tried, since none leads to it.
    rests: Option<Instant>,
}

#[derive(Debug)]
struct Detour {
    /// The ways round the tunnel that is blocked, the preferred first.
    ways: Arc<[String]>,
    /// Which of them is the first to be taken.
    at: usize,
    since: Instant,
    tunnels: PerFamily<Tunnel>,
}

/// What was seen of the tunnel in one family.
#[derive(Debug, Clone, Copy)]
struct Tunnel {
    /// When it was tried last.
    tried: Instant,
    /// Since when it lets packets through.
    open: Option<Instant>,
}

impl Detours {
    /// Sets the backends for detours. Returns the peers for which that changes the way.
    pub(super) fn set_ways(&mut self, ways: Vec<String>) -> Vec<LeaseKey> {
        self.ways = ways.into();
        let mut changed = Vec::new();
        for (lease, peer) in &mut self.peers {
            let Some(detour) = &mut peer.detour else { continue };
            let by = detour.first();
            match self.ways.iter().position(|way| way == by) {
                Some(at) => (detour.ways, detour.at) = (Arc::clone(&self.ways), at),
                None => peer.detour = None,
            }
            changed.push(*lease);
        }
        changed
    }

    /// The node's own tunnel is another one now, with these backends for detours. A peer whose lease names the former one is still
    /// reached round that.
    pub(super) fn change_tunnel(&mut self, ways: Vec<String>) {
        self.ways = ways.into();
    }

    /// Goes on with a detour of an earlier run, round this node's tunnel or its `former` one.
    pub(super) fn recall(&mut self, lease: LeaseKey, by: &str, former: &Arc<[String]>, now: Instant) {
        let all = [&self.ways, former];
        let known = all.into_iter().find_map(|ways| Some((ways, ways.iter().position(|way| way == by)?)));
        if let Some((ways, at)) = known {
            let detour = Some(Detour::new(ways, at, now));
            self.peers.insert(lease, Peer { detour, ..Peer::default() });
        }
    }

    /// Nothing gets through to a peer, which was reached by this further backend, or by its own. Returns whether its way changes.
    pub(super) fn blocked(&mut self, lease: LeaseKey, by: Option<&str>, now: Instant) -> bool {
        let ways = &self.ways;
        if ways.is_empty() && !self.peers.contains_key(&lease) {
            return false;
        }
        let peer = self.peers.entry(lease).or_default();
        match (&mut peer.detour, by) {
            (None, None) if !ways.is_empty() => {
                if peer.rests.is_some_and(|until| now < until) {
                    return false;
                }
                let was_soon = peer.returned.is_some_and(|at| now < at + SOON);
                peer.proof = if was_soon { (peer.proof * 2).min(LONGEST_PROOF) } else { PROOF };
                peer.detour = Some(Detour::new(ways, 0, now));
                true
            }
            (Some(detour), Some(by)) => {
                let Some(at) = detour.ways.iter().position(|way| way == by) else { return false };
                let is_last = at + 1 == detour.ways.len();
                let patience = if is_last { LAST_PATIENCE } else { PATIENCE };
                if at < detour.at || now < detour.since + patience {
                    // It was seen before the last step, or so soon that the peer may still be about to take its own.
                    return false;
                }
                if is_last {
                    (peer.detour, peer.rests) = (None, Some(now + REST));
                } else {
                    *detour = Detour::new(&detour.ways, at + 1, now);
                }
                true
            }
            // It was seen before the detour began, or ended, or there is none.
            _ => false,
        }
    }

    /// Whether the tunnel lets packets through to a peer that is reached by a detour. Returns whether that ends it.
    pub(super) fn tunnel(
        &mut self,
        lease: LeaseKey,
        family: Family,
        is_open: Option<bool>,
        now: Instant,
    ) -> bool {
        let Some(peer) = self.peers.get_mut(&lease) else { return false };
        let Some(detour) = &mut peer.detour else { return false };
        let tunnel = detour.tunnels.get_mut(family).get_or_insert(Tunnel { tried: now, open: None });
        tunnel.tried = now;
        match is_open {
            Some(true) => _ = tunnel.open.get_or_insert(now),
            Some(false) => tunnel.open = None,
            None => tunnel.open = Some(detour.since),
        }
        let proof = if is_open.is_none() { UNTRIED } else { peer.proof };
        let is_proven = |tunnel: &Tunnel| tunnel.open.is_some_and(|since| now >= since + proof);
        let is_counted = |tunnel: &Tunnel| now < tunnel.tried + UNTRIED;
        let tunnels = detour.tunnels;
        let is_over = tunnels.iter().all(|(_, tunnel)| is_proven(tunnel) || !is_counted(tunnel));
        if is_over {
            (peer.detour, peer.returned) = (None, Some(now));
        }
        is_over
    }

    pub(super) fn forget(&mut self, lease: &LeaseKey) {
        self.peers.remove(lease);
    }

    /// The ways to take rather than a peer's own, the best first.
    pub(super) fn ways(&self, lease: &LeaseKey) -> &[String] {
        let detour = self.peers.get(lease).and_then(|peer| peer.detour.as_ref());
        detour.map_or(&[], |detour| &detour.ways[detour.at..])
    }

    /// The peers that have a detour, with the first way of each.
    pub(super) fn iter(&self) -> impl Iterator<Item = (LeaseKey, &str)> {
        self.peers.iter().filter_map(|(lease, peer)| Some((*lease, peer.detour.as_ref()?.first())))
    }
}

impl Detour {
    fn new(ways: &Arc<[String]>, at: usize, now: Instant) -> Self {
        Self { ways: Arc::clone(ways), at, since: now, tunnels: PerFamily::default() }
    }

    fn first(&self) -> &str {
        &self.ways[self.at]
    }
}

impl Default for Peer {
    fn default() -> Self {
        Self { detour: None, proof: PROOF, returned: None, rests: None }
    }
}
