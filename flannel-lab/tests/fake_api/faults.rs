//! What can be made to go wrong.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use flannel_lab::kube::fake::{Faults, KubeApi, kubelet_node};
use flannel_lab::wait::eventually;
use serde_json::{Value, json};

use crate::client::{Client, SOON};
use crate::{api, short, small_node};

const NODES: &str = "/api/v1/nodes";

/// Long enough to tell silence.
const SILENCE: Duration = Duration::from_millis(200);

#[test]
fn requests_fail_as_told() {
    let api = api();
    let mut client = Client::to(&api);
    for (code, reason) in [(403, "Forbidden"), (429, "TooManyRequests"), (500, "InternalError")] {
        api.set_faults(Faults { fail: Some(code), ..Faults::default() });
        let answer = client.get(NODES);
        assert_eq!((answer.failure().0, answer.failure().1.as_str()), (code, reason));
        assert_eq!(answer.head.contains("retry-after: "), code == 429);
    }
    api.set_faults(Faults { fail_next: 2, ..Faults::default() });
    let codes: Vec<_> = (0..4).map(|_| client.get(NODES).status).collect();
    assert_eq!(codes, [503, 503, 200, 200]);
    assert_eq!(api.faults(), Faults::default());
    api.set_faults(Faults { fail: Some(504), fail_next: 1, ..Faults::default() });
    assert_eq!((client.get(NODES).status, client.get(NODES).status), (504, 200));
    assert_eq!(api.counts().lists, 9);

    api.put_node(small_node("node1", "old"));
    api.set_faults(Faults { refuse_patches: Some(403), ..Faults::default() });
    let patch = json!({ "metadata": { "labels": { "is": "new" } } });
    assert_eq!(client.patch("/api/v1/nodes/node1", "merge-patch+json", &patch).failure().1, "Forbidden");
    assert_eq!((client.get(NODES).status, api.revision()), (200, 2));
    api.set_faults(Faults::default());
    assert_eq!(client.patch("/api/v1/nodes/node1", "merge-patch+json", &patch).status, 200);
}

#[test]
fn answers_take_their_time() {
    let api = api();
    api.set_faults(Faults { delay: SILENCE, ..Faults::default() });
    let start = Instant::now();
    assert_eq!(Client::to(&api).get("/readyz").status, 200);
    assert!(start.elapsed() >= SILENCE);
}

#[test]
fn a_stalled_server_says_nothing_and_closes_nothing() {
    let api = api();
    let mut watch = Client::to(&api).watch("resourceVersion=1");
    let mut client = Client::to(&api);
    client.get(NODES);
    api.set_faults(Faults { stall: true, ..Faults::default() });
    api.put_node(small_node("node1", "new"));
    let mut new = Client::to(&api);
    for waiting in [&mut client, &mut new] {
        waiting.send("GET", NODES, "").unwrap();
        waiting.patience(SILENCE);
        let error = waiting.answer().unwrap_err();
        assert!(
            matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
            "{error}"
        );
    }
    watch.client.patience(SILENCE);
    assert!(watch.line().is_err());
    assert_eq!((api.open_watches(), api.open_connections(), api.counts().lists), (1, 3, 1));

    api.set_faults(Faults::default());
    for waiting in [&mut client, &mut new] {
        waiting.patience(SOON);
        assert_eq!(waiting.answer().unwrap().status, 200);
    }
    watch.client.patience(SOON);
    assert_eq!(watch.short(), short("ADDED", "node1"));
    // A stalled connection can be cut like any other.
    api.set_faults(Faults { stall: true, ..Faults::default() });
    api.disconnect();
    assert!(watch.line().is_err());
    eventually(SOON, "no connection", || api.open_connections() == 0);
}

#[test]
fn connections_are_cut_whatever_they_are_at() {
    let api = api();
    api.put_node(kubelet_node("node1", &[], 3000));
    let mut watch = Client::to(&api).watch("");
    assert_eq!(watch.short(), short("ADDED", "node1"));
    let mut idle = Client::to(&api);
    idle.get(NODES);
    api.disconnect();
    api.delete_node("node1");
    let error = watch.line().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "no proper end, and no further event");
    assert!(idle.send("GET", NODES, "").is_err() || idle.answer().is_err());
    assert_eq!(Client::to(&api).get(NODES).status, 200);
}

#[test]
fn a_port_is_closed_and_opened_again() {
    let api = api();
    let mut open = Client::to(&api);
    open.get(NODES);
    for _ in 0..20 {
        api.stop_listening();
        api.stop_listening();
        let refused = TcpStream::connect(api.address()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        assert_eq!(open.get(NODES).status, 200, "what is open goes on");
        api.listen_again().unwrap();
        api.listen_again().unwrap();
        assert_eq!(Client::to(&api).get(NODES).status, 200);
    }
}

#[test]
fn a_watch_talks_rubbish() {
    let api = api();
    let mut watch = Client::to(&api).watch("resourceVersion=1");
    api.set_faults(Faults { garbage: true, ..Faults::default() });
    api.put_node(small_node("node1", "new"));
    let line = watch.line().unwrap().unwrap();
    assert!(serde_json::from_str::<Value>(&line).is_err(), "{line}");
    assert_eq!(watch.short(), short("ADDED", "node1"));
}

#[test]
fn a_hundred_cuts_lose_no_event() {
    let api: KubeApi = api();
    let mut known = api.revision();
    let mut heard = Vec::new();
    for round in 0..100 {
        let mut watch = Client::to(&api).watch(&format!("resourceVersion={known}"));
        api.put_node(small_node(&format!("node{round:03}"), "new"));
        api.put_node(small_node(&format!("node{round:03}"), "changed"));
        // The second is heard in this round or in the next.
        let (_, node) = watch.event();
        known = node["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        heard.push(known);
        api.disconnect();
    }
    let mut watch = Client::to(&api).watch(&format!("resourceVersion={known}"));
    while known < api.revision() {
        let (_, node) = watch.event();
        known = node["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        heard.push(known);
    }
    assert_eq!(heard, (2..=201).collect::<Vec<u64>>());
}
