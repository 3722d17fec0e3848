//! Keeping the own lease.

use std::time::Duration;

use flannel_core::clock::{Clock, ClockHand};
use flannel_core::lease::{Lease, LeaseUpdate};
use flannel_core::subnet::{SubnetError, SubnetManager};
use flannel_lab::etcd::Etcd;
use flannel_store_etcd::{EtcdOptions, EtcdSubnetManager, EtcdTimeouts};
use tokio::task::JoinHandle;

use crate::common::*;
use crate::proxy::Proxy;

#[tokio::test(flavor = "multi_thread")]
async fn renews_the_same_etcd_lease_without_an_event() {
    let etcd = start(V4);
    let mut options = options(&etcd);
    (options.ttl, options.renew_margin) = (Duration::from_secs(4), Duration::from_secs(2));
    let manager = EtcdSubnetManager::new(options).unwrap();
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let before = records(&etcd);
    let held = renew(&manager, &lease);
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(records(&etcd), before);
    assert!(!held.is_finished());
    // A look before, and one after that says how long to wait.
    let requests = manager.status().borrow().requests.read();
    let sent = |request: &str| requests.iter().find(|it| it.request == request).map_or(0, |it| it.sent);
    let (renewals, looks) = (sent("keep the etcd lease alive"), sent("read the etcd lease"));
    assert!(renewals >= 2 && looks <= 2 * renewals + 2, "{renewals} renewals, {looks} looks");
    held.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_lease_comes_back() {
    let etcd = start(V4);
    let manager = manager(&etcd);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let held = renew(&manager, &lease);
    for _ in 0..2 {
        etcd.del(&path(lease.key)).unwrap();
        until(|| etcd.get(&path(lease.key)).unwrap() == Some(attrs(1).to_json())).await;
    }
    // The etcd lease goes, and the key with it.
    let id = records(&etcd)[0].lease;
    etcd.revoke_lease(id).unwrap();
    until(|| etcd.get(&path(lease.key)).unwrap() == Some(attrs(1).to_json())).await;
    assert_ne!(records(&etcd)[0].lease, id);
    assert!(!held.is_finished() && manager.status().borrow().lease_lost.is_none());
    held.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_lease_is_put_back() {
    let etcd = start(V4);
    let manager = manager(&etcd);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let id = records(&etcd)[0].lease;
    let held = renew(&manager, &lease);
    for value in [r#"{"PublicIP":"198.18.0.1"}"#, "{"] {
        etcd.put_on_lease(&path(lease.key), value, id).unwrap();
        until(|| etcd.get(&path(lease.key)).unwrap() == Some(attrs(1).to_json())).await;
        assert_eq!(records(&etcd)[0].lease, id);
    }
    assert!(!held.is_finished());
    held.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_another_node_has_is_lost() {
    let etcd = start(V4);
    for overlapping in [false, true] {
        let manager = manager(&etcd);
        let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
        let held = renew(&manager, &lease);
        tokio::time::sleep(Duration::from_millis(200)).await;
        if overlapping {
            etcd.put(&path("10.5.0.0-16"), &attrs(9).to_json()).unwrap();
            etcd.del(&path(lease.key)).unwrap();
        } else {
            etcd.put(&path(lease.key), &attrs(9).to_json()).unwrap();
        }
        let error = soon(held).await.unwrap();
        assert!(matches!(&error, SubnetError::LeaseLost { holder, .. } if holder == "198.18.0.9"), "{error}");
        assert!(manager.status().borrow().lease_lost.as_ref().unwrap().contains("198.18.0.9"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ran_out_in_an_outage_comes_back() {
    let mut etcd = start(V4);
    let mut options = options(&etcd);
    (options.ttl, options.renew_margin) = (Duration::from_secs(2), Duration::from_secs(1));
    let manager = EtcdSubnetManager::new(options).unwrap();
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let held = renew(&manager, &lease);
    tokio::time::sleep(Duration::from_millis(200)).await;
    etcd.kill().unwrap();
    until(|| !manager.status().borrow().connected).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    etcd.restart().unwrap();
    until(|| manager.status().borrow().connected).await;
    // The new server grants old leases their time again; take the key away as its end would.
    if let Some(found) = records(&etcd).first() {
        etcd.revoke_lease(found.lease).unwrap();
    }
    until(|| etcd.get(&path(lease.key)).unwrap() == Some(attrs(1).to_json())).await;
    assert!(!held.is_finished());
    held.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn releases_the_own_lease_and_no_other() {
    let etcd = start(V4);
    let manager = manager(&etcd);
    let other = manager.acquire_lease(&attrs(2)).await.unwrap();
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    etcd.put(&path(lease.key), &attrs(9).to_json()).unwrap();
    let lost = manager.release_lease(&lease).await.unwrap_err();
    assert!(matches!(&lost, SubnetError::LeaseLost { holder, .. } if holder == "198.18.0.9"), "{lost}");
    etcd.put(&path(lease.key), "{").unwrap();
    assert!(matches!(manager.release_lease(&lease).await.unwrap_err(), SubnetError::Conflict(_)));
    assert_eq!(records(&etcd).len(), 2);
    etcd.put(&path(lease.key), &attrs(1).to_json()).unwrap();
    for _ in 0..2 {
        manager.release_lease(&lease).await.unwrap();
        let left = records(&etcd);
        assert_eq!(left.iter().map(|left| left.key.clone()).collect::<Vec<_>>(), [path(other.key)]);
    }
}

/// Nobody tells that a connection comes from an address which the host has no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_address_is_published_over_a_new_connection() {
    let etcd = start(V4);
    let proxy = Proxy::to(etcd.endpoint()).await;
    // None of these may be what helps.
    let long = Duration::from_mins(10);
    let timeouts = EtcdTimeouts { request: long, probe: long, probe_answer: long, ..EtcdTimeouts::default() };
    let manager = EtcdSubnetManager::new(EtcdOptions { timeouts, ..EtcdOptions::new([&proxy.url]) }).unwrap();
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let mut watch = manager.watch_leases();
    assert!(matches!(next(&mut watch).await, LeaseUpdate::Snapshot { .. }));
    // So that the stream is open.
    etcd.put(&path("10.5.8.0-24"), &attrs(8).to_json()).unwrap();
    assert!(matches!(next(&mut watch).await, LeaseUpdate::Put(_)));
    proxy.forget();
    let published = soon(manager.publish(&lease, &attrs(2))).await.unwrap();
    assert_eq!(etcd.get(&path(lease.key)).unwrap(), Some(attrs(2).to_json()));
    assert_eq!(published.attrs, attrs(2));
    etcd.put(&path("10.5.9.0-24"), &attrs(9).to_json()).unwrap();
    let key = "10.5.9.0-24".parse().unwrap();
    while !matches!(next(&mut watch).await, LeaseUpdate::Put(lease) if lease.key == key) {}
    assert!(manager.status().borrow().connected);
}

/// An agent that holds its lease, on a machine whose clock tells of a suspend when the test says so.
struct Suspended {
    etcd: Etcd,
    proxy: Proxy,
    manager: EtcdSubnetManager,
    hand: ClockHand,
    lease: Lease,
    held: JoinHandle<SubnetError>,
}

impl Suspended {
    async fn new() -> Self {
        let etcd = start(V4);
        let proxy = Proxy::to(etcd.endpoint()).await;
        // None of these may be what helps.
        let long = Duration::from_mins(10);
        let timeouts =
            EtcdTimeouts { request: long, probe: long, probe_answer: long, ..EtcdTimeouts::default() };
        let (clock, hand) = Clock::with_hand();
        let options = EtcdOptions { timeouts, clock, ..EtcdOptions::new([&proxy.url]) };
        let manager = EtcdSubnetManager::new(options).unwrap();
        let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
        let held = renew(&manager, &lease);
        Self { etcd, proxy, manager, hand, lease, held }
    }
}

/// While a machine is suspended its timers stand still, but not the store's, and whoever keeps track of connections on the
/// way forgets them.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_suspend_the_own_lease_and_all_others_are_looked_at_at_once() {
    let Suspended { etcd, proxy, manager, hand, lease, held } = Suspended::new().await;
    let mut watch = manager.watch_leases();
    assert!(matches!(next(&mut watch).await, LeaseUpdate::Snapshot { .. }));
    // So that the streams are open: the own record comes back, and another is seen.
    etcd.del(&path(lease.key)).unwrap();
    until(|| etcd.get(&path(lease.key)).unwrap() == Some(attrs(1).to_json())).await;
    let key = "10.5.8.0-24".parse().unwrap();
    etcd.put(&path(key), &attrs(8).to_json()).unwrap();
    while !matches!(next(&mut watch).await, LeaseUpdate::Put(lease) if lease.key == key) {}
    tokio::time::sleep(Duration::from_millis(500)).await;

    proxy.forget();
    etcd.revoke_lease(records(&etcd).iter().find(|found| found.key == path(lease.key)).unwrap().lease)
        .unwrap();
    etcd.del(&path(key)).unwrap();
    assert!(is_quiet(&mut watch, Duration::from_millis(500)).await, "nobody can know");
    // A moment, or a clock that is set, is no reason to give up connections.
    hand.set_wall_clock();
    hand.suspend(Duration::from_millis(100));
    assert!(is_quiet(&mut watch, Duration::from_millis(500)).await);
    hand.suspend(Duration::from_hours(25));
    until(|| etcd.get(&path(lease.key)).unwrap() == Some(attrs(1).to_json())).await;
    // The one that went meanwhile went for the watch, too, whichever way it learns of it.
    loop {
        match next(&mut watch).await {
            LeaseUpdate::Removed(name) if name == "10.5.8.0-24" => break,
            LeaseUpdate::Snapshot { leases, .. } if leases.iter().all(|lease| lease.key != key) => break,
            _ => {}
        }
    }
    assert!(!held.is_finished() && manager.status().borrow().connected);
    held.abort();
}

/// What is left of an etcd lease is asked of the store after a suspend, not counted by a timer that stood still.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_suspend_a_lease_is_renewed_that_is_about_to_end() {
    let Suspended { etcd, proxy, hand, lease, held, .. } = Suspended::new().await;
    etcd.del(&path(lease.key)).unwrap();
    until(|| etcd.get(&path(lease.key)).unwrap() == Some(attrs(1).to_json())).await;
    // Not much is left of 20 seconds, of which the agent, asleep, saw nothing pass. Nine tenths are the margin.
    tokio::time::sleep(Duration::from_millis(500)).await;
    proxy.forget();
    let id = etcd.grant_lease(Duration::from_secs(20)).unwrap();
    etcd.put_on_lease(&path(lease.key), &attrs(1).to_json(), id).unwrap();
    let left = || etcd.lease_info(id).unwrap().left.unwrap();
    let few = Duration::from_secs(16);
    until(|| left() <= few).await;
    hand.suspend(Duration::from_hours(23));
    until(|| left() > few).await;
    held.abort();
}
