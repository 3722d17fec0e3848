//! Folds a lease watch into the table of current leases.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{BadRecord, Lease, LeaseKey, LeaseUpdate};
use crate::repack::repack;

/// All leases of the network as far as the store has told, our own among them.
#[derive(Debug, Clone, Default)]
pub struct LeaseTable {
    leases: BTreeMap<LeaseKey, Arc<Lease>>,
    bad: BTreeMap<String, String>,
    synced: bool,
    recalled: Option<u64>,
}

/// A lease that appeared, changed or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseChange {
    /// Which one.
    pub key: LeaseKey,
    /// What it was; `None` if it is new.
    pub before: Option<Arc<Lease>>,
    /// What it is; `None` if it is gone.
    pub after: Option<Arc<Lease>>,
}

impl LeaseTable {
    /// Applies one message of the watch and returns the leases that really changed.
    ///
    /// A record that can't be read changes nothing: the last good state of its key stays until the store
    /// says that the key is gone.
    pub fn apply(&mut self, update: LeaseUpdate) -> Vec<LeaseChange> {
        match update {
            LeaseUpdate::Snapshot { leases, undecodable } => self.reset(leases, undecodable),
            // The store itself knows better.
            LeaseUpdate::Recalled { .. } if self.synced => Vec::new(),
            LeaseUpdate::Recalled { leases, saved } => {
                self.recalled = Some(saved);
                leases.into_iter().filter_map(|lease| self.put(lease)).collect()
            }
            LeaseUpdate::Put(lease) => self.put(lease).into_iter().collect(),
            LeaseUpdate::Removed(text) => {
                self.bad.remove(&text);
                text.parse().ok().and_then(|key| self.remove(&key)).into_iter().collect()
            }
            LeaseUpdate::Undecodable(record) => {
                self.bad.insert(record.key, record.reason);
                Vec::new()
            }
        }
    }

    fn reset(&mut self, leases: Vec<Lease>, undecodable: Vec<BadRecord>) -> Vec<LeaseChange> {
        (self.synced, self.recalled) = (true, None);
        self.bad = undecodable.into_iter().map(|record| (record.key, record.reason)).collect();
        let listed: BTreeMap<LeaseKey, Lease> = leases.into_iter().map(|lease| (lease.key, lease)).collect();
        let gone: Vec<LeaseKey> = (self.leases.keys())
            .filter(|key| !listed.contains_key(key) && !self.bad.contains_key(&key.to_string()))
            .copied()
            .collect();
        let mut changes: Vec<_> = gone.iter().filter_map(|key| self.remove(key)).collect();
        // A key can't be both listed and unreadable; a store that says so is believed where it is readable.
        changes.extend(listed.into_values().filter_map(|lease| self.put(lease)));
        repack(&mut self.leases);
        changes
    }

    fn put(&mut self, lease: Lease) -> Option<LeaseChange> {
        self.bad.remove(&lease.key.to_string());
        if self.leases.get(&lease.key).is_some_and(|known| **known == lease) {
            return None;
        }
        let (key, lease) = (lease.key, Arc::new(lease));
        let before = self.leases.insert(key, Arc::clone(&lease));
        Some(LeaseChange { key, before, after: Some(lease) })
    }

    fn remove(&mut self, key: &LeaseKey) -> Option<LeaseChange> {
        let before = Some(self.leases.remove(key)?);
        Some(LeaseChange { key: *key, before, after: None })
    }

    /// Whether a snapshot came: before it an empty table is not a wish to delete.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// When what is here was known, in seconds since 1970, if it was recalled and the store has not listed
    /// anything since.
    pub fn recalled(&self) -> Option<u64> {
        self.recalled
    }

    /// The lease of a key.
    pub fn get(&self, key: &LeaseKey) -> Option<&Arc<Lease>> {
        self.leases.get(key)
    }

    /// All leases by key.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.leases.values()
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// The records that are there but can't be read.
    pub fn undecodable(&self) -> impl ExactSizeIterator<Item = BadRecord> + '_ {
        self.bad.iter().map(|(key, reason)| BadRecord { key: key.clone(), reason: reason.clone() })
    }

    /// The keys of unreadable records of which no good state is known. What the kernel holds for them from
    /// before a restart must stay.
    pub fn unknown(&self) -> impl Iterator<Item = LeaseKey> + '_ {
        self.bad.keys().filter_map(|text| text.parse().ok()).filter(|key| !self.leases.contains_key(key))
    }
}
