use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::addr::{Family, MacAddr, PerFamily};
use crate::dataplane::{FdbEntry, Neighbour, Route, Through};

const LINK: LinkIndex = LinkIndex(7);

fn key(text: &str) -> LeaseKey {
    text.parse().unwrap()
}

/// A peer as the VXLAN backend would make it.
fn peer(key: LeaseKey, mac: u8, at: u8) -> Peer {
    peer_at(key, mac, [192, 0, 2, at].into())
}

fn peer_at(key: LeaseKey, mac: u8, at: IpAddr) -> Peer {
    let subnet = key.subnet(Family::V4).unwrap();
    let mac = MacAddr([2, 0, 0, 0, 0, mac]);
    let route = Route {
        dst: subnet,
        metric: 0,
        via: Some(subnet.base()),
        link: Some(LINK),
        onlink: true,
        through: Through::Itself,
        protocol: 102,
        plain: true,
    };
    Peer {
        objects: vec![
            Object::Neighbour(Neighbour { link: LINK, addr: subnet.base(), mac }),
            Object::Fdb(FdbEntry { link: LINK, mac, dst: at, port: None, vni: None, via: None }),
            Object::Route(route),
        ],
        claims: vec![Claim::Subnet(subnet), Claim::Vtep(LINK, mac, at), Claim::Underlay(at)],
    }
}

#[test]
fn the_older_of_two_overlapping_leases_holds() {
    let mut table = PeerTable::default();
    let (wide, narrow) = (key("10.5.0.0-16"), key("10.5.7.0-24"));
    table.put(narrow, 5, Ok(peer(narrow, 1, 1)));
    table.put(wide, 3, Ok(peer(wide, 2, 2)));
    assert_eq!(table.programmed(), 1);
    assert_eq!(table.problems().map(|(key, _)| key).collect::<Vec<_>>(), [narrow]);
    let touched = table.remove(&wide);
    assert_eq!(touched.len(), 6, "both leases' objects are looked at again");
    assert_eq!(table.problems().count(), 0);
    assert_eq!(table.want(), &peer(narrow, 1, 1).objects.into_iter().collect());
}

#[test]
fn our_own_claims_come_first() {
    let own = vec![
        Claim::Subnet("10.5.1.0/24".parse().unwrap()),
        Claim::Vtep(LINK, MacAddr([2, 0, 0, 0, 0, 9]), [192, 0, 2, 9].into()),
        Claim::Underlay([192, 0, 2, 9].into()),
    ];
    let mut table = PeerTable::new(Vec::new(), own);
    for (text, mac, at, why) in [
        ("10.5.0.0-16", 1, 1, "subnet 10.5.0.0/16 overlaps 10.5.1.0/24 of this node"),
        ("10.6.0.0-24", 9, 1, "VtepMAC 02:00:00:00:00:09 is that of this node"),
        ("10.6.1.0-24", 1, 9, "PublicIP 192.0.2.9 is the underlay address of this node"),
        ("192.0.2.0-24", 1, 1, "PublicIP 192.0.2.1 lies in its own subnet 192.0.2.0/24"),
        ("192.0.2.8-29", 1, 1, "subnet 192.0.2.8/29 covers the underlay address 192.0.2.9 of this node"),
    ] {
        table.put(key(text), 0, Ok(peer(key(text), mac, at)));
        let problems: Vec<_> = table.problems().collect();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].0 == key(text) && problems[0].1.starts_with(why), "{problems:?}");
        table.remove(&key(text));
    }
    assert!(table.want().is_empty());
}

#[test]
fn two_leases_of_one_node_share_its_fdb_entry() {
    let mut table = PeerTable::default();
    let (a, b) = (key("10.5.1.0-24"), key("10.5.2.0-24"));
    table.put(a, 1, Ok(peer(a, 1, 1)));
    table.put(b, 2, Ok(peer(b, 1, 1)));
    assert_eq!(table.want().len(), 5);
    table.remove(&a);
    assert_eq!(table.want(), &peer(b, 1, 1).objects.into_iter().collect());
}

#[test]
fn one_vtep_mac_at_two_nodes_is_a_contradiction() {
    let mut table = PeerTable::default();
    let (a, b) = (key("10.5.1.0-24"), key("10.5.2.0-24"));
    table.put(b, 1, Ok(peer(b, 1, 2)));
    table.put(a, 2, Ok(peer(a, 1, 1)));
    let problems: Vec<_> = table.problems().collect();
    let why = "VtepMAC 02:00:00:00:00:01 is that of lease 10.5.2.0-24, which is older; delete the record that is wrong";
    assert_eq!(problems, [(a, why.to_owned())]);
}

#[test]
fn no_route_swallows_the_underlay_of_another() {
    let (swallows, inside) = (key("10.5.7.0-24"), key("10.6.1.0-24"));
    let at_inside = |key| Peer {
        claims: vec![Claim::Subnet(key_subnet(key)), Claim::Underlay([10, 5, 7, 3].into())],
        ..peer(key, 2, 2)
    };
    for (older, why) in [
        (swallows, "PublicIP 10.5.7.3 lies in the subnet 10.5.7.0/24 of lease 10.5.7.0-24, which is older"),
        (
            inside,
            "subnet 10.5.7.0/24 covers the underlay address 10.5.7.3 of lease 10.6.1.0-24, which is older",
        ),
    ] {
        let mut table = PeerTable::default();
        table.put(swallows, u64::from(older != swallows), Ok(peer(swallows, 1, 1)));
        table.put(inside, u64::from(older != inside), Ok(at_inside(inside)));
        let problems: Vec<_> = table.problems().map(|(_, why)| why).collect();
        assert!(problems.len() == 1 && problems[0].starts_with(why), "{problems:?}");
        assert!(table.iter().map(|(key, _)| *key).eq([older]));
        table.remove(&older);
        assert_eq!((table.problems().count(), table.programmed()), (0, 1));
    }
}

fn key_subnet(key: LeaseKey) -> Subnet {
    key.subnet(Family::V4).unwrap()
}

#[test]
fn what_lies_outside_of_the_network_is_nobodys() {
    let mut table = PeerTable::default();
    table.confine(PerFamily { v4: "10.5.0.0/16".parse().ok(), v6: None });
    for text in ["10.6.1.0-24", "10.5.0.0-16", "10.0.0.0-8", "10.6.1.0-24&fd00::-64"] {
        table.put(key(text), 1, Ok(peer(key(text), 1, 1)));
        let problems: Vec<_> = table.problems().map(|(_, why)| why).collect();
        assert!(problems[0].contains("is no part of the network 10.5.0.0/16; delete"), "{problems:?}");
        table.remove(&key(text));
    }
    table.put(key("10.5.1.0-24&fd00::-64"), 1, Ok(peer(key("10.5.1.0-24"), 1, 1)));
    assert_eq!(table.programmed(), 1, "a family without a network is not checked");
}

#[test]
fn a_fault_is_told_for_as_long_as_it_is_there() {
    let mut table = PeerTable::default();
    let (wide, narrow) = (key("10.5.0.0-16"), key("10.5.7.0-24"));
    table.put(narrow, 5, Ok(peer(narrow, 1, 1)));
    table.put(narrow, 5, Err(PeerError::Malformed("no MAC".into())));
    table.put(wide, 3, Ok(peer(wide, 2, 2)));
    let told = |table: &PeerTable| table.problems().map(|(_, why)| why).collect::<Vec<_>>().join("|");
    assert!(told(&table).starts_with("no MAC; and its last good version: subnet"), "{}", told(&table));
    table.remove(&wide);
    assert_eq!((told(&table).as_str(), table.programmed()), ("no MAC", 1));
}

#[test]
fn a_malformed_version_keeps_the_last_good_one() {
    let mut table = PeerTable::default();
    let a = key("10.5.1.0-24");
    table.put(a, 1, Err(PeerError::Malformed("no MAC".into())));
    assert_eq!(table.unknown().collect::<Vec<_>>(), [a]);
    table.put(a, 1, Ok(peer(a, 1, 1)));
    table.put(a, 1, Err(PeerError::Malformed("no MAC".into())));
    assert_eq!(table.want().len(), 3);
    assert_eq!((table.unknown().count(), table.problems().count()), (0, 1));
    table.put(a, 1, Err(PeerError::NotOurs("host-gw".into())));
    assert!(table.want().is_empty());
}

/// Few subnets of three lengths, few MACs and few nodes, so that everything collides.
fn any_lease() -> impl Strategy<Value = (LeaseKey, u64, u8, u8)> {
    (0..16_u32, prop::sample::select(vec![22_u8, 24, 25]), 0..4_u64, 1..4_u8, 1..4_u8).prop_map(
        |(block, prefix, created, mac, at)| {
            let base = Ipv4Addr::from_bits(0x0a05_0000 + block * 128);
            let subnets = PerFamily { v4: Subnet::containing(base.into(), prefix), v6: None };
            (LeaseKey::new(subnets).unwrap(), created, mac, at)
        },
    )
}

/// The rule, written down naively over all leases: oldest first, each unless it contradicts one before it.
fn model(leases: &BTreeMap<LeaseKey, (u64, Peer)>, own: &[Claim]) -> Dataplane {
    let clash = |a: &Peer, b: &Peer| {
        a.claims.iter().any(|x| {
            b.claims.iter().any(|y| match (x, y) {
                (Claim::Subnet(x), Claim::Subnet(y)) => x.overlaps(*y),
                (Claim::Vtep(l, x, at), Claim::Vtep(m, y, to)) => (l, x) == (m, y) && at != to,
                (Claim::Subnet(x), Claim::Underlay(y)) | (Claim::Underlay(y), Claim::Subnet(x)) => {
                    x.contains(*y)
                }
                _ => false,
            })
        })
    };
    let mut order: Vec<_> = leases.iter().map(|(key, (created, peer))| (created, key, peer)).collect();
    order.sort_by_key(|(created, key, _)| (**created, **key));
    let mut held: Vec<&Peer> = Vec::new();
    for (_, _, peer) in order {
        let ours =
            peer.claims.iter().any(|claim| own.iter().any(|own| claim.against(*own, Holder::Us).is_some()));
        if !ours && !held.iter().any(|other| clash(peer, other)) {
            held.push(peer);
        }
    }
    held.into_iter().flat_map(|peer| peer.objects.clone()).collect()
}

proptest! {
    #[test]
    fn incremental_equals_the_rule_over_all(
        steps in prop::collection::vec((any_lease(), prop::bool::weighted(0.7)), 0..40),
    ) {
        let own = vec![Claim::Subnet("10.5.7.0/25".parse().unwrap()), Claim::Underlay([192, 0, 2, 2].into())];
        let mut table = PeerTable::new(Vec::new(), own.clone());
        let mut leases = BTreeMap::new();
        for ((key, created, mac, at), put) in steps {
            let before = table.want().clone();
            let touched = if put {
                // Number 3 is where pods are.
                let at = if at == 3 { [10, 5, 3, 9].into() } else { [192, 0, 2, at].into() };
                let peer = peer_at(key, mac, at);
                let usable = !key_subnet(key).contains(at);
                let last = leases.get(&key).map(|(_, peer): &(u64, Peer)| peer.clone());
                let held = if usable { peer.clone() } else { last.unwrap_or_default() };
                leases.insert(key, (created, held));
                table.put(key, created, Ok(peer))
            } else {
                leases.remove(&key);
                table.remove(&key)
            };
            prop_assert_eq!(table.want(), &model(&leases, &own));
            let changed = before.iter().chain(table.want().iter()).map(|object| object.key())
                .filter(|key| before.get(key) != table.want().get(key));
            for key in changed {
                prop_assert!(touched.contains(&key), "{key:?} changed unsaid");
            }
        }
    }
}
