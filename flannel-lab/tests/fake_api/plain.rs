//! Nodes and pods: read, listed, watched, changed.

use flannel_lab::cluster::Cluster;
use flannel_lab::kube::fake::{Counts, KubeApi, KubeApiOptions, MetadataOnly, kubelet_node, touch_status};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use serde_json::json;

use crate::client::{Client, SOON};
use crate::{api, short, small_node};

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
    assert_eq!(watch.short(), short("MODIFIED", "node1"));
    assert_eq!(watch.short(), short("ADDED", "node2"));
    let (kind, object) = watch.event();
    assert_eq!((kind.as_str(), &object["metadata"]["name"]), ("DELETED", &json!("node1")));
    assert_eq!(object["metadata"]["resourceVersion"], json!(revision.to_string()));
    assert_eq!(object["metadata"]["uid"], node["metadata"]["uid"]);
    assert_eq!(api.node_names(), ["node2"]);
    drop(watch);
    eventually(SOON, "the watch to be gone", || api.open_watches() == 0);
    assert_eq!(api.counts(), Counts { lists: 1, watches: 1, gets: 1, ..Counts::default() });
}

#[test]
fn what_the_server_sets_is_its_own() {
    let api = api();
    api.put_node(small_node("node1", "new"));
    let first = api.node("node1").unwrap();
    let uid = first["metadata"]["uid"].as_str().unwrap();
    assert_eq!((uid.len(), uid.as_bytes()[14]), (36, b'4'), "{uid}");
    assert!(first["metadata"]["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    let revision = api.revision();
    api.put_node(small_node("node1", "new"));
    assert!(api.edit_node("node1", |node| node["metadata"]["uid"] = json!("mine")));
    assert_eq!((api.revision(), api.node("node1").unwrap()), (revision, first.clone()), "nothing changed");
    api.put_node(small_node("node1", "changed"));
    let second = api.node("node1").unwrap();
    assert_eq!(second["metadata"]["uid"], uid);
    assert_eq!(second["metadata"]["resourceVersion"], json!((revision + 1).to_string()));
    assert!(!api.edit_node("node2", |_| ()) && !api.delete_node("node2"));
    assert_eq!(api.revision(), revision + 1);
    api.delete_node("node1");
    api.put_node(small_node("node1", "new"));
    assert_ne!(api.node("node1").unwrap()["metadata"]["uid"], uid, "another node of that name");
}

#[test]
fn pods_and_the_servers_own_paths_are_there() {
    let api = api();
    api.put_pod("kube-flannel", "kube-flannel-ds-x7", "node 7");
    let mut client = Client::to(&api);
    let pod = client.get("/api/v1/namespaces/kube-flannel/pods/kube-flannel-ds-x7").json();
    assert_eq!((&pod["kind"], &pod["spec"]["nodeName"]), (&json!("Pod"), &json!("node 7")));
    let missing = client.get("/api/v1/namespaces/default/pods/kube-flannel-ds-x7").failure();
    assert_eq!(missing, (404, "NotFound".into(), r#"pods "kube-flannel-ds-x7" not found"#.into()));
    assert_eq!(client.get("/readyz").body, "ok");
    assert_eq!(client.get("/version").json()["minor"], "33");
}

#[test]
fn errors_are_status_objects() {
    let api = api();
    let mut client = Client::to(&api);
    let missing = client.get("/api/v1/nodes/node9");
    assert_eq!(missing.json()["details"], json!({ "name": "node9", "kind": "nodes" }));
    assert_eq!(missing.failure(), (404, "NotFound".into(), r#"nodes "node9" not found"#.into()));
    let nothing = client.get("/apis/crd.example.com/v1/things").failure();
    let words = "the server could not find the requested resource";
    assert_eq!(nothing, (404, "NotFound".into(), words.into()));
    client.send("DELETE", "/api/v1/nodes/node9", "").unwrap();
    assert_eq!(client.answer().unwrap().failure().1, "MethodNotAllowed");
    let ahead = client.get("/api/v1/nodes/node1?resourceVersion=99").failure();
    assert_eq!((ahead.0, ahead.1.as_str()), (504, "Timeout"));
    for (query, code, reason) in [
        ("resourceVersion=new", 422, "Invalid"),
        ("limit=few", 400, "BadRequest"),
        ("labelSelector=a%3Db", 400, "BadRequest"),
        ("fieldSelector=spec.unschedulable%3Dtrue", 400, "BadRequest"),
        ("watch=1&timeoutSeconds=soon", 400, "BadRequest"),
    ] {
        let failure = client.get(&format!("/api/v1/nodes?{query}")).failure();
        assert_eq!((failure.0, failure.1.as_str()), (code, reason), "{query}");
    }
    for (accept, code) in [
        ("application/json, */*", 200),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", 200),
        ("application/vnd.kubernetes.protobuf", 406),
    ] {
        client.headers = format!("Accept: {accept}\r\n");
        assert_eq!(client.get("/api/v1/nodes").status, code, "{accept}");
    }
}

/// Metadata alone, in each way in which it can be asked for; and servers that don't have it.
#[test]
fn metadata_is_served_alone_to_those_who_ask_for_it() {
    let accept =
        |kind: &str| format!("Accept: application/json;as={kind};g=meta.k8s.io;v=v1,application/json\r\n");
    let node = kubelet_node("node1", &["10.244.1.0/24"], 3000);
    for (metadata_only, is_whole, code) in [
        (MetadataOnly::Served, false, 200),
        (MetadataOnly::Unknown, true, 200),
        (MetadataOnly::Refused, true, 406),
    ] {
        let api = KubeApi::start(KubeApiOptions { metadata_only, ..KubeApiOptions::default() }).unwrap();
        api.put_node(node.clone());
        let mut client = Client::to(&api);
        client.headers = accept("PartialObjectMetadata");
        let answer = client.get("/api/v1/nodes/node1");
        assert_eq!(answer.status, code);
        client.headers = accept("PartialObjectMetadataList");
        let list = client.get("/api/v1/nodes");
        assert_eq!(list.status, code);
        if code != 200 {
            assert_eq!(list.failure().1, "NotAcceptable");
            continue;
        }
        let (object, list) = (answer.json(), list.json());
        let mut watching = Client::to(&api);
        watching.headers = accept("PartialObjectMetadata");
        let mut watch =
            watching.watch("sendInitialEvents=1&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=1");
        let (kind, first) = watch.event();
        assert_eq!((kind.as_str(), &first), ("ADDED", &object));
        let (kind, mark) = watch.event();
        assert_eq!((kind.as_str(), &mark["kind"]), ("BOOKMARK", &object["kind"]));
        assert_eq!(mark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
        assert_eq!(object["metadata"], list["items"][0]["metadata"]);
        assert_eq!(object["metadata"], api.node("node1").unwrap()["metadata"]);
        assert_eq!((object.get("spec").is_some(), mark.get("status").is_some()), (is_whole, is_whole));
        let kinds = [&object["kind"], &list["kind"], &list["items"][0]["kind"]];
        let partial = [json!("PartialObjectMetadata"), json!("PartialObjectMetadataList")];
        let whole = [&json!("Node"), &json!("NodeList"), &json!(null)];
        let want = if is_whole { whole } else { [&partial[0], &partial[1], &partial[0]] };
        assert_eq!(kinds, want);
        // A list is no object.
        client.headers = accept("PartialObjectMetadata");
        assert_eq!(client.get("/api/v1/nodes").status, if is_whole { 200 } else { 406 });
    }
}

#[test]
fn requests_are_remembered_as_they_came() {
    let api = api();
    let mut client = Client::to(&api);
    client.headers = "Authorization: Bearer sesame\r\nUser-Agent: flanneld/1\r\n".to_owned();
    client.get("/api/v1/nodes?limit=5&fieldSelector=metadata.name%3Dnode1");
    client.patch("/api/v1/nodes/node1", "merge-patch+json", &json!({ "a": 1 }));
    let seen = api.requests();
    assert_eq!((seen[0].method.as_str(), seen[0].path.as_str()), ("GET", "/api/v1/nodes"));
    assert_eq!(
        (seen[0].query["limit"].as_str(), seen[0].query["fieldSelector"].as_str()),
        ("5", "metadata.name=node1")
    );
    assert_eq!(
        (seen[0].token.as_deref(), seen[0].user_agent.as_deref()),
        (Some("sesame"), Some("flanneld/1"))
    );
    assert_eq!(seen[1].content_type.as_deref(), Some("application/merge-patch+json"));
    assert_eq!((seen[1].body.as_str(), seen[1].token.as_deref()), (r#"{"a":1}"#, None));
    assert!(seen[0].at <= seen[1].at && seen.len() == 2);
    assert_eq!(api.counts(), Counts { lists: 1, patches: 1, ..Counts::default() });
    api.clear_requests();
    assert_eq!((api.requests().len(), api.counts()), (0, Counts::default()));
}

#[test]
fn it_lives_in_a_namespace_and_ends_with_its_handle() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(1).build().unwrap();
        let api = KubeApi::start(KubeApiOptions::at(cluster.fabric(), cluster.fabric_address())).unwrap();
        assert_eq!(api.url(), "http://192.168.77.1:6443");
        let connect = |netns: &flannel_lab::netns::Netns| {
            netns.enter(|| std::net::TcpStream::connect(("192.168.77.1", 6443))).unwrap()
        };
        let mut client = Client::over(connect(cluster.node(1).netns()).unwrap());
        assert_eq!(client.get("/readyz").status, 200);
        drop(api);
        assert!(client.send("GET", "/readyz", "").is_err() || client.answer().is_err());
        assert!(connect(cluster.fabric()).is_err());
    });
}

#[test]
fn it_can_be_used_within_a_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let api = api();
        api.put_node(small_node("node1", "new"));
        api.stop_listening();
        api.listen_again().unwrap();
        assert_eq!(Client::to(&api).get("/readyz").status, 200);
    });
}

#[test]
fn nodes_have_the_size_that_is_asked_for() {
    let api = api();
    for size in [2_000, 3_000, 10_000, 100_000] {
        api.put_node(kubelet_node("node1", &["10.244.1.0/24"], size));
        let len = Client::to(&api).get("/api/v1/nodes/node1").body.len();
        assert!(len.abs_diff(size) < 450, "{len} for {size}");
    }
    let before = api.node("node1").unwrap();
    assert!(api.edit_node("node1", |node| touch_status(node, 7)));
    let mut after = api.node("node1").unwrap();
    assert_ne!(after["status"]["conditions"], before["status"]["conditions"]);
    after["status"]["conditions"] = before["status"]["conditions"].clone();
    after["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
    assert_eq!(after, before);
}
