use super::*;

const KEY: &str = "10.42.37.0-24&fd00:42:0:2f::-64";
const VALUE: &str = r#"{"PublicIP":"192.168.77.12","PublicIPv6":"fd00:77::12","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"22:bb:dc:8b:da:2b"},"BackendV6Data":{"VNI":1,"VtepMAC":"b6:49:73:62:3e:18"}}"#;
const OWN_KEY: &str = "10.42.87.0-24&fd00:42:0:3d::-64";
const OWN: &str = r#"{"PublicIP":"192.168.77.11","PublicIPv6":"fd00:77::11","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"46:ee:50:0c:81:75"},"BackendV6Data":{"VNI":1,"VtepMAC":"3e:47:bc:f5:a9:24"}}"#;

/// A node as the tools print it, with things in it that are nobody's business.
fn state() -> KernelState {
    let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    KernelState {
        links: lines(&[
            "eth0 veth mtu 1500 up oper UP 02:77:00:00:00:01",
            "flannel-v6.1 vxlan mtu 1430 up oper UNKNOWN 3e:47:bc:f5:a9:24 ageing 300 id 1 learning false link eth0 local6 fd00:77::11 port 8472",
            "flannel.1 vxlan mtu 1450 up oper UNKNOWN 46:ee:50:0c:81:75 ageing 300 id 1 learning false link eth0 local 192.168.77.11 port 8472",
        ]),
        addresses: lines(&[
            "cni0 10.42.87.1/24 scope global",
            "flannel-v6.1 fd00:42:0:3d::/128 scope global",
            "flannel-v6.1 fe80::3c47:bcff:fef5:a924/64 scope link",
            "flannel.1 10.42.87.0/32 scope global",
        ]),
        routes: lines(&[
            "unicast default via 192.168.77.1 dev eth0 proto boot scope global ",
            "unicast 10.42.37.0/24 via 10.42.37.0 dev flannel.1 proto 102 scope global onlink ",
            "unicast 10.42.87.0/24 dev cni0 proto kernel scope link src 10.42.87.1 ",
            "unicast 10.42.199.0/24 dev cni0 proto static scope link ",
        ]),
        routes6: lines(&[
            "unicast fd00:42:0:2f::/64 nhid 7 via fd00:42:0:2f:: dev flannel-v6.1 proto 102 scope global metric 1024 onlink pref medium",
            "unicast fd00:42:0:3d:: dev flannel-v6.1 proto kernel scope global metric 256 pref medium",
        ]),
        neighbours: lines(&[
            "10.42.37.0 dev flannel.1 lladdr 22:bb:dc:8b:da:2b PERMANENT ",
            "198.51.101.7 dev flannel.1 lladdr 02:00:00:00:00:07 PERMANENT ",
            "fd00:42:0:2f:: dev flannel-v6.1 lladdr b6:49:73:62:3e:18 PERMANENT ",
        ]),
        next_hops: lines(&[
            "id N via 192.0.2.7 dev eth0 scope link ",
            "id N via fd00:42:0:2f:: dev flannel-v6.1 scope link proto 102 onlink ",
        ]),
        fdb: lines(&[
            "02:00:00:00:00:08 dev pod1 master cni0 permanent",
            "22:bb:dc:8b:da:2b dev flannel.1 dst 192.168.77.12 self permanent",
            "b6:49:73:62:3e:18 dev flannel-v6.1 dst fd00:77::12 self permanent",
        ]),
    }
}

fn lease(key: &str, value: &str) -> Lease {
    Lease::parse(key, value).unwrap()
}

#[test]
fn what_is_wanted_is_what_the_tools_show() {
    let (own, other) = (lease(OWN_KEY, OWN), lease(KEY, VALUE));
    let want = wanted(Backend::Vxlan, &own, [&other].into_iter());
    assert_eq!(want.len(), 10, "a device and an address, a route, a neighbour and an entry in each family");
    assert_eq!(difference(&want, &observed(Backend::Vxlan, &state())), None);
}

#[test]
fn every_change_shows() {
    let (own, other) = (lease(OWN_KEY, OWN), lease(KEY, VALUE));
    let want = wanted(Backend::Vxlan, &own, [&other].into_iter());
    let changes: [fn(&mut KernelState); 9] = [
        |state| state.links[2] = state.links[2].replace(" up ", " down "),
        |state| state.links[1] = state.links[1].replace("fd00:77::11", "fd00:77::99"),
        |state| drop(state.addresses.remove(3)),
        |state| state.routes[1] = state.routes[1].replace("via 10.42.37.0", "via 10.42.38.0"),
        |state| state.routes[1] = state.routes[1].replace("onlink", ""),
        |state| state.routes[1] += "mtu lock 1350 ",
        |state| drop(state.neighbours.remove(0)),
        |state| state.fdb[2] = state.fdb[2].replace("::12", "::13"),
        |state| {
            state.routes.push("unicast 10.42.9.0/24 via 10.42.9.0 dev flannel.1 proto 102 onlink".into());
        },
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut state = state();
        change(&mut state);
        assert!(difference(&want, &observed(Backend::Vxlan, &state)).is_some(), "change {number}");
    }
}

#[test]
fn next_hops_are_as_many_as_routes_use() {
    let mut state = state();
    assert_eq!(next_hop_deviation(Backend::Vxlan, &state), None);
    let hop = state.next_hops[1].clone();
    state.next_hops.push(hop.clone());
    state.next_hops.push(hop.replace(":2f:", ":30:"));
    let text = next_hop_deviation(Backend::Vxlan, &state).unwrap();
    assert!(text.contains("2f:: dev flannel-v6.1, once more") && text.contains(":30:"), "{text}");
    state.next_hops.clear();
    assert!(next_hop_deviation(Backend::Vxlan, &state).unwrap().starts_with("missing"));
}

#[test]
fn records_and_leases_are_the_same() {
    let dual = lease(KEY, VALUE);
    for (backend, families) in [
        (Backend::Vxlan, 2),
        (Backend::HostGw, 2),
        (Backend::Udp, 2),
        (Backend::Udp, 1),
        (Backend::Wireguard, 2),
        (Backend::Ipip, 1),
    ] {
        let mut sides = dual.0.clone();
        sides.truncate(families);
        sides.iter_mut().filter(|_| backend.identity().is_none()).for_each(|side| side.mac = None);
        let lease = Lease(sides);
        assert_eq!(Lease::parse(&lease.key(), &lease.value(backend)), Some(lease));
    }
    let v6 = Lease(vec![dual.0[1].clone()]);
    assert_eq!(v6.key(), "0.0.0.0-0&fd00:42:0:2f::-64");
    assert_eq!(Lease::parse(&v6.key(), &v6.value(Backend::Vxlan)), Some(v6));
    assert_eq!(Lease::parse("config", "{}"), None);
}

#[test]
fn other_backends_want_less() {
    let (own, other) = (lease(OWN_KEY, OWN), lease(KEY, VALUE));
    let text = |backend, own: &Lease| {
        let facts = wanted(backend, own, [&other].into_iter());
        facts.into_iter().collect::<Vec<_>>().join("\n")
    };
    assert_eq!(
        text(Backend::HostGw, &own),
        "route 10.42.37.0/24 via 192.168.77.12 dev eth0 proto 102 metric 0\n\
         route fd00:42:0:2f::/64 via fd00:77::12 dev eth0 proto 102 metric 1024"
    );
    let v4 = Lease(vec![own.0[0].clone()]);
    assert_eq!(
        text(Backend::Udp, &v4),
        "address 10.42.87.0/32 dev flannel0\nlink flannel0 up mtu 1472\n\
         route 10.42.0.0/16 dev flannel0 proto 102 metric 0"
    );
    assert_eq!(
        text(Backend::Wireguard, &v4),
        "address 10.42.87.0/32 dev flannel-wg\nblackhole 10.42.0.0/16\nlink flannel-wg up mtu 1420\n\
         route 10.42.37.0/24 dev flannel-wg proto 102 metric 0"
    );
    assert_eq!(
        text(Backend::Ipip, &v4),
        "address 10.42.87.0/32 dev flannel.ipip\nlink flannel.ipip up mtu 1480\n\
         route 10.42.37.0/24 via 192.168.77.12 dev flannel.ipip proto 102 metric 0 onlink"
    );
}

#[test]
fn what_takes_the_packets_for_nobody_is_a_fact() {
    for (line, want) in [
        ("blackhole 10.42.0.0/16 proto 102 scope global metric 4294967295 ", Some("blackhole 10.42.0.0/16")),
        (
            "blackhole fd00:42::/48 dev lo proto 102 scope global metric 4294967295 pref medium",
            Some("blackhole fd00:42::/48"),
        ),
        ("blackhole 192.0.2.0/24 proto 102 ", None),
        ("blackhole 10.42.0.0/16 proto static ", None),
        ("unicast 10.42.0.0/16 dev flannel0 proto 102", None),
    ] {
        assert_eq!(blackhole(line).as_deref(), want, "{line}");
    }
}

#[test]
fn differences_name_both_directions() {
    let set = |facts: &[&str]| facts.iter().map(|fact| (*fact).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(difference(&set(&["a", "b"]), &set(&["b", "c"])).unwrap(), "missing: a\nsurplus: c");
    let many = (0..40).map(|number| number.to_string()).collect();
    assert!(difference(&many, &set(&[])).unwrap().ends_with("... and 10 more"));
}

#[test]
fn what_two_nodes_cannot_both_have_is_found() {
    let (own, other) = (lease(OWN_KEY, OWN), lease(KEY, VALUE));
    assert_eq!(own.shared_with(&other), None);
    let changes: [fn(&mut Lease, &Lease); 4] = [
        |own, other| own.0[0].mac.clone_from(&other.0[0].mac),
        |own, other| own.0[1].mac.clone_from(&other.0[1].mac),
        |own, other| own.0[1].underlay = other.0[1].underlay,
        |own, other| own.0[0].subnet = other.0[0].subnet,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut own = own.clone();
        change(&mut own, &other);
        assert!(own.shared_with(&other).is_some(), "change {number}");
    }
    let without = |lease: &Lease| {
        let side = |side: &Side| Side { mac: None, ..side.clone() };
        Lease(lease.0.iter().map(side).collect())
    };
    assert_eq!(without(&own).shared_with(&without(&other)), None, "no MAC is no one's");
}
