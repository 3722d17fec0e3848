//! Folds a lease watch into the table of current leases.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ages::{Remembered, shared};
use super::{AgedLease, Ages, Lease, LeaseKey, LeaseUpdate, Unknown, UnreadableRecords};
use crate::chunked::{Chunked, OfLease};

/// All leases of the network that the store has told of, this node's own among them, with their ages.
#[derive(Debug, Clone, Default)]
pub struct LeaseTable {
    leases: Chunked<AgedLease>,
    bad: UnreadableRecords,
    /// The leases of unreadable records of which no earlier value is known.
    unknown: Unknown,
    synced: bool,
    recalled: Option<u64>,
    /// The age of the last change.
    last_age: u32,
    /// The ages that an earlier run knew, until the store lists the leases.
    remembered: Remembered,
}

impl OfLease for AgedLease {
    fn lease(&self) -> &LeaseKey {
        &self.lease.key
    }
}

/// A lease that appeared, changed or went.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseChange {
    /// Which one.
    pub key: LeaseKey,
    /// What it was; `None` if it is new.
    pub before: Option<Arc<AgedLease>>,
    /// What it is; `None` if it is gone.
    pub after: Option<Arc<AgedLease>>,
}

impl LeaseChange {
    /// The appearance of a lease.
    pub(crate) fn appeared(lease: &Arc<AgedLease>) -> Self {
        Self { key: lease.key, before: None, after: Some(Arc::clone(lease)) }
    }
}

impl LeaseTable {
    /// An empty table that knows the ages of the leases that an earlier run stored. A lease whose value is still the
    /// same keeps its age; every other lease counts as younger than all of those.
    pub fn remembering<'a>(stored: impl Iterator<Item = (&'a Lease, Ages)> + Clone) -> Self {
        let (remembered, last_age) = Remembered::new(stored);
        Self { last_age, remembered, ..Self::default() }
    }

    /// The age that the next change gets.
    pub fn next_age(&self) -> u32 {
        self.last_age.saturating_add(1)
    }

    /// Applies one message of the watch and returns the leases that really changed.
    ///
    /// An unreadable record changes nothing: the last readable value of its key stays until the store says that the key
    /// is gone.
    pub fn apply(&mut self, update: LeaseUpdate) -> Vec<LeaseChange> {
        let now = self.next_age();
        let changes = self.fold(update, now);
        let is_news =
            |change: &LeaseChange| change.after.as_ref().is_some_and(|it| it.ages.to_array().contains(&now));
        if changes.iter().any(is_news) {
            self.last_age = now;
        }
        changes
    }

    fn fold(&mut self, update: LeaseUpdate, now: u32) -> Vec<LeaseChange> {
        match update {
            LeaseUpdate::Snapshot { leases, unreadable } => self.reset(leases, unreadable, now),
            // The store has listed its leases since, so what an earlier run knew no longer counts.
            LeaseUpdate::Recalled { .. } if self.synced => Vec::new(),
            LeaseUpdate::Recalled { leases, saved } => {
                self.recalled = Some(saved);
                leases.into_iter().filter_map(|lease| self.put(lease, now)).collect()
            }
            LeaseUpdate::Put(lease) => self.put(lease, now).into_iter().collect(),
            LeaseUpdate::Removed(text) => {
                self.bad.remove(&text);
                let Ok(key) = text.parse() else { return Vec::new() };
                self.unknown.remove(&key);
                self.remove(&key).into_iter().collect()
            }
            LeaseUpdate::Unreadable(record) => {
                let key = record.key.parse().ok().filter(|key| self.leases.get(key).is_none());
                if let Some(key) = key {
                    self.unknown.insert(key);
                }
                self.bad.insert(record);
                Vec::new()
            }
        }
    }

    fn reset(&mut self, leases: Vec<Lease>, unreadable: UnreadableRecords, now: u32) -> Vec<LeaseChange> {
        (self.synced, self.recalled) = (true, None);
        self.bad = unreadable;
        let listed: BTreeMap<LeaseKey, Lease> = leases.into_iter().map(|lease| (lease.key, lease)).collect();
        let known = self.leases.iter().map(|lease| lease.key);
        let gone: Vec<LeaseKey> =
            known.filter(|key| !listed.contains_key(key) && !self.bad.contains(key)).collect();
        let mut changes: Vec<_> = gone.iter().filter_map(|key| self.remove(key)).collect();
        // A key can't be both listed and unreadable. If a store says both, the listed value counts.
        changes.extend(listed.into_values().filter_map(|lease| self.put(lease, now)));
        self.bad.repack();
        self.unknown.replace(self.bad.keys().filter(|key| self.leases.get(key).is_none()));
        // A lease that is not listed is a new claim if it comes back.
        self.remembered.retain(|key| self.bad.contains(key));
        changes
    }

    fn put(&mut self, lease: Lease, now: u32) -> Option<LeaseChange> {
        if self.bad.contains(&lease.key) {
            self.bad.remove(&lease.key.to_string());
            self.unknown.remove(&lease.key);
        }
        let known = self.leases.get(&lease.key);
        if known.is_some_and(|known| known.lease == lease) {
            return None;
        }
        let ages = match known {
            Some(known) => known.ages.follow(known, &lease, now),
            None => self.remembered.recall(&lease, now).unwrap_or_else(|| Ages::all(now)),
        };
        let (key, lease) = (lease.key, shared(lease, ages));
        let before = self.leases.put(Arc::clone(&lease));
        Some(LeaseChange { key, before, after: Some(lease) })
    }

    fn remove(&mut self, key: &LeaseKey) -> Option<LeaseChange> {
        self.remembered.forget(key);
        let before = Some(self.leases.remove(key)?);
        Some(LeaseChange { key: *key, before, after: None })
    }

    /// Whether the store has listed its leases. Before that an empty table does not mean that peers are to be deleted.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// If the leases are those of an earlier run and the store has not listed any since: when they were known, in
    /// seconds since 1970.
    pub fn recalled(&self) -> Option<u64> {
        self.recalled
    }

    /// The lease of a key.
    pub fn get(&self, key: &LeaseKey) -> Option<&Arc<AgedLease>> {
        self.leases.get(key)
    }

    /// All leases by key.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<AgedLease>> {
        self.leases.iter()
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The unreadable records.
    pub fn unreadable(&self) -> &UnreadableRecords {
        &self.bad
    }

    /// The leases of unreadable records of which no earlier value is known. What the kernel still has for them from
    /// before a restart must stay.
    pub fn unknown(&self) -> &Unknown {
        &self.unknown
    }
}
