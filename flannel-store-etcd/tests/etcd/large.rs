//! Values that no message is large enough for, or that are larger than any that is read.

use std::collections::BTreeSet;

use etcd_client::{Client, PutOptions};
use flannel_core::error::chain;
use flannel_core::lease::{Lease, LeaseUpdate};
use flannel_core::subnet::{SubnetError, SubnetManager};
use flannel_lab::etcd::{Etcd, EtcdOptions as LabOptions};

use crate::common::*;

async fn client(etcd: &Etcd) -> Client {
    Client::connect([etcd.endpoint()], None).await.unwrap()
}

/// Puts a value of so many bytes where leases are.
async fn put(client: &mut Client, name: &str, bytes: usize) {
    client.put(path(name), vec![b'x'; bytes], None).await.unwrap();
}

/// A server that takes values of 16 MB, as some are told to.
fn server_of_large_values() -> Etcd {
    let args = vec![format!("--max-request-bytes={}", 16 << 20)];
    let etcd = Etcd::start(quick(LabOptions { args, ..LabOptions::default() })).unwrap();
    etcd.put(&format!("{PREFIX}/config"), V4).unwrap();
    etcd
}

/// A snapshot's leases, and the names of what can't be read.
fn snapshot(update: LeaseUpdate) -> (Vec<Lease>, BTreeSet<String>) {
    let LeaseUpdate::Snapshot { leases, unreadable } = update else { panic!("{update:?}") };
    (leases, unreadable.named().map(|bad| bad.key).collect())
}

/// 195 values of 1.4 MB are more than fits into any message that an agent reads. They are named, and cost no lease.
#[tokio::test(flavor = "multi_thread")]
async fn many_large_values_keep_nobody_from_a_lease() {
    let etcd = start(V4);
    let first = manager(&etcd).acquire_lease(&attrs(1)).await.unwrap();
    let mut client = client(&etcd).await;
    let names: BTreeSet<String> = (0..195).map(|number| format!("garbage-{number:03}")).collect();
    for name in &names {
        put(&mut client, name, 1_400_000).await;
    }
    // It lies behind all of them.
    client.put(path("zzz"), "no lease", None).await.unwrap();
    let manager = manager(&etcd);
    let second = manager.acquire_lease(&attrs(2)).await.unwrap();
    assert_ne!(first.key, second.key);
    let before = etcd.requests().unwrap()["Range"];
    let mut watch = manager.watch_leases();
    let (leases, bad) = snapshot(next(&mut watch).await);
    assert_eq!(
        leases.iter().map(|lease| lease.key).collect::<BTreeSet<_>>(),
        BTreeSet::from([first.key, second.key])
    );
    assert_eq!(bad, names.iter().cloned().chain(["zzz".to_owned()]).collect());
    let asked = etcd.requests().unwrap()["Range"] - before;
    assert!(asked <= 2 * 195 + 30, "{asked} requests for a list");
    assert!(manager.status().borrow().connected);

    // The watch goes on.
    put(&mut client, "garbage-000", 1_400_001).await;
    let update = next(&mut watch).await;
    assert!(
        matches!(&update, LeaseUpdate::Unreadable(bad) if bad.key == "garbage-000"),
        "{}",
        update_name(&update)
    );
    let third = self::manager(&etcd).acquire_lease(&attrs(3)).await.unwrap();
    assert_eq!(next(&mut watch).await, LeaseUpdate::Put(third));
}

fn update_name(update: &LeaseUpdate) -> String {
    format!("{update:?}").chars().take(200).collect()
}

/// A record of 64 KiB is read, and refused by name if it is longer, whatever the page is that it comes in.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_has_64_kib_at_most() {
    let etcd = start(V4);
    let filled = |bytes: usize| {
        let text = attrs(1).to_json();
        let filler = bytes - text.len() - r#","x":"""#.len();
        format!(r#"{},"x":"{}"}}"#, text.strip_suffix('}').unwrap(), "x".repeat(filler))
    };
    let mut client = client(&etcd).await;
    for (key, bytes) in [("10.5.251.0-24", 64 << 10), ("10.5.252.0-24", (64 << 10) + 1)] {
        assert_eq!(filled(bytes).len(), bytes);
        client.put(path(key), filled(bytes), None).await.unwrap();
    }
    let (leases, bad) = snapshot(next(&mut manager(&etcd).watch_leases()).await);
    let keys: Vec<String> = leases.iter().map(|lease| lease.key.to_string()).collect();
    assert_eq!(keys, ["10.5.251.0-24"]);
    assert_eq!(bad, BTreeSet::from(["10.5.252.0-24".to_owned()]));
}

/// A value that fits into no message: named by a list, also where a watch came upon it.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_no_watch_can_carry_is_named() {
    let etcd = server_of_large_values();
    let manager = manager(&etcd);
    let own = manager.acquire_lease(&attrs(1)).await.unwrap();
    let mut watch = manager.watch_leases();
    assert_eq!(snapshot(next(&mut watch).await), (vec![own.clone()], BTreeSet::new()));
    let mut client = client(&etcd).await;
    put(&mut client, "10.5.200.0-24", 6 << 20).await;
    let name = BTreeSet::from(["10.5.200.0-24".to_owned()]);
    assert_eq!(snapshot(next(&mut watch).await), (vec![own.clone()], name.clone()));
    let told = manager.status().borrow().unreadable.clone();
    assert!(told.count == 1 && told.records[0].reason.contains("larger than any that is read"), "{told:?}");
    // Whoever starts now sees the same, and takes no subnet of it.
    let other = self::manager(&etcd);
    assert_eq!(snapshot(next(&mut other.watch_leases()).await), (vec![own], name));
    let second = other.acquire_lease(&attrs(2)).await.unwrap();
    assert_ne!(second.key.to_string(), "10.5.200.0-24");
    assert_eq!(next(&mut watch).await, LeaseUpdate::Put(second));
    client.delete(path("10.5.200.0-24"), None).await.unwrap();
    assert_eq!(next(&mut watch).await, LeaseUpdate::Removed("10.5.200.0-24".to_owned()));
    assert!(manager.status().borrow().unreadable.records.is_empty());
}

/// The own record is put right, whatever somebody put in its place, and a former one of such a size keeps nobody from
/// taking it back.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_value_in_place_of_the_own_record_is_put_right() {
    let etcd = server_of_large_values();
    let manager = manager(&etcd);
    let own = manager.acquire_lease(&attrs(1)).await.unwrap();
    let held = renew(&manager, &own);
    let mut client = client(&etcd).await;
    let in_place = PutOptions::new().with_ignore_lease();
    client.put(path(own.key), vec![b'x'; 6 << 20], Some(in_place)).await.unwrap();
    let is_right = || etcd.get(&path(own.key)).is_ok_and(|found| found == Some(own.attrs.to_json()));
    until(is_right).await;
    assert!(!held.is_finished());
    held.abort();
    let in_place = PutOptions::new().with_ignore_lease();
    client.put(path(own.key), vec![b'x'; 6 << 20], Some(in_place)).await.unwrap();
    assert!(manager.publish(&own, &attrs(1)).await.is_ok());
    assert!(is_right());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_config_is_refused_by_name() {
    let etcd = server_of_large_values();
    let mut client = client(&etcd).await;
    for bytes in [(64 << 10) + 1, 6 << 20] {
        client.put(format!("{PREFIX}/config"), " ".repeat(bytes), None).await.unwrap();
        for error in [
            manager(&etcd).network_config().await.unwrap_err(),
            manager(&etcd).acquire_lease(&attrs(1)).await.unwrap_err(),
        ] {
            assert!(matches!(error, SubnetError::Config { .. }), "{error:?}");
            let text = chain(&error);
            assert!(text.contains("/config in etcd") && text.contains("more than 65536 bytes"), "{text}");
        }
    }
    let padded = format!("{V4}{}", " ".repeat((64 << 10) - V4.len()));
    client.put(format!("{PREFIX}/config"), padded, None).await.unwrap();
    manager(&etcd).network_config().await.unwrap();
}
