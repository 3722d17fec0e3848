//! A node's own lease: what is assigned, what is written, and what is kept.

use std::time::Duration;

use flannel_core::addr::{Family, PerFamily};
use flannel_core::subnet::{SubnetError, SubnetManager};
use flannel_lab::kube::fake::{Faults, kubelet_node};
use flannel_store_kube::{KubeOptions, KubeSubnetManager, NodeIdentity};
use serde_json::json;

use crate::common::*;

#[tokio::test]
async fn takes_the_subnet_that_the_cluster_assigned_and_writes_what_go_writes() {
    let cluster = Cluster::start(V4);
    cluster.join(1);
    let manager = cluster.manager(1);
    assert_eq!(manager.network_config().await.unwrap().families().collect::<Vec<_>>(), [Family::V4]);
    assert_eq!(manager.published_attrs(&PerFamily::default()).await.unwrap(), None);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    assert_eq!((lease.key.to_string(), &lease.attrs), (key(1), &attrs(1)));
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        cluster.annotations(1),
        [
            pair("backend-data", r#"{"VNI":1,"VtepMAC":"0a:00:00:00:00:01"}"#),
            pair("backend-type", "vxlan"),
            pair("kube-subnet-manager", "true"),
            pair("public-ip", "198.18.0.1"),
        ]
    );
    let counts = cluster.api.counts();
    assert_eq!((counts.gets, counts.patches), (1, 1), "one look, one write");
    let requests = cluster.api.requests();
    let patch = requests.iter().find(|request| request.method == "PATCH").unwrap();
    assert_eq!(patch.path, "/api/v1/nodes/n1/status");
    assert_eq!(patch.content_type.as_deref(), Some("application/strategic-merge-patch+json"));
    assert!(patch.user_agent.as_deref().is_some_and(|agent| agent.starts_with("flannel-rs/")));

    // A restart finds it, and writes nothing.
    let before = cluster.api.revision();
    let again = cluster.manager(1);
    assert_eq!(again.published_attrs(&PerFamily::default()).await.unwrap(), Some(attrs(1)));
    assert_eq!(again.acquire_lease(&attrs(1)).await.unwrap(), lease);
    assert_eq!((cluster.api.revision(), cluster.api.counts().patches), (before, 1));
}

#[tokio::test]
async fn dual_stack_has_both_subnets() {
    let cluster = Cluster::start(DUAL);
    cluster.join(1);
    let lease = cluster.manager(1).acquire_lease(&dual_attrs(1)).await.unwrap();
    assert_eq!(lease.key.to_string(), "10.244.1.0-24&fd00:244:0:1::-64");
    let want: Vec<_> =
        published(1).into_iter().map(|(name, value)| (name.to_owned(), value.unwrap())).collect();
    let mut found = cluster.annotations(1);
    found.sort();
    let mut sorted = want;
    sorted.sort();
    assert_eq!(found, sorted);
}

#[tokio::test]
async fn waits_for_a_subnet_and_says_so() {
    let cluster = Cluster::start(DUAL);
    let manager = cluster.manager(1);
    let why = |error: SubnetError| {
        assert!(error.is_transient(), "{error}");
        error.to_string()
    };
    let error = why(manager.acquire_lease(&dual_attrs(1)).await.unwrap_err());
    assert!(error.contains("no node \"n1\""), "{error}");
    cluster.api.put_node(kubelet_node("n1", &[], 3000));
    let error = why(manager.acquire_lease(&dual_attrs(1)).await.unwrap_err());
    assert!(error.contains("node n1 has no IPv4 subnet in spec.podCIDRs yet"), "{error}");
    assert!(manager.status().borrow().connected, "the server did answer");
    tokio::time::sleep(Duration::from_millis(2100)).await;
    cluster.api.edit_node("n1", |node| {
        node["spec"] = json!({"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]});
    });
    let error = why(manager.acquire_lease(&dual_attrs(1)).await.unwrap_err());
    assert!(error.contains("node n1 has no IPv6 subnet"), "{error}");
    tokio::time::sleep(Duration::from_millis(2100)).await;
    cluster
        .api
        .edit_node("n1", |node| node["spec"]["podCIDRs"] = json!(["10.244.1.0/24", "fd00:244:0:1::/64"]));
    manager.acquire_lease(&dual_attrs(1)).await.unwrap();
    assert_eq!(cluster.api.counts().patches, 1, "nothing was written while something was missing");
}

#[tokio::test]
async fn a_subnet_outside_of_the_network_is_refused_by_name() {
    let cluster = Cluster::start(V4);
    cluster.api.put_node(kubelet_node("n1", &["10.99.1.0/24"], 3000));
    let error = cluster.manager(1).acquire_lease(&attrs(1)).await.unwrap_err();
    assert!(!error.is_transient());
    let text = error.to_string();
    assert!(
        text.contains("node n1") && text.contains("10.99.1.0/24") && text.contains("--cluster-cidr"),
        "{text}"
    );
    assert_eq!(cluster.api.counts().patches, 0);
}

#[tokio::test]
async fn what_the_operator_wants_published_is_published() {
    let cluster = Cluster::start(DUAL);
    cluster.join(1);
    cluster.annotate(
        1,
        &[
            ("node-public-ip", Some("203.0.113.1".into())),
            ("node-public-ipv6", Some("2001:db8::1".into())),
            ("public-ip-overwrite", Some("203.0.113.9".into())),
        ],
    );
    let manager = cluster.manager(1);
    let wanted = manager.wanted_ips().await.unwrap();
    assert_eq!(wanted.v4, Some([203, 0, 113, 1].into()));
    assert_eq!(wanted.v6, Some("2001:db8::1".parse().unwrap()));
    let lease = manager.acquire_lease(&dual_attrs(1)).await.unwrap();
    assert_eq!(lease.attrs, dual_attrs(1), "the devices keep what was detected");
    let published: std::collections::BTreeMap<_, _> = cluster.annotations(1).into_iter().collect();
    assert_eq!((&*published["public-ip"], &*published["public-ipv6"]), ("203.0.113.9", "fd77::1"));
    assert_eq!(published["public-ip-overwrite"], "203.0.113.9");

    cluster.annotate(1, &[("node-public-ip", Some("nonsense".into()))]);
    let error = cluster.manager(1).wanted_ips().await.unwrap_err();
    assert!(error.is_transient());
    let text = error.to_string();
    assert!(
        text.contains("node n1")
            && text.contains("flannel.alpha.coreos.com/node-public-ip")
            && text.contains("nonsense"),
        "{text}"
    );
}

#[tokio::test]
async fn a_prefix_with_a_slash_keeps_the_mac() {
    let cluster = Cluster::start(V4);
    cluster.join(1);
    let options = || KubeOptions { annotations: "org.com/9".parse_prefix(), ..cluster.options(1) };
    let manager = KubeSubnetManager::new(options()).unwrap();
    manager.acquire_lease(&attrs(1)).await.unwrap();
    let node = cluster.api.node("n1").unwrap();
    assert_eq!(node["metadata"]["annotations"]["org.com/9-public-ip"], "198.18.0.1");
    let again = KubeSubnetManager::new(options()).unwrap();
    assert_eq!(again.published_attrs(&PerFamily::default()).await.unwrap(), Some(attrs(1)));
}

trait Prefix {
    fn parse_prefix(&self) -> flannel_store_kube::AnnotationPrefix;
}

impl Prefix for str {
    fn parse_prefix(&self) -> flannel_store_kube::AnnotationPrefix {
        flannel_store_kube::AnnotationPrefix::parse(self).unwrap()
    }
}

#[tokio::test]
async fn a_pod_finds_its_node() {
    let cluster = Cluster::start(V4);
    cluster.join(1);
    let pod = NodeIdentity::Pod { namespace: "kube-flannel".into(), name: "kube-flannel-ds-x".into() };
    let manager = KubeSubnetManager::new(KubeOptions { node: pod, ..cluster.options(1) }).unwrap();
    let error = manager.acquire_lease(&attrs(1)).await.unwrap_err();
    assert!(error.is_transient() && flat(&error).contains("kube-flannel-ds-x"), "{}", flat(&error));
    cluster.api.put_pod("kube-flannel", "kube-flannel-ds-x", "n1");
    assert_eq!(manager.acquire_lease(&attrs(1)).await.unwrap().key.to_string(), key(1));
    let pods = cluster.api.requests().iter().filter(|request| request.path.contains("/pods/")).count();
    assert_eq!(pods, 2, "asked for until it is known, then never again");
}

fn flat(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[tokio::test]
async fn what_others_change_is_set_back_and_only_that_is_written() {
    let cluster = Cluster::start(V4);
    cluster.join(1);
    let manager = cluster.manager(1);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let followed = Followed::new(&manager);
    let holder = manager.clone();
    let own = lease.clone();
    let hold = tokio::spawn(async move { holder.renew_lease(&own).await.unwrap_err().to_string() });
    until(|| followed.leases().len() == 1).await;
    let before = cluster.annotations(1);
    for broken in [
        ("public-ip", Some("198.18.0.99".to_owned())),
        ("backend-data", Some("{".to_owned())),
        ("kube-subnet-manager", None),
        ("public-ipv6", Some("fd00::9".to_owned())),
    ] {
        cluster.annotate(1, &[broken]);
        until(|| cluster.annotations(1) == before).await;
    }
    assert_eq!(cluster.api.counts().patches, 5);
    // What is not ours concerns nobody.
    cluster.api.clear_requests();
    for beat in 0..20 {
        cluster.api.edit_node("n1", |node| flannel_lab::kube::fake::touch_status(node, beat));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((cluster.api.counts().gets, cluster.api.counts().patches), (0, 0));
    // The operator's word counts while it runs.
    cluster.annotate(1, &[("public-ip-overwrite", Some("203.0.113.9".into()))]);
    until(|| cluster.annotations(1).contains(&("public-ip".into(), "203.0.113.9".into()))).await;
    // A node that is made anew with another subnet is another.
    cluster.api.delete_node("n1");
    until(|| manager.status().borrow().lease_unkept.is_some()).await;
    cluster.api.put_node(kubelet_node("n1", &["10.244.1.0/24"], 3000));
    until(|| manager.status().borrow().lease_unkept.is_none()).await;
    until(|| cluster.annotations(1).iter().any(|(name, _)| name == "public-ip")).await;
    cluster.api.delete_node("n1");
    cluster.api.put_node(kubelet_node("n1", &["10.244.7.0/24"], 3000));
    let lost = soon(hold).await.unwrap();
    assert!(lost.contains("10.244.1.0-24") && lost.contains("10.244.7.0-24"), "{lost}");
    assert!(manager.status().borrow().lease_lost.is_some());
}

#[tokio::test]
async fn the_condition_is_set_once_the_network_is_up_and_held() {
    let cluster = Cluster::start(V4);
    cluster.join(1);
    let manager = cluster.manager(1);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let _followed = Followed::new(&manager);
    let holder = manager.clone();
    let hold = tokio::spawn(async move { holder.renew_lease(&lease).await.map(drop) });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(cluster.condition(1), None);
    // It is tried until it holds.
    cluster.api.set_faults(Faults { refuse_patches: Some(500), ..Default::default() });
    manager.network_is_up();
    until(|| cluster.api.counts().patches >= 3).await;
    assert_eq!(cluster.condition(1), None);
    cluster.api.set_faults(Faults::default());
    until(|| cluster.condition(1).is_some()).await;
    let condition = cluster.condition(1).unwrap();
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("FlannelIsUp")));
    assert_eq!(condition["message"], "Flannel is running on this node");
    assert_eq!(condition["lastHeartbeatTime"].as_str().unwrap().len(), "2026-11-23T06:23:51Z".len());
    // Somebody else, a cloud's controller say, thinks otherwise.
    cluster.api.edit_node("n1", |node| {
        for condition in node["status"]["conditions"].as_array_mut().unwrap() {
            if condition["type"] == "NetworkUnavailable" {
                condition["status"] = json!("True");
            }
        }
    });
    until(|| cluster.condition(1).unwrap()["status"] == "False").await;
    assert!(!hold.is_finished());
    hold.abort();

    let quiet = KubeSubnetManager::new(KubeOptions { set_condition: false, ..cluster.options(2) }).unwrap();
    cluster.join(2);
    let lease = quiet.acquire_lease(&attrs(2)).await.unwrap();
    quiet.network_is_up();
    let tried = tokio::time::timeout(Duration::from_millis(500), quiet.renew_lease(&lease)).await;
    assert!(tried.is_err() && cluster.condition(2).is_none());
}

#[tokio::test]
async fn a_node_can_leave_and_only_our_annotations_go() {
    let cluster = Cluster::start(DUAL);
    cluster.join(1);
    cluster.annotate(1, &[("public-ip-overwrite", Some("203.0.113.9".into()))]);
    let manager = cluster.manager(1);
    let lease = manager.acquire_lease(&dual_attrs(1)).await.unwrap();
    manager.release_lease(&lease).await.unwrap();
    assert_eq!(cluster.annotations(1), [("public-ip-overwrite".to_owned(), "203.0.113.9".to_owned())]);
    manager.release_lease(&lease).await.unwrap();
    cluster.api.delete_node("n1");
    manager.release_lease(&lease).await.unwrap();
}

/// Two nodes with one podCIDR, by a restored backup or two controllers: the younger is not up, and knows why.
#[tokio::test]
async fn the_younger_of_two_nodes_with_one_subnet_does_not_say_that_its_network_is_up() {
    let cluster = Cluster::start(V4);
    cluster.join_published(1);
    cluster.api.put_node(kubelet_node("n2", &[&cidr(1)], 3000));
    cluster.api.edit_node("n1", |node| node["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z"));
    let (elder, younger) = (cluster.manager(1), cluster.manager(2));
    let holds = [(elder.clone(), 1), (younger.clone(), 2)].map(|(manager, number)| {
        tokio::spawn(async move {
            let lease = manager.acquire_lease(&attrs(number)).await.unwrap();
            manager.network_is_up();
            let followed = Followed::new(&manager);
            let held = manager.renew_lease(&lease).await.map(drop);
            drop(followed);
            held
        })
    });
    until(|| younger.status().borrow().lease_unkept.is_some()).await;
    let why = younger.status().borrow().lease_unkept.clone().unwrap();
    let says = "spec.podCIDRs of node n2 has 10.244.1.0/24, which is that of node n1, too";
    assert!(why.contains(says) && !why.contains("delete"), "{why}");
    assert!(younger.status().borrow().unreadable.count == 0, "it does not blame the elder");
    until(|| cluster.condition(1).is_some() && elder.status().borrow().unreadable.count > 0).await;
    let named = elder.status().borrow().unreadable.records[0].to_string();
    assert!(named.starts_with("node n2: ") && named.contains(says), "{named}");
    assert_eq!(elder.status().borrow().lease_unkept, None);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(cluster.condition(2), None);
    // The elder goes, and the subnet is its own.
    cluster.api.delete_node("n1");
    until(|| cluster.condition(2).is_some()).await;
    until(|| younger.status().borrow().lease_unkept.is_none()).await;
    holds.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn advice_names_node_and_field_and_deletes_no_node() {
    use flannel_core::lease::Field;
    let cluster = Cluster::start(V4);
    cluster.join_published(1);
    let manager = cluster.manager(1);
    let followed = Followed::new(&manager);
    until(|| followed.leases().len() == 1).await;
    let remedy = manager.remedy();
    for (field, words) in [
        (Field::Subnet(Family::V4), "spec.podCIDRs of node n1"),
        (Field::PublicIp(Family::V4), "annotation flannel.alpha.coreos.com/public-ip of node n1"),
        (Field::BackendData(Family::V6), "annotation flannel.alpha.coreos.com/backend-v6-data of node n1"),
    ] {
        let text = remedy.advise(key(1).parse().unwrap(), field);
        assert!(text.contains(words) && !text.contains("delete"), "{text}");
    }
    let text = remedy.advise(key(9).parse().unwrap(), Field::Subnet(Family::V4));
    assert!(text.contains("the node with spec.podCIDRs 10.244.9.0-24"), "{text}");
}

#[tokio::test]
async fn a_node_keeps_its_subnet_and_mac_wherever_it_is_by_its_object() {
    let cluster = Cluster::start(V4);
    cluster.join(1);
    let lease = cluster.manager(1).acquire_lease(&attrs(1)).await.unwrap();
    let again = cluster.manager(1);
    let moved = flannel_core::lease::LeaseAttrs { public_ips: attrs(9).public_ips, ..attrs(1) };
    assert_eq!(again.published_attrs(&moved.public_ips).await.unwrap(), Some(attrs(1)));
    assert_eq!(again.acquire_lease(&moved).await.unwrap().key, lease.key);
    assert!(cluster.annotations(1).contains(&("public-ip".to_owned(), "198.18.0.9".to_owned())));
}

#[tokio::test]
async fn a_bad_address_in_an_annotation_is_named_with_its_node() {
    let cluster = Cluster::start(V4);
    cluster.join(1);
    cluster.annotate(1, &[("node-public-ip", Some("10.0.0.300".into()))]);
    let error = cluster.manager(1).wanted_ips().await.unwrap_err().to_string();
    let says =
        r#"node n1: annotation flannel.alpha.coreos.com/node-public-ip = "10.0.0.300" is no IPv4 address"#;
    assert!(error.contains(says), "{error}");
    // One that no interface has is only found out by who chooses the underlay, and is named then.
    cluster.annotate(1, &[("node-public-ip", Some("203.0.113.9".into()))]);
    let manager = cluster.manager(1);
    manager.wanted_ips().await.unwrap();
    let by = manager.wanted_by().unwrap();
    assert!(by.contains("flannel.alpha.coreos.com/node-public-ip") && by.ends_with("of node n1"), "{by}");
}
