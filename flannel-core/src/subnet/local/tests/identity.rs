//! A node finds its own record again wherever it is now, holds no second one, and takes nobody else's.

use super::*;

fn known_as(dir: &TempDir, identity: Identity) -> LocalSubnetManager {
    LocalSubnetManager::new(LocalOptions { identity, ..LocalOptions::new(dir.path()) })
}

fn stored(lease: &Lease) -> Identity {
    Identity { subnets: Some(lease.key), published: Some(lease.clone()), ..Identity::default() }
}

/// What node 1 publishes at the address of another number.
fn moved(node: u8) -> LeaseAttrs {
    LeaseAttrs { public_ips: attrs(node).public_ips, ..attrs(1) }
}

#[tokio::test]
async fn an_address_that_changed_between_two_runs_costs_no_second_record() {
    let plain = |node| LeaseAttrs { public_ips: attrs(node).public_ips, ..LeaseAttrs::default() };
    for (identity, before, after) in [
        (stored as fn(&Lease) -> Identity, attrs(1), moved(9)),
        (|lease: &Lease| Identity::from(lease.key), attrs(1), moved(9)),
        (stored, plain(1), plain(9)),
    ] {
        let dir = store(V4);
        let lease = manager(&dir).acquire_lease(&before).await.unwrap();
        let again = known_as(&dir, identity(&lease));
        let kept = again.acquire_lease(&after).await.unwrap();
        assert_eq!((kept.key, &kept.attrs), (lease.key, &after));
        assert_eq!(names(&dir), BTreeSet::from([lease.key.to_string()]));
        assert_eq!(fs::read_to_string(path(&dir, &lease.key.to_string())).unwrap(), after.to_json());
    }
}

#[tokio::test]
async fn a_former_record_goes_and_a_reservation_stays() {
    let dir = store(V4);
    put(&dir, "10.5.107.0-24", &moved(7).to_json());
    put(&dir, "10.5.8.0-24", &attrs(3).to_json());
    put(&dir, "10.5.9.0-24", &moved(9).to_json());
    put(&dir, "10.5.10.0-24", &moved(9).to_json());
    fs::set_permissions(path(&dir, "10.5.10.0-24"), Permissions::from_mode(0o400)).unwrap();
    let own = Lease { key: "10.5.107.0-24".parse().unwrap(), attrs: moved(7), created: 1 };
    let identity = Identity { former_ips: attrs(9).public_ips.v4.into_iter().collect(), ..stored(&own) };
    assert_eq!(known_as(&dir, identity).acquire_lease(&moved(1)).await.unwrap().key, own.key);
    let left = ["10.5.107.0-24", "10.5.8.0-24", "10.5.10.0-24"].map(str::to_owned);
    assert_eq!(names(&dir), BTreeSet::from(left));
}

#[tokio::test]
async fn what_another_node_publishes_is_not_published_again() {
    let dir = store(V4);
    let other = manager(&dir).acquire_lease(&attrs(1)).await.unwrap();
    let error = manager(&dir).acquire_lease(&moved(2)).await.unwrap_err();
    assert!(matches!(error, SubnetError::Claimed { key, .. } if key == other.key), "{error}");
    assert_eq!(names(&dir).len(), 1, "nothing was written");
}

#[tokio::test]
async fn an_address_that_somebody_puts_into_our_record_is_put_right() {
    let dir = store(V4);
    let manager = manager(&dir);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let held = renew(&manager, &lease);
    let file = path(&dir, &lease.key.to_string());
    tokio::time::sleep(Duration::from_millis(100)).await;
    fs::write(&file, moved(99).to_json()).unwrap();
    until(|| fs::read_to_string(&file).is_ok_and(|text| text == attrs(1).to_json())).await;
    assert!(!held.is_finished() && manager.status().borrow().lease_lost.is_none());
    held.abort();
}

#[tokio::test]
async fn two_agents_with_one_identity_do_not_overwrite_each_other_for_ever() {
    let dir = store(V4);
    let (one, two) = (manager(&dir), manager(&dir));
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
