//! The API server of the lab: what the real one says to the same questions, and its faults.

mod client;
mod crowd;
mod faults;
mod login;
mod pages;
mod patches;
mod plain;
mod watches;

use flannel_lab::kube::fake::{KubeApi, KubeApiOptions};
use serde_json::{Value, json};

/// A server without TLS, for everyone.
fn api() -> KubeApi {
    KubeApi::start(KubeApiOptions::default()).unwrap()
}

/// A node with no more than a name and a label.
fn small_node(name: &str, label: &str) -> Value {
    json!({ "kind": "Node", "apiVersion": "v1", "metadata": { "name": name, "labels": { "is": label } } })
}

fn short(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}
