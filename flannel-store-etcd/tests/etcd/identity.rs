//! A node finds its own lease again wherever it is now, holds no second one, and takes nobody else's.

use std::time::Duration;

use flannel_core::lease::{Lease, LeaseAttrs};
use flannel_core::subnet::{Identity, SubnetError, SubnetManager};
use flannel_lab::etcd::Etcd;
use flannel_store_etcd::EtcdSubnetManager;

use crate::common::*;

fn known_as(etcd: &Etcd, identity: Identity) -> EtcdSubnetManager {
    let mut options = options(etcd);
    options.identity = identity;
    EtcdSubnetManager::new(options).unwrap()
}

fn stored(lease: &Lease) -> Identity {
    Identity { subnets: Some(lease.key), published: Some(lease.clone()), ..Identity::default() }
}

/// What node 1 publishes at the address of another number.
fn moved(number: u16) -> LeaseAttrs {
    LeaseAttrs { public_ips: attrs(number).public_ips, ..attrs(1) }
}

/// What a backend without data publishes.
fn plain(number: u16) -> LeaseAttrs {
    LeaseAttrs {
        public_ips: attrs(number).public_ips,
        backend_type: "host-gw".into(),
        ..LeaseAttrs::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_changed_between_two_runs_costs_neither_subnet_nor_lease() {
    for (identity, before, after) in [
        (stored as fn(&Lease) -> Identity, attrs(1), moved(9)),
        (|lease: &Lease| Identity::from(lease.key), attrs(1), moved(9)),
        (stored, plain(1), plain(9)),
    ] {
        let etcd = start(V4);
        let lease = manager(&etcd).acquire_lease(&before).await.unwrap();
        let (was, revision) = (records(&etcd), etcd.revision().unwrap());
        let again = known_as(&etcd, identity(&lease));
        if identity(&lease).published.is_some() {
            let said = again.published_attrs(&after.public_ips).await.unwrap();
            assert_eq!(said.as_ref(), Some(&before), "the MAC comes from the own record");
        }
        let kept = again.acquire_lease(&after).await.unwrap();
        assert_eq!((kept.key, kept.created, &kept.attrs), (lease.key, lease.created, &after));
        let now = records(&etcd);
        assert_eq!(
            (now.len(), now[0].lease, now[0].value.as_str()),
            (1, was[0].lease, after.to_json().as_str())
        );
        assert_eq!(etcd.revision().unwrap(), revision + 1, "one write");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_lease_goes_in_the_transaction_that_publishes_the_new_one() {
    let etcd = start(V4);
    let id = etcd.grant_lease(Duration::from_hours(24)).unwrap();
    let other = attrs(3).to_json();
    let former = moved(9).to_json();
    etcd.put_on_lease(&path("10.5.8.0-24"), &other, id).unwrap();
    etcd.put_on_lease(&path("10.5.9.0-24"), &former, id).unwrap();
    // An operator's record stays, whatever it says.
    etcd.put(&path("10.5.10.0-24"), &former).unwrap();
    let own = own_record(&etcd, &moved(7));
    let identity = Identity { former_ips: attrs(9).public_ips.v4.into_iter().collect(), ..stored(&own) };
    let revision = etcd.revision().unwrap();
    let lease = known_as(&etcd, identity).acquire_lease(&moved(1)).await.unwrap();
    assert_eq!(lease.key, own.key);
    let left: Vec<String> = records(&etcd).into_iter().map(|it| it.key).collect();
    assert_eq!(left, [path("10.5.10.0-24"), path(own.key), path("10.5.8.0-24")]);
    assert_eq!(etcd.revision().unwrap(), revision + 1, "both in one revision");
}

/// Writes a record of node 1 as an earlier run left it.
fn own_record(etcd: &Etcd, attrs: &LeaseAttrs) -> Lease {
    let id = etcd.grant_lease(Duration::from_hours(24)).unwrap();
    let key = "10.5.107.0-24";
    etcd.put_on_lease(&path(key), &attrs.to_json(), id).unwrap();
    Lease { key: key.parse().unwrap(), attrs: attrs.clone(), created: 1 }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_swap_their_addresses_keep_their_leases() {
    let etcd = start(V4);
    let one = manager(&etcd).acquire_lease(&attrs(1)).await.unwrap();
    let two = manager(&etcd).acquire_lease(&attrs(2)).await.unwrap();
    let swapped = |node: u16, other: u16| LeaseAttrs { public_ips: attrs(other).public_ips, ..attrs(node) };
    let first = known_as(&etcd, stored(&one)).acquire_lease(&swapped(1, 2)).await.unwrap();
    let second = known_as(&etcd, stored(&two)).acquire_lease(&swapped(2, 1)).await.unwrap();
    assert_eq!((first.key, second.key, records(&etcd).len()), (one.key, two.key, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_node_publishes_is_not_published_again() {
    let etcd = start(V4);
    let other = manager(&etcd).acquire_lease(&attrs(1)).await.unwrap();
    let error = manager(&etcd).acquire_lease(&moved(2)).await.unwrap_err();
    assert!(matches!(error, SubnetError::Claimed { key, .. } if key == other.key), "{error}");
    assert_eq!(records(&etcd).len(), 1, "nothing was written");
    manager(&etcd).acquire_lease(&attrs(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_somebody_puts_into_our_record_is_put_right() {
    let etcd = start(V4);
    let manager = manager(&etcd);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let id = records(&etcd)[0].lease;
    let held = renew(&manager, &lease);
    etcd.put_on_lease(&path(lease.key), &moved(99).to_json(), id).unwrap();
    until(|| records(&etcd)[0].value == attrs(1).to_json()).await;
    assert!(!held.is_finished() && manager.status().borrow().lease_lost.is_none());
    // Another node that took the key has other data.
    etcd.put_on_lease(&path(lease.key), &attrs(2).to_json(), id).unwrap();
    let lost = soon(held).await.unwrap();
    assert!(matches!(lost, SubnetError::LeaseLost { .. }), "{lost}");
    assert_eq!(records(&etcd)[0].value, attrs(2).to_json());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_with_one_identity_do_not_overwrite_each_other_for_ever() {
    let etcd = start(V4);
    let (one, two) = (manager(&etcd), manager(&etcd));
    let lease = one.acquire_lease(&attrs(1)).await.unwrap();
    let copy = Lease { attrs: moved(2), ..lease.clone() };
    let (mut first, mut second) = (renew(&one, &lease), renew(&two, &copy));
    let lost = tokio::time::timeout(Duration::from_secs(120), async {
        tokio::select! { lost = &mut first => lost, lost = &mut second => lost }
    });
    let lost = lost.await.unwrap().unwrap().to_string();
    assert!(lost.contains("as a copy of this machine does"), "{lost}");
    first.abort();
    second.abort();
}
