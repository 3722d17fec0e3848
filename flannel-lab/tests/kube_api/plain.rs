//! Nodes and pods: read, listed, watched, changed.

use flannel_lab::kube_api::{Counts, KubeApi, KubeApiOptions, kubelet_node, touch_status};
use flannel_lab::wait::eventually;
use serde_json::json;

use crate::client::{Client, SOON};

fn api() -> KubeApi {
    KubeApi::start(KubeApiOptions::default()).unwrap()
}

#[test]
fn nodes_are_read_listed_and_watched() {
    let api = api();
    api.put_node(kubelet_node("node1", &["10.244.1.0/24", "fd00:10:244:1::/64"], 3000));
    let mut client = Client::to(&api);
    let node = client.get("/api/v1/nodes/node1").json();
    assert_eq!((&node["kind"], &node["apiVersion"]), (&json!("Node"), &json!("v1")));
    assert_eq!(node["spec"]["podCIDRs"], json!(["10.244.1.0/24", "fd00:10:244:1::/64"]));
    assert_eq!(node["metadata"]["resourceVersion"], json!(api.revision().to_string()));
    let list = client.get("/api/v1/nodes").json();
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("NodeList"), &json!("v1")));
    assert_eq!(list["metadata"], json!({ "resourceVersion": api.revision().to_string() }));
    assert_eq!(list["items"], json!([api.node("node1").unwrap()]));

    let mut watch = Client::to(&api).watch(&format!("resourceVersion={}", api.revision()));
    eventually(SOON, "the watch to be counted", || api.open_watches() == 1);
    assert!(api.edit_node("node1", |node| touch_status(node, 1)));
    api.put_node(kubelet_node("node2", &[], 3000));
    assert!(api.delete_node("node1"));
    let revision = api.revision();
    let short = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
    assert_eq!(watch.short(), short("MODIFIED", "node1"));
    assert_eq!(watch.short(), short("ADDED", "node2"));
    let (kind, object) = watch.event();
    assert_eq!((kind.as_str(), &object["metadata"]["name"]), ("DELETED", &json!("node1")));
    assert_eq!(object["metadata"]["resourceVersion"], json!(revision.to_string()));
    assert_eq!(object["metadata"]["uid"], node["metadata"]["uid"]);
    assert_eq!(api.node_names(), ["node2"]);
    drop(watch);
    eventually(SOON, "the watch to be gone", || api.open_watches() == 0);
    let counts = Counts { lists: 1, watches: 1, gets: 1, ..Counts::default() };
    assert_eq!(api.counts(), counts);
}
