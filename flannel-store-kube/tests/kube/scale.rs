//! A cluster of five thousand nodes: what is asked of the API server, and what heartbeats come to.

use flannel_core::lease::LeaseUpdate;
use flannel_core::subnet::SubnetManager;
use flannel_lab::kube::fake::{Counts, KubeApiOptions, kubelet_node, touch_status};
use serde_json::json;

use crate::common::*;

const NODES: u32 = 5000;
const BEATS: u32 = 2000;
const CONFIG: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;

fn node(number: u32) -> serde_json::Value {
    let [_, _, high, low] = number.to_be_bytes();
    let mut node = kubelet_node(&format!("n{number}"), &[&format!("10.{high}.{low}.0/24")], 2700);
    let annotations = &mut node["metadata"]["annotations"];
    for (suffix, value) in [
        ("kube-subnet-manager", "true".to_owned()),
        ("backend-type", "vxlan".to_owned()),
        ("backend-data", format!(r#"{{"VNI":1,"VtepMAC":"0a:00:00:00:{high:02x}:{low:02x}"}}"#)),
        ("public-ip", format!("198.18.{high}.{low}")),
    ] {
        annotations[format!("flannel.alpha.coreos.com/{suffix}")] = json!(value);
    }
    node
}

#[tokio::test]
async fn heartbeats_of_five_thousand_nodes_ask_nothing_and_say_nothing() {
    let first = Cluster::start(CONFIG);
    (0..NODES).for_each(|number| first.api.put_node(node(number)));
    let nodes = first.api.snapshot();
    for watch_list in [true, false] {
        let cluster = Cluster::with(CONFIG, KubeApiOptions { watch_list, ..KubeApiOptions::default() });
        cluster.api.restore(nodes.clone());
        let manager = cluster.manager(0);
        let mut watch = manager.watch_leases();
        let (leases, bad) = snapshot(&mut watch).await;
        assert_eq!((leases.len(), bad.len()), (NODES as usize, 0), "{watch_list}");
        for beat in 0..BEATS {
            let name = format!("n{}", beat * 7 % NODES);
            cluster.api.edit_node(&name, |node| touch_status(node, beat.into()));
        }
        // What comes next is the one change after all of them.
        cluster.api.edit_node("n17", |node| {
            node["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"] = json!("198.19.0.1");
        });
        let LeaseUpdate::Put(lease) = next(&mut watch).await else { panic!("{watch_list}") };
        assert_eq!(texts([&lease]), ["10.0.17.0-24 198.19.0.1"]);
        // Ten pages of 500; that watches can't begin with a list is found out once. The list has whole objects, and the
        // watch that follows has their metadata.
        let (lists, pages, watches) = if watch_list { (0, 0, 2) } else { (1, 9, 2) };
        let want = Counts { lists, pages, watches, ..Counts::default() };
        assert_eq!(cluster.api.counts(), want, "{watch_list}");
    }
}
