//! A start asks for what this node published, for a lease and for the watch. One list of all leases serves as many of the three as it
//! can, and what has changed since it was read counts all the same.

use std::collections::BTreeSet;

use flannel_core::lease::LeaseUpdate;
use flannel_core::subnet::{LeaseStream, SubnetError, SubnetManager};
use flannel_lab::etcd::Etcd;
use flannel_store_etcd::EtcdSubnetManager;

use crate::common::*;

/// A network with one subnet.
const ONE: &str = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.100.0","SubnetMax":"10.5.100.0","Backend":{"Type":"vxlan"}}"#;

fn lists(manager: &EtcdSubnetManager) -> u64 {
    let requests = manager.status().borrow().requests.read();
    requests.iter().filter(|count| count.request.contains("list leases")).map(|count| count.sent).sum()
}

/// A manager that has asked what node 1 published.
async fn asked(etcd: &Etcd) -> EtcdSubnetManager {
    let manager = manager(etcd);
    manager.published_attrs(&attrs(1).public_ips).await.unwrap();
    manager
}

/// Follows a new watch until it shows these leases.
async fn until_shown(watch: &mut LeaseStream, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|key| (*key).to_owned()).collect();
    let mut shown = BTreeSet::new();
    while shown != expected {
        match next(watch).await {
            LeaseUpdate::Snapshot { leases, .. } => {
                shown = leases.iter().map(|lease| lease.key.to_string()).collect();
            }
            LeaseUpdate::Put(lease) => _ = shown.insert(lease.key.to_string()),
            LeaseUpdate::Removed(key) => _ = shown.remove(&key),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_lists_once_and_a_join_twice() {
    let etcd = start(V4);
    etcd.put(&path("10.5.7.0-24"), &attrs(7).to_json()).unwrap();
    let joins = asked(&etcd).await;
    let lease = joins.acquire_lease(&attrs(1)).await.unwrap();
    until_shown(&mut joins.watch_leases(), &["10.5.7.0-24", &lease.key.to_string()]).await;
    assert_eq!(lists(&joins), 2);

    let restarts = asked(&etcd).await;
    assert_eq!(restarts.acquire_lease(&attrs(1)).await.unwrap(), lease);
    let mut watch = restarts.watch_leases();
    let LeaseUpdate::Snapshot { leases, .. } = next(&mut watch).await else { panic!("no snapshot") };
    assert!(leases.contains(&lease) && leases.len() == 2, "{leases:?}");
    assert_eq!(lists(&restarts), 1);
    // The watch begins where the list was read.
    etcd.del(&path("10.5.7.0-24")).unwrap();
    assert_eq!(next(&mut watch).await, LeaseUpdate::Removed("10.5.7.0-24".to_owned()));
    // Another watch needs a list of its own.
    until_shown(&mut restarts.watch_leases(), &[&lease.key.to_string()]).await;
    assert_eq!(lists(&restarts), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_deleted_or_changed_before_it_is_adopted_is_written() {
    let etcd = start(V4);
    let lease = manager(&etcd).acquire_lease(&attrs(1)).await.unwrap();
    let (name, restarts) = (path(lease.key), asked(&etcd).await);
    etcd.del(&name).unwrap();
    let again = restarts.acquire_lease(&attrs(1)).await.unwrap();
    assert_eq!(etcd.get(&path(again.key)).unwrap(), Some(attrs(1).to_json()));

    let (name, restarts) = (path(again.key), asked(&etcd).await);
    etcd.put_in_place(&name, &attrs(1).to_json().replace(":1}", ":2}")).unwrap();
    let changed = restarts.acquire_lease(&attrs(1)).await.unwrap();
    assert_eq!(etcd.get(&path(changed.key)).unwrap(), Some(attrs(1).to_json()));
    // The watch shows it as it is now.
    let LeaseUpdate::Snapshot { leases, .. } = next(&mut restarts.watch_leases()).await else { panic!() };
    assert_eq!(leases, [changed]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subnet_that_is_taken_or_set_free_after_the_list_counts() {
    let etcd = start(ONE);
    let late = asked(&etcd).await;
    let other = manager(&etcd);
    let lease = other.acquire_lease(&attrs(2)).await.unwrap();
    let refused = late.acquire_lease(&attrs(1)).await;
    assert!(matches!(refused, Err(SubnetError::OutOfSubnets { .. })), "{refused:?}");

    let late = asked(&etcd).await;
    other.release_lease(&lease).await.unwrap();
    assert_eq!(late.acquire_lease(&attrs(1)).await.unwrap().key, lease.key);
    assert_eq!(records(&etcd).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_what_changed_after_the_list() {
    let etcd = start(V4);
    for compacted in [false, true] {
        etcd.put(&path("10.5.7.0-24"), &attrs(7).to_json()).unwrap();
        let lease = manager(&etcd).acquire_lease(&attrs(1)).await.unwrap();
        let restarts = asked(&etcd).await;
        restarts.acquire_lease(&attrs(1)).await.unwrap();
        etcd.del(&path("10.5.7.0-24")).unwrap();
        etcd.put(&path("10.5.8.0-24"), &attrs(8).to_json()).unwrap();
        if compacted {
            etcd.compact().unwrap();
        }
        let own = lease.key.to_string();
        until_shown(&mut restarts.watch_leases(), &[&own, "10.5.8.0-24"]).await;
        assert_eq!(lists(&restarts), if compacted { 2 } else { 1 });
    }
}
