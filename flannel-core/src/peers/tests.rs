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
        assert!(table.iter().map(|(key, _)| *key).eq([winner]));
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
    table.put(narrow, together(5), Err(PeerError::Malformed("no MAC".into())));
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
    table.put(a, together(1), Err(PeerError::Malformed("no MAC".into())));
    assert_eq!(table.unknown().iter().collect::<Vec<_>>(), [a]);
    table.put(a, together(1), Ok(peer(a, 1, 1)));
    table.put(a, together(1), Err(PeerError::Malformed("no MAC".into())));
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
        assert!(table.iter().map(|(key, _)| *key).eq([winner]), "{name}");
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
        assert!(table.iter().map(|(key, _)| *key).eq([one]), "{order:?}");
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
        assert!(table.iter().map(|(key, _)| *key).eq([winner]), "{name}");
        let told = table.problems().next().unwrap().1;
        assert_eq!(told.contains("a former record of one node"), winner == present, "{told}");
    }
}

#[test]
fn a_record_around_thousands_costs_what_it_contradicts() {
    let (wide, far) = (key("10.4.0.0-15"), key("10.7.0.0-24"));
    let mut table = PeerTable::default();
    let keys: Vec<LeaseKey> =
        (0..500_u32).map(|n| key(&format!("10.5.{}.{}-25", n / 2, n % 2 * 128))).collect();
    for (n, key) in keys.iter().enumerate() {
        let mac = MacAddr([2, 0, 1, 0, u8::try_from(n / 256).unwrap(), u8::try_from(n % 256).unwrap()]);
        let mut it = peer(*key, 1, 1);
        it.claims = vec![Claim::Subnet(key_subnet(*key)), Claim::Vtep(LINK, mac, [192, 0, 2, 1].into())];
        table.stage(*key, together(2), Ok(it));
    }
    table.settle();
    assert_eq!(table.programmed(), 500);
    assert_eq!(table.put(wide, seen(9, 9, 9), Ok(peer(wide, 2, 2))), [], "it changes nothing for them");
    assert_eq!(table.put(far, together(3), Ok(peer(far, 3, 3))).len(), 3);
    assert_eq!((table.programmed(), table.problems().count()), (501, 1));
    assert_eq!(table.remove(&keys[0]).len(), 3, "nor does it when one of them goes");
    table.remove(&wide);
    assert_eq!(table.problems().count(), 0);
}

/// How many leases are looked at when this one is decided again.
fn looked_at(table: &PeerTable, key: LeaseKey) -> usize {
    table.conflicts(vec![key]).0.len()
}

/// Thousands under one that is refused, or that refuses them: each costs itself and that one, whatever comes first.
#[test]
fn thousands_under_one_lease_that_is_refused_cost_each_what_it_changes() {
    let wide = key("10.5.128.0-17");
    let small: Vec<LeaseKey> =
        (0..2000_u32).map(|n| key(&format!("10.5.{}.{}-29", 129 + n / 32, n % 32 * 8))).collect();
    let at =
        |n: usize| IpAddr::from([198, 18, u8::try_from(n / 250).unwrap(), u8::try_from(n % 250).unwrap()]);
    let small_peer = |n: usize| {
        let mac = MacAddr([2, 0, 1, 0, u8::try_from(n / 256).unwrap(), u8::try_from(n % 256).unwrap()]);
        let mut peer = peer_at(small[n], 1, at(n));
        peer.claims = vec![Claim::Subnet(key_subnet(small[n])), Claim::Vtep(LINK, mac, at(n))];
        peer
    };
    let elder = key("10.5.128.0-24");
    for (name, own, by_elder, wide_is_first, programmed) in [
        ("it has our subnet", true, false, true, 2000),
        ("it has an older lease's subnet", false, true, true, 2001),
        ("it refuses all of them", false, false, true, 1),
        ("they were there first", false, false, false, 2000),
    ] {
        let own = own.then(|| Claim::Subnet("10.5.128.0/24".parse().unwrap()));
        let mut table = PeerTable::new(Vec::new(), own.into_iter().collect());
        if by_elder {
            table.put(elder, seen(1, 1, 1), Ok(peer(elder, 7, 7)));
        }
        if wide_is_first {
            table.put(wide, seen(2, 2, 2), Ok(peer(wide, 8, 8)));
        }
        for (n, key) in small.iter().enumerate() {
            table.put(*key, seen(3, 3, 3), Ok(small_peer(n)));
            assert!(looked_at(&table, *key) <= 2, "{name}: {n}");
        }
        if !wide_is_first {
            table.put(wide, seen(4, 4, 4), Ok(peer(wide, 8, 8)));
        }
        assert_eq!(table.programmed(), programmed, "{name}");
        assert_eq!(table.troubled(), 2001 + usize::from(by_elder) - programmed, "{name}");
        // Once it goes, what it refused is there; it may come back.
        table.remove(&wide);
        assert_eq!((table.programmed(), table.troubled()), (2000 + usize::from(by_elder), 0), "{name}");
        table.put(wide, seen(2, 2, 2), Ok(peer(wide, 8, 8)));
        let again = if wide_is_first { programmed } else { 1 };
        assert_eq!((table.programmed(), table.reach(Family::V4).expected > 0), (again, true), "{name}");
    }
}

/// All with one MAC: whichever goes, the next in rank follows it, and the others are not compared with each other.
#[test]
fn thousands_that_exclude_each_other_stand_behind_one() {
    let mut table = PeerTable::default();
    let keys: Vec<LeaseKey> =
        (0..1500_u32).map(|n| key(&format!("10.{}.{}.0-24", 64 + n / 256, n % 256))).collect();
    for (n, key) in keys.iter().enumerate() {
        let at = [198, 18, u8::try_from(n / 250).unwrap(), u8::try_from(n % 250).unwrap()];
        table.stage(*key, together(n as u64), Ok(peer_at(*key, 1, at.into())));
    }
    table.settle();
    for (n, key) in keys.iter().enumerate().take(5) {
        assert!(table.iter().map(|(key, _)| *key).eq([*key]), "{n}");
        assert_eq!((table.troubled(), looked_at(&table, *key)), (1499 - n, 1));
        table.remove(key);
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

/// Few subnets of three lengths, few MACs, few nodes and few ages, so that everything collides.
fn any_lease() -> impl Strategy<Value = (LeaseKey, Standing, u8, u8)> {
    let block = (0..16_u32, prop::sample::select(vec![22_u8, 24, 25]));
    let ages = [0..4_u32, 0..4, 0..4];
    (block, 0..4_u64, ages, 1..4_u8, 1..5_u8).prop_map(|((block, prefix), created, [a, b, c], mac, at)| {
        let base = Ipv4Addr::from_bits(0x0a05_0000 + block * 128);
        let subnets = PerFamily { v4: Subnet::containing(base.into(), prefix), v6: None };
        (LeaseKey::new(subnets).unwrap(), Standing { created, ..seen(a, b, c) }, mac, at)
    })
}

/// The parts of a lease, as the model sees them.
#[derive(Clone)]
struct Told {
    standing: Standing,
    peer: Peer,
}

impl Told {
    fn parts(&self) -> Option<(Subnet, MacAddr, IpAddr)> {
        match self.peer.claims[..] {
            [Claim::Subnet(subnet), Claim::Vtep(_, mac, at), _] => Some((subnet, mac, at)),
            _ => None,
        }
    }

    /// The conflicts of two leases by their ages: this one's, the other's, and whether a tie is this one's.
    fn conflicts(&self, other: &Self, tie: bool) -> Vec<(u32, u32, bool)> {
        let (Some((a, mac, at)), Some((b, other_mac, to))) = (self.parts(), other.parts()) else {
            return vec![];
        };
        let ages = |told: &Self| {
            let [subnet, ip, _, data, _] = told.standing.ages.to_array();
            (subnet, ip, data)
        };
        let ((subnet, ip, data), (other_subnet, other_ip, other_data)) = (ages(self), ages(other));
        let mut found = Vec::new();
        if a.contains(b.base()) || b.contains(a.base()) {
            found.push((subnet, other_subnet, tie));
        }
        if mac == other_mac && at != to {
            found.push((data, other_data, tie));
        }
        if a.contains(to) {
            found.push((subnet, other_ip, true));
        }
        if b.contains(at) {
            found.push((ip, other_subnet, false));
        }
        found
    }
}

/// The rule, written down naively over all leases.
fn model(leases: &BTreeMap<LeaseKey, Told>, own: Subnet, own_ip: IpAddr) -> Dataplane {
    let older =
        |a: &LeaseKey, b: &LeaseKey| (leases[a].standing.created, a) < (leases[b].standing.created, b);
    let excludes = |a: &LeaseKey, b: &LeaseKey| a != b && !leases[a].conflicts(&leases[b], false).is_empty();
    let beats = |a: &LeaseKey, b: &LeaseKey| {
        let conflicts = leases[a].conflicts(&leases[b], older(a, b));
        a != b && conflicts.iter().any(|(mine, theirs, tie)| mine < theirs || mine == theirs && *tie)
    };
    let is_ours = |key: &&LeaseKey| {
        leases[*key].parts().is_some_and(|(subnet, _, at)| {
            subnet.overlaps(own) || own.contains(at) || at == own_ip || subnet.contains(own_ip)
        })
    };
    let mut open: BTreeSet<LeaseKey> = leases.keys().filter(|key| !is_ours(key)).copied().collect();
    let mut programmed: Vec<LeaseKey> = Vec::new();
    while !open.is_empty() {
        let first = |key: &LeaseKey| {
            let [subnet, ip, _, data, _] = leases[key].standing.ages.to_array();
            (subnet.min(ip).min(data), leases[key].standing.created, *key)
        };
        let free = open.iter().find(|key| !open.iter().any(|other| beats(other, key)));
        let next = *free.unwrap_or_else(|| open.iter().min_by_key(|key| first(key)).unwrap());
        open.retain(|key| *key != next && !excludes(key, &next));
        programmed.push(next);
    }
    programmed.iter().flat_map(|key| leases[key].peer.objects.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn incremental_equals_the_rule_over_all(
        steps in prop::collection::vec((any_lease(), prop::bool::weighted(0.7), any::<bool>()), 0..40),
    ) {
        let (own_subnet, own_ip): (Subnet, IpAddr) = ("10.5.7.0/25".parse().unwrap(), [192, 0, 2, 2].into());
        let mut table = PeerTable::new(Vec::new(), vec![Claim::Subnet(own_subnet), Claim::Underlay(own_ip)]);
        let mut leases: BTreeMap<LeaseKey, Told> = BTreeMap::new();
        let (mut before, mut touched) = (table.want().clone(), Vec::new());
        for ((key, standing, mac, at), put, settle) in steps {
            if put {
                // Numbers 3 and 4 are where pods are.
                let at = if at >= 3 { [10, 5, at, 9].into() } else { [192, 0, 2, at].into() };
                let peer = peer_at(key, mac, at);
                let is_usable = !key_subnet(key).contains(at);
                let told = Told { standing, peer: if is_usable { peer.clone() } else { Peer::default() } };
                let last = leases.get(&key).filter(|_| !is_usable).cloned();
                leases.insert(key, last.unwrap_or(told));
                touched.extend(table.stage(key, standing, Ok(peer)));
            } else {
                leases.remove(&key);
                touched.extend(table.stage_removal(&key));
            }
            if !settle {
                continue;
            }
            touched.extend(table.settle());
            prop_assert_eq!(table.want(), &model(&leases, own_subnet, own_ip));
            let changed = before.iter().chain(table.want().iter()).map(|object| object.key())
                .filter(|key| before.get(key) != table.want().get(key));
            for key in changed {
                prop_assert!(touched.contains(&key), "{key:?} changed unsaid");
            }
            let programmed: BTreeSet<LeaseKey> = table.iter().map(|(key, _)| *key).collect();
            for (key, told) in &leases {
                let is_told = table.problems().any(|(problem, _)| problem == *key);
                prop_assert!(programmed.contains(key) || is_told || told.parts().is_none(), "{key} is kept quiet");
            }
            (before, touched) = (table.want().clone(), Vec::new());
        }
    }
}
