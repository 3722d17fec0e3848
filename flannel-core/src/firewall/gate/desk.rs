//! What the reconcile loop knows and the gate needs: the loop writes changes, the gate reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::{GateCounters, GateStatus, Mode, Tunnels};
use crate::addr::{Family, PerFamily};
use crate::lease::{Lease, LeaseChange};
use crate::netlink::nftables::Counted;
use crate::repack::repack;

/// How long the loop waits for addresses to be admitted before it puts their routes. Late routes would be worse.
const PATIENCE: Duration = Duration::from_millis(50);

/// The loop's side of a gate.
#[derive(Debug)]
pub struct Desk {
    /// What to do about strangers.
    pub(super) mode: Mode,
    pub(super) shared: Arc<Shared>,
    /// The number of the last state that the kernel has been changed to.
    pub(super) done: watch::Receiver<u64>,
    pub(super) status: watch::Receiver<GateStatus>,
    pub(super) counters: GateCounters,
}

/// The state that both sides share.
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

/// The changes of the sets for nodes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Moves {
    pub(super) add: Vec<IpAddr>,
    pub(super) delete: Vec<IpAddr>,
    /// Whether an address to add should have been there already.
    pub(super) missing: bool,
}

/// The present state. Its number grows with every change.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) number: u64,
    /// The devices; `None` until they are there and this node has its subnets.
    pub(super) tunnels: Option<Tunnels>,
    /// The underlay addresses that leases of others publish, with the number of leases.
    published: BTreeMap<IpAddr, u32>,
    /// The addresses that were added or removed since the gate read them.
    changed: BTreeSet<IpAddr>,
    /// Whether the store has listed its leases.
    pub(super) is_synced: bool,
    /// Whether there is an unreadable record of which no good version is known.
    pub(super) has_unknown: bool,
}

impl Known {
    /// The changes that lead from the present to the desired elements. Unless `all` must be compared, it costs work
    /// only for what changed.
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
        // An address that no known lease publishes may belong to an unreadable record, or to a lease that is not listed
        // yet.
        let prunes_all = all && self.is_synced && !self.has_unknown;
        let goes = |addr: &&IpAddr| !is_published(addr) && (prunes_all || changed.contains(*addr));
        if all {
            moves.delete = there.iter().filter(goes).copied().collect();
        } else {
            moves.delete = changed.iter().filter(|it| there.contains(*it)).filter(goes).copied().collect();
        }
        moves
    }

    /// Keeps only elements whose address no lease publishes.
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
    /// Adds changes of the leases of others. It costs work for the changes only.
    pub fn leases(&self, changes: &[LeaseChange], is_synced: bool, has_unknown: bool) {
        let mut known = self.shared.known();
        for change in changes {
            // The new one first, so that an address that both have is never removed.
            change.after.iter().for_each(|lease| known.publish(lease));
            change.before.iter().for_each(|lease| known.withdraw(lease));
        }
        if changes.len() > known.published.len() / 2 {
            repack(&mut known.published);
        }
        let is_news = (known.is_synced, known.has_unknown) != (is_synced, has_unknown);
        if is_news || !known.changed.is_empty() {
            (known.is_synced, known.has_unknown) = (is_synced, has_unknown);
            self.tell(known);
        }
    }

    /// Sets the devices.
    pub fn tunnels(&self, tunnels: Option<Tunnels>) {
        let mut known = self.shared.known();
        // A missing device comes back with the same name, or is reported with another one.
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

    /// Waits, 50 ms at most, until the kernel has the present state, so that a peer is admitted before its routes are
    /// put. If neither this nor an earlier run keeps anybody out, it does not wait.
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

    /// Reads what the gate has counted.
    pub fn counters(&self) -> GateCounters {
        self.counters.clone()
    }

    /// The status of the gate.
    pub fn status(&self) -> watch::Receiver<GateStatus> {
        self.status.clone()
    }
}
