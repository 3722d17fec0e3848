use super::*;
use crate::addr::{Mtu, PerFamily, Vni};
use crate::dataplane::Through;
use crate::kernel::VxlanLink;
use crate::lease::{Lease, LeaseAttrs};

const ETH0: LinkIndex = LinkIndex(2);
const OLD: LinkIndex = LinkIndex(7);

fn state(backend: &str, network: &str, devices: &[(&str, u32)], nodes: &[(&str, &str)]) -> State {
    let device = |(name, vni): &(&str, u32)| Device::vxlan(*name, Vni::new(*vni).unwrap());
    let lease = |(key, ip): &(&str, &str)| {
        let public_ips = PerFamily { v4: ip.parse().ok(), v6: None };
        let attrs = LeaseAttrs { public_ips, ..LeaseAttrs::default() };
        let lease = Lease { key: key.parse().unwrap(), attrs, created: 1 };
        (lease.key, Arc::new(lease.into()))
    };
    State {
        backend: backend.into(),
        networks: PerFamily { v4: network.parse().ok(), v6: None },
        devices: devices.iter().map(device).collect(),
        leases: nodes.iter().map(lease).collect(),
        ..State::default()
    }
}

fn vxlan(index: LinkIndex, name: &str, vni: u32) -> Link {
    let vxlan = VxlanLink {
        vni: Vni::new(vni).unwrap(),
        port: 8472,
        local: None,
        lower: None,
        learning: false,
        gbp: false,
        foreign: false,
    };
    Link {
        index,
        name: name.into(),
        altnames: Vec::new(),
        master: None,
        kind: Some("vxlan".into()),
        mac: None,
        mtu: Mtu(1450),
        up: true,
        carrier: true,
        loopback: false,
        vxlan: Some(vxlan),
    }
}

fn route(dst: &str, via: &str, link: LinkIndex, protocol: u8, metric: u32) -> Route {
    let (dst, via) = (dst.parse().unwrap(), via.parse().ok());
    Route {
        dst,
        metric,
        via,
        link: Some(link),
        onlink: false,
        through: Through::Itself,
        protocol,
        mtu: None,
        plain: true,
    }
}

#[test]
fn what_is_ours_on_shared_links() {
    let present = state("host-gw", "10.5.0.0/16", &[], &[]);
    let previous = state(
        "vxlan",
        "10.4.0.0/16",
        &[("flannel.1", 1)],
        &[("10.4.9.0-24", "192.0.2.9"), ("10.9.9.0-24", "192.0.2.9")],
    );
    let mut ownership = Ownership::new(&present, Some(&previous));
    assert!(ownership.locate(&[vxlan(OLD, "flannel.1", 1)]));
    for (what, ours, dst, via, link, protocol, metric) in [
        ("marked", true, "10.5.1.0/24", "192.0.2.1", ETH0, 102, 0),
        ("marked, another metric", true, "10.5.1.0/24", "192.0.2.1", ETH0, 102, 50),
        ("marked, a network of before", true, "10.4.1.0/24", "192.0.2.1", ETH0, 102, 0),
        ("marked, another instance's", false, "10.6.1.0/24", "192.0.2.1", ETH0, 102, 0),
        ("marked, wider than the network", false, "10.0.0.0/8", "192.0.2.1", ETH0, 102, 0),
        ("an operator's", false, "10.5.1.0/24", "192.0.2.1", ETH0, 3, 0),
        ("a routing daemon's", false, "10.4.9.0/24", "192.0.2.9", ETH0, 186, 0),
        ("by the node of before", true, "10.4.9.0/24", "192.0.2.9", ETH0, 3, 0),
        ("by the node of before with a metric", false, "10.4.9.0/24", "192.0.2.9", ETH0, 3, 9),
        ("by another node than before", false, "10.4.9.0/24", "192.0.2.8", ETH0, 3, 0),
        ("by the node of before in no network of ours", false, "10.9.9.0/24", "192.0.2.9", ETH0, 3, 0),
        ("on the device of before", true, "10.4.1.0/24", "10.4.1.0", OLD, 3, 0),
        ("of the kernel on the device of before", false, "10.4.1.0/24", "10.4.1.0", OLD, 2, 0),
        ("a stranger's on the device of before", false, "172.16.0.0/24", "10.4.1.0", OLD, 3, 0),
    ] {
        assert_eq!(ownership.owns(&route(dst, via, link, protocol, metric)), ours, "{what}");
    }
    let by_the_node_of_before = route("10.4.9.0/24", "192.0.2.9", ETH0, 3, 0);
    for with_attributes in [
        Route { plain: false, ..by_the_node_of_before },
        Route { mtu: Some(Mtu(1350)), ..by_the_node_of_before },
    ] {
        assert!(
            !ownership.owns(&with_attributes),
            "an operator's, since Go writes no attributes (mtu, src, several ways)"
        );
    }
    let forgetful = Ownership::new(&present, None);
    assert!(!forgetful.owns(&route("10.4.1.0/24", "192.0.2.1", ETH0, 102, 0)));
    assert!(forgetful.owns(&route("10.5.1.0/24", "192.0.2.1", ETH0, 102, 0)));
}

#[test]
fn where_others_put_the_routes_only_our_protocol_proves_anything() {
    let before = state("extension", "10.5.0.0/16", &[], &[("10.5.9.0-24", "192.0.2.9")]);
    let now = state("host-gw", "10.5.0.0/16", &[], &[]);
    let by_node = |protocol| route("10.5.9.0/24", "192.0.2.9", ETH0, protocol, 0);
    for (before, now, ours) in [
        (before.clone(), now.clone(), true),
        (before.clone().with_routes_of_others(), now.clone(), false),
        (before.clone(), now.clone().with_routes_of_others(), false),
    ] {
        let ownership = Ownership::new(&now, Some(&before));
        assert_eq!(ownership.owns(&by_node(3)), ours);
        assert!(ownership.owns(&by_node(102)));
    }
}

#[test]
fn only_what_go_would_have_written_is_adopted() {
    let want = route("10.5.1.0/24", "192.0.2.1", ETH0, 102, 0);
    assert!(is_adoptable(&Route { protocol: 3, ..want }, &want));
    assert!(is_adoptable(&Route { protocol: 3, ..want }, &Route { mtu: Some(Mtu(1350)), ..want }));
    for other in [
        Route { protocol: 4, ..want },
        Route { protocol: 3, via: "192.0.2.2".parse().ok(), ..want },
        Route { protocol: 3, link: Some(OLD), ..want },
        Route { protocol: 3, onlink: true, ..want },
        Route { protocol: 3, plain: false, ..want },
        Route { protocol: 3, mtu: Some(Mtu(1350)), ..want },
    ] {
        assert!(!is_adoptable(&other, &want), "{other:?}");
    }
}

#[test]
fn only_stored_devices_that_are_not_ours_now_are_stale() {
    let before = state("vxlan", "10.5.0.0/16", &[("flannel.1", 1), ("flannel.2", 2)], &[]);
    let now = state("vxlan", "10.5.0.0/16", &[("flannel.2", 2)], &[]);
    let links = [
        vxlan(LinkIndex(4), "flannel.1", 1),
        vxlan(LinkIndex(5), "flannel.2", 2),
        vxlan(LinkIndex(6), "flannel.3", 3),
    ];
    let mut ownership = Ownership::new(&now, Some(&before));
    ownership.locate(&links);
    assert_eq!(ownership.stale_links(), links[..1]);
    assert_eq!(ownership.suspects(&links).count(), 0);
    ownership.forget(LinkIndex(4), true);
    assert!(!ownership.has_stale_devices() && ownership.stale_links().is_empty());

    let mut ownership = Ownership::new(&now, Some(&before));
    ownership.locate(&[vxlan(LinkIndex(4), "flannel.1", 77)]);
    assert!(!ownership.has_stale_devices(), "the name alone proves nothing");

    let ipip = |index, kind: &str| Link {
        kind: Some(kind.into()),
        vxlan: None,
        ..vxlan(LinkIndex(index), "flannel.ipip", 1)
    };
    let before = State { devices: vec![Device::of_kind("flannel.ipip", "ipip")], ..before };
    let mut ownership = Ownership::new(&now, Some(&before));
    ownership.locate(&[ipip(7, "ipip")]);
    assert_eq!(ownership.stale_links(), [ipip(7, "ipip")]);
    let mut ownership = Ownership::new(&now, Some(&before));
    ownership.locate(&[ipip(7, "gre")]);
    assert!(!ownership.has_stale_devices(), "one of another kind");

    let ownership = Ownership::new(&now, None);
    assert!(!ownership.has_stale_devices());
    let names: Vec<_> = ownership.suspects(&links).map(|link| link.name.as_str()).collect();
    assert_eq!(names, ["flannel.1", "flannel.3"]);
}

#[test]
fn a_blackhole_of_go_is_ours_where_we_keep_one() {
    let mut ownership = Ownership::new(&state("host-gw", "10.5.0.0/16", &[], &[]), None);
    let own = Route::blackhole("10.5.1.0/24".parse().unwrap());
    let of_go = Route { protocol: 3, metric: 0, ..own };
    assert!(ownership.owns(&own) && !ownership.owns(&of_go));
    assert_eq!(ownership.protocols().collect::<Vec<_>>(), [102]);
    ownership.keep_blackholes([own.dst]);
    assert!(ownership.owns(&own) && ownership.owns(&of_go));
    assert_eq!(ownership.protocols().collect::<Vec<_>>(), [102, 3]);
    for other in [
        Route { metric: 7, ..of_go },
        Route { plain: false, ..of_go },
        Route { protocol: 4, ..of_go },
        Route { dst: "10.5.2.0/24".parse().unwrap(), ..of_go },
        Route { link: Some(ETH0), through: Through::Itself, ..of_go },
    ] {
        assert!(!ownership.owns(&other), "{other:?}");
    }
}
