//! What probes have proven about the ways to single peers, and what the loop makes of it: by which backend it reaches a peer
//! whose tunnel is blocked, and how large the packets to it may be.
//!
//! Each node decides only by which way it *sends*. So a filter that drops packets in one direction moves that direction, and
//! the peer, whose packets arrive, stays with its tunnel.

mod detour;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use self::detour::Detours;
use crate::addr::{Family, Mtu, PerFamily};
use crate::lease::LeaseKey;

/// What an agent acts on, of what probes have proven about the ways to a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Proven {
    /// The kind of the backend by which the peer is reached while the tunnel of its own is blocked; `None` if it isn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detour: Option<String>,
    /// The largest packets to its pods that arrive, in bytes with their IP headers, where larger ones are lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu4: Option<Mtu>,
    /// The same in IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu6: Option<Mtu>,
}

/// What a visit of a peer has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathFact {
    /// Nothing gets through to the peer's pods, although its node answers on the underlay. `by` is the further backend by
    /// which it was reached; `None` for that of its lease.
    Blocked {
        /// The kind of that backend.
        by: Option<String>,
    },
    /// Whether the tunnel of its lease lets packets through to it, while it is reached by another backend. `None` if that
    /// can't be tried on this host.
    Tunnel {
        /// Whether one was answered.
        is_open: Option<bool>,
    },
    /// The largest packet through the overlay that arrives; `None` if all do.
    Largest(Option<Mtu>),
}

/// What probes have proven about the peers of a network. A prober tells it, and the loop acts on it. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct PathProofs(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<Known>,
    told: Notify,
}

#[derive(Debug, Default)]
struct Known {
    detours: Detours,
    mtus: BTreeMap<LeaseKey, PerFamily<Mtu>>,
    /// The peers of which something else is proven than the loop has read.
    news: BTreeSet<LeaseKey>,
}

impl PathProofs {
    /// What was proven before, with these backends as detours, the preferred first, and those round the tunnel that this node
    /// had before.
    pub(crate) fn new(
        ways: Vec<String>,
        former: Vec<String>,
        before: &BTreeMap<LeaseKey, Proven>,
        now: Instant,
    ) -> Self {
        let (mut known, former) = (Known::default(), former.into());
        known.detours.set_ways(ways);
        for (lease, Proven { detour, mtu4, mtu6 }) in before {
            if let Some(by) = detour {
                known.detours.recall(*lease, by, &former, now);
            }
            let mtus = PerFamily { v4: *mtu4, v6: *mtu6 };
            if !mtus.is_empty() {
                known.mtus.insert(*lease, mtus);
            }
        }
        Self(Arc::new(Shared { known: Mutex::new(known), told: Notify::new() }))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the backends for detours, the preferred first. Detours by others end.
    pub(crate) fn set_ways(&self, ways: Vec<String>) {
        let mut known = self.known();
        let changed = known.detours.set_ways(ways);
        if !changed.is_empty() {
            known.news.extend(changed);
            self.0.told.notify_one();
        }
    }

    /// Takes in what a visit has shown.
    pub fn tell(&self, lease: LeaseKey, family: Family, fact: &PathFact, now: Instant) {
        let mut known = self.known();
        let has_changed = match fact {
            PathFact::Blocked { by } => known.detours.blocked(lease, by.as_deref(), now),
            PathFact::Tunnel { is_open } => known.detours.tunnel(lease, family, *is_open, now),
            PathFact::Largest(largest) => {
                let mtus = known.mtus.entry(lease).or_default();
                let has_changed = std::mem::replace(mtus.get_mut(family), *largest) != *largest;
                if mtus.is_empty() {
                    known.mtus.remove(&lease);
                }
                has_changed
            }
        };
        if has_changed {
            if !matches!(fact, PathFact::Largest(_)) {
                // It was that of another way.
                known.mtus.remove(&lease);
            }
            known.news.insert(lease);
            drop(known);
            self.0.told.notify_one();
        }
    }

    /// Forgets a peer whose lease is gone, or leads elsewhere.
    pub(crate) fn forget(&self, lease: &LeaseKey) {
        let mut known = self.known();
        known.detours.forget(lease);
        known.mtus.remove(lease);
        known.news.remove(lease);
    }

    /// This node's own backend is another one now, with these backends as detours. What was proven of the former one holds for a
    /// peer until its lease names another, too.
    pub(crate) fn change_tunnel(&self, ways: Vec<String>) {
        self.known().detours.change_tunnel(ways);
    }

    /// The kinds of the backends by which to reach a peer rather than by that of its lease, the best first; none if there is
    /// no need.
    pub(crate) fn detour(&self, lease: &LeaseKey) -> Vec<String> {
        self.known().detours.ways(lease).to_vec()
    }

    /// The largest packets to a peer's pods that arrive, where larger ones are lost.
    pub(crate) fn mtus(&self, lease: &LeaseKey) -> PerFamily<Mtu> {
        self.known().mtus.get(lease).copied().unwrap_or_default()
    }

    /// All that the state file is to have.
    pub(crate) fn all(&self) -> BTreeMap<LeaseKey, Proven> {
        let known = self.known();
        let mut all: BTreeMap<LeaseKey, Proven> = BTreeMap::new();
        for (lease, by) in known.detours.iter() {
            all.entry(lease).or_default().detour = Some(by.to_owned());
        }
        for (lease, mtus) in &known.mtus {
            let proven = all.entry(*lease).or_default();
            (proven.mtu4, proven.mtu6) = (mtus.v4, mtus.v6);
        }
        all
    }

    /// Returns once there is news. News while nobody waits is told to the next one.
    pub(crate) async fn told(&self) {
        self.0.told.notified().await;
    }

    /// The peers of which something else is proven now.
    pub(crate) fn take_news(&self) -> Vec<LeaseKey> {
        std::mem::take(&mut self.known().news).into_iter().collect()
    }
}
