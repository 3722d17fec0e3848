//! Nodes with an overlay, and every door by which it could become its own underlay.

use super::*;
use crate::addr::Family;
use crate::underlay::tests::{addr, ip, link, options, route};
use crate::underlay::{Standing, UnderlayError, UnderlayOptions, decide, list, review};

fn of(kind: &str, index: u32, name: &str) -> Link {
    Link { kind: Some(kind.into()), ..link(index, name) }
}

/// A node as an earlier run left it: the NIC comes last, so that whatever looks at the first one errs.
fn node() -> HostLinks {
    let port = Link { master: Some(LinkIndex(5)), ..of("veth", 6, "veth0a") };
    let links = vec![
        link(1, "lo"),
        of("vxlan", 2, "flannel.1"),
        of("vxlan", 3, "flannel-v6.1"),
        of("tun", 4, "flannel0"),
        of("bridge", 5, "cni0"),
        port,
        of("bridge", 7, "docker0"),
        of("veth", 8, "pod0"),
        link(20, "eth0"),
    ];
    let addresses = [
        (2, "10.244.3.0/32"),
        (3, "fd00:10:244:3::/128"),
        (4, "10.244.3.0/32"),
        (5, "10.244.3.1/24"),
        (5, "fd00:10:244:3::1/64"),
        (7, "172.17.0.1/16"),
        (8, "10.244.3.1/32"),
        (20, "10.0.0.11/24"),
        (20, "fd00:77::11/64"),
    ];
    let by = |link, via: &str, metric| {
        Some(vec![crate::kernel::RouteLookup { via: via.parse().ok(), ..route(Some(link), metric) }])
    };
    HostLinks {
        links,
        addresses: addresses.map(|(link, text)| addr(link, text)).to_vec(),
        defaults: PerFamily { v4: by(20, "10.0.0.1", 100), v6: by(20, "fe80::1", 1024) },
        reach: Err(crate::underlay::NoRoute::None),
    }
}

fn overlay() -> Overlay {
    let networks = ["10.244.0.0/16", "fd00:10:244::/48"].map(|network| network.parse().unwrap());
    Overlay { networks: networks.to_vec(), ..Overlay::default() }
}

fn with(family: Family, change: impl FnOnce(&mut UnderlayOptions)) -> UnderlayOptions {
    let mut options = UnderlayOptions { overlay: overlay(), ..options(&[family]) };
    change(&mut options);
    options
}

/// The name and address of what is chosen, or why nothing is.
fn chosen(host: &HostLinks, options: &UnderlayOptions) -> String {
    match decide(host, options) {
        Ok(choice) => {
            let addresses: Vec<_> =
                choice.underlay.published.iter().map(|(_, addr)| addr.to_string()).collect();
            format!("{} {}", choice.underlay.name, addresses.join(" "))
        }
        Err(UnderlayError::NoneFits { lost, .. }) => list(&lost),
        Err(error) => error.to_string(),
    }
}

/// What is wanted of the NIC in a family, and a bridge address of the pods there.
fn of_family(family: Family) -> (&'static str, &'static str, &'static str, &'static str) {
    match family {
        Family::V4 => ("eth0 10.0.0.11", "10.244.3.1", "^10[.]", "flannel.1"),
        Family::V6 => ("eth0 fd00:77::11", "fd00:10:244:3::1", "^fd00", "flannel-v6.1"),
    }
}

#[test]
fn no_door_leads_to_what_the_overlay_made() {
    for family in Family::ALL {
        let (nic, gateway, pattern, device) = of_family(family);
        let of_pods =
            |name: &str| format!("{name}: it has 10.244.3.1 of the pod network 10.244.0.0/16, so it leads ");
        // The default route, of which a DHCP client put a cheaper one on the device, with a gateway or without.
        for (by, via) in
            [(2, None), (3, None), (2, Some(ip("10.244.3.0"))), (5, Some(ip(gateway))), (4, None)]
        {
            let mut host = node();
            let routes = host.defaults.get_mut(family).as_mut().unwrap();
            routes.push(crate::kernel::RouteLookup { via, ..route(Some(by), 5) });
            assert_eq!(chosen(&host, &with(family, |_| ())), nic, "{family} by {by} {via:?}");
            let routes = host.defaults.get_mut(family).as_mut().unwrap();
            routes.retain(|route| route.exit == Exit::By(LinkIndex(by)));
            let refused = chosen(&host, &with(family, |_| ()));
            assert!(by == 5 || refused.contains("there is no other; name the interface"), "{refused}");
        }
        // A pattern, for addresses and for names.
        let matching = |pattern: &str| with(family, |o| o.iface_regexes = vec![pattern.into()]);
        assert_eq!(chosen(&node(), &matching(pattern)), nic);
        assert_eq!(chosen(&node(), &matching("flannel|cni|^pod|eth")), nic);
        // By its name, by an address, and as the public address.
        for name in [device, "flannel0"] {
            let named = with(family, |o| o.ifaces = vec![name.into()]);
            let refused = format!("{name}: it is a device of flannel, which leads to pods and not to nodes");
            assert_eq!(chosen(&node(), &named), refused);
        }
        let named = with(family, |o| o.ifaces = vec!["cni0".into()]);
        assert!(chosen(&node(), &named).starts_with(&of_pods("cni0")));
        let by_address = with(family, |o| o.ifaces = vec![gateway.into()]);
        assert!(chosen(&node(), &by_address).starts_with(&of_pods("cni0")));
        for iface in ["", "eth0"] {
            let public = with(family, |o| {
                *o.public_ips.get_mut(family) = Some(ip(gateway));
                o.ifaces = Some(iface.to_owned()).filter(|iface| !iface.is_empty()).into_iter().collect();
            });
            assert!(chosen(&node(), &public).contains("it has 10.244.3.1 of the pod network"), "{iface}");
        }
        // The way to an address.
        for by in [2, 3, 4, 5] {
            let reach = Ok(route(Some(by), 0));
            let refused =
                chosen(&HostLinks { reach, ..node() }, &with(family, |o| o.can_reach = Some(ip(gateway))));
            assert!(
                !refused.starts_with("eth0") && refused.contains("leads to pods and not to nodes"),
                "{refused}"
            );
        }
    }
}

/// A list of what follows the choice is the same as at the start.
#[test]
fn the_follower_refuses_what_the_start_refuses() {
    for family in Family::ALL {
        let (_, _, pattern, _) = of_family(family);
        for options in [with(family, |o| o.iface_regexes = vec![pattern.into()]), with(family, |_| ())] {
            let current = decide(&node(), &options).unwrap().underlay;
            let mut host = node();
            host.addresses.retain(|own| own.link != LinkIndex(20));
            host.defaults.get_mut(family).as_mut().unwrap().push(route(Some(2), 5));
            let Standing::Lost(why) = review(&host, &options, &current) else { panic!("{options:?}") };
            assert!(why.contains("is gone from eth0") && why.contains(", and there is no other"), "{why}");
        }
    }
}

/// The nodes' network lies in `Network` by mistake: what works goes on, and only what the overlay made is refused.
#[test]
fn a_nic_inside_of_the_network_is_a_nic() {
    let v4 = |iface: &str| {
        with(Family::V4, |o| {
            o.ifaces = Some(iface.to_owned()).filter(|it| !it.is_empty()).into_iter().collect();
        })
    };
    let own = |options: UnderlayOptions| UnderlayOptions {
        overlay: Overlay { own: vec!["10.244.3.0/24".parse().unwrap()], ..overlay() },
        ..options
    };
    for kind in [None, Some("veth"), Some("vlan"), Some("bond"), Some("macvlan")] {
        for (address, with_default) in
            [("10.244.0.11/24", true), ("10.244.0.11/24", false), ("10.244.0.11/16", false)]
        {
            let mut host = node();
            host.links
                .iter_mut()
                .filter(|link| link.name == "eth0")
                .for_each(|link| link.kind = kind.map(Into::into));
            host.addresses.retain(|own| own.link != LinkIndex(20));
            host.addresses.push(addr(20, address));
            if !with_default {
                host.defaults = PerFamily { v4: Some(Vec::new()), v6: Some(Vec::new()) };
            }
            for options in [v4("eth0"), own(v4("eth0"))] {
                assert_eq!(chosen(&host, &options), "eth0 10.244.0.11", "{kind:?} {address}");
            }
            let named = v4("cni0");
            assert!(chosen(&host, &named).starts_with("cni0: it has 10.244.3.1"), "{kind:?}");
            if with_default {
                assert_eq!(chosen(&host, &v4("")), "eth0 10.244.0.11");
            }
        }
    }
}

#[test]
fn a_bridge_or_veth_may_be_the_only_way_out() {
    let v4 = |name: &str| with(Family::V4, |o| o.ifaces = vec![name.into()]);
    // A bridge over a NIC.
    let mut host = node();
    host.links.push(of("bridge", 21, "br0"));
    host.links
        .iter_mut()
        .filter(|link| link.name == "eth0")
        .for_each(|link| link.master = Some(LinkIndex(21)));
    host.addresses.retain(|own| own.link != LinkIndex(20));
    host.addresses.push(addr(21, "10.244.0.11/24"));
    assert_eq!(chosen(&host, &v4("br0")), "br0 10.244.0.11");
    // A bridge over a container's veth: by the only default route with a gateway.
    host.links.iter_mut().filter(|link| link.name == "eth0").for_each(|link| link.kind = Some("veth".into()));
    host.defaults.v4 = Some(vec![
        crate::kernel::RouteLookup { via: Some(ip("10.244.0.1")), ..route(Some(21), 0) },
        route(Some(5), 1),
    ]);
    host.defaults.v6 = None;
    assert_eq!(chosen(&host, &v4("br0")), "br0 10.244.0.11");
    assert!(chosen(&host, &v4("cni0")).starts_with("cni0: it has"));
    // A container whose veth has a host address alone, in the network.
    let mut host = node();
    host.links.retain(|link| ["lo", "eth0", "cni0", "docker0"].contains(&link.name.as_str()));
    host.links.iter_mut().filter(|link| link.name == "eth0").for_each(|link| link.kind = Some("veth".into()));
    host.addresses.retain(|own| own.link != LinkIndex(20));
    host.addresses.push(addr(20, "10.244.0.11/32"));
    for defaults in [host.defaults, PerFamily { v4: Some(Vec::new()), v6: None }] {
        host.defaults = defaults;
        assert_eq!(chosen(&host, &v4("eth0")), "eth0 10.244.0.11");
        assert!(chosen(&host, &v4("cni0")).starts_with("cni0: it has"));
    }
}

#[test]
fn names_and_kinds_together_tell_a_device_of_ours() {
    let stored = Overlay { devices: vec!["overlay7".into()], ..Overlay::default() };
    for (kind, name, ours) in [
        (Some("vxlan"), "flannel.4096", true),
        (Some("vxlan"), "flannel-v6.1", true),
        (Some("tun"), "flannel0", true),
        (Some("tun"), "flannel17", true),
        (Some("wireguard"), "flannel-wg", true),
        (Some("wireguard"), "flannel-wg-v6", true),
        (Some("ipip"), "flannel.ipip", true),
        (Some("vxlan"), "overlay7", true),
        (Some("vxlan"), "vxlan100", false),
        (Some("tun"), "flannelette", false),
        (Some("tun"), "tailscale0", false),
        (Some("vlan"), "flannel.5", false),
        (None, "flannel0", false),
        (None, "overlay7", false),
    ] {
        let nic = Link { kind: kind.map(Into::into), ..link(2, name) };
        let host = HostLinks { links: vec![nic], addresses: vec![addr(2, "192.168.77.11/24")], ..node() };
        assert_eq!(!stored.made(&host).is_empty(), ours, "{kind:?} {name}");
    }
    // Without a name of ours a tunnel is told by its address.
    let host = HostLinks {
        links: vec![of("vxlan", 2, "vxlan100")],
        addresses: vec![addr(2, "10.244.9.0/32")],
        ..node()
    };
    assert_eq!(overlay().made(&host).len(), 1);
}

#[test]
fn a_virtual_address_does_not_win() {
    for (family, vip, lasting, want) in [
        (Family::V4, "10.0.0.100/32", false, "10.0.0.11"),
        (Family::V6, "fd00:77::100/128", false, "fd00:77::11"),
        // Addresses that a DHCP client or a router gave end, virtual ones don't.
        (Family::V4, "10.0.0.100/32", true, "10.0.0.11"),
        (Family::V6, "fd00:77::100/128", true, "fd00:77::11"),
    ] {
        let mut host = node();
        host.addresses.iter_mut().filter(|own| own.link.0 == 20).for_each(|own| own.permanent = !lasting);
        host.addresses.insert(0, addr(20, vip));
        for options in [with(family, |o| o.ifaces = vec!["eth0".into()]), with(family, |_| ())] {
            assert_eq!(chosen(&host, &options), format!("eth0 {want}"), "{vip}");
        }
        // Where a cloud gives nothing else, it is the address.
        host.addresses.retain(|own| own.link.0 != 20 || own.addr.to_string() == vip);
        let vip = vip.split('/').next().unwrap();
        assert_eq!(chosen(&host, &with(family, |o| o.ifaces = vec!["eth0".into()])), format!("eth0 {vip}"));
    }
}

#[test]
fn what_was_published_and_still_stands_is_kept() {
    for (family, newer, kept, pattern) in [
        (Family::V4, "10.0.0.5/24", "10.0.0.11", "^10[.]0"),
        (Family::V6, "fd00:77::5/64", "fd00:77::11", "^fd00:77"),
    ] {
        let mut host = node();
        host.addresses.insert(0, addr(20, newer));
        host.reach = Ok(crate::kernel::RouteLookup {
            source: Some(ip(newer.split('/').next().unwrap())),
            ..route(Some(20), 0)
        });
        let doors: [fn(&mut UnderlayOptions, &str); 4] = [
            |o, _| o.ifaces = vec!["eth0".into()],
            |_, _| (),
            |o, pattern| o.iface_regexes = vec![pattern.into()],
            |o, _| o.can_reach = Some(ip("10.9.9.9")),
        ];
        for door in doors {
            let first = with(family, |o| door(o, pattern));
            let newer = newer.split('/').next().unwrap();
            assert_eq!(chosen(&host, &first), format!("eth0 {newer}"), "nothing is known of before");
            let again = with(family, |o| {
                door(o, pattern);
                *o.kept.get_mut(family) = Some(ip(kept));
            });
            assert_eq!(chosen(&host, &again), format!("eth0 {kept}"));
            // It is gone: then the rule decides.
            let mut gone = host.clone();
            gone.addresses.retain(|own| own.addr.ip() != ip(kept));
            assert_eq!(chosen(&gone, &again), format!("eth0 {newer}"));
        }
        // The operator's word counts for more.
        let said = with(family, |o| {
            o.ifaces = vec![newer.split('/').next().unwrap().into()];
            *o.kept.get_mut(family) = Some(ip(kept));
        });
        assert_eq!(chosen(&host, &said), format!("eth0 {}", newer.split('/').next().unwrap()));
    }
}

#[test]
fn a_link_is_found_by_its_altname_and_a_rename_between_runs_is_named() {
    let mut host = node();
    host.links
        .iter_mut()
        .filter(|link| link.name == "eth0")
        .for_each(|link| link.altnames = vec!["enp0s3".into()]);
    let by_altname = with(Family::V4, |o| o.ifaces = vec!["enp0s3".into()]);
    assert_eq!(chosen(&host, &by_altname), "eth0 10.0.0.11");
    assert_eq!(decide(&host, &by_altname).unwrap().underlay.reason, "it is also named enp0s3");
    host.links.iter_mut().filter(|link| link.name == "eth0").for_each(|link| link.name = "ens3".into());
    assert_eq!(chosen(&host, &by_altname), "ens3 10.0.0.11");
    let renamed = with(Family::V4, |o| {
        o.ifaces = vec!["eth0".into()];
        o.kept.v4 = Some(ip("10.0.0.11"));
    });
    let refused = chosen(&host, &renamed);
    assert!(refused.starts_with("interface eth0: there is none of this name; 10.0.0.11, which"), "{refused}");
    assert!(refused.contains("is on ens3"), "{refused}");
}
