//! Which kernel objects a lease needs. Pure. Upstream: `pkg/backend/hostgw/hostgw.go`.

use std::net::IpAddr;

use flannel_core::addr::{Family, LinkIndex, PerFamily};
use flannel_core::dataplane::{Object, Route};
use flannel_core::lease::Lease;
use flannel_core::peers::{Claim, Peer, PeerError};

/// The name under which this backend publishes leases.
pub(crate) const KIND: &str = "host-gw";

/// The objects and claims of another node's lease: a route for each family that we have, too. Without a link it has no
/// objects, but still claims its subnets.
pub(crate) fn peer(
    lease: &Lease,
    link: Option<LinkIndex>,
    ours: &PerFamily<IpAddr>,
) -> Result<Peer, PeerError> {
    let attrs = &lease.attrs;
    PeerError::check_backend(attrs, KIND)?;
    let mut peer = Peer::default();
    for (family, subnet) in lease.key.subnets().iter() {
        peer.claims.push(Claim::Subnet(*subnet));
        let (Some(link), Some(_)) = (link, ours.get(family)) else { continue };
        let unreadable = |why| PeerError::Unreadable(format!("{family}: {why}"));
        let node = attrs.underlay(family).map_err(unreadable)?;
        peer.claims.push(Claim::Underlay(node));
        peer.objects.push(Object::Route(Route::by_node(*subnet, node, link)));
    }
    let common = |family: &Family| ours.get(*family).is_some();
    if !lease.key.subnets().families().any(|family| common(&family)) {
        return Err(PeerError::no_common_family());
    }
    Ok(peer)
}

#[cfg(test)]
mod tests {
    use flannel_core::dataplane::Through;
    use flannel_core::lease::LeaseAttrs;
    use flannel_core::testing::hostile::{Scene, judge};
    use proptest::prelude::*;

    use super::*;

    const LINK: Option<LinkIndex> = Some(LinkIndex(2));
    const DUAL: &str = r#"{"PublicIP":"192.0.2.11","PublicIPv6":"2001:db8::11","BackendType":"host-gw"}"#;

    fn ours() -> PerFamily<IpAddr> {
        PerFamily { v4: "192.0.2.1".parse().ok(), v6: "2001:db8::1".parse().ok() }
    }

    fn lease(key: &str, value: &str) -> Lease {
        Lease { key: key.parse().unwrap(), attrs: LeaseAttrs::from_json(value).unwrap(), created: 1 }
    }

    #[test]
    fn a_lease_asks_for_a_route_a_family() {
        let dual = lease("10.5.1.0-24&fd00:5::-64", DUAL);
        let peer = peer(&dual, LINK, &ours()).unwrap();
        let route = |dst: &str, via: &str, metric| {
            let (dst, via) = (dst.parse().unwrap(), via.parse().ok());
            Object::Route(Route {
                dst,
                metric,
                via,
                link: LINK,
                onlink: false,
                through: Through::Itself,
                protocol: 102,
                mtu: None,
                plain: true,
            })
        };
        let want = [route("10.5.1.0/24", "192.0.2.11", 0), route("fd00:5::/64", "2001:db8::11", 1024)];
        assert_eq!(peer.objects, want);
        assert_eq!(peer.claims.len(), 4);
        let v4 = PerFamily { v6: None, ..ours() };
        assert_eq!(super::peer(&dual, LINK, &v4).unwrap().objects, want[..1], "only our families");
        let without = super::peer(&dual, None, &ours()).unwrap();
        assert_eq!((without.objects.len(), without.claims.len()), (0, 2), "no link, no routes");
    }

    #[test]
    fn other_backends_are_not_ours_and_unreadable_leases_are_unknown() {
        let v4 = |value: &str| peer(&lease("10.5.1.0-24", value), LINK, &ours());
        for value in [r#"{"PublicIP":"192.0.2.11","BackendType":"vxlan"}"#, r#"{"PublicIP":"192.0.2.11"}"#] {
            assert!(matches!(v4(value), Err(PeerError::NotOurs(_))), "{value}");
        }
        for value in [
            r#"{"BackendType":"host-gw"}"#,
            r#"{"PublicIPv6":"2001:db8::11","BackendType":"host-gw"}"#,
            r#"{"PublicIP":"127.0.0.1","BackendType":"host-gw"}"#,
            r#"{"PublicIP":"224.0.0.1","BackendType":"host-gw"}"#,
            r#"{"PublicIP":"255.255.255.255","BackendType":"host-gw"}"#,
        ] {
            assert!(matches!(v4(value), Err(PeerError::Unreadable(_))), "{value}");
        }
        let v6 = PerFamily { v4: None, ..ours() };
        assert!(matches!(peer(&lease("10.5.1.0-24", DUAL), LINK, &v6), Err(PeerError::NotOurs(_))));
    }

    #[test]
    fn hostile_records_are_refused_by_name() {
        let record = |n: u8| {
            let value = format!(
                r#"{{"PublicIP":"192.168.77.{n}","PublicIPv6":"fd00:77::{n}","BackendType":"host-gw"}}"#
            );
            (format!("10.244.{n}.0-24&fd00:10:244:{n}::-64"), value)
        };
        let scene = Scene { kind: KIND, own: record(11), peer: record(12), stranger: record(50) };
        let networks = PerFamily { v4: "10.244.0.0/16".parse().ok(), v6: "fd00:10:244::/56".parse().ok() };
        let own = peer(&lease(&scene.own.0, &scene.own.1), LINK, &ours()).unwrap().claims;
        judge(&scene, networks, own, |lease| peer(lease, LINK, &ours()));
    }

    proptest! {
        #[test]
        fn no_lease_panics(v4 in any::<[u8; 4]>(), base in any::<[u8; 4]>(), prefix in 1..32_u8) {
            let subnet = flannel_core::addr::Subnet::containing(base.into(), prefix).unwrap();
            let key = format!("{}-{prefix}", subnet.base());
            let value = format!(r#"{{"PublicIP":"{}","BackendType":"host-gw"}}"#, IpAddr::from(v4));
            let _ = peer(&lease(&key, &value), LINK, &ours());
        }
    }
}
