//! What is asked for and what is sent where a watch has only the metadata of nodes, and servers that can't do that.

use std::time::Duration;

use flannel_core::lease::LeaseUpdate;
use flannel_core::subnet::SubnetManager;
use flannel_lab::kube::fake::{Faults, KubeApiOptions, MetadataOnly, Request, kubelet_node, touch_status};
use serde_json::json;

use crate::common::*;

/// All kinds of servers.
pub(crate) const ALL: [MetadataOnly; 3] =
    [MetadataOnly::Served, MetadataOnly::Unknown, MetadataOnly::Refused];

fn cluster(metadata_only: MetadataOnly) -> Cluster {
    Cluster::with(V4, KubeApiOptions { metadata_only, ..KubeApiOptions::default() })
}

/// Single nodes that were read, by name.
fn gets(cluster: &Cluster) -> Vec<String> {
    let requests = cluster.api.requests();
    let names = requests.iter().filter(|request| request.method == "GET");
    names.filter_map(|request| Some(request.path.strip_prefix("/api/v1/nodes/")?.to_owned())).collect()
}

fn is_partial(request: &Request) -> bool {
    request.accept.as_ref().is_some_and(|accept| accept.contains("as=PartialObjectMetadata"))
}

/// Everything that changes of other nodes, on servers of all kinds.
#[tokio::test]
async fn says_the_same_whatever_the_server_sends() {
    for kind in ALL {
        let cluster = cluster(kind);
        cluster.join_published(1);
        cluster.join(2);
        let manager = cluster.manager(9);
        let mut watch = manager.watch_leases();
        assert_eq!(snapshot(&mut watch).await.0, ["10.244.1.0-24 198.18.0.1,fd77::1"], "{kind:?}");
        cluster.annotate(2, &published(2));
        let LeaseUpdate::Put(lease) = next(&mut watch).await else { panic!("{kind:?}") };
        assert_eq!(texts([&lease]), ["10.244.2.0-24 198.18.0.2,fd77::2"]);
        cluster.annotate(2, &[("public-ip", Some("garbage".to_owned()))]);
        let LeaseUpdate::Unreadable(bad) = next(&mut watch).await else { panic!("{kind:?}") };
        assert_eq!(bad.key, key(2));
        cluster.annotate(2, &[("public-ip", Some("198.18.0.22".to_owned()))]);
        let LeaseUpdate::Put(lease) = next(&mut watch).await else { panic!("{kind:?}") };
        assert_eq!(texts([&lease]), ["10.244.2.0-24 198.18.0.22,fd77::2"]);
        cluster.annotate(1, &[("kube-subnet-manager", None)]);
        assert_eq!(next(&mut watch).await, LeaseUpdate::Removed(key(1)));
        cluster.annotate(1, &[("kube-subnet-manager", Some("true".to_owned()))]);
        assert!(matches!(next(&mut watch).await, LeaseUpdate::Put(lease) if lease.key.to_string() == key(1)));
        cluster.api.delete_node("n2");
        assert_eq!(next(&mut watch).await, LeaseUpdate::Removed(key(2)));
        let asked = gets(&cluster);
        assert_eq!(asked, if kind == MetadataOnly::Served { vec!["n2", "n1"] } else { vec![] }, "{kind:?}");
        assert!(manager.status().borrow().connected && manager.status().borrow().problem.is_empty());
    }
}

/// A server that refuses the form is asked for it once, and that is no outage.
#[tokio::test]
async fn a_refusal_is_remembered() {
    let cluster = cluster(MetadataOnly::Refused);
    cluster.join_published(1);
    let manager = cluster.manager(1);
    let followed = Followed::new(&manager);
    // The list, the watch that is refused, and the one in its place.
    until(|| followed.leases().len() == 1 && cluster.api.counts().watches == 3).await;
    let status = manager.status();
    for number in 2..5 {
        cluster.api.disconnect();
        cluster.join_published(number);
        cluster.api.compact();
        until(|| followed.leases().len() == usize::from(number)).await;
    }
    assert_eq!(cluster.api.requests().iter().filter(|it| is_partial(it)).count(), 1);
    assert!(status.borrow().connected);
}

#[tokio::test]
async fn a_new_node_costs_one_request_and_a_heartbeat_none() {
    let cluster = cluster(MetadataOnly::Served);
    (1..=20).for_each(|number| cluster.join_published(number));
    let manager = cluster.manager(1);
    let followed = Followed::new(&manager);
    until(|| followed.leases().len() == 20).await;
    until(|| cluster.api.counts().watches == 2).await;
    let watch = cluster.api.requests().pop().unwrap();
    assert!(watch.is_watch() && is_partial(&watch), "{watch:?}");
    cluster.api.clear_requests();
    // A kubelet registers, a controller assigns the subnet, the node's agent publishes; heartbeats all the time.
    for number in 101..=110 {
        cluster.api.put_node(kubelet_node(&name(number), &[], 3000));
        cluster.api.edit_node(&name(number), |node| touch_status(node, 1));
        cluster.api.edit_node(&name(number), |node| {
            node["spec"] = json!({"podCIDR": cidr(number), "podCIDRs": [cidr(number)]});
        });
        cluster.api.edit_node(&name(number), |node| touch_status(node, 2));
        cluster.annotate(number, &published(number));
        (3..6).for_each(|beat| _ = cluster.api.edit_node(&name(number), |node| touch_status(node, beat)));
    }
    until(|| followed.leases().len() == 30).await;
    for beat in 10..30 {
        for number in (1..=20).chain(101..=110) {
            cluster.api.edit_node(&name(number), |node| touch_status(node, beat));
        }
    }
    cluster.annotate(5, &[("public-ip", Some("198.18.1.5".to_owned()))]);
    until(|| followed.leases().contains(&"10.244.5.0-24 198.18.1.5,fd77::5".to_owned())).await;
    let mut asked = gets(&cluster);
    asked.sort();
    let want: Vec<String> = (101..=110).map(name).collect();
    assert_eq!(asked, want);
    // The server may answer from memory, if that is as new as what we saw.
    let requests = cluster.api.requests();
    assert!(requests.iter().all(|request| request.query.contains_key("resourceVersion")), "{requests:?}");
}

/// Somebody annotates a node before the cluster assigns a subnet to it.
#[tokio::test]
async fn a_node_that_gets_its_subnet_later_is_asked_for_again() {
    let cluster = cluster(MetadataOnly::Served);
    cluster.api.put_node(kubelet_node("n1", &[], 3000));
    cluster.annotate(1, &published(1));
    let manager = cluster.manager(9);
    let followed = Followed::new(&manager);
    until(|| cluster.api.counts().watches == 2).await;
    cluster.api.edit_node("n1", |node| touch_status(node, 1));
    until(|| gets(&cluster).len() == 1).await;
    // While it does not change nobody asks.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(gets(&cluster).len(), 1);
    cluster.api.edit_node("n1", |node| node["spec"] = json!({"podCIDR": cidr(1), "podCIDRs": [cidr(1)]}));
    until(|| followed.leases() == ["10.244.1.0-24 198.18.0.1,fd77::1"]).await;
    (2..9).for_each(|beat| _ = cluster.api.edit_node("n1", |node| touch_status(node, beat)));
    cluster.annotate(1, &[("public-ip", Some("198.18.0.7".to_owned()))]);
    until(|| followed.leases() == ["10.244.1.0-24 198.18.0.7,fd77::1"]).await;
    assert_eq!(gets(&cluster).len(), 2);
}

/// Another node under the same name has other subnets, and nobody may go on with those of the one before.
#[tokio::test]
async fn a_node_made_anew_is_another_one() {
    for is_away in [false, true] {
        let cluster = cluster(MetadataOnly::Served);
        cluster.join_published(1);
        cluster.join_published(2);
        let manager = cluster.manager(9);
        let mut watch = manager.watch_leases();
        assert_eq!(snapshot(&mut watch).await.0.len(), 2);
        if is_away {
            cluster.api.stop_listening();
            cluster.api.disconnect();
        }
        cluster.api.delete_node("n1");
        cluster.api.put_node(kubelet_node("n1", &[&cidr(7)], 3000));
        cluster.annotate(1, &published(1));
        if is_away {
            cluster.api.compact();
            cluster.api.listen_again().unwrap();
            let (leases, _) = snapshot(&mut watch).await;
            assert_eq!(leases, ["10.244.2.0-24 198.18.0.2,fd77::2", "10.244.7.0-24 198.18.0.1,fd77::1"]);
        } else {
            assert_eq!(next(&mut watch).await, LeaseUpdate::Removed(key(1)));
            let LeaseUpdate::Put(lease) = next(&mut watch).await else { panic!() };
            assert_eq!(lease.key.to_string(), key(7));
        }
        assert_eq!(gets(&cluster), ["n1"]);
    }
}

/// After the server forgot the history: a list of metadata, if few nodes can be new.
#[tokio::test]
async fn lists_metadata_again_unless_many_nodes_are_new() {
    for watch_list in [true, false] {
        let cluster = Cluster::with(V4, KubeApiOptions { watch_list, ..KubeApiOptions::default() });
        (1..=20).for_each(|number| cluster.join_published(number));
        let manager = cluster.manager(1);
        let mut watch = manager.watch_leases();
        assert_eq!(snapshot(&mut watch).await.0.len(), 20);
        for (more, partial, whole, single) in [(21..=23, 1, 0, 3), (24..=120, 1, 1, 0)] {
            cluster.api.stop_listening();
            cluster.api.disconnect();
            let last = *more.end();
            more.for_each(|number| cluster.join_published(number));
            cluster.api.compact();
            cluster.api.clear_requests();
            cluster.api.listen_again().unwrap();
            assert_eq!(snapshot(&mut watch).await.0.len(), usize::from(last), "{watch_list}");
            let requests = cluster.api.requests();
            let is_list = |it: &&Request| {
                let is_page = it.query.get("limit").is_some_and(|limit| limit == "500");
                if watch_list { it.query.contains_key("sendInitialEvents") } else { is_page }
            };
            let lists = requests.iter().filter(is_list);
            let partials = lists.clone().filter(|it| is_partial(it)).count();
            assert_eq!((partials, lists.count() - partials), (partial, whole), "{watch_list}");
            assert_eq!(gets(&cluster).len(), single);
        }
    }
}

/// Nobody is lost whose podCIDRs can't be read at first.
#[tokio::test]
async fn asks_again_until_there_is_an_answer() {
    let cluster = cluster(MetadataOnly::Served);
    cluster.join_published(1);
    let manager = cluster.manager(1);
    let followed = Followed::new(&manager);
    until(|| followed.leases().len() == 1).await;
    until(|| cluster.api.counts().watches == 2).await;
    cluster.api.set_faults(Faults { fail_next: 5, ..Faults::default() });
    cluster.join_published(2);
    cluster.join_published(3);
    // One that goes before the answer.
    cluster.join_published(4);
    cluster.api.delete_node("n4");
    until(|| followed.leases().len() == 3).await;
    assert!(gets(&cluster).len() >= 7, "{:?}", gets(&cluster));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let asked = gets(&cluster).len();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(gets(&cluster).len(), asked, "and then no more");
}

/// The condition is no metadata, so a change of the own node is looked at, once a second at most.
#[tokio::test]
async fn the_own_condition_is_read_when_the_own_node_changes() {
    let cluster = cluster(MetadataOnly::Served);
    cluster.join(1);
    let manager = cluster.manager(1);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let followed = Followed::new(&manager);
    until(|| followed.leases().len() == 1 && cluster.api.counts().watches == 2).await;
    let holder = manager.clone();
    let hold = tokio::spawn(async move { holder.renew_lease(&lease).await.map(drop) });
    manager.network_is_up();
    until(|| cluster.condition(1).is_some()).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    cluster.api.clear_requests();
    for beat in 0..50 {
        cluster.api.edit_node("n1", |node| touch_status(node, beat));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.api.edit_node("n1", |node| {
        let all = node["status"]["conditions"].as_array_mut().unwrap();
        all.retain(|condition| condition["type"] != "NetworkUnavailable");
    });
    until(|| cluster.condition(1).is_some()).await;
    let counts = cluster.api.counts();
    assert!((1..=4).contains(&counts.gets) && counts.patches == 1, "{counts:?}");
    hold.abort();
}
