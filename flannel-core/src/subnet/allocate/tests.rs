mod identity;

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::config::LeaseSource;

const DUAL: &str = r#"{"Network":"10.5.0.0/22","EnableIPv6":true,"IPv6Network":"fd00:5::/60"}"#;
const V4: &str = r#"{"Network":"10.5.0.0/22"}"#;
const V6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/60"}"#;

fn config(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text, LeaseSource::Store).unwrap()
}

fn attrs(node: u8) -> LeaseAttrs {
    let v4 = Some(Ipv4Addr::new(192, 0, 2, node).into());
    let v6 = Some(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, node.into()).into());
    LeaseAttrs { public_ips: PerFamily { v4, v6 }, ..LeaseAttrs::default() }
}

fn record(key: &str, node: u8, created: u64) -> Record {
    let lease = Lease { key: key.parse().unwrap(), attrs: attrs(node), created };
    Record { lease, reserved: false }
}

fn listing(records: &[Record]) -> Listing {
    Listing { records: records.to_vec(), taken: Vec::new() }
}

fn run(text: &str, listing: &Listing, previous: Option<&str>) -> Result<Decision, SubnetError> {
    let previous = previous.map(|key| key.parse().unwrap());
    ask(&config(text), listing, &attrs(1), previous, &mut fastrand::Rng::with_seed(7))
}

/// The decision for a node of which no more than its subnets is known.
fn ask(
    config: &NetworkConfig,
    listing: &Listing,
    attrs: &LeaseAttrs,
    previous: Option<LeaseKey>,
    rng: &mut fastrand::Rng,
) -> Result<Decision, SubnetError> {
    let identity = previous.map(Identity::from).unwrap_or_default();
    decide(config, listing, Applicant { attrs, identity: &identity, local: &attrs.public_ips }, rng)
}

/// A program may change a config that it read.
#[test]
fn a_config_without_networks_is_an_error_and_no_panic() {
    let mut none = config(V4);
    none.networks = PerFamily::default();
    let mut crossed = config(DUAL);
    (crossed.networks.v4, crossed.networks.v6) = (crossed.networks.v6, crossed.networks.v4);
    for config in [none, crossed] {
        let decision = ask(&config, &Listing::default(), &attrs(1), None, &mut fastrand::Rng::with_seed(7));
        assert!(
            matches!(&decision, Err(SubnetError::Conflict(why)) if why.contains("no network")),
            "{decision:?}"
        );
    }
}

#[track_caller]
fn takes(decision: Result<Decision, SubnetError>, key: &str) {
    assert_eq!(decision.unwrap(), Decision::Take(key.parse().unwrap()));
}

#[track_caller]
fn adopts(decision: &Result<Decision, SubnetError>, key: &str) {
    assert!(matches!(decision, Ok(Decision::Adopt(own)) if own.lease.key.to_string() == key), "{decision:?}");
}

#[track_caller]
fn replaces(decision: Result<Decision, SubnetError>) -> (String, LeaseKey) {
    match decision {
        Ok(Decision::Replace { old, new }) => (old.lease.key.to_string(), new),
        other => panic!("{other:?}"),
    }
}

#[test]
fn adopts_the_record_with_our_address() {
    let listed = listing(&[record("10.5.1.0-24", 2, 1), record("10.5.2.0-24", 1, 2)]);
    adopts(&run(V4, &listed, Some("10.5.3.0-24")), "10.5.2.0-24");
    // Of several the compatible one, then the oldest.
    let listed =
        listing(&[record("10.9.1.0-24", 1, 1), record("10.5.3.0-24", 1, 3), record("10.5.2.0-24", 1, 2)]);
    adopts(&run(V4, &listed, None), "10.5.2.0-24");
}

#[test]
fn ipv6_only_nodes_are_known_by_their_ipv6_address() {
    let mut shared = record("0.0.0.0-0&fd00:5:0:1::-64", 2, 1);
    shared.lease.attrs.public_ips.v4 = attrs(1).public_ips.v4;
    let listed = listing(&[shared, record("0.0.0.0-0&fd00:5:0:2::-64", 1, 2)]);
    adopts(&run(V6, &listed, None), "0.0.0.0-0&fd00:5:0:2::-64");
}

#[test]
fn needs_the_address_that_identifies_it() {
    let mut mine = attrs(1);
    mine.public_ips.v4 = None;
    let error = ask(&config(DUAL), &Listing::default(), &mine, None, &mut fastrand::Rng::new()).unwrap_err();
    assert!(error.to_string().contains("IPv4"), "{error}");
}

#[test]
fn keeps_the_subnet_from_before_a_restart_if_it_is_free() {
    takes(run(V4, &Listing::default(), Some("10.5.2.0-24")), "10.5.2.0-24");
    for (taken, previous) in [
        ("10.5.2.0-24", "10.5.2.0-24"),
        ("10.5.2.128-25", "10.5.2.0-24"), // overlaps, though it is no equal key
        ("10.5.2.0-24", "10.9.0.0-24"),   // outside of the network
        ("10.5.2.0-24", "10.5.1.0-25"),   // not the length of the config
    ] {
        let decision = run(V4, &listing(&[record(taken, 2, 1)]), Some(previous)).unwrap();
        let Decision::Take(key) = decision else { panic!("{decision:?}") };
        assert!(["10.5.1.0-24", "10.5.3.0-24"].contains(&key.to_string().as_str()), "{key}");
    }
}

#[test]
fn a_network_that_gains_ipv6_keeps_its_ipv4_subnets() {
    let (old, new) = replaces(run(DUAL, &listing(&[record("10.5.2.0-24", 1, 1)]), None));
    assert_eq!(
        (old.as_str(), new.subnet(Family::V4).unwrap().to_string()),
        ("10.5.2.0-24", "10.5.2.0/24".into())
    );
    assert!(new.subnet(Family::V6).is_some());
    // After a loss of the store the previous key does the same.
    let Ok(Decision::Take(new)) = run(DUAL, &Listing::default(), Some("10.5.2.0-24")) else { panic!() };
    assert_eq!(new.subnet(Family::V4).unwrap().to_string(), "10.5.2.0/24");
}

#[test]
fn a_network_that_loses_ipv6_keeps_its_ipv4_subnets() {
    let listed = listing(&[record("10.5.2.0-24&fd00:5:0:3::-64", 1, 1)]);
    let (_, new) = replaces(run(V4, &listed, None));
    assert_eq!(new.to_string(), "10.5.2.0-24");
}

#[test]
fn a_kept_half_may_not_overlap_even_a_younger_lease() {
    let listed = listing(&[record("10.5.2.0-24", 1, 1), record("10.5.2.0-24&fd00:5:0:3::-64", 2, 9)]);
    let (_, new) = replaces(run(DUAL, &listed, None));
    assert_ne!(new.subnet(Family::V4).unwrap().to_string(), "10.5.2.0/24");
}

#[test]
fn an_older_lease_of_another_node_wins() {
    let (older, younger) = (record("10.5.2.0-23", 2, 1), record("10.5.2.0-23", 2, 9));
    let mine = record("10.5.2.0-24", 1, 5);
    adopts(&run(V4, &listing(&[mine.clone(), younger]), None), "10.5.2.0-24");
    let (_, new) = replaces(run(V4, &listing(&[mine.clone(), older]), None));
    assert_eq!(new.to_string(), "10.5.1.0-24");
    // The same with a record of which only the key can be read.
    let mut listed = listing(std::slice::from_ref(&mine));
    listed.taken = vec![Occupied { key: "10.5.2.0-23".parse().unwrap(), created: 1 }];
    assert_eq!(replaces(run(V4, &listed, None)).1.to_string(), "10.5.1.0-24");
}

#[test]
fn unreadable_records_keep_their_subnets() {
    let mut listed = Listing::default();
    let keys = ["10.5.1.0-24", "10.5.2.0-24", "10.5.3.0-24"];
    listed.taken = keys.iter().map(|key| Occupied { key: key.parse().unwrap(), created: 1 }).collect();
    let error = run(V4, &listed, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no free IPv4 subnet between 10.5.1.0 and 10.5.3.0; widen the network or delete stale leases"
    );
    assert_eq!(occupied("10.5.1.7-24").map(|key| key.to_string()).as_deref(), Some("10.5.1.0-24"));
    assert_eq!(occupied("10.5.1.0"), None);
}

#[test]
fn what_is_free_to_choose_in_dual_stack_is_a_pair() {
    let config = config(DUAL);
    let taken = [record("10.5.1.0-24&fd00:5:0:2::-64", 2, 1)];
    for (listed, previous, want) in [
        (listing(&[]), None, None),
        (listing(&taken), None, Some("10.5.3.0-24&fd00:5:0:3::-64")),
        // One half is kept, and the other goes with it.
        (listing(&[]), Some("10.5.2.0-24"), Some("10.5.2.0-24&fd00:5:0:2::-64")),
        (listing(&taken), Some("10.5.1.0-24&fd00:5:0:3::-64"), Some("10.5.3.0-24&fd00:5:0:3::-64")),
        // A whole pair that is none is kept, too.
        (listing(&[]), Some("10.5.2.0-24&fd00:5:0:9::-64"), Some("10.5.2.0-24&fd00:5:0:9::-64")),
    ] {
        for seed in 0..20 {
            let previous = previous.map(|key| key.parse().unwrap());
            let rng = &mut fastrand::Rng::with_seed(seed);
            let decision = ask(&config, &listed, &attrs(1), previous, rng).unwrap();
            let Decision::Take(key) = decision else { panic!("{decision:?}") };
            match want {
                Some(want) => assert_eq!(key.to_string(), want),
                None => assert!(is_pair(&config, key), "{key}"),
            }
        }
    }
    assert!(!is_pair(&config, "10.5.2.0-24&fd00:5:0:9::-64".parse().unwrap()));
    assert!(!is_pair(&config, "10.5.2.0-24".parse().unwrap()));
}

#[test]
fn a_huge_network_is_quick() {
    let text = r#"{"Network":"10.0.0.0/12","EnableIPv6":true,"IPv6Network":"fd00::/8","IPv6SubnetLen":126}"#;
    let config = config(text);
    let range = config.networks.v4.unwrap().range.unwrap();
    let leases = (0..4094).map(|index| {
        let key = LeaseKey::new(PerFamily { v4: range.nth(index), v6: None }).unwrap();
        Record { lease: Lease { key, attrs: attrs(2), created: 1 }, reserved: false }
    });
    let listed = Listing { records: leases.collect(), taken: Vec::new() };
    let decision = ask(&config, &listed, &attrs(1), None, &mut fastrand::Rng::with_seed(1)).unwrap();
    let Decision::Take(key) = decision else { panic!("{decision:?}") };
    assert_eq!(key.subnet(Family::V4), range.nth(4094));
}

/// A prefix in or around the ranges of `DUAL`, of a length that may differ from theirs.
fn any_key() -> impl Strategy<Value = LeaseKey> {
    let v4 = (0..2048_u32, 21..=27_u8).prop_map(|(host, prefix)| {
        Subnet::containing(Ipv4Addr::from_bits(0x0a05_0000 + host).into(), prefix)
    });
    let v6 = (0..32_u128, 59..=66_u8).prop_map(|(host, prefix)| {
        Subnet::containing(Ipv6Addr::from_bits((0xfd00_0005 << 96) + (host << 64)).into(), prefix)
    });
    (v4, v6, 0..3).prop_filter_map("a key", |(v4, v6, families)| {
        LeaseKey::new(PerFamily { v4: v4.filter(|_| families != 1), v6: v6.filter(|_| families != 2) })
    })
}

fn any_listing() -> impl Strategy<Value = Listing> {
    let records = proptest::collection::vec((any_key(), 1..5_u8), 0..20);
    let taken = proptest::collection::vec((any_key(), 0..9_u64), 0..4);
    (records, taken).prop_map(|(records, taken)| {
        // A store has each key once.
        let mut keys = std::collections::BTreeSet::new();
        Listing {
            records: (records.into_iter().zip(1..))
                .filter(|((key, _), _)| keys.insert(*key))
                .map(|((key, node), created)| Record {
                    lease: Lease { key, attrs: attrs(node), created },
                    reserved: false,
                })
                .collect(),
            taken: (taken.into_iter().map(|(key, created)| Occupied { key, created }))
                .filter(|taken| keys.insert(taken.key))
                .collect(),
        }
    })
}

/// All subnets of a range that overlap none of `keys`, found the slow way.
fn naive(range: &SubnetRange, keys: &[LeaseKey]) -> Vec<Subnet> {
    let all = (0..range.count()).filter_map(|index| range.nth(index));
    let is_free = |subnet: &Subnet| {
        !keys.iter().any(|key| key.subnet(subnet.family()).is_some_and(|taken| taken.overlaps(*subnet)))
    };
    all.filter(is_free).collect()
}

proptest! {
    #[test]
    fn free_subnets_are_those_a_slow_search_finds(listed in any_listing(), start in 0..40_u128, limit in 0..40_usize) {
        let config = config(DUAL);
        let keys: Vec<LeaseKey> = (listed.records.iter().map(|record| record.lease.key))
            .chain(listed.taken.iter().map(|taken| taken.key))
            .collect();
        let ranges = TakenRanges::new(&listed, None, []);
        for (family, network) in config.networks.iter() {
            let range = network.range.unwrap();
            let mut want = naive(&range, &keys);
            for subnet in (0..range.count()).filter_map(|index| range.nth(index)) {
                prop_assert_eq!(ranges.get(family).is_free(subnet), want.contains(&subnet));
            }
            let before = want.partition_point(|subnet| range.min.steps_to(*subnet).unwrap() < start);
            want.rotate_left(before);
            want.truncate(limit);
            prop_assert_eq!(ranges.get(family).free(&range, start, limit), want);
        }
    }

    #[test]
    fn what_is_taken_fits_and_overlaps_nothing(
        listed in any_listing(), previous in proptest::option::of(any_key()), text in 0..3_usize, seed: u64,
    ) {
        let config = config([V4, DUAL, V6][text]);
        let listed = without_absurd(&config, &listed, |record| record.lease.attrs == attrs(1)).into_owned();
        let decision = ask(&config, &listed, &attrs(1), previous, &mut fastrand::Rng::with_seed(seed));
        let keys = |replaced: Option<LeaseKey>| -> Vec<LeaseKey> {
            (listed.records.iter().map(|record| record.lease.key))
                .filter(|key| Some(*key) != replaced)
                .chain(listed.taken.iter().map(|taken| taken.key))
                .collect()
        };
        match decision {
            Ok(Decision::Adopt(own)) => prop_assert!(fits(&config, own.lease.key)),
            Ok(Decision::Take(key)) => {
                prop_assert!(fits(&config, key));
                prop_assert!(!keys(None).iter().any(|other| overlaps(*other, key)));
            }
            Ok(Decision::Reclaim(key)) => {
                prop_assert!(fits(&config, key) && Some(key) == previous);
                prop_assert!(keys(None).iter().all(|other| *other == key || !overlaps(*other, key)));
            }
            Ok(Decision::Replace { old, new }) => {
                prop_assert!(fits(&config, new) && new != old.lease.key);
                prop_assert!(!keys(Some(old.lease.key)).iter().any(|other| overlaps(*other, new)));
                for (family, network) in config.networks.iter() {
                    let Some(kept) = old.lease.subnet(family) else { continue };
                    let free = naive(&network.range.unwrap(), &keys(Some(old.lease.key)));
                    prop_assert_eq!(new.subnet(family) == Some(kept), free.contains(&kept));
                }
            }
            Err(SubnetError::OutOfSubnets { family, .. }) => {
                let own = listed.records.iter().filter(|record| record.lease.attrs == attrs(1));
                let own = own
                    .min_by_key(|record| (Some(record.lease.key) != previous, record.lease.created))
                    .map(|record| record.lease.key);
                let range = config.networks.get(family).unwrap().range.unwrap();
                prop_assert!(naive(&range, &keys(own)).is_empty());
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn nodes_that_take_in_turn_never_overlap_and_fill_the_range(seed: u64, text in 0..3_usize) {
        let config = config([V4, DUAL, V6][text]);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut listed = Listing::default();
        for node in 1..20 {
            match ask(&config, &listed, &attrs(node), None, &mut rng) {
                Ok(Decision::Take(key)) => {
                    prop_assert!(!listed.records.iter().any(|other| overlaps(other.lease.key, key)));
                    let lease = Lease { key, attrs: attrs(node), created: node.into() };
                    listed.records.push(Record { lease, reserved: false });
                }
                Err(SubnetError::OutOfSubnets { .. }) => break,
                other => prop_assert!(false, "{other:?}"),
            }
        }
        let counts = config.networks.iter().map(|(_, network)| network.range.unwrap().count());
        prop_assert_eq!(listed.records.len() as u128, counts.min().unwrap());
    }
}

#[test]
fn an_unreadable_record_of_our_previous_subnets_is_ours_again() {
    let mut listed = listing(&[record("10.5.1.0-24", 2, 1)]);
    listed.taken = vec![Occupied { key: "10.5.2.0-24".parse().unwrap(), created: 1 }];
    let reclaimed = Decision::Reclaim("10.5.2.0-24".parse().unwrap());
    assert_eq!(run(V4, &listed, Some("10.5.2.0-24")).unwrap(), reclaimed);
    // Not if we have another one, if somebody else has a part of it, or if it was never ours.
    let mine = listing(&[record("10.5.3.0-24", 1, 1)]);
    adopts(&run(V4, &Listing { taken: listed.taken.clone(), ..mine }, Some("10.5.2.0-24")), "10.5.3.0-24");
    let other = listing(&[record("10.5.2.0-25", 2, 1)]);
    let decision = run(V4, &Listing { taken: listed.taken.clone(), ..other }, Some("10.5.2.0-24")).unwrap();
    assert!(matches!(decision, Decision::Take(_)), "{decision:?}");
    let decision = run(V4, &listed, Some("10.5.1.0-24")).unwrap();
    assert!(matches!(decision, Decision::Take(key) if key.to_string() == "10.5.3.0-24"), "{decision:?}");
}

#[test]
fn a_record_of_the_whole_network_takes_nothing_away() {
    let whole = config(V4).networks.v4.unwrap().network.to_string().replace('/', "-");
    for key in [whole.as_str(), "10.0.0.0-8"] {
        let mut listed = listing(&[record(key, 2, 1)]);
        assert!(matches!(run(V4, &listed, None), Ok(Decision::Take(_))), "{key}");
        listed.taken = vec![Occupied { key: key.parse().unwrap(), created: 1 }];
        assert!(matches!(run(V4, &listed, None), Ok(Decision::Take(_))), "{key}");
        // Ours is put right.
        assert!(
            matches!(run(V4, &listing(&[record(key, 1, 1)]), None), Ok(Decision::Replace { .. })),
            "{key}"
        );
    }
}
