//! A PATCH of a node: formats, what each of the two paths may change, and what is refused.

use std::sync::Arc;

use serde_json::Value;

use super::encoded::Encoded;
use super::patch;
use super::status::Failure;
use super::store::Store;

const STRATEGIC: &str = "application/strategic-merge-patch+json";
const MERGE: &str = "application/merge-patch+json";

/// The part of a node that a path is for. Metadata can be changed by both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Main,
    Status,
}

/// Applies a patch; returns the node as it is then.
pub(super) fn apply(
    store: &mut Store,
    name: &str,
    part: Part,
    content_type: &str,
    body: &[u8],
    dry_run: bool,
) -> Result<Arc<Encoded>, Failure> {
    let format = content_type.split(';').next().unwrap_or_default().trim();
    if ![STRATEGIC, MERGE].contains(&format) {
        return Err(Failure::unsupported_media_type());
    }
    let patch: Value =
        serde_json::from_slice(body).map_err(|error| Failure::bad_request(error.to_string()))?;
    if !patch.is_object() {
        return Err(Failure::bad_request("a patch is a JSON object"));
    }
    let old = store.nodes().get(name).cloned().ok_or_else(|| Failure::not_found("nodes", name))?;
    let before = old.value();
    let mut node = before.clone();
    if format == MERGE {
        patch::merge(&mut node, &patch);
    } else {
        patch::strategic(&mut node, &patch).map_err(Failure::bad_request)?;
    }
    check(&before, &node, &patch, name)?;
    match part {
        Part::Main => keep(&mut node, &before, "status"),
        Part::Status => keep(&mut node, &before, "spec"),
    }
    if part == Part::Main {
        check_pod_cidrs(&before, &node, name)?;
    }
    if dry_run {
        return Ok(old);
    }
    // None: nothing changed, and nothing is written.
    Ok(store.put(name, node).unwrap_or(old))
}

/// What holds for both paths.
fn check(before: &Value, node: &Value, patch: &Value, name: &str) -> Result<(), Failure> {
    let metadata = &node["metadata"];
    if metadata["name"] != name {
        let theirs = metadata["name"].as_str().unwrap_or_default();
        return Err(Failure::bad_request(format!(
            "the name of the object ({theirs}) does not match the name on the URL ({name})"
        )));
    }
    for key in ["labels", "annotations"] {
        let values = metadata[key].as_object().into_iter().flat_map(|map| map.values());
        let is_map = metadata[key].is_null() || metadata[key].is_object();
        if !is_map || values.into_iter().any(|value| !value.is_string()) {
            let what = format!(
                "Invalid value: {:?}: json: cannot unmarshal into Go struct field ObjectMeta.metadata.{key} of type string",
                patch.to_string()
            );
            return Err(Failure::invalid("", "", "", &[("patch", "FieldValueInvalid", what)]));
        }
    }
    let version = patch["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if !["", "0"].contains(&version) && before["metadata"]["resourceVersion"] != version {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        return Err(Failure::conflict(name, why));
    }
    let (theirs, ours) = (&patch["metadata"]["uid"], &before["metadata"]["uid"]);
    if theirs.is_string() && theirs != ours {
        let what = format!("Invalid value: {theirs}: field is immutable");
        return Err(Failure::invalid("", "Node", name, &[("metadata.uid", "FieldValueInvalid", what)]));
    }
    Ok(())
}

/// A node's subnets are given once.
fn check_pod_cidrs(before: &Value, node: &Value, name: &str) -> Result<(), Failure> {
    let (old, new) = (&before["spec"]["podCIDRs"], &node["spec"]["podCIDRs"]);
    if old == new || old.as_array().is_none_or(Vec::is_empty) {
        return Ok(());
    }
    let what = "Forbidden: node updates may not change podCIDR except from \"\" to valid".to_owned();
    Err(Failure::invalid("", "Node", name, &[("spec.podCIDRs", "FieldValueForbidden", what)]))
}

fn keep(node: &mut Value, before: &Value, key: &str) {
    match before.get(key) {
        Some(value) => node[key] = value.clone(),
        None => drop(node.as_object_mut().and_then(|node| node.remove(key))),
    }
}
