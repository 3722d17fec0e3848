//! Lease records as many other nodes would have published them.

use flannel_lab::LabError;
use flannel_lab::cluster::Cluster;

/// The most leases there are addresses for, in `10.64.0.0/10` without its last /16.
pub const MOST: u32 = (63 << 8) - 2;

/// Gives the nodes' links room for every gateway of theirs.
pub fn make_room(cluster: &Cluster) -> Result<(), LabError> {
    cluster.nodes().try_for_each(|node| {
        let address = format!("10.200.{}.254/16", 254 + node.number() % 2);
        node.netns().ip(&format!("address add {address} dev eth0")).map(drop)
    })
}

/// The network config they belong to. Agents lease from the last /16, where none of these lies.
pub fn config(backend: &str) -> String {
    format!(
        r#"{{"Network":"10.64.0.0/10","SubnetLen":24,"SubnetMin":"10.127.0.0","SubnetMax":"10.127.255.0","Backend":{{"Type":"{backend}"}}}}"#
    )
}

/// The same network with a backend beside the configured one, for detours.
pub fn config_with_fallback(backend: &str, fallback: &str) -> String {
    let own = format!(r#""Type":"{backend}""#);
    config(backend).replace(&own, &format!(r#"{own},"Fallback":["{fallback}"]"#))
}

/// The first address of a node's subnet, a /24.
pub fn base(n: u32) -> String {
    let n = n + 1;
    format!("10.{}.{}.0", 64 + (n >> 8), n & 0xff)
}

/// The record's key, without the prefix.
pub fn key(n: u32) -> String {
    format!("{}-24", base(n))
}

/// The MAC of its VTEP.
pub fn mac(n: u32) -> String {
    format!("0a:00:00:{:02x}:{:02x}:{:02x}", n >> 16, (n >> 8) & 0xff, n & 0xff)
}

/// Its address on the underlay. VXLAN peers can be anywhere; gateways must be on the link. Every node has an
/// address of its own, as routes with one gateway are cheaper for the kernel.
pub fn underlay(backend: &str, n: u32) -> String {
    if backend == "vxlan" {
        format!("172.{}.{}.{}", 16 + (n >> 16), (n >> 8) & 0xff, n & 0xff)
    } else {
        format!("10.200.{}.{}", n / 250, 1 + n % 250)
    }
}

/// The record's value of a node that receives by another backend, too.
pub fn value_with_fallback(backend: &str, fallback: &str, n: u32) -> String {
    let value = value(backend, n);
    let inner = value.strip_suffix('}').expect("it is an object");
    format!(r#"{inner},"Receives":[{{"Type":"{fallback}"}}]}}"#)
}

/// The record's value.
pub fn value(backend: &str, n: u32) -> String {
    let ip = underlay(backend, n);
    if backend == "vxlan" {
        let mac = mac(n);
        format!(
            r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        )
    } else {
        format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"{backend}"}}"#)
    }
}
