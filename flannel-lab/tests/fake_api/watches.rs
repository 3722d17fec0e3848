//! Watches: from where they begin, what they say, and how they end.

use std::time::{Duration, Instant};

use flannel_lab::kube::fake::{Faults, KubeApi, KubeApiOptions, kubelet_node, touch_status};
use flannel_lab::wait::eventually;
use serde_json::json;

use crate::client::{Client, SOON};
use crate::{api, short, small_node};

const WATCH_LIST: &str = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";

/// A server that is never long without a bookmark.
fn bookmarking() -> KubeApi {
    let bookmark_interval = Duration::from_millis(20);
    KubeApi::start(KubeApiOptions { bookmark_interval, ..KubeApiOptions::default() }).unwrap()
}

#[test]
fn a_watch_list_ends_with_its_bookmark() {
    let api = api();
    api.put_node(small_node("node1", "old"));
    api.put_node(small_node("node2", "old"));
    api.edit_node("node1", |node| node["metadata"]["labels"]["is"] = json!("new"));
    let mut watch = Client::to(&api).watch(WATCH_LIST);
    let (kind, node) = watch.event();
    assert_eq!((kind.as_str(), &node["metadata"]["labels"]["is"]), ("ADDED", &json!("new")));
    assert_eq!(watch.short(), short("ADDED", "node2"));
    let (kind, object) = watch.event();
    assert_eq!((kind.as_str(), &object["kind"]), ("BOOKMARK", &json!("Node")));
    assert_eq!(object["metadata"]["annotations"], json!({ "k8s.io/initial-events-end": "true" }));
    assert_eq!(object["metadata"]["resourceVersion"], json!(api.revision().to_string()));
    api.delete_node("node2");
    assert_eq!(watch.short(), short("DELETED", "node2"));
    let mut empty = Client::to(&api).watch(&format!("{WATCH_LIST}&fieldSelector=metadata.name%3Dnone"));
    assert_eq!(empty.event().0, "BOOKMARK");
}

#[test]
fn without_watch_lists_they_are_refused_in_the_real_words() {
    let options = KubeApiOptions { watch_list: false, ..KubeApiOptions::default() };
    let api = KubeApi::start(options).unwrap();
    let mut client = Client::to(&api);
    let refused = client.get(&format!("/api/v1/nodes?watch=1&{WATCH_LIST}"));
    let words = "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is \
                 forbidden for watch unless the WatchList feature gate is enabled";
    assert_eq!(refused.failure(), (422, "Invalid".into(), words.into()));
    assert_eq!(refused.json()["details"]["causes"][0]["field"], "sendInitialEvents");
    let two = client.get("/api/v1/nodes?watch=1&sendInitialEvents=true").failure().2;
    assert!(
        two.contains("is invalid: [resourceVersionMatch: Forbidden: sendInitialEvents requires"),
        "{two}"
    );
}

#[test]
fn without_a_revision_everything_comes_first() {
    let api = api();
    api.put_node(small_node("node1", "old"));
    for query in ["", "resourceVersion=0"] {
        let mut watch = Client::to(&api).watch(query);
        assert_eq!(watch.short(), short("ADDED", "node1"), "{query}");
    }
}

#[test]
fn bookmarks_tell_the_revision() {
    let api = bookmarking();
    api.put_node(small_node("node1", "old"));
    let mut watch = Client::to(&api).watch("allowWatchBookmarks=true&resourceVersion=1");
    assert_eq!(watch.short(), short("ADDED", "node1"));
    // Of no interest to this watch, but it tells how far the store is.
    api.put_pod("default", "pod", "node1");
    let revision = json!(api.revision().to_string());
    eventually(SOON, "a bookmark of that revision", || {
        let (kind, object) = watch.event();
        assert_eq!((kind.as_str(), object["metadata"].get("name")), ("BOOKMARK", None));
        object["metadata"]["resourceVersion"] == revision
    });
    api.set_faults(Faults { no_bookmarks: true, ..Faults::default() });
    let mut unasked = Client::to(&api).watch(&format!("resourceVersion={}", api.revision()));
    std::thread::sleep(Duration::from_millis(100));
    api.delete_node("node1");
    assert_eq!(unasked.short(), short("DELETED", "node1"), "no bookmark unless it is asked for");
    eventually(SOON, "no more bookmarks", || watch.short() == short("DELETED", "node1"));
}

#[test]
fn what_is_forgotten_is_expired() {
    let api = api();
    for n in 0..5 {
        api.put_node(small_node("node1", &n.to_string()));
    }
    let mut open = Client::to(&api).watch(&format!("resourceVersion={}", api.revision()));
    api.compact();
    let oldest = api.revision();
    let mut watch = Client::to(&api).watch("resourceVersion=3");
    let (kind, object) = watch.event();
    assert_eq!((kind.as_str(), &object["kind"]), ("ERROR", &json!("Status")));
    let words = json!(format!("too old resource version: 3 ({oldest})"));
    assert_eq!(
        (&object["code"], &object["reason"], &object["message"]),
        (&json!(410), &json!("Expired"), &words)
    );
    assert_eq!(watch.line().unwrap(), None, "and that is the end");
    api.set_faults(Faults { http_410: true, ..Faults::default() });
    let refused = Client::to(&api).get("/api/v1/nodes?watch=true&resourceVersion=3").failure();
    assert_eq!((refused.0, refused.1.as_str()), (410, "Expired"));
    api.put_node(small_node("node1", "new"));
    assert_eq!(open.short(), short("MODIFIED", "node1"), "it needs no history");
    let mut newest = Client::to(&api).watch(&format!("resourceVersion={oldest}"));
    assert_eq!(newest.short(), short("MODIFIED", "node1"));
}

#[test]
fn the_time_that_is_asked_for_is_the_time_it_takes() {
    let api = bookmarking();
    let start = Instant::now();
    let mut watch = Client::to(&api).watch("timeoutSeconds=1&resourceVersion=1");
    assert_eq!(watch.line().unwrap(), None);
    assert!(start.elapsed() >= Duration::from_secs(1));
    // The connection goes on.
    assert_eq!(watch.client.get("/readyz").status, 200);
    // Before the end there is one more bookmark, however seldom they are.
    let api = crate::api();
    let mut watch = Client::to(&api).watch("timeoutSeconds=5&resourceVersion=1&allowWatchBookmarks=true");
    assert_eq!(watch.event().0, "BOOKMARK");
    assert_eq!(watch.line().unwrap(), None);
}

#[test]
fn a_restored_backup_takes_revisions_back() {
    let api = bookmarking();
    api.put_node(small_node("node1", "old"));
    let backup = api.snapshot();
    let old = api.revision();
    for n in 0..4 {
        api.put_node(small_node(&format!("later{n}"), "new"));
    }
    let known = api.revision();
    let mut watch = Client::to(&api).watch(&format!("resourceVersion={known}"));
    api.restore(backup);
    assert!(watch.line().is_err(), "cut");
    assert_eq!((api.revision(), api.node_names()), (old, vec!["node1".to_owned()]));
    let mut before = Client::to(&api).watch(&format!("resourceVersion={}", old - 1));
    assert_eq!(before.event().0, "ERROR");
    assert_eq!(Client::to(&api).get(&format!("/api/v1/nodes?resourceVersion={known}")).failure().0, 504);
    // What is to come is waited for in silence.
    let mut future = Client::to(&api).watch(&format!("resourceVersion={known}&allowWatchBookmarks=true"));
    future.client.patience(Duration::from_millis(200));
    api.put_node(small_node("node2", "unheard"));
    assert!(future.line().is_err());
    while api.revision() < known {
        api.put_node(small_node("node2", &format!("unheard at {}", api.revision())));
    }
    future.client.patience(SOON);
    api.put_node(small_node("node3", "heard"));
    eventually(SOON, "the change after that", || future.short() == short("ADDED", "node3"));
}

#[test]
fn watches_end_as_when_a_server_ends_them() {
    let api = api();
    let mut watch = Client::to(&api).watch("resourceVersion=1");
    eventually(SOON, "the watch", || api.open_watches() == 1);
    api.end_watches();
    assert_eq!(watch.line().unwrap(), None);
    assert_eq!(watch.client.get("/readyz").status, 200);
    assert_eq!(api.open_watches(), 0);
}

#[test]
fn a_slow_watch_is_cut_off() {
    let options = KubeApiOptions { history: 10, ..KubeApiOptions::default() };
    let api = KubeApi::start(options).unwrap();
    let mut node = kubelet_node("node1", &[], 2_000);
    api.put_node(node.clone());
    let mut slow = Client::to(&api).watch(&format!("resourceVersion={}", api.revision()));
    // 40 MB, which is more than all buffers in between hold.
    for n in 0..40 {
        node["metadata"]["annotations"]["long"] = json!(n.to_string().repeat(500_000));
        api.put_node(node.clone());
        api.edit_node("node1", |node| touch_status(node, n));
    }
    let mut heard = 0;
    while slow.line().unwrap().is_some() {
        heard += 1;
    }
    assert!(heard > 0 && heard < 80, "{heard} of 80");
}
