//! What a VXLAN node publishes, and which kernel objects a lease needs. Pure. Upstream:
//! `pkg/backend/vxlan/vxlan_network.go`.

use std::net::IpAddr;

use flannel_core::addr::{Family, LinkIndex, MacAddr, PerFamily, Subnet, Vni};
use flannel_core::dataplane::{FdbEntry, Neighbour, NextHop, Object, Route, Through};
use flannel_core::gojson::GoObject;
use flannel_core::lease::{BackendData, Lease, LeaseAttrs};
use flannel_core::on_link::OnLink;
use flannel_core::peers::{Claim, Peer, PeerError};
use serde::Serialize;

/// The name under which this backend publishes leases.
pub(crate) const KIND: &str = "vxlan";

/// `BackendData` and `BackendV6Data` of a lease, with upstream's names and order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct VxlanData {
    /// The VXLAN segment. Old writers left it out; it is never compared.
    #[serde(rename = "VNI")]
    pub vni: Option<Vni>,
    /// The MAC of the node's VTEP.
    #[serde(rename = "VtepMAC")]
    pub vtep_mac: MacAddr,
}

impl VxlanData {
    /// Reads what a node published, with names in any case.
    pub fn decode(data: &BackendData) -> Result<Self, String> {
        let object = GoObject::parse(data.as_str()).map_err(|error| format!("is no JSON object: {error}"))?;
        let mac: Option<MacAddr> =
            object.get("VtepMAC").map_err(|error| format!("has a bad VtepMAC: {error}"))?;
        let vtep_mac = mac.ok_or("is no use: VtepMAC is missing")?;
        if !vtep_mac.is_unicast() {
            return Err(format!("is no use: VtepMAC {vtep_mac} is no station's address"));
        }
        // An unusable VNI does not matter, since it is not used.
        Ok(Self { vni: object.get("VNI").unwrap_or_default(), vtep_mac })
    }
}

/// How peers are reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paths<'a> {
    /// Our devices.
    pub(crate) links: &'a PerFamily<LinkIndex>,
    /// Where routes through them keep their gateways.
    pub(crate) through: Through,
    /// The underlay link and its on-link addresses, if those are reached without encapsulation.
    pub(crate) direct: Option<(LinkIndex, &'a OnLink)>,
    /// Whether other backends may have routes to the same subnets.
    pub(crate) is_shared: bool,
}

/// The objects and claims of another node's lease, on the present devices.
///
/// A family is used if we have its device and the lease has its subnet, address and data; a node that has only one of
/// our families is reached by that one. A peer that is on-link and routed directly has the same objects except the
/// route, so that replacing the route is enough to change to encapsulation.
pub(crate) fn peer(lease: &Lease, paths: &Paths<'_>) -> Result<Peer, PeerError> {
    let Paths { links, through, direct, is_shared } = *paths;
    let attrs = &lease.attrs;
    PeerError::check_backend(attrs, KIND)?;
    let mut peer = Peer::default();
    for (family, subnet) in lease.key.subnets().iter() {
        peer.claims.push(Claim::Subnet(*subnet));
        let Some(link) = links.get(family) else { continue };
        let unreadable = |what: &str| PeerError::Unreadable(format!("{family}: {what}"));
        let underlay = attrs.underlay(family).map_err(|why| unreadable(&why.to_string()))?;
        let field = data_field(family);
        let bad = |why: &str| unreadable(&format!("{field} {why}; {}", LeaseAttrs::MEND));
        let data = attrs.backend_data.get(family).ok_or_else(|| bad("is missing"))?;
        let data = VxlanData::decode(data).map_err(|why| bad(&why))?;
        let (link, mac) = (*link, data.vtep_mac);
        peer.claims.extend([Claim::Vtep(link, mac, underlay), Claim::Underlay(underlay)]);
        let gateway = subnet.base();
        peer.objects.extend([
            Object::Neighbour(Neighbour { link, addr: gateway, mac }),
            Object::Fdb(FdbEntry { link, mac, dst: underlay, port: None, vni: None, via: None }),
        ]);
        if through != Through::Itself {
            peer.objects.push(Object::NextHop(NextHop { link, gateway, spare: None }));
        }
        if family == Family::V6 && (direct.is_some() || is_shared) && subnet.prefix() < family.bits() {
            peer.objects.push(Object::Route(route_to_gateway(gateway, link)));
        }
        let direct = direct.filter(|(_, on_link)| on_link.reaches(underlay) && !subnet.contains(underlay));
        peer.objects.push(Object::Route(match direct {
            Some((lower, _)) => Route::by_node(*subnet, underlay, lower),
            None => Route { onlink: true, through, ..Route::by_node(*subnet, gateway, link) },
        }));
    }
    if peer.objects.is_empty() && !links.is_empty() {
        return Err(PeerError::no_common_family());
    }
    Ok(peer)
}

/// The member of a record that holds a family's data.
fn data_field(family: Family) -> &'static str {
    match family {
        Family::V4 => "BackendData",
        Family::V6 => "BackendV6Data",
    }
}

/// A route to the peer's gateway on our device. For IPv6 the kernel refuses a gateway on one link if a route of another
/// link covers it (`ip6_route_check_nh_onlink`), and the direct route to a subnet covers its base. With this route a
/// peer can change back from a direct route, or come from another backend.
fn route_to_gateway(gateway: IpAddr, link: LinkIndex) -> Route {
    let host = Subnet::containing(gateway, Family::of(gateway).bits()).expect("an address fits its family");
    Route { via: None, ..Route::by_node(host, gateway, link) }
}

/// What this node publishes for one family.
pub(crate) fn own_data(vni: Vni, vtep_mac: MacAddr) -> BackendData {
    BackendData::encode(&VxlanData { vni: Some(vni), vtep_mac }).expect("a number and a string always encode")
}

/// The MAC that a node published for a family, if it can be read.
pub(crate) fn published_mac(data: &PerFamily<BackendData>, family: Family) -> Option<MacAddr> {
    VxlanData::decode(data.get(family)?).ok().map(|data| data.vtep_mac)
}

#[cfg(test)]
mod tests {
    use flannel_core::testing::hostile::{Scene, judge};
    use proptest::prelude::*;

    use super::*;

    const LINKS: PerFamily<LinkIndex> = PerFamily { v4: Some(LinkIndex(4)), v6: Some(LinkIndex(6)) };
    const PATHS: Paths<'_> =
        Paths { links: &LINKS, through: Through::Itself, direct: None, is_shared: false };
    const DUAL: &str = r#"{"PublicIP":"192.0.2.11","PublicIPv6":"2001:db8::11","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:5b:10:33:7e:01"},"BackendV6Data":{"VNI":1,"VtepMAC":"5e:5b:10:33:7e:01"}}"#;

    fn lease(key: &str, value: &str) -> Lease {
        Lease { key: key.parse().unwrap(), attrs: LeaseAttrs::from_json(value).unwrap(), created: 1 }
    }

    #[test]
    fn a_dual_stack_lease_asks_for_the_same_in_each_family() {
        let lease = lease("10.5.1.0-24&fd00:5::-64", DUAL);
        let peer = peer(&lease, &PATHS).unwrap();
        assert_eq!((peer.objects.len(), peer.claims.len()), (6, 6));
        for (family, link, base) in [(Family::V4, 4, "10.5.1.0"), (Family::V6, 6, "fd00:5::")] {
            let base: IpAddr = base.parse().unwrap();
            let routes: Vec<_> = (peer.objects.iter())
                .filter_map(|object| match object {
                    Object::Route(route) if route.dst.family() == family => Some(*route),
                    _ => None,
                })
                .collect();
            let metric = Route::default_metric(family);
            let (dst, link) = (lease.subnet(family).unwrap(), Some(LinkIndex(link)));
            let want = Route {
                dst,
                metric,
                via: Some(base),
                link,
                onlink: true,
                through: Through::Itself,
                protocol: 102,
                mtu: None,
                plain: true,
            };
            assert_eq!(routes, [want]);
        }
        let v4 = PerFamily { v6: None, ..LINKS };
        assert_eq!(
            super::peer(&lease, &Paths { links: &v4, ..PATHS }).unwrap().objects.len(),
            3,
            "only the families of our devices"
        );
    }

    #[test]
    fn other_backends_are_not_ours_and_unreadable_data_is_unknown() {
        let v4 = |value: &str| peer(&lease("10.5.1.0-24", value), &PATHS);
        for value in [r#"{"PublicIP":"192.0.2.11","BackendType":"host-gw"}"#, r#"{"PublicIP":"192.0.2.11"}"#]
        {
            assert!(matches!(v4(value), Err(PeerError::NotOurs(_))), "{value}");
        }
        for value in [
            r#"{"PublicIP":"192.0.2.11","BackendType":"vxlan"}"#,
            r#"{"PublicIP":"192.0.2.11","BackendType":"vxlan","BackendData":7}"#,
            r#"{"PublicIP":"192.0.2.11","BackendType":"vxlan","BackendData":{"VtepMAC":"x"}}"#,
            r#"{"PublicIP":"192.0.2.11","BackendType":"vxlan","BackendData":{"VtepMAC":"00:00:00:00:00:00"}}"#,
            r#"{"PublicIP":"192.0.2.11","BackendType":"vxlan","BackendData":{"VtepMAC":"01:00:5e:00:00:01"}}"#,
            r#"{"BackendType":"vxlan","BackendData":{"VtepMAC":"0a:5b:10:33:7e:01"}}"#,
            r#"{"PublicIP":"224.0.0.1","BackendType":"vxlan","BackendData":{"VtepMAC":"0a:5b:10:33:7e:01"}}"#,
        ] {
            assert!(matches!(v4(value), Err(PeerError::Unreadable(_))), "{value}");
        }
        let old = r#"{"publicip":"192.0.2.11","BackendType":"vxlan","BackendData":{"vtepmac":"0A-5B-10-33-7E-01"}}"#;
        assert!(v4(old).is_ok(), "old writers left the VNI out");
    }

    #[test]
    fn publishes_upstreams_bytes() {
        let data = own_data(Vni::new(1).unwrap(), "0a:5b:10:33:7e:01".parse().unwrap());
        assert_eq!(data.as_str(), r#"{"VNI":1,"VtepMAC":"0a:5b:10:33:7e:01"}"#);
    }

    #[test]
    fn hostile_records_are_refused_by_name() {
        let record = |n: u8| {
            let value = format!(
                r#"{{"PublicIP":"192.168.77.{n}","PublicIPv6":"fd00:77::{n}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0a:00:00:00:00:{n}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"0e:00:00:00:00:{n}"}}}}"#
            );
            (format!("10.244.{n}.0-24&fd00:10:244:{n}::-64"), value)
        };
        let scene = Scene { kind: KIND, own: record(11), peer: record(12), stranger: record(50) };
        let networks = PerFamily { v4: "10.244.0.0/16".parse().ok(), v6: "fd00:10:244::/56".parse().ok() };
        let own = peer(&lease(&scene.own.0, &scene.own.1), &PATHS).unwrap().claims;
        judge(&scene, networks, own, |lease| peer(lease, &PATHS));
    }

    proptest! {
        #[test]
        fn no_backend_data_panics(data in "[\\{\\}\":,a-zA-Z0-9]{0,40}") {
            let value = format!(r#"{{"PublicIP":"192.0.2.11","BackendType":"vxlan","BackendData":{{"VtepMAC":"{data}"}}}}"#);
            if let Ok(attrs) = LeaseAttrs::from_json(&value) {
                let key = "10.5.1.0-24".parse().unwrap();
                let _ = peer(&Lease { key, attrs, created: 1 }, &Paths { through: Through::Object, ..PATHS });
            }
        }
    }
}
