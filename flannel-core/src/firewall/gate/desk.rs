//! What the reconcile loop knows and the gate follows: the one writes, the other takes what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::{GateStatus, Mode, Tunnels};
use crate::addr::{Family, PerFamily};
use crate::lease::{Lease, LeaseChange};
use crate::netlink::nftables::Counted;

/// How long the loop waits for addresses to be let in before their routes are put. Routes matter more.
const PATIENCE: Duration = Duration::from_millis(50);

/// The loop's side of a gate.
#[derive(Debug)]
pub struct Desk {
    /// What is to be done about strangers.
    pub(super) mode: Mode,
    pub(super) shared: Arc<Shared>,
    /// The number of the last state that the kernel has.
    pub(super) done: watch::Receiver<u64>,
    pub(super) status: watch::Receiver<GateStatus>,
}

/// What both sides see.
#[derive(Debug, Default)]
pub(super) struct Shared {
    known: Mutex<Known>,
    pub(super) changed: Notify,
}

impl Shared {
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be changed in the sets for nodes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Moves {
    pub(super) add: Vec<IpAddr>,
    pub(super) delete: Vec<IpAddr>,
    /// Whether one is to be added that should have been there.
    pub(super) missing: bool,
}

/// What is known. Its number grows with every change.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) number: u64,
    /// The devices; `None` until they are there and this node has its subnets.
    pub(super) tunnels: Option<Tunnels>,
    /// The underlay addresses that leases of others publish, and how many do.
    published: BTreeMap<IpAddr, usize>,
    /// Those that came or went since they were taken.
    changed: BTreeSet<IpAddr>,
    /// Whether the store has listed its leases.
    pub(super) is_synced: bool,
    /// Whether a record is there of which nothing is known.
    pub(super) has_unknown: bool,
}

impl Known {
    /// What turns the elements that are there into those that should be. Unless `all` have to be compared, it costs
    /// work for what changed only.
    pub(super) fn moves(
        &mut self,
        there: &BTreeSet<IpAddr>,
        all: bool,
        families: &PerFamily<String>,
    ) -> Moves {
        let changed = std::mem::take(&mut self.changed);
        let is_published = |addr: &IpAddr| self.published.contains_key(addr);
        let lacks = |addr: &IpAddr| !there.contains(addr) && families.get(Family::of(*addr)).is_some();
        let mut moves = Moves::default();
        if all {
            moves.add = self.published.keys().filter(|it| lacks(it)).copied().collect();
            moves.missing = moves.add.iter().any(|it| !changed.contains(it));
        } else {
            moves.add = changed.iter().filter(|it| is_published(it) && lacks(it)).copied().collect();
        }
        // What nobody is known to publish may be an unreadable record's, or not listed yet.
        let prunes_all = all && self.is_synced && !self.has_unknown;
        let goes = |addr: &&IpAddr| !is_published(addr) && (prunes_all || changed.contains(*addr));
        if all {
            moves.delete = there.iter().filter(goes).copied().collect();
        } else {
            moves.delete = changed.iter().filter(|it| there.contains(*it)).filter(goes).copied().collect();
        }
        moves
    }

    /// Leaves those whose address no lease publishes.
    pub(super) fn retain_unpublished(&self, counted: &mut Vec<Counted>) {
        counted.retain(|it| !self.published.contains_key(&it.addr));
    }

    fn publish(&mut self, lease: &Lease) {
        for (_, addr) in lease.attrs.public_ips.iter() {
            let count = self.published.entry(*addr).or_default();
            *count += 1;
            if *count == 1 {
                self.changed.insert(*addr);
            }
        }
    }

    fn withdraw(&mut self, lease: &Lease) {
        for (_, addr) in lease.attrs.public_ips.iter() {
            match self.published.get_mut(addr) {
                Some(count) if *count > 1 => *count -= 1,
                Some(_) => {
                    self.published.remove(addr);
                    self.changed.insert(*addr);
                }
                None => {}
            }
        }
    }
}

impl Desk {
    /// Takes what changed among the leases of others. Costs work for the changes only.
    pub fn leases(&self, changes: &[LeaseChange], is_synced: bool, has_unknown: bool) {
        let mut known = self.shared.known();
        for change in changes {
            // First the new one, so that an address that both have never goes.
            change.after.iter().for_each(|lease| known.publish(lease));
            change.before.iter().for_each(|lease| known.withdraw(lease));
        }
        let is_news = (known.is_synced, known.has_unknown) != (is_synced, has_unknown);
        if is_news || !known.changed.is_empty() {
            (known.is_synced, known.has_unknown) = (is_synced, has_unknown);
            self.tell(known);
        }
    }

    /// Takes the devices.
    pub fn tunnels(&self, tunnels: Option<Tunnels>) {
        let mut known = self.shared.known();
        // One that is away comes back under the same name, or is told under another one.
        if tunnels.is_some() && known.tunnels != tunnels {
            known.tunnels = tunnels;
            self.tell(known);
        }
    }

    fn tell(&self, mut known: MutexGuard<'_, Known>) {
        known.number += 1;
        drop(known);
        self.shared.changed.notify_one();
    }

    /// Waits a moment for the kernel to have what is known, so that a peer is let in before its routes matter. Where
    /// nobody is kept out, also by what an earlier run put, there is nothing to wait for.
    pub async fn admitted(&mut self) {
        let number = self.shared.known().number;
        let is_open = {
            let status = self.status.borrow();
            status.problem.is_some() || self.mode != Mode::Enforce && status.in_force.is_some()
        };
        if is_open || *self.done.borrow() >= number {
            return;
        }
        let done = self.done.wait_for(|done| *done >= number);
        _ = tokio::time::timeout(PATIENCE, done).await;
    }

    /// How the gate is.
    pub fn status(&self) -> watch::Receiver<GateStatus> {
        self.status.clone()
    }
}
