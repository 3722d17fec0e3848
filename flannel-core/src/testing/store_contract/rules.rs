//! The rules, each by nodes of its own.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;

use super::observer::{Observer, soon};
use super::{StoreBed, attrs_with, node_attrs, receiving};
use crate::addr::PerFamily;
use crate::lease::{Lease, LeaseAttrs};
use crate::subnet::allocate::overlaps;
use crate::subnet::{Identity, LeaseTerm, SubnetError, SubnetManager};

type Store = Arc<dyn SubnetManager>;

async fn open(bed: &dyn StoreBed, node: u8) -> Store {
    bed.open(node, Identity::default()).await
}

async fn acquire(store: &Store, attrs: &LeaseAttrs) -> Lease {
    let acquired = soon("acquire_lease", store.acquire_lease(attrs)).await;
    acquired.unwrap_or_else(|error| panic!("acquire_lease of a node that may have one: {error}"))
}

/// A renewal in the background, which ends when this is dropped.
struct Held(JoinHandle<SubnetError>);

impl Held {
    fn new(store: &Store, lease: &Lease) -> Self {
        let (store, lease) = (Arc::clone(store), lease.clone());
        Self(tokio::spawn(async move {
            match store.renew_lease(&lease).await {
                Err(error) => error,
                Ok(never) => match never {},
            }
        }))
    }

    /// Drops the future of the renewal, and returns once it is dropped.
    async fn drop_now(self) {
        self.0.abort();
        let ended = self.0.await;
        assert!(ended.is_err(), "renew_lease returns only when the lease is lost: {:?}", ended.ok());
    }
}

pub(super) async fn config_and_status(bed: &dyn StoreBed) {
    let (one, other) = (open(bed, 1).await, open(bed, 2).await);
    let config = soon("network_config", one.network_config()).await.expect("there is a config");
    assert!(config.networks.v4.is_some(), "a bed's network has IPv4");
    assert_eq!(soon("network_config", other.network_config()).await.unwrap(), config, "all read the same");
    let status = one.status().borrow().clone();
    assert!(status.connected && status.problem.is_empty(), "an answer is a contact: {status:?}");
    assert!(status.confirmed.is_some(), "an answer confirms what is known: {status:?}");
    assert_eq!(one.place(), open(bed, 1).await.place(), "a restart finds the store at the same place");
}

pub(super) async fn a_lease_lies_in_the_network_and_is_seen(bed: &dyn StoreBed) {
    let mut observer = Observer::new(bed).await;
    let store = open(bed, 3).await;
    let config = soon("network_config", store.network_config()).await.unwrap();
    let lease = acquire(&store, &node_attrs(3)).await;
    assert_eq!(lease.attrs, node_attrs(3), "what was to be published is in the lease");
    for (family, network) in config.networks.iter() {
        let subnet = lease.subnet(family).expect("a subnet of each family that the config has");
        assert!(network.network.covers(subnet), "{subnet} lies in {}", network.network);
    }
    observer.until_says("a lease that was acquired", lease.key, &node_attrs(3)).await;
    assert_eq!(observer.leases[&lease.key], lease, "all see what the node got");
    let again = soon("published_attrs", store.published_attrs(&node_attrs(3).public_ips)).await.unwrap();
    assert_eq!(again, Some(node_attrs(3)), "a node reads what it published");
}

pub(super) async fn a_restart_changes_nothing(bed: &dyn StoreBed) {
    let store = open(bed, 4).await;
    let lease = acquire(&store, &node_attrs(4)).await;
    assert_eq!(acquire(&store, &node_attrs(4)).await, lease, "asked twice");
    let mut observer = Observer::new(bed).await;
    let again = open(bed, 4).await;
    let attrs = soon("published_attrs", again.published_attrs(&node_attrs(4).public_ips)).await.unwrap();
    assert_eq!(attrs, Some(node_attrs(4)), "a node keeps its VTEP MAC over a restart");
    assert_eq!(acquire(&again, &node_attrs(4)).await, lease, "a node keeps its lease over a restart");
    observer.catch_up(bed).await;
    assert_eq!(observer.leases.get(&lease.key), Some(&lease));
    assert!(observer.removed.is_empty(), "a restart removes nothing: {:?}", observer.removed);
}

pub(super) async fn a_node_keeps_its_subnet_over_another_address(bed: &dyn StoreBed) {
    let lease = acquire(&open(bed, 5).await, &node_attrs(5)).await;
    let published = Some(lease.clone());
    let identity = Identity { subnets: Some(lease.key), published, ..Identity::default() };
    let moved = attrs_with(105, 5);
    let kept = acquire(&bed.open(5, identity).await, &moved).await;
    assert_eq!((kept.key, &kept.attrs), (lease.key, &moved), "what is proven to be its own stays a node's");
    if bed.keeps_created() {
        assert_eq!(kept.created, lease.created, "`created` is kept");
    }
}

pub(super) async fn nodes_share_no_address(bed: &dyn StoreBed) {
    let mut leases: Vec<Lease> = Vec::new();
    for node in 10..20 {
        leases.push(acquire(&open(bed, node).await, &node_attrs(node)).await);
    }
    let mut observer = Observer::new(bed).await;
    observer.catch_up(bed).await;
    for (at, lease) in leases.iter().enumerate() {
        assert_eq!(observer.leases.get(&lease.key), Some(lease), "a snapshot has every lease");
        let other = leases[..at].iter().find(|other| overlaps(other.key, lease.key));
        assert!(other.is_none(), "{lease} and {other:?} share an address");
    }
}

pub(super) async fn a_subnet_holds_no_underlay_address(bed: &dyn StoreBed) {
    if !bed.chooses_subnets() {
        return;
    }
    let probe = acquire(&open(bed, 21).await, &node_attrs(21)).await;
    // A node gets the subnets that it had, if they are free.
    let store = bed.open(20, probe.key.into()).await;
    let base = probe.key.subnets().iter().next().expect("a lease has a subnet").1.base();
    bed.delete(probe.key).await;
    store.avoid(&PerFamily { v4: Some(base), v6: None });
    let lease = acquire(&store, &node_attrs(20)).await;
    assert_ne!(lease.key, probe.key, "a subnet that holds an underlay address is no pod's");
}

pub(super) async fn a_watch_tells_every_change(bed: &dyn StoreBed) {
    let mut observer = Observer::new(bed).await;
    let lease = acquire(&open(bed, 30).await, &node_attrs(30)).await;
    let (key, name) = (lease.key, lease.key.to_string());
    observer.until_says("a record that was created", key, &node_attrs(30)).await;

    bed.write(key, &attrs_with(30, 31)).await;
    observer.until_says("a record that was changed", key, &attrs_with(30, 31)).await;

    bed.spoil(key).await;
    observer.until("a record that became unreadable", |it| it.unreadable.contains(&name)).await;
    assert_eq!(observer.leases[&key].attrs, attrs_with(30, 31), "its last good state stays");
    let mut status = observer.store.status();
    let counted = soon("the status", status.wait_for(|status| status.unreadable.count == 1)).await.is_ok();
    assert!(counted, "the status counts unreadable records");
    let mut late = Observer::new(bed).await;
    late.until("an unreadable record in a snapshot", |it| it.unreadable.contains(&name)).await;
    assert!(!late.removed.contains(&name), "what is unreadable is not gone");

    bed.write(key, &node_attrs(30)).await;
    observer.until_says("a record that became readable", key, &node_attrs(30)).await;
    let counted = soon("the status", status.wait_for(|status| status.unreadable.count == 0)).await.is_ok();
    assert!(counted, "the status counts unreadable records");

    bed.delete(key).await;
    observer.until("a record that was deleted", |it| !it.leases.contains_key(&key)).await;
    assert!(observer.removed.contains(&name), "by its key as the store has it: {:?}", observer.removed);
    late.until("each watch is told", |it| !it.leases.contains_key(&key)).await;
}

pub(super) async fn publishing_changes_the_record_and_nothing_else(bed: &dyn StoreBed) {
    let mut observer = Observer::new(bed).await;
    let store = open(bed, 40).await;
    let lease = acquire(&store, &node_attrs(40)).await;
    let same = soon("publish", store.publish(&lease, &lease.attrs)).await.expect("what is there already");
    assert_eq!(same, lease, "nothing to write");
    let moved = attrs_with(140, 41);
    let next = soon("publish", store.publish(&lease, &moved)).await.expect("a node publishes with its lease");
    assert_eq!((next.key, &next.attrs), (lease.key, &moved), "the subnet stays");
    observer.until_says("what was published", lease.key, &moved).await;
    assert_eq!(observer.leases[&lease.key], next, "all see what the node got");
    if bed.keeps_created() {
        assert_eq!(next.created, lease.created, "`created` is kept");
    }
    assert!(observer.removed.is_empty(), "a record is changed in place: {:?}", observer.removed);
}

pub(super) async fn further_ways_to_receive_are_kept(bed: &dyn StoreBed) {
    let mut observer = Observer::new(bed).await;
    let store = open(bed, 45).await;
    let one = receiving(45, r#"[{"Type":"udp"}]"#);
    let two = receiving(45, r#"[{"Type":"wireguard","Data":{"Port":1},"V6Data":{"Port":2}},{"Type":"udp"}]"#);
    let lease = acquire(&store, &one).await;
    assert_eq!(lease.attrs, one, "what was to be published is in the lease");
    observer.until_says("a lease with a further way to receive", lease.key, &one).await;

    let again = open(bed, 45).await;
    let found = soon("published_attrs", again.published_attrs(&one.public_ips)).await.unwrap();
    assert_eq!(found, Some(one.clone()), "a node finds after a restart by what it receives");
    assert_eq!(acquire(&again, &one).await, lease, "a node keeps its lease over a restart");

    let next = soon("publish", again.publish(&lease, &two)).await.expect("a node publishes with its lease");
    assert_eq!((next.key, &next.attrs), (lease.key, &two));
    observer.until_says("further ways to receive that alone changed", lease.key, &two).await;
    if bed.keeps_created() {
        assert_eq!(next.created, lease.created, "`created` is kept");
    }

    let mut own = OwnWatch::new(&again);
    let held = Held::new(&again, &next);
    bed.write(lease.key, &one).await;
    observer.catch_up(bed).await;
    observer.until_says("further ways to receive that somebody changed are put back", lease.key, &two).await;
    held.drop_now().await;
    own.end().await;

    soon("publish", again.publish(&next, &node_attrs(45))).await.expect("a node publishes with its lease");
    observer.until_says("a lease without further ways to receive", lease.key, &node_attrs(45)).await;
    assert!(observer.removed.is_empty(), "a record is changed in place: {:?}", observer.removed);
}

pub(super) async fn the_own_record_is_put_back(bed: &dyn StoreBed) {
    let mut observer = Observer::new(bed).await;
    let store = open(bed, 50).await;
    // A store may learn of its record by the watch.
    let mut own = OwnWatch::new(&store);
    let lease = acquire(&store, &node_attrs(50)).await;
    let held = Held::new(&store, &lease);
    observer.until_says("a lease that is held", lease.key, &lease.attrs).await;
    observer.catch_up(bed).await;
    assert_eq!(observer.leases[&lease.key].created, lease.created, "holding writes no record anew");
    let begun = term_while_held(bed, &store).await;

    bed.delete(lease.key).await;
    observer.catch_up(bed).await;
    observer.until_says("a deleted record is put back", lease.key, &lease.attrs).await;
    bed.write(lease.key, &attrs_with(150, 50)).await;
    observer.catch_up(bed).await;
    observer.until_says("a changed record is put back", lease.key, &lease.attrs).await;
    bed.spoil(lease.key).await;
    observer.catch_up(bed).await;
    observer.until_says("an unreadable record is put back", lease.key, &lease.attrs).await;

    assert_eq!(store.status().borrow().lease_lost, None, "a lease that was put back is not lost");
    let now = term_while_held(bed, &store).await;
    assert!(
        now.map(|it| it.expires) >= begun.map(|it| it.expires),
        "no term gets shorter: {begun:?}, {now:?}"
    );
    held.drop_now().await;
    own.end().await;
}

/// The term of the lease that a store holds, if its leases have one.
async fn term_while_held(bed: &dyn StoreBed, store: &Store) -> Option<LeaseTerm> {
    let mut status = store.status();
    if !bed.leases_end() {
        assert_eq!(status.borrow().lease_term, None, "a lease without an end has no term");
        return None;
    }
    let has_term = status.wait_for(|status| status.lease_term.is_some());
    let term =
        soon("the term of a lease that is held", has_term).await.expect("the store is there").lease_term;
    let now = SystemTime::now();
    let is_true = |term: &LeaseTerm| term.renewed <= now && term.expires > now;
    assert!(term.as_ref().is_some_and(is_true), "it was renewed before now, and ends later: {term:?}");
    term
}

/// Reads the watch of a store in the background, as an agent does.
struct OwnWatch(JoinHandle<()>);

impl OwnWatch {
    fn new(store: &Store) -> Self {
        use futures::StreamExt;

        let mut watch = store.watch_leases();
        Self(tokio::spawn(async move { while watch.next().await.is_some() {} }))
    }

    async fn end(&mut self) {
        self.0.abort();
        assert!((&mut self.0).await.is_err(), "a watch never ends");
    }
}

pub(super) async fn a_lease_of_another_node_is_lost(bed: &dyn StoreBed) {
    let store = open(bed, 60).await;
    let lease = acquire(&store, &node_attrs(60)).await;
    let mut own = OwnWatch::new(&store);
    let mut observer = Observer::new(bed).await;
    let held = Held::new(&store, &lease);
    bed.give_away(&lease, &node_attrs(61)).await;
    let ended = soon("renew_lease of a lease that another node has", held.0).await.unwrap();
    let key = match &ended {
        SubnetError::LeaseLost { key, .. } => Some(*key),
        _ => None,
    };
    assert_eq!(key, Some(lease.key), "a lease that another node has is lost: {ended}");
    let status = store.status().borrow().clone();
    assert!(status.lease_lost.is_some(), "the store sets `lease_lost` when it returns `LeaseLost`");
    assert_eq!(status.lease_term, None, "a lease that is lost has no term");

    let published = soon("publish", store.publish(&lease, &attrs_with(60, 62))).await;
    assert!(
        matches!(published, Err(SubnetError::LeaseLost { .. })),
        "what another has is not published with"
    );
    _ = soon("release_lease", store.release_lease(&lease)).await;
    observer.catch_up(bed).await;
    observer.until_says("another node's record stays", lease.key, &node_attrs(61)).await;

    let next = acquire(&store, &node_attrs(60)).await;
    assert!(!overlaps(next.key, lease.key), "a node that lost its lease gets another one");
    assert_eq!(store.status().borrow().lease_lost, None, "`lease_lost` ends with a new lease");
    own.end().await;
}

pub(super) async fn a_released_lease_is_gone(bed: &dyn StoreBed) {
    let mut observer = Observer::new(bed).await;
    let store = open(bed, 70).await;
    let lease = acquire(&store, &node_attrs(70)).await;
    observer.until_says("a lease that was acquired", lease.key, &lease.attrs).await;
    soon("release_lease", store.release_lease(&lease)).await.expect("its own lease");
    observer.until("a released lease", |it| !it.leases.contains_key(&lease.key)).await;
    soon("release_lease", store.release_lease(&lease)).await.expect("what is gone is no failure");
}

pub(super) async fn a_dropped_future_does_nothing_more(bed: &dyn StoreBed) {
    let mut observer = Observer::new(bed).await;
    let store = open(bed, 80).await;
    // After a call was dropped at any point, the next call returns the same single lease.
    for micros in [0, 1, 10, 100, 300, 1000, 3000, 10_000] {
        let limit = Duration::from_micros(micros);
        _ = tokio::time::timeout(limit, store.acquire_lease(&node_attrs(80))).await;
        // A request that was already sent still arrives.
        observer.catch_up(bed).await;
    }
    let lease = acquire(&store, &node_attrs(80)).await;
    observer.catch_up(bed).await;
    observer.until_says("a lease that was acquired", lease.key, &lease.attrs).await;
    let of_node = |it: &Observer| it.leases.values().filter(|it| it.attrs == lease.attrs).count();
    assert_eq!(of_node(&observer), 1, "a node whose calls were cut off has one lease");

    // A renewal that was dropped while it puts the record back must not do so after the release.
    for _ in 0..5 {
        let lease = acquire(&store, &node_attrs(80)).await;
        bed.delete(lease.key).await;
        let held = Held::new(&store, &lease);
        tokio::task::yield_now().await;
        held.drop_now().await;
        soon("release_lease", store.release_lease(&lease)).await.expect("its own lease");
    }
    // What still runs in the store is done by the time when another node has got a lease.
    let other = acquire(&open(bed, 81).await, &node_attrs(81)).await;
    observer.until_says("another node's lease", other.key, &other.attrs).await;
    observer.catch_up(bed).await;
    assert_eq!(of_node(&observer), 0, "a dropped renewal puts nothing back");
}
