use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::addr::{Family, PerFamily};
use crate::dataplane::{FdbEntry, Neighbour, Route, Through};

const LINK: LinkIndex = LinkIndex(7);

fn key(text: &str) -> LeaseKey {
    text.parse().unwrap()
}

/// A peer as the VXLAN backend would make it.
fn peer(key: LeaseKey, mac: u8, at: u8) -> Peer {
    let subnet = key.subnet(Family::V4).unwrap();
    let mac = MacAddr([2, 0, 0, 0, 0, mac]);
    let at = IpAddr::from([192, 0, 2, at]);
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
        ("10.5.0.0-16", 1, 1, "subnet 10.5.0.0/16 overlaps this node's own 10.5.1.0/24"),
        ("10.6.0.0-24", 9, 1, "VTEP MAC 02:00:00:00:00:09 is this node's own"),
        ("10.6.1.0-24", 1, 9, "underlay address 192.0.2.9 is this node's own"),
    ] {
        table.put(key(text), 0, Ok(peer(key(text), mac, at)));
        assert_eq!(table.problems().collect::<Vec<_>>(), [(key(text), why.to_owned())]);
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
    assert_eq!(problems, [(a, "contradicts lease 10.5.2.0-24, which is older".to_owned())]);
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
                _ => false,
            })
        })
    };
    let mut order: Vec<_> = leases.iter().map(|(key, (created, peer))| (created, key, peer)).collect();
    order.sort_by_key(|(created, key, _)| (**created, **key));
    let mut held: Vec<&Peer> = Vec::new();
    for (_, _, peer) in order {
        let ours = peer.claims.iter().any(|claim| own.iter().any(|own| claim.against_own(*own).is_some()));
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
        let own = vec![Claim::Subnet("10.5.7.0/25".parse().unwrap()), Claim::Underlay([192, 0, 2, 3].into())];
        let mut table = PeerTable::new(Vec::new(), own.clone());
        let mut leases = BTreeMap::new();
        for ((key, created, mac, at), put) in steps {
            let before = table.want().clone();
            let touched = if put {
                let peer = peer(key, mac, at);
                leases.insert(key, (created, peer.clone()));
                table.put(key, created, Ok(peer))
            } else {
                leases.remove(&key);
                table.remove(&key)
            };
            prop_assert_eq!(table.want(), &model(&leases, &own));
            let changed = before.iter().chain(table.want().iter()).map(Object::key)
                .filter(|key| before.get(key) != table.want().get(key));
            for key in changed {
                prop_assert!(touched.contains(&key), "{key:?} changed unsaid");
            }
        }
    }
}
