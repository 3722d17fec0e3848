//! The status entry of each peer, kept incrementally by the rule of [`state_of`].
//!
//! Every change that may affect an entry marks its peer. Before the status is published, the entries of marked peers
//! are computed again and replaced if they differ. A change that affects all peers, such as a device that is gone,
//! marks all.

use std::collections::BTreeSet;
use std::time::SystemTime;

use super::blocked::Blocked;
use super::{Driver, PeerWork, Reconciler};
use crate::addr::{Family, MacAddr, PerFamily};
use crate::dataplane::{Dataplane, Object, ObjectKey};
use crate::events::{MOST_SINGLE, NetworkEvent};
use crate::lease::{Lease, LeaseKey, UnreadableRecords};
use crate::peers::{Claim, Peer, PeerTable};
use crate::status::{PeerList, PeerPath, PeerState, PeerStatus, RejectedLease};

/// At least this many peers are marked one by one before all are.
const FEW: usize = 1000;

/// The entries of all peers, and which of them may be out of date.
#[derive(Debug, Default)]
pub(super) struct PeerBook {
    list: PeerList,
    /// The peers whose entries are to be computed again.
    marked: BTreeSet<LeaseKey>,
    /// Those of them whose leases changed.
    changed: BTreeSet<LeaseKey>,
    /// Whether all entries are to be computed again.
    all: bool,
    /// The peers with objects that are not in the kernel: a resync may find them there.
    unprogrammed: BTreeSet<LeaseKey>,
    /// Whether the leases were recalled from an earlier run.
    recalled: bool,
    /// The names of ways to peers, so that entries share them.
    paths: Vec<PeerPath>,
}

impl PeerBook {
    /// The entries as they were computed last.
    pub(super) fn list(&self) -> &PeerList {
        &self.list
    }

    /// Marks peers whose state may have changed.
    pub(super) fn mark(&mut self, peers: impl IntoIterator<Item = LeaseKey>) {
        if !self.all {
            self.marked.extend(peers);
        }
    }

    /// Marks a peer whose lease changed or is gone.
    pub(super) fn mark_changed(&mut self, peer: LeaseKey) {
        self.changed.insert(peer);
        self.mark([peer]);
    }

    /// Marks all peers.
    pub(super) fn mark_all(&mut self) {
        self.all = true;
        self.marked.clear();
    }

    /// Marks the peers with missing objects, after all objects were read.
    pub(super) fn mark_unprogrammed(&mut self) {
        if !self.all {
            self.marked.extend(&self.unprogrammed);
        }
    }

    fn path(&mut self, name: &str) -> PeerPath {
        if let Some(path) = self.paths.iter().find(|path| path.as_str() == name) {
            return path.clone();
        }
        let path = PeerPath::new(name);
        self.paths.push(path.clone());
        path
    }

    /// Replaces an entry if it differs. Returns whether its lease was rejected before and is used again.
    fn update(&mut self, mut entry: PeerStatus, changed: bool, now: SystemTime) -> bool {
        let lease = entry.lease;
        let is_missing =
            matches!(entry.state, PeerState::Waiting | PeerState::Repairing | PeerState::Refused(_));
        if is_missing {
            self.unprogrammed.insert(lease);
        } else {
            self.unprogrammed.remove(&lease);
        }
        let mut is_used_again = false;
        if let Some(before) = self.list.get(&lease) {
            entry.changed = if changed { now } else { before.changed };
            entry.since = if entry.state.is_like(&before.state) { before.since } else { now };
            if entry == *before {
                return false;
            }
            let is_rejected = |state: &PeerState| matches!(state, PeerState::Rejected(_));
            is_used_again = is_rejected(&before.state) && !is_rejected(&entry.state);
        }
        self.list.put(entry);
        is_used_again
    }

    fn remove(&mut self, lease: &LeaseKey) {
        self.unprogrammed.remove(lease);
        self.list.remove(lease);
    }
}

/// What the state of a peer depends on.
struct View<'a> {
    peers: &'a PeerTable,
    unreadable: &'a UnreadableRecords,
    have: &'a Dataplane,
    blocked: &'a Blocked,
    /// Whether an object can't be put because its device is missing or down.
    is_away: &'a dyn Fn(&Object) -> bool,
    /// Whether a device is missing or wrong.
    lacks_device: bool,
    recalled: bool,
    /// What the backend itself does for a peer.
    work: &'a dyn Fn(&LeaseKey) -> PeerWork,
}

/// The rule: the state of the peer with this lease.
fn state_of(key: &LeaseKey, view: &View<'_>) -> PeerState {
    let peer = view.peers.programmed_peer(key);
    let unreadable = || view.unreadable.reason(key).map(|record| record.to_string());
    if let Some(reason) = view.peers.problem(*key).or_else(unreadable) {
        let programmed = peer.is_some();
        return PeerState::Rejected(Box::new(RejectedLease { reason, programmed }));
    }
    let Some(peer) = peer else { return PeerState::Waiting };
    if let Some(refused) = peer.objects.iter().find_map(|object| view.blocked.refused(&object.key())) {
        return PeerState::Refused(Box::new(refused));
    }
    let desired = view.peers.want();
    let is_there =
        |object: &Object| view.have.get(&object.key()).is_some_and(|have| desired.is_satisfied_by(&have));
    let mut missing = peer.objects.iter().filter(|object| !is_there(object)).peekable();
    if missing.peek().is_some() {
        return if missing.any(|object| (view.is_away)(object)) {
            PeerState::Waiting
        } else {
            PeerState::Repairing
        };
    }
    match (view.work)(key) {
        PeerWork::Done => {}
        PeerWork::Pending => return PeerState::Waiting,
        PeerWork::Failed { reason, in_force } => {
            return PeerState::Rejected(Box::new(RejectedLease { reason, programmed: in_force }));
        }
    }
    match (view.lacks_device && peer.objects.is_empty(), view.recalled) {
        (true, _) => PeerState::Waiting,
        (_, true) => PeerState::Recalled,
        (_, false) => PeerState::Programmed,
    }
}

impl<D: Driver> Reconciler<D> {
    /// Marks the peers that need the objects with these keys, which changed in the kernel or are refused.
    pub(super) fn mark_users(&mut self, keys: impl IntoIterator<Item = ObjectKey>) {
        for key in keys {
            // From here on it would take longer than marking all.
            if self.book.marked.len() > FEW.max(self.leases.len() / 2) {
                self.book.mark_all();
            }
            if self.book.all {
                return;
            }
            self.book.mark(self.peers.peers_with(&key));
        }
    }

    /// Computes the marked entries again.
    pub(super) fn update_book(&mut self, now: SystemTime) {
        let recalled = self.leases.recalled().is_some();
        if std::mem::replace(&mut self.book.recalled, recalled) != recalled {
            self.book.mark_all();
        }
        let changed = std::mem::take(&mut self.book.changed);
        let marked: Vec<LeaseKey> = if std::mem::take(&mut self.book.all) {
            self.book.marked.clear();
            let gone = self.book.list.iter().map(|entry| entry.lease);
            let gone: Vec<LeaseKey> = gone.filter(|key| self.leases.get(key).is_none()).collect();
            gone.into_iter().chain(self.leases.iter().map(|lease| lease.key)).collect()
        } else {
            std::mem::take(&mut self.book.marked).into_iter().collect()
        };
        let (own, mut used_again) = (self.own, Vec::new());
        for key in marked.into_iter().filter(|key| *key != own) {
            match self.entry(&key, now) {
                Some(entry) => {
                    if self.book.update(entry, changed.contains(&key), now) {
                        used_again.push(key);
                    }
                }
                None => self.book.remove(&key),
            }
        }
        if used_again.len() > MOST_SINGLE {
            self.events.send(NetworkEvent::LeasesAccepted { leases: used_again.len() });
        } else {
            for lease in used_again {
                self.events.send(NetworkEvent::LeaseAccepted { lease });
            }
        }
        #[cfg(test)]
        self.assert_book_is_right(now);
    }

    /// Computes the entry of a lease by the rule; `None` if there is no such lease.
    fn entry(&mut self, key: &LeaseKey, now: SystemTime) -> Option<PeerStatus> {
        let lease = self.leases.get(key)?;
        let underlay = lease.attrs.public_ips;
        let away = &self.devices.away;
        let view = View {
            peers: &self.peers,
            unreadable: self.leases.unreadable(),
            have: &self.have,
            blocked: &self.blocked,
            is_away: &|object| {
                self.devices.problems.concern(object.key().family())
                    || object.link().is_some_and(|link| away.contains(&link))
            },
            lacks_device: !self.devices.problems.is_empty(),
            recalled: self.book.recalled,
            work: &|key| self.driver.work_for(key),
        };
        let state = state_of(key, &view);
        let vteps = self.peers.programmed_peer(key).map(vteps).unwrap_or_default();
        let path = self.peers.programmed_peer(key).map(|peer| paths(&self.driver, lease, peer));
        let path = path.unwrap_or_default().map(|_, name| match name {
            Some(name) => self.book.path(name),
            None => self.book.path(&self.backend),
        });
        let receives = lease.attrs.receives.iter().map(|reception| reception.kind.clone()).collect();
        Some(PeerStatus { vteps, receives, path, ..PeerStatus::new(*key, underlay, state, now) })
    }

    /// Checks that the incremental entries equal the rule over all peers.
    #[cfg(test)]
    fn assert_book_is_right(&mut self, now: SystemTime) {
        let all: Vec<LeaseKey> =
            self.leases.iter().map(|lease| lease.key).filter(|key| *key != self.own).collect();
        assert_eq!(self.book.list.len(), all.len());
        for key in all {
            let right = self.entry(&key, now).unwrap();
            let entry = self.book.list.get(&key).unwrap();
            let right = PeerStatus { since: entry.since, changed: entry.changed, ..right };
            assert_eq!(*entry, right);
        }
    }
}

/// The MACs of a peer's devices.
fn vteps(peer: &Peer) -> PerFamily<MacAddr> {
    PerFamily::from_fn(|family| {
        peer.claims.iter().find_map(|claim| match claim {
            Claim::Vtep(_, mac, at) if Family::of(*at) == family => Some(*mac),
            _ => None,
        })
    })
}

/// The name of the way to a peer in each family that it shares with this node; `None` for the backend's own.
fn paths(driver: &impl Driver, lease: &Lease, peer: &Peer) -> PerFamily<Option<&'static str>> {
    let families: Vec<_> = peer.families().collect();
    PerFamily::from_fn(|family| {
        let is_reached = families.contains(&family) && lease.subnet(family).is_some();
        is_reached.then(|| driver.path(family, peer))
    })
}
