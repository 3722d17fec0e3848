//! What a udp node publishes, and what a lease needs from this backend. Pure.
//!
//! An IPv4 record has upstream's bytes: an address, and neither type nor data. Go's backend has no IPv6; a node of ours
//! that has it publishes `BackendV6Data`, which Go nodes ignore.

use std::net::{IpAddr, SocketAddr};

use flannel_core::addr::{Family, PerFamily};
use flannel_core::lease::{BackendData, Lease, LeaseAttrs, LeaseKey};
use flannel_core::peers::{Claim, Peer, PeerError};
use serde::Serialize;

use crate::forward;

/// The name that the network config gives.
pub(crate) const KIND: &str = "udp";

/// `BackendV6Data` of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct V6Data {
    /// The UDP port of the IPv6 underlay.
    #[serde(rename = "Port")]
    port: u16,
}

/// What this node publishes.
pub(crate) fn attrs(public_ips: PerFamily<IpAddr>, has_ipv6: bool, port: u16) -> LeaseAttrs {
    let data = || BackendData::encode(&V6Data { port }).expect("a number always encodes");
    LeaseAttrs {
        public_ips,
        backend_type: String::new(),
        backend_data: PerFamily { v4: None, v6: has_ipv6.then(data) },
        ..LeaseAttrs::default()
    }
}

/// The claims of another node's lease. It needs no kernel objects, only entries in the forwarding table.
///
/// A family is used if we have it and the lease has its subnet and address; for IPv6 the node must also publish that it
/// supports it.
pub(crate) fn peer(lease: &Lease, enabled: &PerFamily<IpAddr>) -> Result<Peer, PeerError> {
    let attrs = &lease.attrs;
    if !attrs.backend_type.is_empty() {
        PeerError::check_backend(attrs, KIND)?;
    }
    let mut peer = Peer::default();
    let mut reachable = false;
    for (family, subnet) in lease.key.subnets().iter() {
        peer.claims.push(Claim::Subnet(*subnet));
        let speaks = family == Family::V4 || attrs.backend_data.get(family).is_some();
        if enabled.get(family).is_none() || !speaks {
            continue;
        }
        let unreadable = |why| PeerError::Unreadable(format!("{family}: {why}"));
        let underlay = attrs.underlay(family).map_err(unreadable)?;
        peer.claims.push(Claim::Underlay(underlay));
        reachable = true;
    }
    if !reachable {
        return Err(PeerError::no_common_family());
    }
    Ok(peer)
}

/// A peer's entries in the forwarding table: one for each family, since each has its own underlay address.
pub(crate) fn table_peers(key: &LeaseKey, peer: &Peer, port: u16) -> Vec<forward::Peer> {
    let underlays = peer.claims.iter().filter_map(|claim| match claim {
        Claim::Underlay(addr) => Some(*addr),
        _ => None,
    });
    let entry = |underlay: IpAddr| {
        let subnet = key.subnet(Family::of(underlay))?;
        let endpoint = SocketAddr::new(underlay, port);
        Some(forward::Peer { endpoint, other_sources: Vec::new(), subnets: vec![subnet] })
    };
    underlays.filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use flannel_core::testing::hostile::{Scene, judge};

    use super::*;

    fn lease(key: &str, value: &str) -> Lease {
        Lease { key: key.parse().unwrap(), attrs: LeaseAttrs::from_json(value).unwrap(), created: 1 }
    }

    fn both() -> PerFamily<IpAddr> {
        PerFamily { v4: Some([192, 0, 2, 1].into()), v6: Some("2001:db8::1".parse().unwrap()) }
    }

    #[test]
    fn ipv4_records_have_upstreams_bytes() {
        let v4 = PerFamily { v6: None, ..both() };
        assert_eq!(attrs(v4, false, 8285).to_json(), r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#);
        assert_eq!(
            attrs(both(), true, 8285).to_json(),
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendV6Data":{"Port":8285}}"#
        );
    }

    #[test]
    fn a_go_node_is_reached_by_ipv4_and_ours_by_both() {
        let go = lease("10.5.1.0-24&fd00:5::-64", r#"{"PublicIP":"192.0.2.9","PublicIPv6":"2001:db8::9"}"#);
        let found = table_peers(&go.key, &peer(&go, &both()).unwrap(), 8285);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].endpoint, "192.0.2.9:8285".parse().unwrap());
        let ours = lease(
            "10.5.1.0-24&fd00:5::-64",
            r#"{"PublicIP":"192.0.2.9","PublicIPv6":"2001:db8::9","BackendV6Data":{"Port":8285}}"#,
        );
        let found = table_peers(&ours.key, &peer(&ours, &both()).unwrap(), 8285);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].endpoint, "[2001:db8::9]:8285".parse().unwrap());
        assert_eq!(found[1].subnets, ["fd00:5::/64".parse().unwrap()]);
    }

    #[test]
    fn other_backends_are_not_ours_and_impossible_addresses_are_unknown() {
        for (value, ours) in [
            (r#"{"PublicIP":"192.0.2.9","BackendType":"vxlan"}"#, false),
            (r#"{"PublicIP":"192.0.2.9","BackendType":"udp"}"#, true),
        ] {
            let result = peer(&lease("10.5.1.0-24", value), &both());
            assert_eq!(matches!(result, Err(PeerError::NotOurs(_))), !ours, "{value}");
        }
        for value in [r#"{"PublicIP":"224.0.0.1"}"#, r#"{"PublicIP":"127.0.0.1"}"#, "{}"] {
            let result = peer(&lease("10.5.1.0-24", value), &both());
            assert!(matches!(result, Err(PeerError::Unreadable(_))), "{value}");
        }
    }

    #[test]
    fn hostile_records_are_refused_by_name() {
        let record = |n: u8| {
            let value = format!(
                r#"{{"PublicIP":"192.168.77.{n}","PublicIPv6":"fd00:77::{n}","BackendV6Data":{{"Port":8285}}}}"#
            );
            (format!("10.244.{n}.0-24&fd00:10:244:{n}::-64"), value)
        };
        let scene = Scene { kind: KIND, own: record(11), peer: record(12), stranger: record(50) };
        let networks = PerFamily { v4: "10.244.0.0/16".parse().ok(), v6: "fd00:10:244::/56".parse().ok() };
        let own = peer(&lease(&scene.own.0, &scene.own.1), &both()).unwrap().claims;
        judge(&scene, networks, own, |lease| peer(lease, &both()));
    }
}
