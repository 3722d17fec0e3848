use super::*;
use crate::addr::Mtu;
use crate::peers::{Claim, Peer, Standing};

const OVERLAY: [(Family, u32); 2] = [(Family::V4, 3), (Family::V6, 4)];

fn link(index: u32, name: &str) -> Link {
    Link {
        index: LinkIndex(index),
        name: name.to_owned(),
        kind: None,
        mac: None,
        mtu: Mtu(1500),
        up: name != "down0",
        carrier: true,
        loopback: name == "lo",
        altnames: Vec::new(),
        master: None,
        vxlan: None,
    }
}

fn address(link: u32, addr: &str) -> LinkAddress {
    let (global, deprecated, permanent, temporary, tentative) = (true, false, true, false, false);
    let addr = addr.parse().unwrap();
    LinkAddress { link: LinkIndex(link), addr, global, deprecated, permanent, temporary, tentative }
}

fn networks(v4: &str, v6: &str) -> PerFamily<Subnet> {
    PerFamily { v4: v4.parse().ok(), v6: v6.parse().ok() }
}

fn links() -> Vec<Link> {
    let names = ["lo", "eth0", "flannel.1", "flannel-v6.1", "cni0", "old0", "down0"];
    (1..).zip(names).map(|(index, name)| link(index, name)).collect()
}

/// Judges with these settings of forwarding switched off.
fn judge(
    off: &[(Family, ConfOf)],
    addresses: &[LinkAddress],
    was_on: &[Family],
    families: &[Family],
) -> Vec<(String, Harm)> {
    let (links, was_on) = (links(), was_on.iter().copied().collect());
    let enabled = |subnets: PerFamily<Subnet>| {
        PerFamily::from_fn(|f| subnets.get(f).filter(|_| families.contains(&f)).copied())
    };
    let view = View {
        networks: enabled(networks("10.5.0.0/16", "fd00:5::/48")),
        own: enabled(networks("10.5.1.0/24", "fd00:5:0:1::/64")),
        ingress: OVERLAY.map(|(family, link)| (family, LinkIndex(link))).into(),
        underlay: Some(LinkIndex(2)),
        links: &links,
        addresses,
        forwarding: off
            .iter()
            .map(|(family, of)| ((*family, *of), Forwarding { family: *family, of: *of, on: false }))
            .collect(),
        was_on: &was_on,
    };
    let named = |problem: Problem| match &problem.subject {
        Subject::Sysctl(name) => (name.clone(), problem.harm),
        other => panic!("{other:?}"),
    };
    view.judge_forwarding().into_iter().map(named).collect()
}

#[test]
fn forwarding_matters_by_family_by_link_and_once_there_are_pods() {
    let pods = [address(5, "10.5.1.1/24"), address(5, "fd00:5:0:1::1/64"), address(3, "10.5.1.0/32")];
    let (v4, v6) = (Family::V4, Family::V6);
    let of = |family, link| (family, ConfOf::Link(LinkIndex(link)));
    let all_of_v4 = [(v4, ConfOf::All), of(v4, 2), of(v4, 3), of(v4, 5)];
    let is = |name: &str, harm| vec![(name.to_owned(), harm)];
    for (what, off, addresses, was_on, families, want) in [
        ("all on", &[][..], &pods[..], &[][..], &[v4, v6][..], vec![]),
        ("IPv4 off", &all_of_v4, &pods, &[], &[v4, v6], is("net.ipv4.ip_forward", Harm::All)),
        ("IPv4 off, and not used", &all_of_v4, &pods, &[], &[v6], vec![]),
        (
            "IPv4 off before the first pod",
            &all_of_v4,
            &pods[2..],
            &[],
            &[v4],
            is("net.ipv4.ip_forward", Harm::None),
        ),
        (
            "switched off without a gateway of pods",
            &all_of_v4,
            &[],
            &[v4],
            &[v4],
            is("net.ipv4.ip_forward", Harm::All),
        ),
        (
            "IPv6 off",
            &[(v6, ConfOf::All)],
            &pods,
            &[],
            &[v4, v6],
            is("net.ipv6.conf.all.forwarding", Harm::All),
        ),
        ("IPv6 off, and not used", &[(v6, ConfOf::All)], &pods, &[], &[v4], vec![]),
        ("IPv6 off for one link alone means nothing", &[of(v6, 4)], &pods, &[], &[v6], vec![]),
        ("the device", &[of(v4, 3)], &pods, &[], &[v4], is("net/ipv4/conf/flannel.1/forwarding", Harm::All)),
        ("that of the other family", &[of(v4, 4)], &pods, &[], &[v4], vec![]),
        ("the pods' bridge", &[of(v4, 5)], &pods, &[], &[v4], is("net/ipv4/conf/cni0/forwarding", Harm::All)),
        ("the underlay", &[of(v4, 2)], &pods, &[], &[v4], is("net/ipv4/conf/eth0/forwarding", Harm::World)),
        ("default, and a link of others", &[(v4, ConfOf::Default), of(v4, 6)], &pods, &[], &[v4], vec![]),
        ("off, but on where it matters", &[(v4, ConfOf::All)], &pods, &[], &[v4], vec![]),
    ] {
        assert_eq!(judge(off, addresses, was_on, families), want, "{what}");
    }
}

#[test]
fn the_text_says_what_is_cut_and_the_very_command() {
    let problem = forwarding_off(Family::V4, "net.ipv4.ip_forward".to_owned(), Harm::All).to_string();
    let want = "the kernel forwards no IPv4 packets, net.ipv4.ip_forward is 0: pods reach neither other nodes nor the \
                world; run sysctl -w net.ipv4.ip_forward=1";
    assert_eq!(problem, want);
}

/// A bridge with a peer's subnet takes its packets: in IPv6 whichever route was there first.
#[test]
fn addresses_in_the_way_of_peers_are_named() {
    let mut peers = PeerTable::default();
    for n in [2, 3] {
        let key: LeaseKey = format!("10.5.{n}.0-24&fd00:5:0:{n}::-64").parse().unwrap();
        let claims = key.subnets().iter().map(|(_, subnet)| Claim::Subnet(*subnet)).collect();
        peers.put(
            key,
            Standing { created: n, ..Standing::default() },
            Ok(Peer { claims, ..Peer::default() }),
        );
    }
    let links = links();
    for (what, addr, lines, cut) in [
        ("no address", None, 0, 0),
        ("our own bridge", Some(address(5, "fd00:5:0:1::1/64")), 0, 0),
        ("a stale bridge", Some(address(6, "fd00:5:0:2::1/64")), 1, 1),
        ("one that is down", Some(address(7, "fd00:5:0:2::1/64")), 0, 0),
        ("IPv4: the route is ours, or refused", Some(address(6, "10.5.2.1/24")), 0, 0),
        ("a part of it", Some(address(6, "10.5.2.1/25")), 1, 0),
        ("a wider one", Some(address(6, "fd00:5:0:2::1/48")), 0, 0),
        ("outside", Some(address(6, "fd00:6:0:2::1/64")), 0, 0),
    ] {
        let addresses: Vec<LinkAddress> = addr.into_iter().collect();
        let view = View {
            networks: networks("10.5.0.0/16", "fd00:5::/48"),
            own: networks("10.5.1.0/24", "fd00:5:0:1::/64"),
            ingress: OVERLAY.map(|(family, link)| (family, LinkIndex(link))).into(),
            underlay: Some(LinkIndex(2)),
            links: &links,
            addresses: &addresses,
            forwarding: BTreeMap::new(),
            was_on: &BTreeSet::new(),
        };
        let (problems, shadowed) = view.judge_strangers(&peers);
        let count = shadowed.iter().map(|(_, peers)| peers.len()).sum::<usize>();
        assert_eq!((problems.len(), count), (lines, cut), "{what}");
        for problem in problems {
            assert!(
                problem.to_string().contains("link old0 is in the way") && problem.peer.is_some(),
                "{problem}"
            );
        }
    }
}
