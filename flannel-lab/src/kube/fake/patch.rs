//! What a patch makes of an object: JSON merge patch and strategic merge patch.
//!
//! Source of the second: apimachinery, `pkg/util/strategicpatch/patch.go`, and the merge keys that
//! `k8s.io/api/core/v1/types.go` gives to the fields of a node.

use serde_json::{Map, Value};

/// How lists at a path of a node are merged; all others are replaced.
enum ListKind {
    /// Objects with this key.
    By(&'static str),
    /// Values that are there once.
    Set,
    Atomic,
}

fn list_kind(path: &str) -> ListKind {
    match path {
        ".status.conditions" | ".status.addresses" => ListKind::By("type"),
        ".metadata.ownerReferences" => ListKind::By("uid"),
        ".metadata.finalizers" | ".spec.podCIDRs" => ListKind::Set,
        _ => ListKind::Atomic,
    }
}

/// The key that says what to do with a map, or with an item of a list, as a whole.
const DIRECTIVE: &str = "$patch";
/// The prefix of a set's name for the values to remove from it.
const TAKE_OUT: &str = "$deleteFromPrimitiveList/";
/// The prefix of a list's name for its order.
const ORDER: &str = "$setElementOrder/";

/// A JSON merge patch (RFC 7386): objects are merged, null deletes, all else replaces.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let target = as_object(target);
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// A strategic merge patch: as the other, but lists that have keys are merged by them.
pub(super) fn strategic(target: &mut Value, patch: &Value) -> Result<(), String> {
    match patch {
        Value::Object(patch) => merge_map(as_object(target), patch, ""),
        _ => Err("a patch is a JSON object".to_owned()),
    }
}

fn as_object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it is one now")
}

fn merge_map(target: &mut Map<String, Value>, patch: &Map<String, Value>, place: &str) -> Result<(), String> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        match directive.as_str() {
            Some("replace") => {
                target.clear();
                let rest = patch.iter().filter(|(key, _)| *key != DIRECTIVE);
                target.extend(rest.map(|(key, value)| (key.clone(), value.clone())));
            }
            Some("delete") => target.clear(),
            Some("merge") => {}
            _ => return Err(format!("unknown directive {directive} at {place:?}")),
        }
        if directive != "merge" {
            return Ok(());
        }
    }
    for (key, value) in patch.iter().filter(|(key, _)| *key != DIRECTIVE) {
        if let Some(list) = key.strip_prefix(TAKE_OUT) {
            let gone = value.as_array().ok_or_else(|| format!("{key} is not a list"))?;
            if let Some(list) = target.get_mut(list).and_then(Value::as_array_mut) {
                list.retain(|item| !gone.contains(item));
            }
        }
    }
    for (key, value) in patch {
        if key == DIRECTIVE || key.starts_with(TAKE_OUT) || key.starts_with(ORDER) {
            continue;
        }
        if key.starts_with('$') {
            return Err(format!("this server does not know the directive {key:?}"));
        }
        let place = format!("{place}.{key}");
        match value {
            Value::Null => drop(target.remove(key)),
            Value::Object(value) => {
                merge_map(as_object(target.entry(key).or_insert(Value::Null)), value, &place)?;
            }
            Value::Array(items) => {
                let target = target.entry(key).or_insert(Value::Null);
                let order = patch.get(&format!("{ORDER}{key}")).and_then(Value::as_array);
                merge_list(target, items, order, &place)?;
            }
            _ => drop(target.insert(key.clone(), value.clone())),
        }
    }
    Ok(())
}

fn merge_list(
    target: &mut Value,
    patch: &[Value],
    order: Option<&Vec<Value>>,
    place: &str,
) -> Result<(), String> {
    let kind = list_kind(place);
    if !target.is_array() || matches!(kind, ListKind::Atomic) {
        *target = Value::Array(Vec::new());
    }
    let list = target.as_array_mut().expect("it is one now");
    // The order names the items by their keys alone; without one it is that of the patch.
    let order = order.map_or(patch, Vec::as_slice);
    match kind {
        ListKind::Atomic => list.extend_from_slice(patch),
        ListKind::Set => {
            let before = list.clone();
            for item in patch {
                if !list.contains(item) {
                    list.push(item.clone());
                }
            }
            sort(list, &before, order, |item| item);
        }
        ListKind::By(merge_key) => {
            let before = list.clone();
            merge_by(list, patch, merge_key, place)?;
            sort(list, &before, order, |item| &item[merge_key]);
        }
    }
    Ok(())
}

fn merge_by(list: &mut Vec<Value>, patch: &[Value], merge_key: &str, place: &str) -> Result<(), String> {
    if patch.iter().any(|item| item[DIRECTIVE] == "replace") {
        let kept = patch.iter().filter(|item| item.get(DIRECTIVE).is_none());
        *list = kept.cloned().collect();
        return Ok(());
    }
    for item in patch {
        let Value::Object(fields) = item else {
            return Err(format!("an item of {place:?} is not an object"));
        };
        let wanted = fields.get(merge_key).filter(|key| !key.is_null());
        let wanted =
            wanted.ok_or_else(|| format!("map: {item} does not contain declared merge key: {merge_key}"))?;
        if item[DIRECTIVE] == "delete" {
            list.retain(|other| other[merge_key] != *wanted);
            continue;
        }
        let found = list.iter().position(|other| other[merge_key] == *wanted);
        let at = found.unwrap_or_else(|| {
            list.push(Value::Null);
            list.len() - 1
        });
        merge_map(as_object(&mut list[at]), fields, place)?;
    }
    Ok(())
}

/// Puts what the order names into it. The others go between, in front of what they were in front of; so what is new
/// comes first.
fn sort(list: &mut Vec<Value>, before: &[Value], order: &[Value], key: impl Fn(&Value) -> &Value) {
    let place = |list: &[Value], item: &Value| list.iter().position(|named| key(named) == key(item));
    let (mut named, others): (Vec<_>, Vec<_>) =
        std::mem::take(list).into_iter().partition(|item| place(order, item).is_some());
    named.sort_by_key(|item| place(order, item));
    let mut named = named.into_iter().peekable();
    for other in others {
        let is_before =
            |item: &Value| place(before, item).is_some_and(|item| place(before, &other) < Some(item));
        while let Some(item) = named.next_if(|item| !is_before(item)) {
            list.push(item);
        }
        list.push(other);
    }
    list.extend(named);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merge_patches_do_what_the_rfc_says() {
        // RFC 7386, appendix A.
        for (target, patch, want) in [
            (json!({ "a": "b" }), json!({ "a": "c" }), json!({ "a": "c" })),
            (json!({ "a": "b" }), json!({ "b": "c" }), json!({ "a": "b", "b": "c" })),
            (json!({ "a": "b" }), json!({ "a": null }), json!({})),
            (json!({ "a": "b", "b": "c" }), json!({ "a": null }), json!({ "b": "c" })),
            (json!({ "a": ["b"] }), json!({ "a": "c" }), json!({ "a": "c" })),
            (json!({ "a": "c" }), json!({ "a": ["b"] }), json!({ "a": ["b"] })),
            (
                json!({ "a": { "b": "c" } }),
                json!({ "a": { "b": "d", "c": null } }),
                json!({ "a": { "b": "d" } }),
            ),
            (json!({ "a": [{ "b": "c" }] }), json!({ "a": [1] }), json!({ "a": [1] })),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({ "a": "b" }), json!(["c"]), json!(["c"])),
            (json!({ "a": "foo" }), json!(null), json!(null)),
            (json!({ "e": null }), json!({ "a": 1 }), json!({ "e": null, "a": 1 })),
            (json!([1, 2]), json!({ "a": "b", "c": null }), json!({ "a": "b" })),
            (json!({}), json!({ "a": { "bb": { "ccc": null } } }), json!({ "a": { "bb": {} } })),
        ] {
            let mut merged = target.clone();
            merge(&mut merged, &patch);
            assert_eq!(merged, want, "{target} with {patch}");
        }
    }

    /// Conditions with a type and a number.
    fn conditions(list: &[(&str, u8)]) -> Value {
        let list = list.iter().map(|(kind, n)| json!({ "type": kind, "n": n }));
        json!({ "status": { "conditions": list.collect::<Vec<_>>() } })
    }

    #[test]
    fn strategic_patches_merge_lists_by_their_keys() {
        let old = conditions(&[("A", 1), ("B", 2)]);
        let patch = |items: Value| json!({ "status": { "conditions": items } });
        for (patch, want) in [
            (patch(json!([{ "type": "B", "n": 3 }])), conditions(&[("A", 1), ("B", 3)])),
            (patch(json!([{ "type": "C", "n": 3 }])), conditions(&[("C", 3), ("A", 1), ("B", 2)])),
            (patch(json!([{ "type": "A", "$patch": "delete" }])), conditions(&[("B", 2)])),
            (patch(json!([{ "$patch": "replace" }, { "type": "C", "n": 9 }])), conditions(&[("C", 9)])),
            (patch(json!([])), old.clone()),
            (patch(json!(null)), json!({ "status": {} })),
            (json!({ "status": { "$patch": "delete" } }), json!({ "status": {} })),
            (json!({ "status": { "$patch": "replace", "x": 1 } }), json!({ "status": { "x": 1 } })),
            (
                json!({ "status": { "$setElementOrder/conditions": [{ "type": "B" }, { "type": "A" }] } }),
                old.clone(),
            ),
            (
                json!({ "status": {
                    "$setElementOrder/conditions": [{ "type": "C" }, { "type": "B" }],
                    "conditions": [{ "type": "C", "n": 3 }],
                } }),
                conditions(&[("C", 3), ("A", 1), ("B", 2)]),
            ),
        ] {
            let mut merged = old.clone();
            strategic(&mut merged, &patch).unwrap();
            assert_eq!(merged, want, "{patch}");
        }
        let mut nothing = json!({});
        strategic(&mut nothing, &patch(json!([{ "type": "A", "n": 1, "gone": null }]))).unwrap();
        assert_eq!(nothing, conditions(&[("A", 1)]));
    }

    #[test]
    fn strategic_patches_know_sets_and_plain_lists() {
        let old = json!({
            "metadata": { "finalizers": ["a", "b"] },
            "spec": { "taints": [{ "key": "x" }], "podCIDRs": ["10.0.0.0/24"] },
        });
        let mut merged = old.clone();
        let patch = json!({
            "metadata": { "$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["b", "c"], "name": "n" },
            "spec": { "taints": [{ "key": "y" }], "podCIDRs": ["fd00::/64", "10.0.0.0/24"] },
        });
        strategic(&mut merged, &patch).unwrap();
        let want = json!({
            "metadata": { "finalizers": ["b", "c"], "name": "n" },
            "spec": { "taints": [{ "key": "y" }], "podCIDRs": ["fd00::/64", "10.0.0.0/24"] },
        });
        assert_eq!(merged, want);
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        for patch in [
            json!([]),
            json!({ "$patch": "explode" }),
            json!({ "$retainKeys": ["a"] }),
            json!({ "status": { "conditions": [1] } }),
            json!({ "status": { "conditions": [{ "type": null }] } }),
            json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": 1 } }),
        ] {
            assert!(strategic(&mut conditions(&[("A", 1)]), &patch).is_err(), "{patch}");
        }
    }
}
