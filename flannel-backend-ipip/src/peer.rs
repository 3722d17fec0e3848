//! Which kernel objects a lease needs. Pure. Upstream: `pkg/backend/ipip/ipip_network.go`.

use flannel_core::addr::{Family, LinkIndex};
use flannel_core::dataplane::{Object, Route};
use flannel_core::lease::Lease;
use flannel_core::on_link::OnLink;
use flannel_core::peers::{Claim, Peer, PeerError};

/// The name under which this backend publishes leases.
pub(crate) const KIND: &str = "ipip";

/// How peers are reached.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Paths<'a> {
    /// Our device; `None` before it was made first.
    pub(crate) device: Option<LinkIndex>,
    /// The underlay link and its on-link addresses, if those are reached without a tunnel.
    pub(crate) direct: Option<(LinkIndex, &'a OnLink)>,
}

/// The objects and claims of another node's lease: one route by its node, through the tunnel or directly. Both routes
/// have one key, so a change between the two replaces one route in place.
pub(crate) fn peer(lease: &Lease, paths: &Paths<'_>) -> Result<Peer, PeerError> {
    let attrs = &lease.attrs;
    PeerError::check_backend(attrs, KIND)?;
    let mut peer = Peer::default();
    peer.claims.extend(lease.key.subnets().iter().map(|(_, subnet)| Claim::Subnet(*subnet)));
    let subnet = lease.key.subnet(Family::V4).ok_or_else(PeerError::no_common_family)?;
    let unreadable = |why| PeerError::Unreadable(format!("{}: {why}", Family::V4));
    let node = attrs.underlay(Family::V4).map_err(unreadable)?;
    peer.claims.push(Claim::Underlay(node));
    let direct = paths.direct.filter(|(_, on_link)| on_link.reaches(node) && !subnet.contains(node));
    let link = direct.map(|(lower, _)| lower).or(paths.device);
    // Go flannel sets onlink on direct routes, too.
    let route = link.map(|link| Route { onlink: true, ..Route::by_node(subnet, node, link) });
    peer.objects.extend(route.map(Object::Route));
    Ok(peer)
}

#[cfg(test)]
mod tests {
    use flannel_core::addr::PerFamily;
    use flannel_core::lease::LeaseAttrs;
    use flannel_core::testing::hostile::{Scene, judge};
    use proptest::prelude::*;

    use super::*;

    const DEVICE: LinkIndex = LinkIndex(4);
    const LOWER: LinkIndex = LinkIndex(2);
    const PATHS: Paths<'_> = Paths { device: Some(DEVICE), direct: None };
    const VALUE: &str = r#"{"PublicIP":"192.0.2.11","PublicIPv6":null,"BackendType":"ipip"}"#;

    fn lease(key: &str, value: &str) -> Lease {
        Lease { key: key.parse().unwrap(), attrs: LeaseAttrs::from_json(value).unwrap(), created: 1 }
    }

    fn route(link: LinkIndex) -> Object {
        let route = Route::by_node("10.5.1.0/24".parse().unwrap(), [192, 0, 2, 11].into(), link);
        Object::Route(Route { onlink: true, ..route })
    }

    #[test]
    fn a_lease_asks_for_one_route_by_its_node() {
        let one = lease("10.5.1.0-24", VALUE);
        let peer = peer(&one, &PATHS).unwrap();
        assert_eq!(peer.objects, [route(DEVICE)]);
        let subnet = "10.5.1.0/24".parse().unwrap();
        assert_eq!(peer.claims, [Claim::Subnet(subnet), Claim::Underlay([192, 0, 2, 11].into())]);
        let without = super::peer(&one, &Paths::default()).unwrap();
        assert_eq!((without.objects.len(), without.claims.len()), (0, 2), "no device yet");
        let dual = super::peer(&lease("10.5.1.0-24&fd00:5::-64", VALUE), &PATHS).unwrap();
        assert_eq!(dual.objects, [route(DEVICE)], "its IPv4 alone");
    }

    #[test]
    fn only_on_link_nodes_are_reached_directly() {
        let on_link = |dst: &str| {
            let route = Route::by_node(dst.parse().unwrap(), [0; 4].into(), LOWER);
            OnLink::new(&[Route { via: None, ..route }])
        };
        for (links, want) in [("192.0.2.0/24", LOWER), ("198.51.100.0/24", DEVICE)] {
            let on_link = on_link(links);
            let paths = Paths { direct: Some((LOWER, &on_link)), ..PATHS };
            assert_eq!(peer(&lease("10.5.1.0-24", VALUE), &paths).unwrap().objects, [route(want)], "{links}");
        }
    }

    #[test]
    fn other_backends_are_not_ours_and_unreadable_leases_are_unknown() {
        let v4 = |value: &str| peer(&lease("10.5.1.0-24", value), &PATHS);
        for value in [r#"{"PublicIP":"192.0.2.11","BackendType":"vxlan"}"#, r#"{"PublicIP":"192.0.2.11"}"#] {
            assert!(matches!(v4(value), Err(PeerError::NotOurs(_))), "{value}");
        }
        let v6 = lease("0.0.0.0-0&fd00:5::-64", VALUE);
        assert!(matches!(peer(&v6, &PATHS), Err(PeerError::NotOurs(_))));
        for value in [
            r#"{"BackendType":"ipip"}"#,
            r#"{"PublicIP":"127.0.0.1","BackendType":"ipip"}"#,
            r#"{"PublicIP":"224.0.0.1","BackendType":"ipip"}"#,
        ] {
            assert!(matches!(v4(value), Err(PeerError::Unreadable(_))), "{value}");
        }
    }

    #[test]
    fn hostile_records_are_refused_by_name() {
        let record = |n: u8| {
            let value = format!(r#"{{"PublicIP":"192.168.77.{n}","BackendType":"ipip"}}"#);
            (format!("10.244.{n}.0-24"), value)
        };
        let scene = Scene { kind: KIND, own: record(11), peer: record(12), stranger: record(50) };
        let networks = PerFamily { v4: "10.244.0.0/16".parse().ok(), v6: None };
        let own = peer(&lease(&scene.own.0, &scene.own.1), &PATHS).unwrap().claims;
        judge(&scene, networks, own, |lease| peer(lease, &PATHS));
    }

    proptest! {
        #[test]
        fn no_lease_panics(v4 in any::<[u8; 4]>(), base in any::<[u8; 4]>(), prefix in 1..32_u8) {
            let subnet = flannel_core::addr::Subnet::containing(base.into(), prefix).unwrap();
            let key = format!("{}-{prefix}", subnet.base());
            let value = format!(r#"{{"PublicIP":"{}","BackendType":"ipip"}}"#, std::net::Ipv4Addr::from(v4));
            let _ = peer(&lease(&key, &value), &PATHS);
        }
    }
}
