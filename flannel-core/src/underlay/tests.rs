//! Tables of hosts and options.

use proptest::prelude::*;

use super::*;
use crate::addr::{LinkIndex, Mtu};
use crate::kernel::Exit;

const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];
const DUAL: &[Family] = &Family::ALL;

pub(super) fn link(index: u32, name: &str) -> Link {
    Link {
        index: LinkIndex(index),
        name: name.into(),
        altnames: Vec::new(),
        master: None,
        kind: None,
        mac: None,
        mtu: Mtu(1500),
        up: true,
        carrier: true,
        loopback: name == "lo",
        vxlan: None,
    }
}

pub(super) fn addr(link: u32, text: &str) -> LinkAddress {
    LinkAddress {
        link: LinkIndex(link),
        addr: text.parse().unwrap(),
        global: true,
        deprecated: false,
        permanent: true,
        temporary: false,
        tentative: false,
    }
}

pub(super) fn route(link: Option<u32>, metric: u32) -> RouteLookup {
    RouteLookup { exit: Exit::of(link.map(LinkIndex)), via: None, source: None, metric }
}

/// eth0 has five IPv4 addresses and one IPv6 address, as in upstream's tests; eth1 has IPv4 only and eth2
/// IPv6 only. The default routes leave by eth0.
pub(super) fn host() -> HostLinks {
    let addresses = [
        (1, "127.0.0.1/8"),
        (1, "::1/128"),
        (2, "172.16.30.10/24"),
        (2, "172.16.30.11/24"),
        (2, "172.16.30.12/24"),
        (2, "172.16.30.13/24"),
        (2, "172.16.30.14/24"),
        (2, "fd00:30::10/64"),
        (2, "fe80::1/64"),
        (3, "192.168.1.5/24"),
        (4, "fd00:40::5/64"),
    ];
    HostLinks {
        links: vec![link(4, "eth2"), link(2, "eth0"), link(1, "lo"), link(3, "eth1")],
        addresses: addresses.map(|(link, text)| addr(link, text)).to_vec(),
        defaults: PerFamily { v4: Some(vec![route(Some(2), 0)]), v6: Some(vec![route(Some(2), 1024)]) },
        reach: Err(NoRoute::None),
    }
}

pub(super) fn options(families: &[Family]) -> UnderlayOptions {
    UnderlayOptions { families: families.to_vec(), ..UnderlayOptions::default() }
}

pub(super) fn with(families: &[Family], change: impl FnOnce(&mut UnderlayOptions)) -> UnderlayOptions {
    let mut options = options(families);
    change(&mut options);
    options
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `name v4 v6`, the addresses as `local` or, where they differ, `local>published`.
fn short(choice: &ChosenUnderlay) -> String {
    let underlay = &choice.underlay;
    let family = |family| {
        let local = underlay.local.get(family).map_or("-".into(), IpAddr::to_string);
        let published = underlay.published.get(family).map_or("-".into(), IpAddr::to_string);
        if local == published { local } else { format!("{local}>{published}") }
    };
    format!("{} {} {}", underlay.name, family(Family::V4), family(Family::V6))
}

fn chosen(host: &HostLinks, options: &UnderlayOptions) -> String {
    match decide(host, options) {
        Ok(choice) => short(&choice),
        Err(UnderlayError::NoneFits { lost, .. }) => list(&lost),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn ifaces_are_tried_in_order() {
    let iface = |families, names: &[&str]| {
        with(families, |o| o.ifaces = names.iter().map(|name| (*name).to_owned()).collect())
    };
    for (families, names, want) in [
        (V4, &["eth0"][..], "eth0 172.16.30.10 -"),
        (V4, &["eth9", "eth1", "eth0"], "eth1 192.168.1.5 -"),
        (V4, &["eth9"], "interface eth9: there is none of this name"),
        (V4, &["lo"], "lo: no IPv4 address"),
        (V4, &["172.16.30.12"], "eth0 172.16.30.12 -"),
        (V4, &["::ffff:172.16.30.12"], "eth0 172.16.30.12 -"),
        (V4, &["127.0.0.1"], "lo 127.0.0.1 -"),
        (V4, &["172.16.30.99"], "address 172.16.30.99: no interface has it"),
        (V4, &["fd00:30::10"], "address fd00:30::10: IPv6 is not enabled"),
        (V6, &["fd00:40::5"], "eth2 - fd00:40::5"),
        (V6, &["fe80::1"], "eth0 - fe80::1"),
        (V6, &["172.16.30.12"], "address 172.16.30.12: IPv4 is not enabled"),
        (V6, &["eth1"], "eth1: no IPv6 address"),
        (DUAL, &["172.16.30.13"], "eth0 172.16.30.13 fd00:30::10"),
        // Upstream crashes here.
        (DUAL, &["fd00:30::10"], "eth0 172.16.30.10 fd00:30::10"),
        (DUAL, &["eth1", "eth2"], "eth1: no IPv6 address; eth2: no IPv4 address"),
        (DUAL, &["eth1", "eth0"], "eth0 172.16.30.10 fd00:30::10"),
        (DUAL, &["192.168.1.5"], "eth1: no IPv6 address"),
        (V4, &[""], "eth0 172.16.30.10 -"),
    ] {
        assert_eq!(chosen(&host(), &iface(families, names)), want, "{families:?} {names:?}");
    }
}

#[test]
fn regexes_match_addresses_before_names() {
    let regex = |families, patterns: &[&str]| {
        with(families, |o| o.iface_regexes = patterns.iter().map(|p| (*p).to_owned()).collect())
    };
    for (families, patterns, want) in [
        (V4, &[r"172\.16\.30\.12"][..], "eth0 172.16.30.12 -"),
        (V4, &["eth0"], "eth0 172.16.30.10 -"),
        (V4, &["^eth"], "eth0 172.16.30.10 -"),
        (V4, &["(?i)^ETH[1-9]$"], "eth1 192.168.1.5 -"),
        (V4, &[r"^192\.168\.", "eth0"], "eth1 192.168.1.5 -"),
        (V4, &["1"], "eth0 172.16.30.10 -"),
        (V4, &["wlan", r"\d+\.5$"], "eth1 192.168.1.5 -"),
        (V4, &["^lo$"], "lo: no IPv4 address"),
        (V4, &["wlan"], "regular expression \"wlan\": nothing matches it"),
        (V6, &["^fd00:40"], "eth2 - fd00:40::5"),
        // Both addresses of a link must match, by the same expression.
        (DUAL, &[r"172\.16\.30\.12|fd00"], "eth0 172.16.30.12 fd00:30::10"),
        (DUAL, &[r"172\.16\.30\.12"], "regular expression \"172\\.16\\.30\\.12\": nothing matches it"),
        (DUAL, &["eth"], "eth0 172.16.30.10 fd00:30::10"),
        (V4, &["(", "eth1"], "eth1 192.168.1.5 -"),
        (V4, &["("], "regular expression \"(\": it can't be used: unclosed group"),
    ] {
        assert_eq!(chosen(&host(), &regex(families, patterns)), want, "{families:?} {patterns:?}");
    }
}

#[test]
fn ifaces_come_before_regexes_and_both_before_can_reach() {
    let mut host = host();
    host.reach = Ok(RouteLookup { source: Some(ip("192.168.1.5")), ..route(Some(3), 0) });
    let mut options = with(V4, |o| {
        o.ifaces = vec!["eth9".into()];
        o.iface_regexes = vec!["eth0".into()];
        o.can_reach = Some(ip("192.168.1.9"));
    });
    assert_eq!(chosen(&host, &options), "eth0 172.16.30.10 -");
    options.iface_regexes = vec!["wlan".into()];
    let choice = decide(&host, &options).unwrap();
    assert_eq!(short(&choice), "eth1 192.168.1.5 -");
    assert_eq!(choice.underlay.reason, "the route to 192.168.1.9 leaves by it");
    assert_eq!(choice.lost.len(), 2);
    host.reach = Err(NoRoute::None);
    assert!(chosen(&host, &options).ends_with("route to 192.168.1.9: no route leads there"));
}

#[test]
fn can_reach_takes_the_source_for_ipv4_only() {
    let mut host = host();
    let reach = |families, dst| with(families, |o| o.can_reach = Some(ip(dst)));
    host.reach = Ok(RouteLookup { source: Some(ip("172.16.30.14")), ..route(Some(2), 0) });
    assert_eq!(chosen(&host, &reach(V4, "10.0.0.9")), "eth0 172.16.30.14 -");
    assert_eq!(chosen(&host, &reach(DUAL, "10.0.0.9")), "eth0 172.16.30.14 fd00:30::10");
    assert_eq!(chosen(&host, &reach(V6, "10.0.0.9")), "eth0 - fd00:30::10");
    host.reach = Ok(RouteLookup { source: Some(ip("fe80::1")), ..route(Some(2), 0) });
    assert_eq!(chosen(&host, &reach(DUAL, "fd00::9")), "eth0 172.16.30.10 fd00:30::10");
    host.reach = Ok(route(None, 0));
    assert!(chosen(&host, &reach(V4, "10.0.0.9")).contains("it leaves by no interface"));
    host.reach = Ok(route(Some(99), 0));
    assert!(chosen(&host, &reach(V4, "10.0.0.9")).contains("number 99, which is gone"));
}

#[test]
fn default_route_counts_only_if_nothing_was_named() {
    let mut host = host();
    assert_eq!(chosen(&host, &options(V4)), "eth0 172.16.30.10 -");
    assert_eq!(chosen(&host, &options(V6)), "eth0 - fd00:30::10");
    assert_eq!(chosen(&host, &options(DUAL)), "eth0 172.16.30.10 fd00:30::10");
    host.defaults.v4 = Some(vec![route(Some(2), 200), route(Some(3), 100), route(Some(4), 100)]);
    assert_eq!(chosen(&host, &options(V4)), "eth1 192.168.1.5 -");
    let conflict = "IPv6 default route: it leaves by eth0, but that of IPv4 by eth1";
    assert_eq!(chosen(&host, &options(DUAL)), conflict);
    host.defaults.v4 = Some(vec![route(None, 0)]);
    assert!(chosen(&host, &options(V4)).starts_with("IPv4 default route: it leaves by no interface"));
    let several = Exit::Several(LinkIndex(2), LinkIndex(3));
    host.defaults.v4 = Some(vec![RouteLookup { exit: several, ..route(None, 0) }]);
    let refused = "IPv4 default route: its next hops leave by eth0 and eth1; name the interface";
    assert_eq!(chosen(&host, &options(V4)), refused);
    host.defaults.v4 = Some(Vec::new());
    assert_eq!(chosen(&host, &options(DUAL)), "IPv4 default route: there is none; name the interface");
    assert_eq!(chosen(&host, &options(&[])), "default route: no address family is enabled");
}

#[test]
fn public_addresses_are_published() {
    let public = |families, v4: &str, v6: &str, iface: &str| {
        with(families, |o| {
            o.public_ips = PerFamily { v4: v4.parse().ok(), v6: v6.parse().ok() };
            o.ifaces = (!iface.is_empty()).then(|| iface.to_owned()).into_iter().collect();
        })
    };
    for (families, v4, v6, iface, want) in [
        // Nothing named: the public address must be one of this host.
        (V4, "192.168.1.5", "", "", "eth1 192.168.1.5 -"),
        (V4, "8.8.8.8", "", "", "public address 8.8.8.8: no interface has it"),
        (V6, "", "fd00:40::5", "", "eth2 - fd00:40::5"),
        (DUAL, "172.16.30.11", "fd00:30::10", "", "eth0 172.16.30.11 fd00:30::10"),
        (
            DUAL,
            "172.16.30.11",
            "fd00:40::5",
            "",
            "public address 172.16.30.11: public address fd00:40::5 is on eth2, not eth0",
        ),
        (
            DUAL,
            "172.16.30.11",
            "2001:db8::1",
            "",
            "public address 172.16.30.11: no interface has public address 2001:db8::1",
        ),
        (DUAL, "", "fd00:30::10", "", "eth0 172.16.30.10 fd00:30::10"),
        // Behind NAT: packets leave from the interface's address.
        (V4, "8.8.8.8", "", "eth1", "eth1 192.168.1.5>8.8.8.8 -"),
        (DUAL, "8.8.8.8", "2001:db8::1", "eth0", "eth0 172.16.30.10>8.8.8.8 fd00:30::10>2001:db8::1"),
        // A public address that this host has on another link is its own all the same.
        (V4, "192.168.1.5", "", "eth0", "eth0 192.168.1.5 -"),
        // Of a family that is not enabled: published, not used.
        (V4, "", "2001:db8::1", "", "eth0 172.16.30.10 ->2001:db8::1"),
        (V6, "8.8.8.8", "", "eth0", "eth0 ->8.8.8.8 fd00:30::10"),
    ] {
        assert_eq!(chosen(&host(), &public(families, v4, v6, iface)), want, "{v4} {v6} {iface}");
    }
    let options = with(V4, |o| {
        o.iface_regexes = vec!["eth0".into()];
        o.public_ips.v4 = Some(ip("8.8.8.8"));
    });
    assert_eq!(chosen(&host(), &options), "eth0 172.16.30.10>8.8.8.8 -");
}

#[test]
fn better_addresses_come_first() {
    let mut host = HostLinks {
        links: vec![link(2, "eth0")],
        addresses: ["fe80::1/64", "fd00::1/64", "fd00::2/64", "fd00::3/64", "fd00::4/64", "fd00::5/64"]
            .map(|text| addr(2, text))
            .to_vec(),
        ..host()
    };
    host.addresses[1].deprecated = true;
    host.addresses[2].tentative = true;
    host.addresses[3].permanent = false;
    host.addresses[4].temporary = true;
    for want in ["fd00::5", "fd00::4", "fd00::3", "fd00::2", "fe80::1"] {
        assert_eq!(chosen(&host, &options(V6)), format!("eth0 - {want}"));
        host.addresses.retain(|addr| addr.addr.ip() != ip(want));
    }
    assert_eq!(chosen(&host, &options(V6)), "eth0: no IPv6 address", "a deprecated one is not used");
    let named = with(V6, |o| o.ifaces = vec!["fd00::1".into()]);
    assert_eq!(chosen(&host, &named), "eth0 - fd00::1", "unless it is named");
}

#[test]
fn a_link_without_mtu_is_passed_over() {
    let mut host = host();
    host.links.iter_mut().filter(|link| link.name == "eth0").for_each(|link| link.mtu = Mtu(0));
    assert_eq!(chosen(&host, &options(V4)), "eth0: its MTU is 0");
    let regex = with(V4, |o| o.iface_regexes = vec!["eth".into()]);
    assert_eq!(chosen(&host, &regex), "eth1 192.168.1.5 -");
}

#[test]
fn the_error_names_candidates_and_host() {
    let error = decide(&host(), &with(DUAL, |o| o.ifaces = vec!["eth1".into()])).unwrap_err().to_string();
    assert!(error.starts_with("no underlay interface: eth1: no IPv6 address; this host has lo ("), "{error}");
    assert!(error.ends_with("eth1 (192.168.1.5/24), eth2 (fd00:40::5/64)"), "{error}");
}

proptest! {
    #[test]
    fn never_panics_and_never_invents_an_address(
        links in prop::collection::vec((0..4_u32, "(eth|lo|wg)[0-2]", 0..2_u32), 0..4),
        addresses in prop::collection::vec((0..4_u32, 0..12_u8, any::<[bool; 5]>()), 0..8),
        defaults in prop::collection::vec((prop::option::of(0..4_u32), 0..3_u32), 0..3),
        reach in prop::option::of((prop::option::of(0..4_u32), 0..12_u8)),
        ifaces in prop::collection::vec("eth[0-2]|10.0.0.[0-9]|fd00::[0-9]|", 0..3),
        iface_regexes in prop::collection::vec("eth.|10[.].*|.*|[(]|(?s:.{0,4})", 0..2),
        families in 0..4_usize,
        public in (prop::option::of(0..6_u8), prop::option::of(0..6_u8)),
    ) {
        let nth = |n: u8| match n {
            0..6 => IpAddr::from([10, 0, 0, n]),
            n => format!("fd00::{}", n - 6).parse().unwrap(),
        };
        let flags = |(link, n, flags): (u32, u8, [bool; 5])| {
            let [deprecated, permanent, temporary, tentative, global] = flags;
            LinkAddress {
            link: LinkIndex(link), addr: nth(n).into(), global, deprecated, permanent, temporary, tentative,
        }};
        let routes: Vec<_> = defaults.into_iter().map(|(link, metric)| route(link, metric)).collect();
        let host = HostLinks {
            links: links
                .into_iter()
                .map(|(index, name, mtu)| Link { mtu: Mtu(mtu), ..link(index, &name) })
                .collect(),
            addresses: addresses.into_iter().map(flags).collect(),
            defaults: PerFamily { v4: Some(routes.clone()), v6: Some(routes) },
            reach: reach
                .map(|(link, source)| RouteLookup { source: Some(nth(source)), ..route(link, 0) })
                .ok_or(NoRoute::None),
        };
        let options = UnderlayOptions {
            families: [&[][..], V4, V6, DUAL][families].to_vec(),
            ifaces,
            iface_regexes,
            can_reach: reach.map(|_| ip("10.0.0.1")),
            public_ips: PerFamily { v4: public.0.map(nth), v6: public.1.map(|n| nth(n + 6)) },
            ..UnderlayOptions::default()
        };
        if let Ok(choice) = decide(&host, &options) {
            let underlay = choice.underlay;
            prop_assert!(underlay.mtu.0 > 0);
            for family in &options.families {
                let local = *underlay.local.get(*family).unwrap();
                prop_assert_eq!(Family::of(local), *family);
                let source = host.reach.as_ref().ok().and_then(|route| route.source);
                let known = host.addresses.iter().any(|addr| addr.addr.ip() == local);
                prop_assert!(known || source == Some(local));
                prop_assert!(underlay.published.get(*family).is_some());
            }
        }
    }
}
