//! A node as one looks that has been in a cluster for a while: a cloud's labels, fifty images, and the managed fields of all
//! that write to it. What is in it, and in which proportion, decides what a watch costs.

use serde_json::{Value, json};

use super::clock;
use super::kubelet::kubelet_node;

/// The most images that a kubelet reports (`nodeStatusMaxImages`).
const IMAGES: u64 = 50;

/// A node with what kubelet, controllers, a cloud, a CSI driver and an agent of flannel write to it: about 15 KB, of which 4
/// are metadata. Its annotations are for the caller to set.
pub fn full_node(name: &str, pod_cidrs: &[&str]) -> Value {
    let mut node = kubelet_node(name, pod_cidrs, 0);
    let labels = [
        ("failure-domain.beta.kubernetes.io/region", "eu-central-1"),
        ("failure-domain.beta.kubernetes.io/zone", "eu-central-1a"),
        ("node.kubernetes.io/instance-type", "m5.xlarge"),
        ("topology.kubernetes.io/region", "eu-central-1"),
        ("topology.kubernetes.io/zone", "eu-central-1a"),
        ("topology.ebs.csi.aws.com/zone", "eu-central-1a"),
        ("node.example.com/pool", "workers"),
        ("node.example.com/image", "debian-12-2026-11"),
    ];
    for (label, value) in labels {
        node["metadata"]["labels"][label] = json!(value);
    }
    let csi = format!(r#"{{"ebs.csi.aws.com":"i-{name}"}}"#);
    node["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"] = json!(csi);
    node["metadata"]["annotations"]["alpha.kubernetes.io/provided-node-ip"] = json!("198.18.0.1");
    node["metadata"]["managedFields"] = managed_fields(&labels.map(|(label, _)| label), pod_cidrs);
    node["spec"]["providerID"] = json!(format!("aws:///eu-central-1a/i-{name}"));
    node["status"]["images"] = (0..IMAGES).map(image).collect();
    node
}

fn image(number: u64) -> Value {
    let digest =
        format!("{:064x}", u128::from(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
    let name = format!("registry.example.com/team/service-{number}");
    json!({
        "names": [format!("{name}@sha256:{digest}"), format!("{name}:v1.{number}.0")],
        "sizeBytes": 10_000_000 + number * 1_234_567,
    })
}

/// Who wrote what. A condition is a key of its own, as Kubernetes writes it.
fn managed_fields(labels: &[&str], pod_cidrs: &[&str]) -> Value {
    let fields = |names: &[&str]| -> Value {
        let fields = names.iter().map(|name| (format!("f:{name}"), json!({})));
        fields.chain([(".".to_owned(), json!({}))]).collect::<serde_json::Map<_, _>>().into()
    };
    let flannel = ["backend-data", "backend-type", "kube-subnet-manager", "public-ip"];
    let flannel = flannel.map(|suffix| format!("flannel.alpha.coreos.com/{suffix}"));
    let flannel: Vec<&str> = flannel.iter().map(String::as_str).collect();
    let own =
        ["beta.kubernetes.io/arch", "beta.kubernetes.io/os", "kubernetes.io/arch", "kubernetes.io/hostname"];
    let labels: Vec<&str> = own.iter().chain(&["kubernetes.io/os"]).chain(labels).copied().collect();
    let cidrs = pod_cidrs.iter().map(|cidr| (format!("v:\"{cidr}\""), json!({})));
    let cidrs: serde_json::Map<_, _> = cidrs.chain([(".".to_owned(), json!({}))]).collect();
    let condition =
        fields(&["lastHeartbeatTime", "lastTransitionTime", "message", "reason", "status", "type"]);
    let conditions = ["DiskPressure", "MemoryPressure", "PIDPressure", "Ready"]
        .map(|kind| (format!("k:{{\"type\":\"{kind}\"}}"), condition.clone()));
    let conditions: serde_json::Map<_, _> = conditions.into_iter().collect();
    let unavailable = json!({ "k:{\"type\":\"NetworkUnavailable\"}": condition });
    let of = |manager: &str, subresource: Option<&str>, fields: Value| {
        let mut entry = json!({
            "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields, "manager": manager,
            "operation": "Update", "time": clock::now(),
        });
        if let Some(subresource) = subresource {
            entry["subresource"] = json!(subresource);
        }
        entry
    };
    let ttl = fields(&["node.alpha.kubernetes.io/ttl"]);
    let attach = fields(&[
        "volumes.kubernetes.io/controller-managed-attach-detach",
        "alpha.kubernetes.io/provided-node-ip",
    ]);
    json!([
        of(
            "kubelet",
            None,
            json!({ "f:metadata": { "f:annotations": attach, "f:labels": fields(&labels) }, "f:spec": { "f:providerID": {} } })
        ),
        of(
            "kubeadm",
            None,
            json!({ "f:metadata": { "f:annotations": { "f:kubeadm.alpha.kubernetes.io/cri-socket": {} } } })
        ),
        of(
            "kube-controller-manager",
            None,
            json!({ "f:metadata": { "f:annotations": ttl }, "f:spec": { "f:podCIDR": {}, "f:podCIDRs": cidrs } })
        ),
        of(
            "flanneld",
            Some("status"),
            json!({ "f:metadata": { "f:annotations": fields(&flannel) }, "f:status": { "f:conditions": unavailable } })
        ),
        of(
            "kubelet",
            Some("status"),
            json!({
                "f:metadata": { "f:annotations": fields(&["csi.volume.kubernetes.io/nodeid"]) },
                "f:status": {
                    "f:addresses": { ".": {}, "k:{\"type\":\"Hostname\"}": fields(&["address", "type"]), "k:{\"type\":\"InternalIP\"}": fields(&["address", "type"]) },
                    "f:allocatable": fields(&["cpu", "ephemeral-storage", "hugepages-2Mi", "memory", "pods"]),
                    "f:capacity": fields(&["cpu", "ephemeral-storage", "hugepages-2Mi", "memory", "pods"]),
                    "f:conditions": conditions, "f:images": {}, "f:nodeInfo": fields(&["bootID", "kernelVersion", "kubeletVersion"]),
                },
            })
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_size_of_real_ones() {
        let node = full_node("node-17", &["10.244.1.0/24"]);
        let (all, metadata) = (node.to_string().len(), node["metadata"].to_string().len());
        assert!((13_000..17_000).contains(&all) && (3_500..5_000).contains(&metadata), "{all}, {metadata}");
    }
}
