//! Objects that are larger than any that is read, and answers without end.

use std::time::Duration;

use flannel_core::lease::{LeaseUpdate, UnreadableRecord};
use flannel_core::subnet::{SubnetError, SubnetManager};
use flannel_lab::kube::fake::{Faults, KubeApiOptions};
use futures::StreamExt;
use serde_json::json;

use crate::common::*;

/// The most that is read of one answer, and what the kernel takes for us meanwhile, in bytes.
const TAKEN: u64 = (4 << 20) + (20 << 20);

/// Blows a node's object up to so many bytes, or takes that back.
fn blow_up(cluster: &Cluster, number: u8, bytes: usize) {
    let edited = cluster.api.edit_node(&name(number), |node| {
        let all = node["metadata"]["annotations"].as_object_mut().unwrap();
        all.insert("a/blown-up".to_owned(), json!("x".repeat(bytes)));
    });
    assert!(edited);
}

fn told(manager: &impl SubnetManager) -> Vec<UnreadableRecord> {
    manager.status().borrow().unreadable.records.clone()
}

/// In lists and watches of both kinds.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_larger_than_4_mib_is_named_and_hides_no_other() {
    for watch_list in [false, true] {
        let cluster = Cluster::with(V4, KubeApiOptions { watch_list, ..KubeApiOptions::default() });
        (1..=3).for_each(|number| cluster.join_published(number));
        // The real size of a large one.
        blow_up(&cluster, 1, 1 << 20);
        blow_up(&cluster, 2, 5 << 20);
        let manager = cluster.manager(3);
        let mut watch = manager.watch_leases();
        let (leases, _) = snapshot(&mut watch).await;
        assert_eq!(leases.len(), 2, "{leases:?}");
        let bad = told(&manager);
        assert_eq!(
            bad.iter().map(|bad| &*bad.key).collect::<Vec<_>>(),
            ["node n2"],
            "watch_list: {watch_list}"
        );
        assert!(bad[0].reason.contains("more than 4194304 bytes"), "{bad:?}");

        blow_up(&cluster, 2, 0);
        assert!(matches!(next(&mut watch).await, LeaseUpdate::Put(lease) if lease.key.to_string() == key(2)));
        assert!(told(&manager).is_empty());
        // What it said last stays.
        blow_up(&cluster, 2, 5 << 20);
        assert!(matches!(next(&mut watch).await, LeaseUpdate::Unreadable(bad) if bad.key == key(2)));
        assert_eq!(told(&manager)[0].key, "node n2");
        cluster.join_published(4);
        assert!(matches!(next(&mut watch).await, LeaseUpdate::Put(lease) if lease.key.to_string() == key(4)));
        cluster.api.delete_node("n2");
        assert_eq!(next(&mut watch).await, LeaseUpdate::Removed(key(2)));
        assert!(manager.status().borrow().connected && told(&manager).is_empty());
    }
}

/// The first node that is listed stands in the answer to the question where the server is, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_node_keeps_no_watch_from_going_on() {
    let cluster = Cluster::start(V4);
    (1..=2).for_each(|number| cluster.join_published(number));
    blow_up(&cluster, 1, 5 << 20);
    let manager = cluster.manager(2);
    let mut watch = manager.watch_leases();
    snapshot(&mut watch).await;
    cluster.api.disconnect();
    cluster.join_published(3);
    assert!(matches!(next(&mut watch).await, LeaseUpdate::Put(lease) if lease.key.to_string() == key(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_own_node_has_4_mib_at_most() {
    let cluster = Cluster::start(V4);
    cluster.join(1);
    blow_up(&cluster, 1, 5 << 20);
    let manager = cluster.manager(1);
    let error = manager.acquire_lease(&attrs(1)).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    let text = format!("{error:?}");
    assert!(text.contains("read our node") && text.contains("more than 4194304 bytes"), "{text}");
    assert!(manager.status().borrow().connected, "the server is well");
    blow_up(&cluster, 1, 0);
    manager.acquire_lease(&attrs(1)).await.unwrap();
}

/// A server that never stops is read as far as an object can be, whatever it was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_end_is_not_read_to_its_end() {
    let cluster = Cluster::start(V4);
    cluster.join(1);
    for fail in [None, Some(500), Some(404)] {
        let manager = cluster.manager(1);
        cluster.api.set_faults(Faults { endless: true, fail, ..Faults::default() });
        let before = cluster.api.endless_bytes();
        let error = soon(manager.acquire_lease(&attrs(1))).await.unwrap_err();
        assert!(
            matches!(error, SubnetError::Unavailable { .. } | SubnetError::NotAssigned { .. }),
            "{error:?}"
        );
        let taken = cluster.api.endless_bytes() - before;
        assert!(taken < TAKEN, "{fail:?}: {taken} bytes");
        assert!(format!("{error:?}").len() < 2000, "{error:?}");
    }
    // A patch.
    cluster.api.set_faults(Faults::default());
    let manager = cluster.manager(1);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    cluster.api.set_faults(Faults { endless: true, fail: Some(500), ..Faults::default() });
    let before = cluster.api.endless_bytes();
    manager.publish(&lease, &attrs(2)).await.unwrap_err();
    let taken = cluster.api.endless_bytes() - before;
    assert!(taken < TAKEN, "{taken} bytes");

    // Lists and watches, each of which is given up, and tried again.
    cluster.api.set_faults(Faults { endless: true, ..Faults::default() });
    cluster.api.clear_requests();
    let before = cluster.api.endless_bytes();
    let mut watch = cluster.manager(1).watch_leases();
    assert!(tokio::time::timeout(Duration::from_secs(3), watch.next()).await.is_err());
    let (taken, asked) = (cluster.api.endless_bytes() - before, cluster.api.requests().len() as u64);
    assert!(taken < asked * ((64 << 20) + TAKEN), "{taken} bytes for {asked} requests");
    cluster.api.set_faults(Faults::default());
    snapshot(&mut watch).await;
}
