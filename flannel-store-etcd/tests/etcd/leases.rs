//! Taking leases: exact bytes, adoption, reservations, races.

use std::collections::BTreeSet;
use std::time::Duration;

use flannel_core::addr::{Family, Subnet};
use flannel_core::lease::{Lease, LeaseUpdate};
use flannel_core::subnet::{SubnetError, SubnetManager};
use flannel_store_etcd::EtcdSubnetManager;

use crate::common::*;
use crate::storm;

#[tokio::test(flavor = "multi_thread")]
async fn creates_the_record_of_a_go_node_and_adopts_it_without_an_event() {
    let etcd = start(V4);
    assert_eq!(manager(&etcd).published_attrs(&attrs(1).public_ips).await.unwrap(), None);
    let lease = manager(&etcd).acquire_lease(&attrs(1)).await.unwrap();
    let stored = records(&etcd);
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].key, path(lease.key));
    assert_eq!(
        stored[0].value,
        r#"{"PublicIP":"198.18.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:01"}}"#
    );
    let etcd_lease = etcd.lease_info(stored[0].lease).unwrap();
    assert_eq!(etcd_lease.granted, Some(Duration::from_hours(24)));
    assert_eq!(etcd_lease.keys, [path(lease.key)]);

    let restarted = manager(&etcd);
    assert_eq!(restarted.published_attrs(&attrs(1).public_ips).await.unwrap(), Some(attrs(1)));
    assert_eq!(restarted.acquire_lease(&attrs(1)).await.unwrap(), lease);
    assert_eq!(records(&etcd), stored, "a restart changes nothing");

    // Other attributes: one event, on the same etcd lease.
    let mut changed = attrs(1);
    changed.backend_type = "host-gw".to_owned();
    let again = restarted.acquire_lease(&changed).await.unwrap();
    assert_eq!((again.key, again.created), (lease.key, lease.created));
    let now = records(&etcd);
    assert_eq!((now[0].version, now[0].lease), (2, stored[0].lease));
    assert_eq!(now[0].value, changed.to_json());
}

#[tokio::test(flavor = "multi_thread")]
async fn takes_over_what_go_nodes_wrote() {
    let etcd = start(DUAL);
    let key = "10.5.87.0-24&fd00:5:0:3d::-64";
    let value = r#"{"PublicIP":"192.168.77.11","PublicIPv6":"fd00:77::11","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"46:ee:50:0c:81:75"},"BackendV6Data":{"VNI":1,"VtepMAC":"3e:47:bc:f5:a9:24"}}"#;
    let id = etcd.grant_lease(Duration::from_hours(24)).unwrap();
    etcd.put_on_lease(&path(key), value, id).unwrap();
    let before = records(&etcd);
    let mine = flannel_core::lease::LeaseAttrs::from_json(value).unwrap();
    let manager = manager(&etcd);
    assert_eq!(manager.published_attrs(&mine.public_ips).await.unwrap().as_ref(), Some(&mine));
    assert_eq!(manager.acquire_lease(&mine).await.unwrap().key.to_string(), key);
    assert_eq!(records(&etcd), before);
    // A lease that was not granted for a day is put on one that is.
    let short = etcd.grant_lease(Duration::from_mins(10)).unwrap();
    etcd.put_on_lease(&path(key), value, short).unwrap();
    manager.acquire_lease(&mine).await.unwrap();
    let now = records(&etcd);
    assert_ne!(now[0].lease, short);
    assert_eq!(etcd.lease_info(now[0].lease).unwrap().granted, Some(Duration::from_hours(24)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_stays_one() {
    let etcd = start(V4);
    etcd.put(&path("10.5.109.0-24"), r#"{"PublicIP":"198.18.0.1"}"#).unwrap();
    let manager = manager(&etcd);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    assert_eq!(lease.key.to_string(), "10.5.109.0-24");
    let adopted = records(&etcd);
    assert_eq!((adopted[0].value.as_str(), adopted[0].lease), (attrs(1).to_json().as_str(), 0));
    let held = renew(&manager, &lease);
    manager.acquire_lease(&attrs(1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(records(&etcd), adopted);
    // Put back after a change, it is one still.
    etcd.put(&path("10.5.109.0-24"), r#"{"PublicIP":"198.18.0.1"}"#).unwrap();
    until(|| records(&etcd)[0].value == attrs(1).to_json()).await;
    assert_eq!(records(&etcd)[0].lease, 0);
    assert!(!held.is_finished());
    held.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_gains_ipv6_keeps_its_ipv4_subnets_in_one_step() {
    let etcd = start(V4);
    let old = manager(&etcd).acquire_lease(&attrs(1)).await.unwrap();
    let mut watch = manager(&etcd).watch_leases();
    next(&mut watch).await;
    etcd.put(&format!("{PREFIX}/config"), DUAL).unwrap();
    let new = manager(&etcd).acquire_lease(&dual_attrs(1)).await.unwrap();
    assert_eq!(new.subnet(Family::V4), old.subnet(Family::V4));
    assert!(new.subnet(Family::V6).is_some());
    let stored = records(&etcd);
    assert_eq!(stored.iter().map(|found| found.key.clone()).collect::<Vec<_>>(), [path(new.key)]);
    let (first, second) = (next(&mut watch).await, next(&mut watch).await);
    let mut expected = vec![LeaseUpdate::Removed(old.key.to_string()), LeaseUpdate::Put(new.clone())];
    assert!([&first, &second].into_iter().all(|update| {
        let at = expected.iter().position(|wanted| wanted == update);
        at.map(|at| expected.remove(at)).is_some()
    }));
    assert_eq!(i64::try_from(new.created).unwrap(), etcd.revision().unwrap(), "both in one revision");
    // And back.
    etcd.put(&format!("{PREFIX}/config"), V4).unwrap();
    assert_eq!(manager(&etcd).acquire_lease(&attrs(1)).await.unwrap().key, old.key);
    assert_eq!(records(&etcd).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn takes_the_previous_subnet_and_nothing_that_a_bad_record_occupies() {
    let etcd = start(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.4.0"}"#);
    etcd.put(&path("10.5.1.0-24"), "{").unwrap();
    etcd.put(&path("10.5.2.9-24"), "{}").unwrap();
    etcd.put(&path("x10.5.1.0-24"), "{}").unwrap();
    let mut options = options(&etcd);
    options.identity.subnets = "10.5.4.0-24".parse().ok();
    let manager = EtcdSubnetManager::new(options).unwrap();
    assert_eq!(manager.acquire_lease(&attrs(1)).await.unwrap().key.to_string(), "10.5.4.0-24");
    assert_eq!(manager.acquire_lease(&attrs(2)).await.unwrap().key.to_string(), "10.5.3.0-24");
    let error = manager.acquire_lease(&attrs(3)).await.unwrap_err();
    assert!(matches!(error, SubnetError::OutOfSubnets { .. }), "{error}");
    let status = manager.status();
    let bad: Vec<_> = status.borrow().unreadable.records.iter().map(|bad| bad.key.clone()).collect();
    assert_eq!(bad, ["10.5.1.0-24", "10.5.2.9-24", "x10.5.1.0-24"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_race_for_the_last_subnet() {
    for _ in 0..5 {
        let etcd = start(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.1.0"}"#);
        let (one, two) = (manager(&etcd), manager(&etcd));
        let (first, second) = (attrs(1), attrs(2));
        let (one, two) = tokio::join!(one.acquire_lease(&first), two.acquire_lease(&second));
        let lost = match (one, two) {
            (Ok(_), Err(lost)) | (Err(lost), Ok(_)) => lost,
            other => panic!("{other:?}"),
        };
        assert!(matches!(lost, SubnetError::OutOfSubnets { .. }), "{lost}");
        assert_eq!(records(&etcd).len(), 1);
    }
}

async fn race(config: &str, nodes: u16) -> (flannel_lab::etcd::Etcd, Vec<Lease>, Vec<SubnetError>) {
    let etcd = start(config);
    let tasks: Vec<_> = (1..=nodes)
        .map(|node| {
            let manager = manager(&etcd);
            tokio::spawn(async move { manager.acquire_lease(&dual_attrs(node)).await })
        })
        .collect();
    let (mut leases, mut errors) = (Vec::new(), Vec::new());
    for task in tasks {
        match task.await.unwrap() {
            Ok(lease) => leases.push(lease),
            Err(error) => errors.push(error),
        }
    }
    (etcd, leases, errors)
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_nodes_join_at_once_while_some_die_and_some_are_late() {
    let report = storm::storm(&start(storm::STORM_V4), 300, attrs).await;
    assert!(report.requests_per_join() < 6.0, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_dual_stack_nodes_join_at_once_while_some_die_and_some_are_late() {
    let report = storm::storm(&start(storm::STORM_DUAL), 300, dual_attrs).await;
    assert!(report.requests_per_join() < 6.0, "{report}");
}

/// Nodes whose IPv6 subnets are no twins of their IPv4 subnets, as Go nodes chose them, in a store that was lost.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_nodes_with_subnets_that_are_no_pairs_share_none() {
    let etcd = start(DUAL);
    let tasks: Vec<_> = (1..=50)
        .map(|node: u16| {
            let mut options = options(&etcd);
            options.identity.subnets =
                format!("10.5.{node}.0-24&fd00:5:0:{:x}::-64", node / 2 + 99).parse().ok();
            let manager = EtcdSubnetManager::new(options).unwrap();
            tokio::spawn(async move { manager.acquire_lease(&dual_attrs(node)).await.unwrap() })
        })
        .collect();
    let mut leases = Vec::new();
    for task in tasks {
        leases.push(task.await.unwrap());
    }
    for (node, lease) in (1..).zip(&leases) {
        assert_eq!(lease.subnet(Family::V4).unwrap().to_string(), format!("10.5.{node}.0/24"));
    }
    let subnets: BTreeSet<Subnet> = leases.iter().filter_map(|lease| lease.subnet(Family::V6)).collect();
    assert_eq!(subnets.len(), 50, "IPv6 subnets are given twice");
    assert_eq!(records(&etcd).len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_nodes_than_subnets_fill_the_range_exactly() {
    let small = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.20.0"}"#;
    let (_etcd, leases, errors) = race(small, 30).await;
    assert_eq!((leases.len(), errors.len()), (20, 10));
    assert!(errors.iter().all(|error| matches!(error, SubnetError::OutOfSubnets { .. })), "{errors:?}");
    let subnets: BTreeSet<Subnet> = leases.iter().filter_map(|lease| lease.subnet(Family::V4)).collect();
    assert_eq!(subnets.len(), 20, "subnets are given twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn ipv6_alone_is_refused_beside_ipv4() {
    let etcd = start(V6);
    etcd.put(&path("10.5.3.0-24"), &attrs(9).to_json()).unwrap();
    let manager = manager(&etcd);
    let mut mine = dual_attrs(1);
    mine.public_ips.v4 = None;
    let error = manager.acquire_lease(&mine).await.unwrap_err();
    assert!(matches!(&error, SubnetError::Conflict(text) if text.contains("10.5.3.0-24")), "{error}");
    etcd.del(&path("10.5.3.0-24")).unwrap();
    let lease = manager.acquire_lease(&mine).await.unwrap();
    assert!(lease.key.to_string().starts_with("0.0.0.0-0&fd00:5:"), "{lease}");
    let stored = records(&etcd);
    assert!(stored[0].value.starts_with(r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd77::1""#));
    assert_eq!(manager.acquire_lease(&mine).await.unwrap(), lease);
    let mut other = dual_attrs(2);
    other.public_ips.v4 = None;
    assert_ne!(manager.acquire_lease(&other).await.unwrap().key, lease.key);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_leases_is_written() {
    let etcd = start(V4);
    let manager = manager(&etcd);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let held = renew(&manager, &lease);
    let mut watch = manager.watch_leases();
    next(&mut watch).await;
    etcd.del(&path(lease.key)).unwrap();
    until(|| records(&etcd).len() == 1).await;
    let all = etcd.list("").unwrap();
    let keys: Vec<_> = all.iter().map(|found| found.key.clone()).collect();
    assert_eq!(keys, [format!("{PREFIX}/config"), path(lease.key)]);
    held.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_stores_are_read_in_pages() {
    let etcd = start(r#"{"Network":"10.0.0.0/8"}"#);
    // 3,000 leases of 2 kB each are more than one message may hold.
    let client = etcd_client::Client::connect([etcd.endpoint()], None).await.unwrap();
    let filler = "x".repeat(2000);
    for chunk in (0..3000_u32).collect::<Vec<_>>().chunks(100) {
        let puts = chunk.iter().map(|index| {
            let key = path(format!("10.{}.{}.0-24", index / 256 + 1, index % 256));
            let value =
                format!(r#"{{"PublicIP":"198.18.{}.{}","Filler":"{filler}"}}"#, index / 256, index % 256);
            etcd_client::TxnOp::put(key, value, None)
        });
        let txn = etcd_client::Txn::new().and_then(puts.collect::<Vec<_>>());
        client.kv_client().txn(txn).await.unwrap();
    }
    let manager = manager(&etcd);
    let mut watch = manager.watch_leases();
    let LeaseUpdate::Snapshot { leases, unreadable } = next(&mut watch).await else { panic!() };
    assert_eq!((leases.len(), unreadable.len()), (3000, 0));
    let mine = manager.acquire_lease(&attrs(60_000)).await.unwrap();
    assert_eq!(next(&mut watch).await, LeaseUpdate::Put(mine));
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_again_under_the_same_key_in_one_write() {
    let etcd = start(DUAL);
    let manager = manager(&etcd);
    let lease = manager.acquire_lease(&dual_attrs(1)).await.unwrap();
    let before = records(&etcd);
    let mut moved = dual_attrs(1);
    moved.public_ips = dual_attrs(7).public_ips;
    let again = manager.publish(&lease, &moved).await.unwrap();
    assert_eq!((again.key, again.created, &again.attrs), (lease.key, lease.created, &moved));
    let after = records(&etcd);
    assert_eq!((after[0].version, after[0].lease), (2, before[0].lease), "one write, on the same etcd lease");
    assert_eq!(after[0].value, moved.to_json());
    assert_eq!(manager.publish(&lease, &moved).await.unwrap(), again, "it is there already");
    assert_eq!(records(&etcd), after);
    // A deleted record comes back, and another node's stays.
    etcd.del(&path(lease.key)).unwrap();
    assert_eq!(manager.publish(&again, &dual_attrs(1)).await.unwrap().key, lease.key);
    etcd.put(&path(lease.key), &dual_attrs(9).to_json()).unwrap();
    let lost = manager.publish(&lease, &moved).await.unwrap_err();
    assert!(matches!(lost, SubnetError::LeaseLost { .. }), "{lost}");
    assert!(manager.status().borrow().lease_lost.is_some());
    assert_eq!(records(&etcd)[0].value, dual_attrs(9).to_json());
}
