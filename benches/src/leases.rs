//! Lease records as many other nodes would have published them.

use std::net::Ipv4Addr;

use flannel_lab::LabError;
use flannel_lab::cluster::Cluster;

/// The most leases there are addresses for, in `10.0.0.0/8` without its last /16.
pub const MOST: u32 = (255 << 10) - 2;

/// The prefix length of every subnet.
pub const PREFIX: u8 = 26;

/// The first subnet of the network, which is no lease's.
pub const FREE: &str = "10.0.0.0/26";

/// Gives the nodes' links room for every gateway of theirs.
pub fn make_room(cluster: &Cluster) -> Result<(), LabError> {
    cluster.nodes().try_for_each(|node| {
        let address = format!("100.127.{}.254/10", 254 + node.number() % 2);
        node.netns().ip(&format!("address add {address} dev eth0")).map(drop)
    })
}

/// The network config they belong to. Agents lease from the last /16, where none of these lies.
pub fn config(backend: &str) -> String {
    format!(
        r#"{{"Network":"10.0.0.0/8","SubnetLen":{PREFIX},"SubnetMin":"10.255.0.0","SubnetMax":"10.255.255.192","Backend":{{"Type":"{backend}"}}}}"#
    )
}

/// The same network with a backend beside the configured one, for detours.
pub fn config_with_fallback(backend: &str, fallback: &str) -> String {
    let own = format!(r#""Type":"{backend}""#);
    config(backend).replace(&own, &format!(r#"{own},"Fallback":["{fallback}"]"#))
}

/// The first address of a node's subnet.
pub fn base(n: u32) -> String {
    let offset = (n + 1) << (32 - PREFIX);
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + offset).to_string()
}

/// A node's subnet.
pub fn subnet(n: u32) -> String {
    format!("{}/{PREFIX}", base(n))
}

/// The record's key, without the prefix.
pub fn key(n: u32) -> String {
    format!("{}-{PREFIX}", base(n))
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
        format!("100.{}.{}.{}", 64 + n / 62500, n / 250 % 250, 1 + n % 250)
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
