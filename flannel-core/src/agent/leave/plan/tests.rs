use super::*;
use crate::addr::{MacAddr, Mtu, PerFamily, Vni};
use crate::kernel::{LinkAddress, VxlanLink};
use crate::lease::{Lease, LeaseAttrs};
use crate::state_file::Device;
use crate::subnet_file::Previous;

/// What the backends of these tests make.
const KINDS: [DeviceKind; 6] = [
    DeviceKind::new("flannel.", "vxlan"),
    DeviceKind::new("flannel-v6.", "vxlan"),
    DeviceKind::new("flannel", "tun"),
    DeviceKind::named("flannel.ipip", "ipip"),
    DeviceKind::named("flannel-wg", "wireguard"),
    DeviceKind::named("flannel-wg", "tun"),
];

fn plan(known: &Known, seen: &Seen) -> Plan {
    super::plan(known, seen, &KINDS)
}

const ETH0: u32 = 2;

fn link(index: u32, name: &str, kind: &str) -> Link {
    Link {
        index: LinkIndex(index),
        name: name.to_owned(),
        altnames: Vec::new(),
        master: None,
        kind: Some(kind.to_owned()),
        mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
        mtu: Mtu(1450),
        up: true,
        carrier: true,
        loopback: false,
        vxlan: None,
    }
}

fn vxlan(index: u32, name: &str, vni: u32) -> Link {
    let vxlan = VxlanLink {
        vni: Vni::new(vni).unwrap(),
        port: 8472,
        local: Some([192, 0, 2, 1].into()),
        lower: Some(LinkIndex(ETH0)),
        learning: false,
        gbp: false,
        foreign: false,
    };
    Link { vxlan: Some(vxlan), ..link(index, name, "vxlan") }
}

fn address(link: u32, addr: &str) -> LinkAddress {
    let addr = addr.parse().unwrap();
    let (global, deprecated, permanent, temporary, tentative) = (true, false, true, false, false);
    LinkAddress { link: LinkIndex(link), addr, global, deprecated, permanent, temporary, tentative }
}

fn route(dst: &str, via: &str, link: u32, protocol: u8) -> Route {
    let route = Route::by_node(dst.parse().unwrap(), via.parse().unwrap(), LinkIndex(link));
    Route { protocol, ..route }
}

/// A node that had 10.5.1.0/24 of 10.5.0.0/16, as its subnet file says.
fn by_subnet_file() -> Known {
    let networks = PerFamily { v4: "10.5.0.0/16".parse().ok(), v6: None };
    let subnets = Previous { key: "10.5.1.0-24".parse().ok(), networks, problems: Vec::new() };
    Known { subnets, ..Known::default() }
}

/// The same, and its state file names a device and a node.
fn by_both() -> Known {
    let lease = |key: &str, node: [u8; 4]| {
        let public_ips = PerFamily { v4: Some(node.into()), v6: None };
        Lease {
            key: key.parse().unwrap(),
            attrs: LeaseAttrs { public_ips, ..LeaseAttrs::default() },
            created: 1,
        }
    };
    let peer = lease("10.5.9.0-24", [192, 0, 2, 9]);
    let state = State {
        networks: by_subnet_file().subnets.networks,
        devices: vec![Device::vxlan("flannel.1", Vni::new(1).unwrap())],
        own: Some(lease("10.5.1.0-24", [192, 0, 2, 1])),
        leases: [(peer.key, std::sync::Arc::new(peer.into()))].into(),
        ..State::default()
    };
    Known { state: Some(state), ..by_subnet_file() }
}

fn commands(known: &Known, seen: &Seen) -> Vec<String> {
    plan(known, seen).removals.into_iter().flat_map(|removal| removal.commands).collect()
}

/// A backend whose devices the kernel has or a process.
#[test]
fn a_name_may_be_that_of_devices_of_two_kinds() {
    for (kind, goes) in [("wireguard", true), ("tun", true), ("bridge", false)] {
        let seen = Seen {
            links: vec![link(9, "flannel-wg", kind)],
            addresses: vec![address(9, "10.5.1.0/32")],
            ..Seen::default()
        };
        assert_eq!(plan(&by_both(), &seen).removals.len(), usize::from(goes), "{kind}");
    }
}

#[test]
fn only_devices_that_something_proves_to_be_ours_go() {
    let of_another_vni = vxlan(9, "flannel.1", 7);
    let mut strange = vxlan(9, "flannel.1", 1);
    strange.vxlan.as_mut().unwrap().foreign = true;
    let base = || Some("10.5.1.0/32");
    for (what, known, link, addr, goes) in [
        ("named by the state file", by_both(), vxlan(9, "flannel.1", 1), None, true),
        ("as an agent makes it", by_subnet_file(), vxlan(9, "flannel.1", 1), base(), true),
        ("of a family more", by_both(), vxlan(9, "flannel-v6.1", 1), base(), true),
        ("of another kind", by_both(), link(9, "flannel.1", "dummy"), base(), false),
        ("of another VNI than its name says", by_both(), of_another_vni, base(), false),
        ("with attributes of somebody else", by_subnet_file(), strange, base(), false),
        ("of another instance", by_both(), vxlan(9, "flannel.2", 2), Some("10.6.1.0/32"), false),
        ("without an address", by_subnet_file(), vxlan(9, "flannel.1", 1), None, false),
        ("when nothing is known", Known::default(), vxlan(9, "flannel.1", 1), base(), false),
        ("of another name", by_both(), vxlan(9, "vxlan1", 1), base(), false),
        ("a TUN with our address", by_subnet_file(), link(9, "flannel0", "tun"), base(), true),
        ("a TUN of another instance", by_both(), link(9, "flannel0", "tun"), Some("10.5.2.0/32"), false),
        ("no TUN", by_both(), link(9, "flannel0", "dummy"), base(), false),
        ("the only one of its kind", by_both(), link(9, "flannel.ipip", "ipip"), base(), true),
        ("of another backend than the file's", by_both(), link(9, "flannel.ipip", "ipip"), None, false),
        ("with more to its name", by_both(), link(9, "flannel.ipip1", "ipip"), base(), false),
        ("the CNI plugin's bridge", by_both(), link(9, "cni0", "bridge"), Some("10.5.1.1/24"), false),
    ] {
        let name = link.name.clone();
        let is_named_so = kind_by_name(&link, &KINDS).is_some();
        let addresses = addr.map(|addr| address(9, addr)).into_iter().collect();
        let seen = Seen { links: vec![link], addresses, routes: Vec::new() };
        let want = if goes { vec![format!("ip link del {name}")] } else { Vec::new() };
        assert_eq!(commands(&known, &seen), want, "{what}");
        let told =
            plan(&known, &seen).notes.iter().any(|note| note.contains(&format!("link {name} stays: ")));
        assert_eq!(told, !goes && is_named_so, "{what}");
    }
}

#[test]
fn routes_that_are_marked_or_proved_go_and_those_on_our_devices_go_along() {
    let blackhole = Route::blackhole("10.5.1.0/24".parse().unwrap());
    let seen = Seen {
        links: vec![link(ETH0, "eth0", "veth"), vxlan(9, "flannel.1", 1)],
        addresses: vec![address(9, "10.5.1.0/32")],
        routes: vec![
            route("10.5.2.0/24", "10.5.2.0", 9, 102),
            route("10.5.3.0/24", "192.0.2.3", ETH0, 102),
            blackhole,
            // As Go writes it, for the node that had it; and for another.
            route("10.5.9.0/24", "192.0.2.9", ETH0, 3),
            route("10.5.8.0/24", "192.0.2.8", ETH0, 3),
            route("10.6.1.0/24", "192.0.2.3", ETH0, 102),
            Route { protocol: 3, ..blackhole },
        ],
    };
    let by_mark = [
        "ip -4 route del 10.5.3.0/24 via 192.0.2.3 dev eth0 proto 102",
        "ip -4 route del blackhole 10.5.1.0/24 metric 4294967294 proto 102",
    ];
    let (proved, device) =
        ("ip -4 route del 10.5.9.0/24 via 192.0.2.9 dev eth0 proto 3", "ip link del flannel.1");
    assert_eq!(commands(&by_both(), &seen), [&by_mark[..], &[proved, device]].concat());
    assert_eq!(commands(&by_subnet_file(), &seen), [&by_mark[..], &[device]].concat());
    let notes = plan(&by_both(), &seen).notes;
    assert_eq!(notes, ["1 routes with protocol 102 stay: they are not for a network of this agent"]);

    let nothing = plan(&Known::default(), &seen);
    assert!(nothing.removals.is_empty(), "{nothing:?}");
    assert!(nothing.notes[1].contains("4 routes with protocol 102 stay: neither subnet file"), "{nothing:?}");
}

#[test]
fn what_is_gone_is_not_listed_again() {
    let seen = Seen { links: vec![link(ETH0, "eth0", "veth")], ..Seen::default() };
    assert!(plan(&by_both(), &seen).removals.is_empty() && plan(&by_both(), &seen).notes.is_empty());
}
