//! The watch: lists in both ways, changes, and what costs nothing.

use std::time::Duration;

use flannel_core::lease::LeaseUpdate;
use flannel_core::subnet::SubnetManager;
use flannel_lab::kube::fake::{Faults, KubeApiOptions, kubelet_node, touch_status};
use serde_json::json;

use crate::common::*;

#[tokio::test]
async fn lists_all_nodes_by_a_watch_or_in_pages() {
    for watch_list in [true, false] {
        let cluster = Cluster::with(V4, KubeApiOptions { watch_list, ..KubeApiOptions::default() });
        for number in 0..250_u8 {
            cluster.join_published(number);
        }
        for number in 0..1000_u16 {
            cluster.api.put_node(kubelet_node(&format!("other{number}"), &[], 2500));
        }
        let manager = cluster.manager(1);
        let mut watch = manager.watch_leases();
        let (leases, bad) = snapshot(&mut watch).await;
        assert_eq!((leases.len(), bad.len()), (250, 0), "{watch_list}");
        let counts = cluster.api.counts();
        // The refused one counts.
        let want = if watch_list { (0, 0, 1) } else { (1, 2, 1) };
        assert_eq!((counts.lists, counts.pages, counts.watches), want, "{watch_list}");
        // Goes on from there, either way.
        cluster.join_published(251);
        let LeaseUpdate::Put(lease) = next(&mut watch).await else { panic!() };
        assert_eq!(lease.key.to_string(), key(251));
        assert_eq!((cluster.api.counts().watches, cluster.api.counts().gets), (2, 1));
        if !watch_list {
            let requests = cluster.api.requests();
            let pages =
                requests.iter().filter(|request| request.path == "/api/v1/nodes" && !request.is_watch());
            assert!(
                pages
                    .clone()
                    .all(|page| page.query["limit"] == "500" && !page.query.contains_key("resourceVersion"))
            );
            // What was refused once is not asked for again.
            cluster.api.stop_listening();
            cluster.api.disconnect();
            cluster.join_published(252);
            cluster.api.compact();
            cluster.api.listen_again().unwrap();
            assert_eq!(snapshot(&mut watch).await.0.len(), 252);
            let lists =
                cluster.api.requests().iter().filter(|it| it.query.contains_key("sendInitialEvents")).count();
            assert_eq!(lists, 1);
        }
    }
}

#[tokio::test]
async fn tells_what_changed_and_nothing_else() {
    let cluster = Cluster::start(DUAL);
    cluster.join_published(1);
    cluster.join(2);
    let manager = cluster.manager(9);
    let mut watch = manager.watch_leases();
    assert_eq!(snapshot(&mut watch).await.0, ["10.244.1.0-24&fd00:244:0:1::-64 198.18.0.1,fd77::1"]);

    // Heartbeats.
    for beat in 0..50 {
        cluster.api.edit_node("n1", |node| touch_status(node, beat));
        cluster.api.edit_node("n2", |node| touch_status(node, beat));
    }
    cluster.join_published(2);
    let LeaseUpdate::Put(lease) = next(&mut watch).await else { panic!() };
    assert_eq!(lease.key.to_string(), "10.244.2.0-24&fd00:244:0:2::-64");

    // A change of one family only.
    let mac = r#"{"VNI":1,"VtepMAC":"0a:00:00:00:00:aa"}"#;
    cluster.annotate(1, &[("backend-data", Some(mac.to_owned()))]);
    let LeaseUpdate::Put(lease) = next(&mut watch).await else { panic!() };
    assert_eq!(lease.attrs.backend_data.v4.unwrap().as_str(), mac);
    cluster.annotate(1, &[("public-ipv6", Some("fd77::aa".to_owned()))]);
    let LeaseUpdate::Put(lease) = next(&mut watch).await else { panic!() };
    assert_eq!(lease.attrs.public_ips.v6, Some("fd77::aa".parse().unwrap()));

    // Garbage keeps what was known, and is named.
    cluster.annotate(1, &[("public-ip", Some("garbage".to_owned()))]);
    let LeaseUpdate::Unreadable(bad) = next(&mut watch).await else { panic!() };
    assert_eq!(bad.key, "10.244.1.0-24&fd00:244:0:1::-64");
    assert!(bad.reason.contains("node n1") && bad.reason.contains("public-ip"), "{}", bad.reason);
    assert_eq!(manager.status().borrow().unreadable.count, 1);
    cluster.annotate(1, &[("public-ip", Some("198.18.0.1".to_owned()))]);
    assert!(matches!(next(&mut watch).await, LeaseUpdate::Put(_)));
    assert!(manager.status().borrow().unreadable.count == 0);

    // Leaving, in both ways.
    cluster.annotate(1, &[("kube-subnet-manager", None)]);
    assert_eq!(next(&mut watch).await, LeaseUpdate::Removed("10.244.1.0-24&fd00:244:0:1::-64".into()));
    cluster.api.delete_node("n2");
    assert_eq!(next(&mut watch).await, LeaseUpdate::Removed("10.244.2.0-24&fd00:244:0:2::-64".into()));
}

#[tokio::test]
async fn a_subnet_given_twice_is_the_elder_nodes() {
    let cluster = Cluster::start(V4);
    cluster.join_published(1);
    let twin = |cluster: &Cluster| {
        cluster.join_published(2);
        cluster.api.edit_node("n2", |node| {
            node["spec"] = json!({"podCIDR": cidr(1), "podCIDRs": [cidr(1)]});
            node["metadata"]["creationTimestamp"] = json!("2031-01-01T00:00:00Z");
        });
    };
    twin(&cluster);
    let manager = cluster.manager(9);
    let mut watch = manager.watch_leases();
    let leases = snapshot(&mut watch).await.0;
    assert_eq!(leases, ["10.244.1.0-24 198.18.0.1,fd77::1"]);
    let problem = manager.status().borrow().unreadable.records[0].to_string();
    assert!(problem.contains("node n2") && problem.contains("n1"), "{problem}");
    cluster.api.delete_node("n1");
    let LeaseUpdate::Put(lease) = next(&mut watch).await else { panic!() };
    assert_eq!(lease.attrs.public_ips.v4, Some([198, 18, 0, 2].into()));
    assert!(manager.status().borrow().unreadable.count == 0);
}

#[tokio::test]
async fn goes_on_over_a_hundred_disconnects_without_a_wrong_word() {
    let cluster = Cluster::start(V4);
    for number in 1..=50 {
        cluster.join_published(number);
    }
    let manager = cluster.manager(1);
    let followed = Followed::new(&manager);
    until(|| followed.leases().len() == 50).await;
    for round in 0..100_u8 {
        cluster.api.disconnect();
        match round % 4 {
            0 => cluster.api.compact(),
            1 => cluster.join_published(100 + round),
            2 => cluster.annotate(7, &[("public-ip", Some(format!("198.18.1.{round}")))]),
            _ => cluster.api.end_watches(),
        }
        if round % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }
    until(|| {
        followed.leases().len() == 75
            && followed.leases().contains(&"10.244.7.0-24 198.18.1.98,fd77::7".to_owned())
    })
    .await;
    assert_eq!(*followed.removed.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn deletions_that_nobody_saw_are_found_by_the_next_list() {
    for http_410 in [true, false] {
        let cluster = Cluster::start(V4);
        cluster.join_published(1);
        cluster.join_published(2);
        let manager = cluster.manager(1);
        let mut watch = manager.watch_leases();
        assert_eq!(snapshot(&mut watch).await.0.len(), 2);
        cluster.api.set_faults(Faults { http_410, ..Faults::default() });
        cluster.api.stop_listening();
        cluster.api.disconnect();
        cluster.api.delete_node("n2");
        cluster.join_published(3);
        cluster.api.compact();
        cluster.api.listen_again().unwrap();
        assert_eq!(
            snapshot(&mut watch).await.0,
            ["10.244.1.0-24 198.18.0.1,fd77::1", "10.244.3.0-24 198.18.0.3,fd77::3"]
        );
    }
}
