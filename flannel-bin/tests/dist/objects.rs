//! Objects of Kubernetes, from YAML.

use std::collections::BTreeSet;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// What the API server is asked for: API group, resource and verb.
pub(crate) type Call = (String, String, String);

/// The calls of the agent: its own pod, if nothing else says which node it is on; all nodes; what it publishes.
pub(crate) const CALLS: &[(&str, &str, &str)] = &[
    ("", "nodes", "get"),
    ("", "nodes", "list"),
    ("", "nodes", "watch"),
    ("", "nodes/status", "patch"),
    ("", "pods", "get"),
];

/// All documents of a text.
///
/// Each has to be what it says it is and nothing else: a field that its type does not have, or a value that reads as
/// another, would be lost on the way through the type.
pub(crate) fn parse(text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).expect("the text is YAML");
    let documents: Vec<_> = documents.into_iter().filter(|document| !document.is_null()).collect();
    for document in &documents {
        check(document);
    }
    documents
}

fn check(object: &Value) {
    let kind = (text(object, "/apiVersion"), text(object, "/kind"));
    let again = match kind {
        ("v1", "Namespace") => through::<Namespace>(object),
        ("v1", "ServiceAccount") => through::<ServiceAccount>(object),
        ("v1", "ConfigMap") => through::<ConfigMap>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => through::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => through::<ClusterRoleBinding>(object),
        ("v1", "Service") => through::<Service>(object),
        ("monitoring.coreos.com/v1", "ServiceMonitor") => through::<ServiceMonitor>(object),
        ("apps/v1", "DaemonSet") => through::<DaemonSet>(object),
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy") => {
            through::<ValidatingAdmissionPolicy>(object)
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding") => {
            through::<ValidatingAdmissionPolicyBinding>(object)
        }
        other => panic!("nothing that a network needs: {other:?}"),
    };
    assert_eq!(&again, object, "{kind:?} has a field or a value that its type does not have");
}

/// What we use of the Prometheus operator's `ServiceMonitor`, as its API has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ServiceMonitor {
    api_version: String,
    kind: String,
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    spec: ServiceMonitorSpec,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceMonitorSpec {
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    endpoints: Vec<Endpoint>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Endpoint {
    port: String,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<String>,
    relabelings: Vec<Relabeling>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Relabeling {
    source_labels: Vec<String>,
    target_label: String,
}

fn through<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"));
    serde_json::to_value(typed).unwrap()
}

/// The only object of a kind.
pub(crate) fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let one = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "more than one {kind}");
    one
}

/// The text at a JSON pointer.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("no text at {pointer}: {object}"))
}

/// A container of a `DaemonSet`, by its name.
pub(crate) fn container<'a>(daemon_set: &'a Value, name: &str) -> Option<&'a Value> {
    let spec = &daemon_set["spec"]["template"]["spec"];
    let all = ["initContainers", "containers"].into_iter().filter_map(|list| spec[list].as_array()).flatten();
    all.into_iter().find(|container| container["name"] == name)
}

/// What a container executes: `command`, then `args`.
pub(crate) fn command_line(container: &Value) -> Vec<String> {
    let lists = ["command", "args"].into_iter().filter_map(|list| container[list].as_array()).flatten();
    lists.map(|word| word.as_str().expect("words are text").to_owned()).collect()
}

/// A text of the `ConfigMap` that is JSON itself.
pub(crate) fn config(objects: &[Value], key: &str) -> Value {
    let text = of_kind(objects, "ConfigMap")["data"][key].as_str().unwrap_or_else(|| panic!("no {key}"));
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{key}: {error}"))
}

/// What a `ClusterRole` allows.
pub(crate) fn allowed(role: &Value) -> BTreeSet<Call> {
    let list = |rule: &Value, name: &str| -> Vec<String> {
        rule[name].as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned()).collect()
    };
    let mut calls = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        for group in list(rule, "apiGroups") {
            for resource in list(rule, "resources") {
                let call = |verb| (group.clone(), resource.clone(), verb);
                calls.extend(list(rule, "verbs").into_iter().map(call));
            }
        }
    }
    calls
}

/// What the agent calls.
pub(crate) fn called() -> BTreeSet<Call> {
    let owned = |&(group, resource, verb): &(&str, &str, &str)| {
        (group.to_owned(), resource.to_owned(), verb.to_owned())
    };
    CALLS.iter().map(owned).collect()
}

/// The objects by kind, without what has no meaning: how JSON is laid out, and whether a word of a command line is in
/// `command` or in `args`.
pub(crate) fn meaning(objects: &[Value]) -> Map<String, Value> {
    let mut all = Map::new();
    for object in objects {
        let mut object = object.clone();
        for text in
            object.get_mut("data").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut)
        {
            *text = serde_json::from_str(text.as_str().unwrap()).unwrap();
        }
        for list in ["initContainers", "containers"] {
            let pointer = format!("/spec/template/spec/{list}");
            for container in object.pointer_mut(&pointer).and_then(Value::as_array_mut).into_iter().flatten()
            {
                let words = command_line(container);
                let container = container.as_object_mut().unwrap();
                container.remove("args");
                container.insert("command".to_owned(), json!(words));
            }
        }
        let kind = text(&object, "/kind").to_owned();
        assert!(all.insert(kind, object).is_none());
    }
    all
}
