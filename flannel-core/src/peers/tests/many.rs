//! Many leases that contradict each other cost no more than what they contradict.

use super::*;

/// How many: so many that leases which are all compared with each other would show.
const MANY: usize = 1000;

#[test]
fn a_record_around_many_costs_what_it_contradicts() {
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

/// Many under one that is refused, or that refuses them: each costs itself and that one, whatever comes first.
#[test]
fn many_under_one_lease_that_is_refused_cost_each_what_it_changes() {
    let wide = key("10.5.128.0-17");
    let small: Vec<LeaseKey> =
        (0..MANY).map(|n| key(&format!("10.5.{}.{}-29", 129 + n / 32, n % 32 * 8))).collect();
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
        ("it has our subnet", true, false, true, MANY),
        ("it has an older lease's subnet", false, true, true, MANY + 1),
        ("it refuses all of them", false, false, true, 1),
        ("they were there first", false, false, false, MANY),
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
        assert_eq!(table.troubled(), MANY + 1 + usize::from(by_elder) - programmed, "{name}");
        // Once it goes, what it refused is there; it may come back.
        table.remove(&wide);
        assert_eq!((table.programmed(), table.troubled()), (MANY + usize::from(by_elder), 0), "{name}");
        table.put(wide, seen(2, 2, 2), Ok(peer(wide, 8, 8)));
        let again = if wide_is_first { programmed } else { 1 };
        assert_eq!((table.programmed(), table.reach(Family::V4).expected > 0), (again, true), "{name}");
    }
}

/// All with one MAC: whichever goes, the next in rank follows it, and the others are not compared with each other.
#[test]
fn many_that_exclude_each_other_stand_behind_one() {
    let mut table = PeerTable::default();
    let keys: Vec<LeaseKey> =
        (0..MANY).map(|n| key(&format!("10.{}.{}.0-24", 64 + n / 256, n % 256))).collect();
    for (n, key) in keys.iter().enumerate() {
        let at = [198, 18, u8::try_from(n / 250).unwrap(), u8::try_from(n % 250).unwrap()];
        table.stage(*key, together(n as u64), Ok(peer_at(*key, 1, at.into())));
    }
    table.settle();
    for (n, key) in keys.iter().enumerate().take(5) {
        assert!(table.programmed_peers().map(|(key, _)| *key).eq([*key]), "{n}");
        assert_eq!((table.troubled(), looked_at(&table, *key)), (MANY - 1 - n, 1));
        table.remove(key);
    }
}
