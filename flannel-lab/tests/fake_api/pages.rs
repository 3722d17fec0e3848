//! Lists in pages, and lists of the past.

use serde_json::{Value, json};

use crate::client::Client;
use crate::{api, small_node};

const NODES: &str = "/api/v1/nodes";

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|node| node["metadata"]["name"].as_str().unwrap()).collect()
}

fn token(list: &Value) -> &str {
    list["metadata"]["continue"].as_str().unwrap()
}

#[test]
fn pages_are_of_one_moment() {
    let api = api();
    for n in 1..=5 {
        api.put_node(small_node(&format!("node{n}"), "old"));
    }
    let revision = api.revision();
    let mut client = Client::to(&api);
    let first = client.get(&format!("{NODES}?limit=2")).json();
    assert_eq!(names(&first), ["node1", "node2"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    api.delete_node("node3");
    api.edit_node("node4", |node| node["metadata"]["labels"]["is"] = json!("new"));
    api.put_node(small_node("node4a", "new"));
    let second = client.get(&format!("{NODES}?limit=2&continue={}", token(&first))).json();
    assert_eq!(names(&second), ["node3", "node4"]);
    assert_eq!(second["items"][1]["metadata"]["labels"]["is"], "old");
    assert_eq!(second["metadata"]["remainingItemCount"], 1);
    let third = client.get(&format!("{NODES}?limit=2&continue={}", token(&second))).json();
    assert_eq!(names(&third), ["node5"]);
    assert_eq!(third["metadata"], json!({ "resourceVersion": revision.to_string() }));
    assert_eq!((api.counts().lists, api.counts().pages), (1, 2));
    // A limit of just as many has no next page.
    assert_eq!(client.get(&format!("{NODES}?limit=5")).json()["metadata"].get("continue"), None);
}

#[test]
fn pages_expire() {
    let api = api();
    for n in 1..=5 {
        api.put_node(small_node(&format!("node{n}"), "old"));
    }
    let mut client = Client::to(&api);
    let first = client.get(&format!("{NODES}?limit=2")).json();
    let next = format!("{NODES}?limit=2&continue={}", token(&first));
    api.compact();
    assert_eq!(client.get(&next).status, 200, "nothing has changed since");
    api.delete_node("node4");
    api.compact();
    let expired = client.get(&next);
    assert_eq!((expired.failure().0, expired.failure().1.as_str()), (410, "Expired"));
    assert!(expired.failure().2.starts_with("The provided continue parameter is too old"));
    // The rest as it is now, which is another state than that of the first page.
    let rest = client.get(&format!("{NODES}?continue={}", token(&expired.json()))).json();
    assert_eq!(names(&rest), ["node3", "node5"]);
    assert_eq!(client.get(&format!("{NODES}?continue=junk")).failure().1, "BadRequest");
    let both = client.get(&format!("{next}&resourceVersion=3")).failure();
    assert_eq!(both.2, "specifying resource version is not allowed when using continue");
}

#[test]
fn revisions_mean_what_they_mean_to_the_real_server() {
    let api = api();
    api.put_node(small_node("node1", "old"));
    let old = api.revision();
    api.put_node(small_node("node2", "old"));
    api.put_node(small_node("node3", "old"));
    let mut client = Client::to(&api);
    let mut list = |query: &str| client.get(&format!("{NODES}?{query}"));
    let count = |answer: crate::client::Answer| names(&answer.json()).len();
    assert_eq!(count(list("limit=1&resourceVersion=0")), 3, "the limit is ignored");
    assert_eq!(count(list("limit=1")), 1);
    assert_eq!(count(list(&format!("resourceVersion={old}"))), 3, "not older than");
    assert_eq!(count(list(&format!("resourceVersion={old}&resourceVersionMatch=NotOlderThan"))), 3);
    assert_eq!(count(list(&format!("resourceVersion={old}&resourceVersionMatch=Exact"))), 1);
    assert_eq!(count(list("fieldSelector=metadata.name%3Dnode2")), 1);
    let future = list("resourceVersion=1000");
    assert!(future.head.contains("retry-after: 1\r\n"), "{}", future.head);
    let words = format!("Too large resource version: 1000, current: {}", api.revision());
    assert_eq!(future.failure(), (504, "Timeout".into(), words));
    assert_eq!(future.json()["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    api.compact();
    assert_eq!(list(&format!("resourceVersion={old}&resourceVersionMatch=Exact")).failure().1, "Expired");
    for (query, words) in [
        (
            "resourceVersionMatch=Exact",
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (
            "resourceVersionMatch=Exact&resourceVersion=0",
            "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ),
        (
            "resourceVersionMatch=Newest&resourceVersion=1",
            "resourceVersionMatch: Unsupported value: \"Newest\": supported values: \"Exact\", \"NotOlderThan\"",
        ),
        ("sendInitialEvents=true", "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"),
    ] {
        let words = format!("ListOptions.meta.k8s.io \"\" is invalid: {words}");
        assert_eq!(list(query).failure(), (422, "Invalid".into(), words));
    }
}
