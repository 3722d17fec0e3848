//! Another node's view of the store, from its watch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use super::{StoreBed, attrs_with};
use crate::lease::{Lease, LeaseAttrs, LeaseKey, LeaseUpdate};
use crate::subnet::{Identity, LeaseStream, SubnetManager};

/// A deadline that is longer than a store takes to notice anything. No test waits for it to pass.
const SOON: Duration = Duration::from_secs(20);
/// The node that watches, whose own record marks the order of events.
const NODE: u8 = 99;

/// The state that the watch of one further node leads to.
pub(super) struct Observer {
    pub(super) store: Arc<dyn SubnetManager>,
    own: Lease,
    stream: LeaseStream,
    pub(super) leases: BTreeMap<LeaseKey, Lease>,
    pub(super) unreadable: BTreeSet<String>,
    /// Keys of removed records, in order.
    pub(super) removed: Vec<String>,
    marks: u8,
}

impl Observer {
    /// Watches from now on. The first message has to be a snapshot.
    pub(super) async fn new(bed: &dyn StoreBed) -> Self {
        let store = bed.open(NODE, Identity::default()).await;
        let own = soon("acquire", store.acquire_lease(&attrs_with(NODE, NODE))).await.expect("a lease");
        let stream = store.watch_leases();
        let (leases, unreadable, removed) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        let mut observer = Self { store, own, stream, leases, unreadable, removed, marks: 0 };
        let first = observer.next("the first message").await;
        assert!(matches!(first, LeaseUpdate::Snapshot { .. }), "a watch begins with a snapshot: {first:?}");
        observer.fold(first);
        assert!(observer.leases.contains_key(&observer.own.key), "a snapshot has the own lease, too");
        observer
    }

    async fn next(&mut self, what: &str) -> LeaseUpdate {
        let update = soon(what, self.stream.next()).await.expect("a watch never ends");
        update.unwrap_or_else(|error| panic!("{what}: the watch failed: {error}"))
    }

    fn fold(&mut self, update: LeaseUpdate) {
        match update {
            LeaseUpdate::Snapshot { leases, unreadable } => {
                self.unreadable = unreadable.named().map(|record| record.key).collect();
                // Leases with unreadable records stay as they were.
                self.leases.retain(|key, _| unreadable.contains(key));
                self.leases.extend(leases.into_iter().map(|lease| (lease.key, lease)));
            }
            LeaseUpdate::Recalled { .. } => {}
            LeaseUpdate::Put(lease) => {
                self.unreadable.remove(&lease.key.to_string());
                self.leases.insert(lease.key, lease);
            }
            LeaseUpdate::Removed(key) => {
                self.unreadable.remove(&key);
                self.leases.retain(|lease, _| lease.to_string() != key);
                self.removed.push(key);
            }
            LeaseUpdate::Unreadable(record) => _ = self.unreadable.insert(record.key),
        }
    }

    /// Reads the watch until a condition is true.
    pub(super) async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            let update = self.next(what).await;
            self.fold(update);
        }
    }

    /// Reads the watch until a lease has these attributes.
    pub(super) async fn until_says(&mut self, what: &str, key: LeaseKey, attrs: &LeaseAttrs) {
        self.until(what, |it| {
            it.leases.get(&key).is_some_and(|lease| lease.attrs == *attrs)
                && !it.unreadable.contains(&key.to_string())
        })
        .await;
    }

    /// Reads all earlier changes: writes a record, and reads the watch until it arrives. It does so twice, since a
    /// store may report the changes that it finds at one read in any order.
    pub(super) async fn catch_up(&mut self, bed: &dyn StoreBed) {
        for _ in 0..2 {
            self.marks = self.marks % 90 + 1;
            let (key, mark) = (self.own.key, attrs_with(NODE, self.marks));
            bed.write(key, &mark).await;
            self.until_says("a record that somebody changed", key, &mark).await;
        }
    }
}

/// Waits for what a store does in milliseconds.
pub(super) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.unwrap_or_else(|_| panic!("{what}: nothing came for {SOON:?}"))
}
