//! Patches by both paths and in both formats, and what is refused.

use flannel_lab::kube::fake::kubelet_node;
use serde_json::{Value, json};

use crate::client::{Answer, Client};
use crate::{api, short};

const STRATEGIC: &str = "strategic-merge-patch+json";
const MERGE: &str = "merge-patch+json";
const NODE: &str = "/api/v1/nodes/node1";
const STATUS: &str = "/api/v1/nodes/node1/status";

#[test]
fn an_agents_patches_do_what_it_means() {
    let api = api();
    api.put_node(kubelet_node("node1", &["10.244.1.0/24"], 3000));
    let before = api.node("node1").unwrap();
    let mut watch = Client::to(&api).watch(&format!("resourceVersion={}", api.revision()));
    let mut client = Client::to(&api);
    let key = "flannel.alpha.coreos.com/public-ip";
    let patch = json!({ "metadata": { "annotations": { key: "192.168.77.11" } } });
    let answer = client.patch(STATUS, STRATEGIC, &patch);
    assert_eq!((answer.status, &answer.json()["kind"]), (200, &json!("Node")));
    let condition = json!({
        "type": "NetworkUnavailable", "status": "False", "reason": "FlannelIsUp",
        "message": "Flannel is running on this node",
    });
    client.patch(STATUS, STRATEGIC, &json!({ "status": { "conditions": [condition] } }));
    let mut want = before.clone();
    want["metadata"]["annotations"][key] = json!("192.168.77.11");
    want["status"]["conditions"].as_array_mut().unwrap().insert(0, condition.clone());
    want["metadata"]["resourceVersion"] = json!(api.revision().to_string());
    assert_eq!(api.node("node1").unwrap(), want);
    assert_eq!([watch.short(), watch.short()], [short("MODIFIED", "node1"), short("MODIFIED", "node1")]);

    // Said again, it is no change.
    let revision = api.revision();
    assert_eq!(client.patch(STATUS, STRATEGIC, &patch).status, 200);
    assert_eq!(
        client.patch(STATUS, STRATEGIC, &json!({ "status": { "conditions": [condition] } })).status,
        200
    );
    assert_eq!(api.revision(), revision);
    // The other format replaces the list.
    client.patch(
        STATUS,
        MERGE,
        &json!({ "status": { "conditions": [condition] }, "metadata": { "annotations": { key: null } } }),
    );
    let node = api.node("node1").unwrap();
    assert_eq!(node["status"]["conditions"], json!([condition]));
    assert_eq!(node["metadata"]["annotations"].get(key), None);
}

#[test]
fn each_path_changes_its_own_part() {
    let api = api();
    api.put_node(kubelet_node("node1", &[], 2000));
    let mut client = Client::to(&api);
    let both = json!({
        "metadata": { "labels": { "zone": "a" } },
        "spec": { "unschedulable": true },
        "status": { "phase": "Running" },
    });
    client.patch(STATUS, MERGE, &both);
    let node = api.node("node1").unwrap();
    assert_eq!((node["spec"].get("unschedulable"), &node["status"]["phase"]), (None, &json!("Running")));
    assert_eq!(node["metadata"]["labels"]["zone"], "a");
    client.patch(
        NODE,
        MERGE,
        &json!({ "spec": { "unschedulable": true }, "status": { "phase": "Pending" } }),
    );
    let node = api.node("node1").unwrap();
    assert_eq!((&node["spec"]["unschedulable"], &node["status"]["phase"]), (&json!(true), &json!("Running")));
    // A dry run tells nobody.
    let revision = api.revision();
    assert_eq!(
        client.patch(&format!("{NODE}?dryRun=All"), MERGE, &json!({ "spec": { "x": "y" } })).status,
        200
    );
    assert_eq!(api.revision(), revision);
}

#[test]
fn bad_patches_are_refused_in_the_real_words() {
    let api = api();
    api.put_node(kubelet_node("node1", &["10.244.1.0/24"], 2000));
    let mut client = Client::to(&api);
    let mut say = |path: &str, format: &str, patch: &Value| -> Answer { client.patch(path, format, patch) };
    let fine = json!({ "metadata": { "labels": { "a": "b" } } });
    for (path, format, patch, code, reason, words) in [
        (
            NODE,
            "json",
            &fine,
            415,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format",
        ),
        (NODE, "apply-patch+yaml", &fine, 415, "UnsupportedMediaType", "the body of the request"),
        ("/api/v1/nodes/node9", MERGE, &fine, 404, "NotFound", "nodes \"node9\" not found"),
        (NODE, MERGE, &json!([1]), 400, "BadRequest", "a patch is a JSON object"),
        (
            STATUS,
            MERGE,
            &json!({ "metadata": { "resourceVersion": "1" } }),
            409,
            "Conflict",
            "Operation cannot be fulfilled on nodes \"node1\": the object has been modified; please apply your \
             changes to the latest version and try again",
        ),
        (
            NODE,
            MERGE,
            &json!({ "metadata": { "uid": "another" } }),
            422,
            "Invalid",
            "Node \"node1\" is invalid: metadata.uid: Invalid value: \"another\": field is immutable",
        ),
        (
            NODE,
            MERGE,
            &json!({ "metadata": { "name": "b" } }),
            400,
            "BadRequest",
            "the name of the object (b) does not match the name on the URL (node1)",
        ),
        (
            NODE,
            MERGE,
            &json!({ "spec": { "podCIDRs": ["10.9.0.0/24"] } }),
            422,
            "Invalid",
            "Node \"node1\" is invalid: spec.podCIDRs: Forbidden: node updates may not change podCIDR",
        ),
        (
            NODE,
            MERGE,
            &json!({ "metadata": { "annotations": { "a": 1 } } }),
            422,
            "Invalid",
            " \"\" is invalid: patch: Invalid value",
        ),
        (
            STATUS,
            STRATEGIC,
            &json!({ "status": { "conditions": [{ "status": "True" }] } }),
            400,
            "BadRequest",
            "map: {\"status\":\"True\"} does not contain declared merge key: type",
        ),
    ] {
        let revision = api.revision();
        let failure = say(path, format, patch).failure();
        assert_eq!((failure.0, failure.1.as_str()), (code, reason), "{patch}");
        assert!(failure.2.starts_with(words), "{}", failure.2);
        assert_eq!(api.revision(), revision);
    }
    // The revision that is there is taken, and so is none.
    for version in [api.revision().to_string(), "0".to_owned(), String::new()] {
        let patch =
            json!({ "metadata": { "resourceVersion": version, "labels": { "v": format!("of-{version}") } } });
        assert_eq!(say(NODE, MERGE, &patch).status, 200, "{version:?}");
    }
    client.headers = "Content-Type: application/merge-patch+json\r\n".to_owned();
    client.send("PATCH", NODE, "{\"metadata\":").unwrap();
    assert_eq!(client.answer().unwrap().failure().1, "BadRequest");
}
