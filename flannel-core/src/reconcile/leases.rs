//! Processes the lease watch: applies each message to the table at once, and computes peers a few leases at a time, so
//! that a snapshot of thousands does not starve other inputs.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::time::Instant;

use super::work::Why;
use super::{AT_ONCE, Driver, Reconciler};
use crate::backend::BackendError;
use crate::dataplane::ObjectKey;
use crate::events::{MOST_SINGLE, NetworkEvent};
use crate::lease::{AgedLease, LeaseChange, LeaseKey, LeaseUpdate};
use crate::peers::{Claim, Peer, PeerError, may_be_rivals};
use crate::subnet::SubnetError;

/// Changed leases whose peers are not computed yet.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// Whether there is anything.
    is_pending: bool,
    changes: VecDeque<LeaseChange>,
    /// How many leases there were.
    count: usize,
    /// When the first of them was taken from the watch.
    since: Option<Instant>,
    /// The objects of the leases that are done.
    touched: Vec<ObjectKey>,
    /// Whether the first snapshot is among them.
    becomes_synced: bool,
    /// How many unreadable records had been resolved at the last check, in the lease table and in the peer table;
    /// `None` if these tables are new.
    resolved: Option<(u64, u64)>,
}

impl Incoming {
    pub(super) fn is_pending(&self) -> bool {
        self.is_pending
    }

    /// Forgets the counts of resolved records, since the tables are new.
    pub(super) fn forget_resolved(&mut self) {
        self.resolved = None;
    }
}

impl<D: Driver> Reconciler<D> {
    /// Applies messages of the watch to the table.
    pub(super) fn fold_leases(
        &mut self,
        batch: Vec<Result<LeaseUpdate, SubnetError>>,
    ) -> Result<(), BackendError> {
        let was_synced = self.leases.is_synced();
        let mut changes = Vec::new();
        for update in batch {
            let update = update?;
            self.mark_record(&update);
            changes.extend(self.leases.apply(update));
        }
        self.record_own(&changes);
        let becomes_synced = self.leases.is_synced() && !was_synced;
        if becomes_synced || changes.iter().any(|change| change.key == self.own) {
            self.work.check_claims();
        }
        changes.retain(|change| change.key != self.own);
        if self.driver.count_leases(&changes, self.leases.is_synced()) {
            self.work.check_devices();
        }
        self.tell_guard(&changes);
        self.tell_changes(&changes);
        self.record.add_leases(&changes);
        if !changes.is_empty() {
            self.why.add(Why::Desired);
            self.incoming.since.get_or_insert_with(Instant::now);
        }
        self.incoming.is_pending = true;
        self.incoming.becomes_synced |= becomes_synced;
        self.incoming.count += changes.len();
        self.incoming.changes.extend(changes);
        Ok(())
    }

    /// Computes these peers again, whose leases are the same as before.
    pub(super) fn compute_again(&mut self, peers: Vec<LeaseKey>) {
        self.why.add(Why::Desired);
        // The state file is to have what they follow from.
        self.work.check_devices();
        let leases = peers.into_iter().filter_map(|key| Some((key, self.leases.get(&key)?.clone())));
        let changes = leases.map(|(key, it)| LeaseChange { key, before: Some(it.clone()), after: Some(it) });
        self.incoming.changes.extend(changes);
        self.incoming.is_pending = true;
    }

    /// Computes the peers of some changed leases; after the last of them, the consequences of all.
    pub(super) fn work_out_some(&mut self) {
        if !self.incoming.is_pending {
            return;
        }
        let some = self.incoming.changes.len().min(AT_ONCE);
        let some: Vec<LeaseChange> = self.incoming.changes.drain(..some).collect();
        self.work_out(some);
        if self.incoming.changes.is_empty() {
            self.finish_incoming();
        }
    }

    fn work_out(&mut self, changes: Vec<LeaseChange>) {
        let now = Instant::now();
        let record = if self.work.has_claims() { Vec::new() } else { self.record_claims() };
        let mut touched = Vec::new();
        for LeaseChange { key, before, after } in changes {
            self.book.mark_changed(key);
            let mut is_rival = may_be_rivals(&record, self.peers.claims(&key));
            touched.extend(if let Some(lease) = after {
                let peer = self.driver.peer(&lease);
                self.remember_good(key, before, &peer);
                self.peers.stage(key, (&*lease).into(), peer)
            } else {
                self.last_good.remove(&key);
                self.peers.stage_removal(&key)
            });
            is_rival |= may_be_rivals(&record, self.peers.claims(&key));
            if is_rival {
                self.work.check_claims();
            }
        }
        touched.extend(self.peers.settle());
        let decided = self.peers.drain_decided();
        self.book.mark(decided);
        for key in &touched {
            self.blocked.hurry(key, now);
        }
        if !self.incoming.becomes_synced {
            self.incoming.touched.extend(touched);
        }
    }

    /// Marks the peer of a record that became unreadable, or readable again; its lease need not change by that.
    fn mark_record(&mut self, update: &LeaseUpdate) {
        match update {
            LeaseUpdate::Snapshot { .. } | LeaseUpdate::Recalled { .. } => self.book.mark_all(),
            LeaseUpdate::Put(lease) => self.book.mark([lease.key]),
            LeaseUpdate::Removed(key) => self.book.mark(key.parse()),
            LeaseUpdate::Unreadable(record) => self.book.mark(record.key.parse()),
        }
    }

    /// The claims of this node's own record, as other nodes read it.
    fn record_claims(&self) -> Vec<Claim> {
        self.leases.get(&self.own).map(|own| self.claims_of(own)).unwrap_or_default()
    }

    fn finish_incoming(&mut self) {
        let resolved = Some((self.leases.unknown().resolved(), self.peers.unknown().resolved()));
        let next = Incoming { resolved, ..Incoming::default() };
        let done = std::mem::replace(&mut self.incoming, next);
        self.work.compare(done.touched);
        if let Some(since) = done.since {
            self.shown.timings.watch_lag.observe(since.elapsed());
            self.programming.get_or_insert(since);
        }
        if done.count > self.leases.len() / 2 {
            self.peers.repack();
        }
        if resolved != done.resolved && !self.withheld.is_empty() {
            // Objects that were kept for an unreadable record are now either desired or to be deleted.
            self.work.compare(std::mem::take(&mut self.withheld));
            self.why.add(Why::Desired);
        }
        if self.why.is_desired() {
            if self.host.has_strangers() {
                self.work.check_host();
            }
            self.replaced.prune(self.peers.want());
            self.set_peers();
        }
        if done.becomes_synced {
            // From the first snapshot on, objects that are not desired may be deleted, so read everything once more.
            self.work.read_objects();
            self.why.add(Why::Desired);
        }
    }

    /// Keeps the last usable version of a lease that became unusable, for when the peer table is rebuilt.
    fn remember_good(
        &mut self,
        key: LeaseKey,
        before: Option<Arc<AgedLease>>,
        now: &Result<Peer, PeerError>,
    ) {
        if !matches!(now, Err(PeerError::Unreadable(_))) {
            self.last_good.remove(&key);
        } else if let Some(before) = before.filter(|before| self.driver.peer(before).is_ok()) {
            self.last_good.insert(key, before);
        }
    }

    /// Sends one event for each change if there are few, else one for all.
    fn tell_changes(&self, changes: &[LeaseChange]) {
        if changes.len() > MOST_SINGLE {
            let removed = changes.iter().filter(|change| change.after.is_none()).count();
            let added = changes.iter().filter(|change| change.before.is_none()).count();
            let others = changes.len() - added - removed;
            self.events.send(NetworkEvent::PeersChanged { added, changed: others, removed });
            return;
        }
        for LeaseChange { key, before, after } in changes {
            let of = |lease: &AgedLease| (*key, lease.attrs.public_ips);
            self.events.send(match (before, after) {
                (None, None) => continue,
                (None, Some(after)) => {
                    let (lease, underlay) = of(after);
                    NetworkEvent::PeerAdded { lease, underlay }
                }
                (Some(before), None) => {
                    let (lease, underlay) = of(before);
                    NetworkEvent::PeerRemoved { lease, underlay }
                }
                (Some(_), Some(after)) => {
                    let (lease, underlay) = of(after);
                    NetworkEvent::PeerChanged { lease, underlay }
                }
            });
        }
    }
}
