//! The server that the other tests use, held against the real one: both are asked the same.

use flannel_lab::kube::fake::{KubeApi, KubeApiOptions};
use flannel_lab::kube::real::{Answer, Body, ask_plainly};
use serde_json::{Value, json};

use crate::Fallible;
use crate::world::World;

/// A question: method, path, and what goes with it.
type Question = (&'static str, &'static str, Option<Body>);

/// Asks both servers what an agent may ask, and what goes wrong with it.
pub(crate) fn same_answers(world: &World) -> Fallible<String> {
    let fabric = world.cluster.fabric();
    let options = KubeApiOptions::at(fabric, world.cluster.fabric_address());
    let fake = KubeApi::start(KubeApiOptions { port: Some(7443), watch_list: false, ..options })?;
    fake.put_node(world.object(1)?);
    for _ in 0..3 {
        // A history, and the end of it: the real one has forgotten its first revisions, too.
        fake.put_node(json!({ "metadata": { "name": "other" } }));
        fake.delete_node("other");
    }
    fake.compact();
    let questions = questions();
    let mut different = Vec::new();
    for (method, path, body) in &questions {
        let real = world.api.ask(method, path, body.clone())?;
        let ours = ask_plainly(fabric, method, &format!("{}{path}", fake.url()), body.clone())?;
        let (real, ours) = (told(&real), told(&ours));
        if real != ours {
            let body = body.as_ref().map(|body| format!("{body:?}")).unwrap_or_default();
            different.push(format!("{method} {path} {body}\n  real {real}\n  ours {ours}"));
        }
    }
    if different.is_empty() {
        return Ok(format!("{} questions, the same answers", questions.len()));
    }
    Err(format!("the servers differ:\n{}", different.join("\n")).into())
}

fn questions() -> Vec<Question> {
    let patch = |patch: Value| Some(Body::strategic_merge_patch(&patch));
    let annotations = |map: Value| json!({ "metadata": { "annotations": map } });
    let conditions = |items: Value, order: Value| {
        let mut status = json!({ "conditions": items });
        if !order.is_null() {
            status["$setElementOrder/conditions"] = order;
        }
        patch(json!({ "status": status }))
    };
    let node = "/api/v1/nodes/node1";
    let status = "/api/v1/nodes/node1/status";
    vec![
        ("GET", "/api/v1/nodes/nobody", None),
        ("GET", "/api/v1/namespaces/kube-flannel/pods/nobody", None),
        ("GET", "/api/v1/nodes?limit=1&continue=nonsense", None),
        ("GET", "/api/v1/nodes?resourceVersion=99999999", None),
        ("GET", "/api/v1/nodes?limit=1&resourceVersion=1&resourceVersionMatch=Exact", None),
        ("GET", "/api/v1/nodes?watch=true&timeoutSeconds=2&resourceVersion=1", None),
        ("GET", "/api/v1/nodes?watch=true&timeoutSeconds=2&resourceVersion=99999999", None),
        (
            "GET",
            "/api/v1/nodes?watch=true&timeoutSeconds=2&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
            None,
        ),
        ("PATCH", "/api/v1/nodes/nobody/status", patch(annotations(json!({ "a": "b" })))),
        ("PATCH", status, patch(annotations(json!({ "a.example/b": "c", "a.example/d": null })))),
        ("PATCH", status, patch(annotations(json!({ "a.example/b": null })))),
        ("PATCH", status, patch(annotations(json!({ "a.example/b": 7 })))),
        ("PATCH", status, patch(json!({ "metadata": { "uid": "another", "annotations": { "a": "b" } } }))),
        (
            "PATCH",
            status,
            patch(json!({ "metadata": { "resourceVersion": "1", "annotations": { "a": "b" } } })),
        ),
        ("PATCH", status, patch(json!({ "metadata": { "name": "node2" } }))),
        ("PATCH", status, patch(json!({ "spec": { "unschedulable": true } }))),
        (
            "PATCH",
            status,
            patch(json!({ "status": { "conditions": [{ "type": "Mine", "status": "True" }] } })),
        ),
        // Order and merging of what is there and what is new.
        ("PATCH", status, conditions(json!([{ "type": "Other", "status": "True" }]), Value::Null)),
        ("PATCH", status, conditions(json!([{ "type": "Mine", "status": "Unknown" }]), Value::Null)),
        (
            "PATCH",
            status,
            conditions(
                json!([{ "type": "Third", "status": "True" }]),
                json!([{ "type": "Third" }, { "type": "NetworkUnavailable" }]),
            ),
        ),
        ("PATCH", status, conditions(json!([{ "type": "Mine", "$patch": "delete" }]), Value::Null)),
        ("PATCH", status, Some(Body::merge_patch(&annotations(json!({ "a.example/b": "c" }))))),
        ("PATCH", status, Some(Body::merge_patch(&annotations(json!({ "a.example/b": null }))))),
        ("PATCH", status, Some(Body::json(&json!({})))),
        ("PATCH", node, patch(json!({ "spec": { "podCIDR": "10.9.9.0/24", "podCIDRs": ["10.9.9.0/24"] } }))),
        ("PUT", "/api/v1/nodes", Some(Body::json(&json!({})))),
        ("GET", "/api/v1/nothing", None),
    ]
}

/// What an answer tells an agent: the status, why, and what a node is like then, without what is another's each time.
fn told(answer: &Answer) -> String {
    let body = &answer.body;
    let failed = if body["type"] == "ERROR" { &body["object"] } else { body };
    if failed["kind"] == "Status" {
        return format!("{} {} {} {}", answer.status, body["type"], failed["code"], failed["reason"]);
    }
    let metadata = &body["metadata"];
    let conditions = body["status"]["conditions"].as_array().into_iter().flatten();
    let conditions = conditions.map(|it| format!("{}={}", it["type"], it["status"])).collect::<Vec<_>>();
    format!(
        "{} {} {} {} {} {conditions:?}",
        answer.status, body["kind"], metadata["name"], metadata["annotations"], body["spec"]["unschedulable"]
    )
}
