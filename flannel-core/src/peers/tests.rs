mod many;
mod model;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::addr::{Family, MacAddr, PerFamily};
use crate::dataplane::{FdbEntry, Neighbour, Route, Through};
use crate::lease::Ages;

const LINK: LinkIndex = LinkIndex(7);
const LINK6: LinkIndex = LinkIndex(8);

/// Of a record that was created then, and first seen with all others.
fn together(created: u64) -> Standing {
    Standing { ages: Ages::all(1), created }
}

/// Of a record whose parts were first seen then, and that was created before all others.
fn seen(subnet: u32, public_ip: u32, backend_data: u32) -> Standing {
    Standing {
        ages: Ages::from_array([subnet, public_ip, public_ip, backend_data, backend_data]),
        created: 0,
    }
}

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
        mtu: None,
        plain: true,
    };
    Peer {
        objects: vec![
            Object::Neighbour(Neighbour { link: LINK, addr: subnet.base(), mac }),
            Object::Fdb(FdbEntry { link: LINK, mac, dst: at, port: None, vni: None, via: None }),
            Object::Route(route),
        ],
        claims: vec![Claim::Subnet(subnet), Claim::Vtep(LINK, mac, at), Claim::Underlay(at)],
        ..Peer::default()
    }
}

#[test]
fn the_older_of_two_overlapping_leases_holds() {
    let mut table = PeerTable::default();
    let (wide, narrow) = (key("10.5.0.0-16"), key("10.5.7.0-24"));
    table.put(narrow, together(5), Ok(peer(narrow, 1, 1)));
    table.put(wide, together(3), Ok(peer(wide, 2, 2)));
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
        table.put(key(text), together(0), Ok(peer(key(text), mac, at)));
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
    table.put(a, together(1), Ok(peer(a, 1, 1)));
    table.put(b, together(2), Ok(peer(b, 1, 1)));
    assert_eq!(table.want().len(), 5);
    table.remove(&a);
    assert_eq!(table.want(), &peer(b, 1, 1).objects.into_iter().collect());
}

#[test]
fn one_vtep_mac_at_two_nodes_is_a_contradiction() {
    let mut table = PeerTable::default();
    let (a, b) = (key("10.5.1.0-24"), key("10.5.2.0-24"));
    table.put(b, together(1), Ok(peer(b, 1, 2)));
    table.put(a, together(2), Ok(peer(a, 1, 1)));
    let problems: Vec<_> = table.problems().collect();
    let why = "VtepMAC 02:00:00:00:00:01 is that of lease 10.5.2.0-24, whose record is older; if the BackendData of 10.5.1.0-24 is wrong, delete that record";
    assert_eq!(problems, [(a, why.to_owned())]);
}

/// An underlay address in a subnet that the store assigned to another holds only if it was there first.
#[test]
fn no_route_swallows_the_underlay_of_another() {
    let (swallows, inside) = (key("10.5.7.0-24"), key("10.6.1.0-24"));
    let at_inside = |key| Peer {
        claims: vec![Claim::Subnet(key_subnet(key)), Claim::Underlay([10, 5, 7, 3].into())],
        ..peer(key, 2, 2)
    };
    let (first, assigned) = ("which claimed it first", "to which the store gave it");
    for (of_subnet, of_address, winner, why) in [
        (together(2), together(1), swallows, assigned),
        (seen(3, 3, 3), seen(1, 3, 1), swallows, assigned),
        (seen(2, 2, 2), seen(1, 3, 1), swallows, first),
        (seen(3, 3, 3), seen(1, 2, 1), inside, first),
    ] {
        let mut table = PeerTable::default();
        table.put(swallows, of_subnet, Ok(peer(swallows, 1, 1)));
        table.put(inside, of_address, Ok(at_inside(inside)));
        let problems: Vec<_> = table.problems().map(|(_, why)| why).collect();
        let what = if winner == swallows {
            "PublicIP 10.5.7.3 lies in the subnet 10.5.7.0/24 of lease 10.5.7.0-24, "
        } else {
            "subnet 10.5.7.0/24 covers the underlay address 10.5.7.3 of lease 10.6.1.0-24, "
        };
        assert!(problems.len() == 1 && problems[0].starts_with(&format!("{what}{why};")), "{problems:?}");
        assert!(table.programmed_peers().map(|(key, _)| *key).eq([winner]));
        table.remove(&winner);
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
        table.put(key(text), together(1), Ok(peer(key(text), 1, 1)));
        let problems: Vec<_> = table.problems().map(|(_, why)| why).collect();
        assert!(problems[0].contains("is no part of the network 10.5.0.0/16; delete"), "{problems:?}");
        table.remove(&key(text));
    }
    table.put(key("10.5.1.0-24&fd00::-64"), together(1), Ok(peer(key("10.5.1.0-24"), 1, 1)));
    assert_eq!(table.programmed(), 1, "a family without a network is not checked");
}

#[test]
fn a_fault_is_told_for_as_long_as_it_is_there() {
    let mut table = PeerTable::default();
    let (wide, narrow) = (key("10.5.0.0-16"), key("10.5.7.0-24"));
    table.put(narrow, together(5), Ok(peer(narrow, 1, 1)));
    table.put(narrow, together(5), Err(PeerError::Unreadable("no MAC".into())));
    table.put(wide, together(3), Ok(peer(wide, 2, 2)));
    let told = |table: &PeerTable| table.problems().map(|(_, why)| why).collect::<Vec<_>>().join("|");
    assert!(told(&table).starts_with("no MAC; and its last good version: subnet"), "{}", told(&table));
    table.remove(&wide);
    assert_eq!((told(&table).as_str(), table.programmed()), ("no MAC", 1));
}

#[test]
fn a_malformed_version_keeps_the_last_good_one() {
    let mut table = PeerTable::default();
    let a = key("10.5.1.0-24");
    table.put(a, together(1), Err(PeerError::Unreadable("no MAC".into())));
    assert_eq!(table.unknown().iter().collect::<Vec<_>>(), [a]);
    table.put(a, together(1), Ok(peer(a, 1, 1)));
    table.put(a, together(1), Err(PeerError::Unreadable("no MAC".into())));
    assert_eq!(table.want().len(), 3);
    assert_eq!((table.unknown().iter().count(), table.problems().count()), (0, 1));
    table.put(a, together(1), Err(PeerError::NotOurs("host-gw".into())));
    assert!(table.want().is_empty());
}

#[test]
fn the_claim_that_was_there_first_holds_whoevers_record_is_older() {
    let (a, b) = (key("10.5.1.0-24"), key("10.5.2.0-24"));
    for (name, of_a, of_b, winner) in [
        ("a MAC that came later", seen(1, 1, 3), Standing { created: 9, ..seen(2, 2, 2) }, b),
        ("an address that came later does not make the MAC younger", seen(1, 9, 1), seen(2, 2, 2), a),
        ("a subnet that came later, with a MAC that came first", seen(5, 5, 5), seen(6, 6, 4), b),
        (
            "seen together",
            Standing { created: 4, ..seen(1, 1, 2) },
            Standing { created: 3, ..seen(2, 2, 2) },
            b,
        ),
        ("created together", seen(1, 1, 2), seen(2, 2, 2), a),
    ] {
        let mut table = PeerTable::default();
        for (key, standing, at) in [(a, of_a, 1), (b, of_b, 2)] {
            table.put(key, standing, Ok(peer(key, 1, at)));
        }
        assert!(table.programmed_peers().map(|(key, _)| *key).eq([winner]), "{name}");
    }
}

/// L1 has precedence over L2 by MAC, L2 over L3 by address, L3 over L1 by subnet.
#[test]
fn a_circle_is_broken_at_its_oldest() {
    let (one, two, three) = (key("10.5.1.0-24"), key("10.5.2.0-24"), key("10.5.0.0-23"));
    let put = |table: &mut PeerTable, which: LeaseKey| {
        let (standing, mac, at) = match which {
            it if it == one => (seen(4, 4, 1), 1, [192, 0, 2, 1]),
            it if it == two => (seen(5, 2, 3), 1, [10, 5, 0, 9]),
            _ => (seen(3, 6, 6), 3, [192, 0, 2, 3]),
        };
        table.put(which, standing, Ok(peer_at(which, mac, at.into())));
    };
    for order in [[one, two, three], [three, two, one], [two, three, one], [one, three, two]] {
        let mut table = PeerTable::default();
        for key in order {
            put(&mut table, key);
        }
        assert!(table.programmed_peers().map(|(key, _)| *key).eq([one]), "{order:?}");
        let told: Vec<_> = table.problems().map(|(_, why)| why).collect();
        assert!(
            told[0].contains("10.5.0.0/23 overlaps 10.5.1.0/24 of lease 10.5.1.0-24, which is programmed")
        );
        assert!(
            told[1]
                .contains("VtepMAC 02:00:00:00:00:01 is that of lease 10.5.1.0-24, which claimed it first")
        );
    }
}

/// A node of two families got another IPv4 address while it was off, and another subnet with it.
#[test]
fn of_two_records_of_one_node_the_later_one_is_programmed() {
    let (former, present) = (key("10.5.1.0-24"), key("10.5.2.0-24"));
    let dual = |key, at: u8, v6: u16| {
        let mut peer = peer(key, 1, at);
        let v6: IpAddr = [0xfd77, 0, 0, 0, 0, 0, 0, v6].into();
        peer.claims.extend([Claim::Vtep(LINK6, MacAddr([2, 6, 0, 0, 0, 1]), v6), Claim::Underlay(v6)]);
        peer
    };
    let later = |ages: u32| Standing { ages: Ages::all(ages), created: 2 };
    for (name, of_present, v6, winner) in [
        ("it came later", later(5), 9, present),
        ("seen together", later(1), 9, present),
        ("another node", later(5), 8, former),
        ("a record that took the MAC over", Standing { created: 2, ..seen(4, 5, 5) }, 9, former),
    ] {
        let mut table = PeerTable::default();
        table.put(former, together(1), Ok(dual(former, 1, 9)));
        table.put(present, of_present, Ok(dual(present, 2, v6)));
        assert!(table.programmed_peers().map(|(key, _)| *key).eq([winner]), "{name}");
        let told = table.problems().next().unwrap().1;
        assert_eq!(told.contains("a former record of one node"), winner == present, "{told}");
    }
}

/// As this node's own record is seen by others.
#[test]
fn rivals_are_those_that_contradict_the_own_record() {
    let own = key("10.5.1.0-24");
    let claims = peer(own, 1, 1).claims;
    let us = Standing { created: 5, ..seen(5, 5, 5) };
    for (name, rival, standing, field, wins) in [
        ("its MAC, there first", peer(key("10.5.2.0-24"), 1, 2), seen(1, 1, 4), "BackendData", true),
        ("its MAC, later", peer(key("10.5.2.0-24"), 1, 2), seen(1, 1, 6), "BackendData", false),
        ("its address, there first", peer(key("10.5.2.0-24"), 2, 1), seen(1, 4, 1), "PublicIP", true),
        ("its address, later", peer(key("10.5.2.0-24"), 2, 1), seen(1, 6, 1), "PublicIP", false),
        ("around it", peer(key("10.5.0.0-23"), 2, 2), seen(5, 5, 5), "subnet", true),
        ("around its address", peer(key("192.0.2.0-30"), 2, 200), seen(5, 5, 5), "PublicIP", true),
        (
            "at an address in it",
            peer_at(key("10.5.2.0-24"), 2, [10, 5, 1, 4].into()),
            seen(1, 5, 1),
            "subnet",
            false,
        ),
        (
            "at an address in it, there first",
            peer_at(key("10.5.2.0-24"), 2, [10, 5, 1, 4].into()),
            seen(1, 4, 1),
            "subnet",
            true,
        ),
    ] {
        let mut table = PeerTable::new(Vec::new(), claims.clone());
        let Claim::Subnet(subnet) = rival.claims[0] else { unreachable!() };
        let key = LeaseKey::new(PerFamily { v4: Some(subnet), v6: None }).unwrap();
        table.put(key, standing, Ok(rival));
        let rivals = table.rivals(own, us, &claims);
        let told: Vec<_> = rivals.iter().map(|it| (it.key, it.field().to_string(), it.wins)).collect();
        assert_eq!(told, [(key, field.to_owned(), wins)], "{name}");
        assert_eq!(table.programmed(), 0, "{name}: ours first");
    }
}
