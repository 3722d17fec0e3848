//! Thousands of nodes, and many who watch them.

use std::collections::BTreeMap;
use std::thread;

use flannel_lab::kube::fake::{KubeApi, kubelet_node, touch_status};
use flannel_lab::wait::eventually;
use serde_json::Value;

use crate::api;
use crate::client::{Client, SOON};

const NODES: u32 = 5_000;
const WATCHERS: usize = 20;
const UPDATES: u32 = 500;

fn crowded() -> KubeApi {
    let api = api();
    for n in 0..NODES {
        let cidr = format!("10.{}.{}.0/24", n / 256, n % 256);
        api.put_node(kubelet_node(&format!("node{n}"), &[&cidr], 3000));
    }
    api
}

/// What a client that follows events knows: the revision of each node.
type Known = BTreeMap<String, String>;

fn note(known: &mut Known, kind: &str, node: &Value) {
    let text = |key: &str| node["metadata"][key].as_str().unwrap().to_owned();
    match kind {
        "DELETED" => drop(known.remove(&text("name"))),
        _ => drop(known.insert(text("name"), text("resourceVersion"))),
    }
}

/// What the server has.
fn truth(api: &KubeApi) -> Known {
    let mut known = Known::new();
    for name in api.node_names() {
        note(&mut known, "ADDED", &api.node(&name).unwrap());
    }
    known
}

#[test]
fn five_thousand_nodes_are_listed_in_pages_and_followed_by_many() {
    let api = crowded();
    let mut client = Client::to(&api);
    let whole = client.get("/api/v1/nodes?resourceVersion=0&limit=500").json();
    assert_eq!(whole["items"].as_array().unwrap().len(), NODES as usize);
    let mut listed = Known::new();
    let mut next = "/api/v1/nodes?limit=500".to_owned();
    let revision = loop {
        let page = client.get(&next).json();
        let items = page["items"].as_array().unwrap();
        assert_eq!(items.len(), 500);
        for node in items {
            note(&mut listed, "ADDED", node);
        }
        // Changes in between are for the watch.
        api.edit_node(&format!("node{}", listed.len()), |node| touch_status(node, 1));
        let Some(token) = page["metadata"]["continue"].as_str() else {
            break page["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        };
        next = format!("/api/v1/nodes?limit=500&continue={token}");
    };
    assert_eq!((listed.len(), api.counts().lists, api.counts().pages), (NODES as usize, 2, 9));

    let followers: Vec<_> = (0..WATCHERS)
        .map(|_| {
            let mut watch = Client::to(&api).watch(&format!("resourceVersion={revision}"));
            let mut known = listed.clone();
            thread::spawn(move || {
                // The last change deletes this node.
                while known.contains_key("node0") {
                    let (kind, node) = watch.event();
                    note(&mut known, &kind, &node);
                }
                known
            })
        })
        .collect();
    eventually(SOON, "all to watch", || api.open_watches() == WATCHERS);
    for n in 0..UPDATES {
        api.edit_node(&format!("node{}", n * 7 % NODES), |node| touch_status(node, u64::from(n) + 10));
    }
    api.delete_node("node0");
    let truth = truth(&api);
    for follower in followers {
        assert_eq!(follower.join().unwrap(), truth);
    }
}

#[test]
fn a_watch_list_of_five_thousand_is_the_truth() {
    let api = crowded();
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = Client::to(&api).watch(query);
    let mut known = Known::new();
    loop {
        let (kind, node) = watch.event();
        if kind == "BOOKMARK" {
            break;
        }
        note(&mut known, &kind, &node);
    }
    assert_eq!(known, truth(&api));
}
