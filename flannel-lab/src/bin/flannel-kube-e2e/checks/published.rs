//! What the agents wrote into the cluster, held against what a Go agent wrote.

use flannel_lab::golden::Golden;
use serde_json::{Map, Value, json};

use crate::Fallible;
use crate::world::World;

/// What flannel's annotations begin with.
const PREFIX: &str = "flannel.alpha.coreos.com/";

/// Compares a node's annotations with the recorded ones, and what is in them with the kernel.
pub(crate) fn annotations(world: &World, number: u8) -> Fallible<()> {
    let golden = Golden::named("kube-vxlan");
    let node = world.node(number);
    let mut want = ours(&golden.json["n1"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let data = text(&want["backend-data"]);
    let with_mac_of = |link: &str| -> Fallible<Value> {
        let link = node.netns().ip_json(&format!("link show dev {link}"))?;
        let mac = link[0]["address"].as_str().ok_or("a VXLAN device has a MAC")?;
        let (before, after) = data.split_once("06:a1:56:1b:e8:26").ok_or("the recorded MAC isn't there")?;
        Ok(json!(format!("{before}{mac}{after}")))
    };
    want["backend-data"] = with_mac_of("flannel.1")?;
    want["public-ip"] = json!(node.ipv4());
    if world.cluster.families().v6() {
        want.insert("backend-v6-data".to_owned(), with_mac_of("flannel-v6.1")?);
        want.insert("public-ipv6".to_owned(), json!(node.ipv6()));
    }
    let have = ours(&world.object(number)?);
    if have == want { Ok(()) } else { Err(format!("node{number} has {have:?}, not {want:?}").into()) }
}

/// Compares a node's condition with the recorded one; times need only have the recorded form.
pub(crate) fn condition(world: &World, number: u8) -> Fallible<()> {
    let golden = Golden::named("kube-vxlan");
    let want = network_unavailable(&golden.json["n1"]).ok_or("the record has no condition")?;
    let node = world.object(number)?;
    let have = network_unavailable(&node).ok_or_else(|| format!("node{number} has no condition"))?;
    if masked(&have) == masked(&want) {
        return Ok(());
    }
    Err(format!("node{number} has {have}, not {want}").into())
}

/// flannel's annotations, by what comes after the prefix.
fn ours(node: &Value) -> Map<String, Value> {
    let all = node["metadata"]["annotations"].as_object().into_iter().flatten();
    all.filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?.to_owned(), value.clone()))).collect()
}

fn network_unavailable(node: &Value) -> Option<Value> {
    let conditions = node["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == "NetworkUnavailable").cloned()
}

/// With every digit of the times in the same place.
fn masked(condition: &Value) -> Value {
    let mut condition = condition.clone();
    for key in ["lastHeartbeatTime", "lastTransitionTime"] {
        let time = condition[key].as_str().unwrap_or_default();
        condition[key] = json!(time.replace(|c: char| c.is_ascii_digit(), "0"));
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_has_what_is_compared() {
        let node = &Golden::named("kube-vxlan").json["n1"];
        assert_eq!(ours(node).len(), 4);
        let condition = network_unavailable(node).unwrap();
        assert_eq!(masked(&condition)["lastHeartbeatTime"], "0000-00-00T00:00:00Z");
        assert_eq!(condition["status"], "False");
    }
}
