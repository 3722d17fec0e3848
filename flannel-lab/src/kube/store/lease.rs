//! One lease in two forms: key and value as in etcd, and a node with annotations.

use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

const PREFIX: &str = "flannel.alpha.coreos.com/";

/// The annotation that says that a node takes part.
const MANAGED: &str = "kube-subnet-manager";

/// Members of a record that are text, and their annotations.
const TEXTS: [(&str, &str); 3] =
    [("PublicIP", "public-ip"), ("PublicIPv6", "public-ipv6"), ("BackendType", "backend-type")];

/// Members that are JSON, in annotations as text.
const DATA: [(&str, &str); 3] =
    [("BackendData", "backend-data"), ("BackendV6Data", "backend-v6-data"), ("Receives", "receives")];

fn annotation(suffix: &str) -> String {
    format!("{PREFIX}{suffix}")
}

/// The subnets that a key names; `None` if it names none.
pub(super) fn subnets(key: &str) -> Option<Vec<String>> {
    let parts = key.split('&').filter(|part| *part != "0.0.0.0-0");
    let subnets = parts.map(|part| {
        let subnet = part.replace('-', "/");
        subnet.parse::<IpNetwork>().is_ok().then_some(subnet)
    });
    subnets.collect()
}

/// The name of a node that is there for its record alone.
pub(super) fn foreign_name(key: &str) -> String {
    let name: String = key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("foreign-{}", name.trim_matches('-').to_ascii_lowercase())
}

/// Writes a record into a node's annotations.
pub(super) fn annotate(node: &mut Value, value: &str) {
    strip(node);
    let annotations = &mut node["metadata"]["annotations"];
    annotations[annotation(MANAGED)] = json!("true");
    let Ok(Value::Object(record)) = serde_json::from_str::<Value>(value) else {
        annotations[annotation("backend-data")] = json!(value);
        return;
    };
    let present = |name: &str| record.get(name).filter(|value| !value.is_null());
    for (name, suffix) in TEXTS {
        if let Some(value) = present(name) {
            // A value that is not text becomes text that is unreadable as a record.
            annotations[annotation(suffix)] = json!(value.as_str().map_or(value.to_string(), str::to_owned));
        }
    }
    for (name, suffix) in DATA {
        if let Some(value) = present(name) {
            annotations[annotation(suffix)] = json!(value.to_string());
        }
    }
    // Go's udp backend says no type, which is an empty one.
    if present("BackendType").is_none() {
        annotations[annotation("backend-type")] = json!("");
    }
    // A backend without data has `null` there, in each family that it has.
    if present("BackendData").is_none() && present("PublicIP").is_some() {
        annotations[annotation("backend-data")] = json!("null");
    }
    if present("BackendV6Data").is_none() && present("PublicIPv6").is_some() {
        annotations[annotation("backend-v6-data")] = json!("null");
    }
}

/// Gives one annotation another value, or removes it.
pub(super) fn set(node: &mut Value, suffix: &str, value: Option<&str>) {
    let annotations = &mut node["metadata"]["annotations"];
    match value {
        Some(value) => annotations[annotation(suffix)] = json!(value),
        None => drop(annotations.as_object_mut().and_then(|all| all.remove(&annotation(suffix)))),
    }
}

/// Removes all of flannel's annotations.
pub(super) fn strip(node: &mut Value) {
    if let Some(annotations) = node["metadata"]["annotations"].as_object_mut() {
        annotations.retain(|key, _| !key.starts_with(PREFIX));
    }
}

/// The record of a node that takes part: key and value.
pub(super) fn record(node: &Value) -> Option<(String, String)> {
    let get = |suffix: &str| node["metadata"]["annotations"][annotation(suffix)].as_str();
    if get(MANAGED) != Some("true") {
        return None;
    }
    let subnets = node["spec"]["podCIDRs"].as_array()?.iter().map(|cidr| cidr.as_str().unwrap_or_default());
    let mut parts: Vec<String> = subnets.map(|cidr| cidr.replace('/', "-")).collect();
    if parts.first()?.contains(':') {
        parts.insert(0, "0.0.0.0-0".to_owned());
    }
    let mut record = Map::new();
    for (name, suffix) in TEXTS {
        let text = get(suffix).filter(|text| !text.is_empty());
        record.extend(text.map(|text| (name.to_owned(), json!(text))));
    }
    for (name, suffix) in DATA {
        let data = get(suffix).map(|text| serde_json::from_str(text).unwrap_or_else(|_| json!(text)));
        record.extend(data.filter(|data| !data.is_null()).map(|data| (name.to_owned(), data)));
    }
    Some((parts.join("&"), Value::from(record).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::fake::kubelet_node;

    #[test]
    fn records_come_back_as_they_were_put() {
        for (cidrs, key, value) in [
            (
                &["10.244.5.0/24", "fd00:10:244:5::/64"][..],
                "10.244.5.0-24&fd00:10:244:5::-64",
                json!({
                    "PublicIP": "192.168.77.5", "PublicIPv6": "fd00:77::5", "BackendType": "vxlan",
                    "BackendData": { "VNI": 1, "VtepMAC": "0a:00:00:00:00:05" },
                    "BackendV6Data": { "VNI": 1, "VtepMAC": "0e:00:00:00:00:05" },
                    "Receives": [{ "Type": "udp" }],
                }),
            ),
            (
                &["10.244.5.0/24"],
                "10.244.5.0-24",
                json!({ "PublicIP": "192.168.77.5", "BackendType": "host-gw" }),
            ),
            (&["fd00:10:244:5::/64"], "0.0.0.0-0&fd00:10:244:5::-64", json!({ "PublicIPv6": "fd00:77::5" })),
        ] {
            let mut node = kubelet_node("node5", cidrs, 2000);
            assert_eq!(record(&node), None);
            let plain = node.clone();
            annotate(&mut node, &value.to_string());
            assert_eq!(subnets(key).unwrap(), cidrs);
            assert_eq!(record(&node), Some((key.to_owned(), value.to_string())));
            strip(&mut node);
            assert_eq!(node, plain);
        }
    }

    #[test]
    fn rubbish_stays_rubbish() {
        let mut node = kubelet_node("node5", &["10.244.5.0/24"], 2000);
        annotate(&mut node, "no JSON");
        assert_eq!(node["metadata"]["annotations"][annotation("backend-data")], "no JSON");
        annotate(&mut node, "{\"PublicIP\":7}");
        assert_eq!(node["metadata"]["annotations"][annotation("public-ip")], "7");
        set(&mut node, "public-ip", Some("nowhere"));
        assert_eq!(record(&node).unwrap().1, r#"{"PublicIP":"nowhere"}"#);
        set(&mut node, MANAGED, None);
        assert_eq!(record(&node), None);
        assert_eq!((subnets("junk"), foreign_name("Junk/1").as_str()), (None, "foreign-junk-1"));
    }
}
