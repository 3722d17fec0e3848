//! Nodes as a kubelet makes them, and how it changes them all the time.

use serde_json::{Value, json};

use super::clock;

/// The conditions that a kubelet reports: type, status when all is well, reason, message.
const CONDITIONS: [(&str, &str, &str, &str); 4] = [
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
];

/// A node with what a kubelet and the controllers put into it, in about so many bytes: labels, annotations, addresses,
/// conditions, resources and, up to the size, managed fields and images. 2,000 bytes are the least.
///
/// Without subnets it is a node that the controllers have not come to yet.
pub fn kubelet_node(name: &str, pod_cidrs: &[&str], size: usize) -> Value {
    let now = clock::now();
    let conditions = CONDITIONS.map(|(kind, status, reason, message)| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        })
    });
    let resources = json!({
        "cpu": "4", "ephemeral-storage": "101430960Ki", "hugepages-2Mi": "0", "memory": "16378268Ki", "pods": "110",
    });
    let digits = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let id = format!("{digits:016x}{:016x}", digits.rotate_left(23));
    let mut node = json!({
        "metadata": {
            "name": name,
            "labels": {
                "beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
            },
            "annotations": {
                "kubeadm.alpha.kubernetes.io/cri-socket": "unix:///run/containerd/containerd.sock",
                "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            },
        },
        "spec": {},
        "status": {
            "addresses": [{ "type": "Hostname", "address": name }],
            "allocatable": resources, "capacity": resources,
            "conditions": conditions,
            "daemonEndpoints": { "kubeletEndpoint": { "Port": 10250 } },
            "images": [],
            "nodeInfo": {
                "architecture": "amd64", "bootID": id, "containerRuntimeVersion": "containerd://1.7.24",
                "kernelVersion": "6.1.0-28-amd64", "kubeProxyVersion": "", "kubeletVersion": "v1.33.0",
                "machineID": id, "operatingSystem": "linux", "osImage": "Debian GNU/Linux 12 (bookworm)",
                "systemUUID": id,
            },
        },
    });
    if let Some(first) = pod_cidrs.first() {
        node["spec"]["podCIDR"] = json!(first);
        node["spec"]["podCIDRs"] = json!(pod_cidrs);
    }
    fill(&mut node, size, &now);
    node
}

/// Adds what makes real nodes large until one has its size.
fn fill(node: &mut Value, size: usize, now: &str) {
    // The server adds uid, revision and creation.
    let mut len = node.to_string().len() + 130;
    let managed = json!([{
        "apiVersion": "v1", "fieldsType": "FieldsV1", "manager": "kubelet", "operation": "Update", "time": now,
        "fieldsV1": { "f:metadata": { "f:annotations": { ".": {}, "f:volumes.kubernetes.io/controller-managed-attach-detach": {} },
            "f:labels": { ".": {}, "f:beta.kubernetes.io/arch": {}, "f:kubernetes.io/hostname": {} } } },
    }]);
    if len + 360 < size {
        len += managed.to_string().len() + 18;
        node["metadata"]["managedFields"] = managed;
    }
    let images = node["status"]["images"].as_array_mut().expect("there is a list of them");
    for number in 0_u64.. {
        let digest = format!(
            "{:064x}",
            u128::from(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
        );
        let image = json!({
            "names": [format!("registry.k8s.io/image-{number}@sha256:{digest}"), format!("registry.k8s.io/image-{number}:v1.{number}")],
            "sizeBytes": 10_000_000 + number * 1_234_567,
        });
        let more = image.to_string().len() + 1;
        if len + more > size {
            return;
        }
        len += more;
        images.push(image);
    }
}

/// Heartbeat number `n`: new times in all conditions, which mean nothing to a network agent.
pub fn touch_status(node: &mut Value, n: u64) {
    let time = clock::rfc3339(1_750_000_000 + n * 10);
    let conditions = node["status"]["conditions"].as_array_mut().into_iter().flatten();
    for condition in conditions.filter(|condition| condition["type"] != "NetworkUnavailable") {
        condition["lastHeartbeatTime"] = json!(time);
    }
}
