//! Whose a record is, what goes, what is another's, and which subnets hold underlay addresses.

use super::*;
use crate::lease::BackendData;

/// A record of a backend with data: `node` is the address, `mac` the data.
fn vxlan(key: &str, node: u8, mac: u8, created: u64) -> Record {
    let mut record = record(key, node, created);
    record.lease.attrs = with_mac(node, mac);
    record
}

fn with_mac(node: u8, mac: u8) -> LeaseAttrs {
    let data = BackendData::parse(&format!(r#"{{"VNI":1,"VtepMAC":"0a:00:00:00:00:{mac:02x}"}}"#)).unwrap();
    let backend_data = PerFamily { v4: data, v6: None };
    LeaseAttrs { backend_type: "vxlan".into(), backend_data, ..attrs(node) }
}

/// The IPv4 address of one node, and the IPv6 address of another.
fn half(v4: u8, v6: u8) -> LeaseAttrs {
    let public_ips = PerFamily { v4: attrs(v4).public_ips.v4, v6: attrs(v6).public_ips.v6 };
    LeaseAttrs { public_ips, ..attrs(v4) }
}

fn stored(record: &Record) -> Identity {
    Identity { subnets: Some(record.lease.key), published: Some(record.lease.clone()), ..Identity::default() }
}

fn of(identity: &Identity, listing: &Listing, attrs: &LeaseAttrs) -> Result<Decision, SubnetError> {
    let applicant = Applicant { attrs, identity, local: &attrs.public_ips };
    decide(&config(V4), listing, applicant, &mut fastrand::Rng::with_seed(7))
}

fn gone(identity: &Identity, listing: &Listing, own: &str, attrs: &LeaseAttrs) -> Vec<String> {
    let applicant = Applicant { attrs, identity, local: &attrs.public_ips };
    former(listing, own.parse().unwrap(), applicant).map(|record| record.lease.key.to_string()).collect()
}

#[test]
fn a_node_whose_address_changed_between_two_runs_keeps_what_it_proves() {
    let (one, two, plain) = ("10.5.1.0-24", "10.5.2.0-24", record("10.5.1.0-24", 1, 1));
    let mine = vxlan(one, 1, 1, 1);
    let file = |key: &str| Identity::from(key.parse::<LeaseKey>().unwrap());
    for (what, identity, records, attrs, want) in [
        ("state file", stored(&mine), vec![mine.clone()], with_mac(9, 1), Some(one)),
        ("a new MAC at the same time", stored(&mine), vec![mine.clone()], with_mac(9, 7), Some(one)),
        ("another backend at the same time", stored(&mine), vec![mine.clone()], attrs(9), Some(one)),
        ("subnet file and MAC", file(one), vec![mine.clone()], with_mac(9, 1), Some(one)),
        ("the subnet file alone", file(one), vec![mine.clone()], with_mac(9, 7), None),
        ("without data, state file", stored(&plain), vec![plain.clone()], attrs(9), Some(one)),
        ("without data, subnet file", file(one), vec![plain.clone()], attrs(9), None),
        (
            "without data, somebody changed the address of one family",
            stored(&plain),
            vec![Record { lease: Lease { attrs: half(7, 1), ..plain.lease.clone() }, ..plain.clone() }],
            attrs(1),
            Some(one),
        ),
        (
            "without data, subnet file, and the address is on another interface",
            Identity { host_ips: vec![attrs(1).public_ips.v4.unwrap()], ..file(one) },
            vec![plain.clone()],
            attrs(9),
            Some(one),
        ),
        (
            "without data, published again while the store was away",
            Identity {
                former_ips: vec![attrs(1).public_ips.v4.unwrap()],
                ..stored(&Record { lease: Lease { attrs: attrs(8), ..plain.lease.clone() }, ..plain.clone() })
            },
            vec![plain.clone()],
            attrs(9),
            Some(one),
        ),
        ("another node has it now", stored(&mine), vec![vxlan(one, 2, 2, 1)], with_mac(9, 1), None),
        (
            "addresses are swapped: the other one's record has ours",
            stored(&mine),
            vec![mine.clone(), vxlan(two, 2, 2, 2)],
            with_mac(2, 1),
            Some(one),
        ),
        (
            "the same without data",
            stored(&plain),
            vec![plain.clone(), record(two, 2, 2)],
            attrs(2),
            Some(one),
        ),
        ("swapped, and ours is gone", stored(&mine), vec![vxlan(two, 2, 2, 2)], with_mac(2, 1), None),
    ] {
        let decision = of(&identity, &listing(&records), &attrs);
        match (want, &decision) {
            (Some(want), Ok(Decision::Adopt(own))) if own.lease.key.to_string() == want => {}
            (None, Ok(Decision::Take(key))) if !records.iter().any(|it| it.lease.key == *key) => {}
            _ => panic!("{what}: {decision:?}"),
        }
    }
}

#[test]
fn former_records_of_this_node_go_and_those_that_only_have_its_address_stay() {
    let (one, two, three) = ("10.5.1.0-24", "10.5.2.0-24", "10.5.3.0-24");
    let was_here =
        |node| Identity { host_ips: vec![attrs(node).public_ips.v4.unwrap()], ..Identity::default() };
    for (what, identity, records, me, want) in [
        ("our MAC at our address", Identity::default(), vec![vxlan(one, 9, 1, 1)], with_mac(9, 1), vec![one]),
        (
            "our MAC at an address of another NIC",
            was_here(3),
            vec![vxlan(one, 3, 1, 1)],
            with_mac(9, 1),
            vec![one],
        ),
        (
            "our MAC at an address that was never here",
            Identity::default(),
            vec![vxlan(one, 3, 1, 1)],
            with_mac(9, 1),
            vec![],
        ),
        (
            "our address with another MAC: a swap",
            Identity::default(),
            vec![vxlan(one, 9, 2, 1)],
            with_mac(9, 1),
            vec![],
        ),
        ("our address without data", Identity::default(), vec![record(one, 9, 1)], attrs(9), vec![]),
        (
            "what the state file says",
            stored(&record(one, 3, 1)),
            vec![record(one, 3, 1), record(three, 4, 1)],
            attrs(9),
            vec![one],
        ),
        (
            "what the state file says, with a new MAC now",
            stored(&vxlan(one, 3, 1, 1)),
            vec![vxlan(one, 3, 1, 1)],
            with_mac(9, 7),
            vec![one],
        ),
        (
            "another node took it",
            stored(&vxlan(one, 3, 1, 1)),
            vec![vxlan(one, 3, 2, 1)],
            with_mac(9, 1),
            vec![],
        ),
    ] {
        let listing = listing(&[records, vec![vxlan(two, 9, 1, 2)]].concat());
        assert_eq!(gone(&identity, &listing, two, &me), want, "{what}");
    }
}

#[test]
fn what_another_node_publishes_for_its_backend_is_taken_by_nobody_else() {
    let (one, two) = ("10.5.1.0-24", "10.5.2.0-24");
    let mine = |created| vxlan(two, 1, 7, created);
    let free = Identity::default;
    for (what, identity, records, me, is_claimed) in [
        ("a new node derives what another has", free(), vec![vxlan(one, 2, 7, 1)], with_mac(1, 7), true),
        ("another spelling of the same", free(), vec![spelled(&vxlan(one, 2, 7, 1))], with_mac(1, 7), true),
        ("another value", free(), vec![vxlan(one, 2, 8, 1)], with_mac(1, 7), false),
        ("another backend", free(), vec![other_type(&vxlan(one, 2, 7, 1))], with_mac(1, 7), false),
        ("none at all", free(), vec![record(one, 2, 1)], attrs(1), false),
        ("our own record", free(), vec![mine(1)], with_mac(1, 7), false),
        ("our former record", stored(&vxlan(one, 3, 7, 1)), vec![vxlan(one, 3, 7, 1)], with_mac(1, 7), false),
        (
            "two leases of the version before, the other is older",
            free(),
            vec![vxlan(one, 2, 7, 1), mine(2)],
            with_mac(1, 7),
            true,
        ),
        (
            "somebody older has what we published: who came first is known when the agent runs",
            stored(&mine(2)),
            vec![vxlan(one, 2, 7, 1), mine(2)],
            with_mac(1, 7),
            false,
        ),
        (
            "somebody younger took ours",
            stored(&mine(1)),
            vec![mine(1), vxlan(one, 2, 7, 2)],
            with_mac(1, 7),
            false,
        ),
        (
            "somebody changed our record to what a younger one has",
            stored(&vxlan(two, 1, 6, 1)),
            vec![mine(1), vxlan(one, 2, 7, 2)],
            with_mac(1, 7),
            true,
        ),
    ] {
        let decision = of(&identity, &listing(&records), &me);
        let claim = matches!(&decision, Err(SubnetError::Claimed { key, family: Family::V4 }) if key.to_string() == one);
        assert_eq!(claim, is_claimed, "{what}: {decision:?}");
    }
}

/// Each family for itself: what is ours in one says nothing of the other.
#[test]
fn what_one_family_publishes_is_claimed_in_that_family() {
    let dual = |key, node, macs: [u8; 2], created| {
        let mut record = vxlan(key, node, macs[0], created);
        record.lease.attrs.backend_data.v6 = with_mac(node, macs[1]).backend_data.v4;
        record
    };
    let (one, two) = ("10.5.1.0-24", "10.5.2.0-24");
    let mine = dual(two, 1, [7, 8], 2);
    for (what, identity, macs, want) in [
        ("older, with our IPv6 MAC since we published it", stored(&mine), [1, 8], None),
        ("older, with both", stored(&mine), [7, 8], None),
        ("older, and nothing says what we published", Identity::default(), [1, 8], Some(Family::V6)),
        ("our record had another IPv6 MAC", stored(&dual(two, 1, [7, 9], 2)), [7, 8], Some(Family::V6)),
    ] {
        let listed = listing(&[dual(one, 2, macs, 1), mine.clone()]);
        let claimed = match of(&identity, &listed, &mine.lease.attrs) {
            Err(SubnetError::Claimed { key, family }) if key.to_string() == one => Some(family),
            Ok(_) => None,
            Err(other) => panic!("{what}: {other}"),
        };
        assert_eq!(claimed, want, "{what}");
    }
}

/// The same address and data of a backend whose data is the same on all nodes.
#[test]
fn data_that_all_nodes_publish_proves_nothing_and_is_no_claim() {
    let udp = |node| LeaseAttrs {
        backend_data: PerFamily { v4: None, v6: BackendData::parse(r#"{"Port":8285}"#).unwrap() },
        ..attrs(node)
    };
    let mut other = record("10.5.1.0-24", 2, 1);
    other.lease.attrs = udp(2);
    let listed = listing(&[other.clone()]);
    assert!(matches!(of(&Identity::default(), &listed, &udp(1)), Ok(Decision::Take(_))));
    let file = Identity::from(other.lease.key);
    assert!(matches!(of(&file, &listed, &udp(1)), Ok(Decision::Take(_))));
    adopts(&of(&stored(&other), &listed, &udp(1)), "10.5.1.0-24");
    assert_eq!(gone(&file, &listed, "10.5.2.0-24", &udp(1)), Vec::<String>::new());
}

/// The same data in another order, with space.
fn spelled(record: &Record) -> Record {
    let mut other = record.clone();
    let text = r#"{ "VtepMAC": "0A-00-00-00-00-07", "VNI": 1 }"#;
    other.lease.attrs.backend_data.v4 = BackendData::parse(text).unwrap();
    other
}

fn other_type(record: &Record) -> Record {
    let mut other = record.clone();
    other.lease.attrs.backend_type = "other".into();
    other
}

#[test]
fn what_was_published_is_that_of_the_own_record_first() {
    let (mine, other) = (vxlan("10.5.1.0-24", 1, 1, 1), vxlan("10.5.2.0-24", 2, 2, 2));
    let leases = [mine.lease.clone(), other.lease.clone()];
    let says = |identity: &Identity, node: u8| {
        let found = published(leases.iter(), &attrs(node).public_ips, identity)?;
        Some(found.backend_data.v4.unwrap().as_str().replace(r#"{"VNI":1,"VtepMAC":"0a:00:00:00:00:"#, ""))
    };
    let file = Identity::from(mine.lease.key);
    for (what, identity, node, want) in [
        ("by address", Identity::default(), 2, Some(r#"02"}"#)),
        ("by state file, at a new address", stored(&mine), 9, Some(r#"01"}"#)),
        ("by state file, at the address of another", stored(&mine), 2, Some(r#"01"}"#)),
        ("the subnet file names another record than the address", file.clone(), 2, None),
        ("the subnet file alone is no proof", file.clone(), 9, None),
        ("both agree", file, 1, Some(r#"01"}"#)),
    ] {
        assert_eq!(says(&identity, node).as_deref(), want, "{what}");
    }
}

#[test]
fn no_subnet_is_taken_that_holds_an_underlay_address() {
    let here = |text: &str| LeaseAttrs {
        public_ips: PerFamily { v4: text.parse().ok(), v6: None },
        ..LeaseAttrs::default()
    };
    // Of three subnets the own address is in one and that of another node in the second.
    let mut other = record("10.5.9.0-24", 2, 1);
    other.lease.attrs = here("10.5.2.7");
    let listed = listing(&[other]);
    for seed in 0..20 {
        let (me, identity) = (here("10.5.1.7"), Identity::default());
        let applicant = Applicant { attrs: &me, identity: &identity, local: &PerFamily::default() };
        let rng = &mut fastrand::Rng::with_seed(seed);
        takes(decide(&config(V4), &listed, applicant, rng), "10.5.3.0-24");
        // Behind NAT the local address counts as well as the published one.
        let (me, local) = (attrs(1), here("10.5.1.7").public_ips);
        let applicant = Applicant { attrs: &me, identity: &identity, local: &local };
        takes(decide(&config(V4), &listed, applicant, rng), "10.5.3.0-24");
    }
    let full = listing(&[listed.records[0].clone(), record("10.5.3.0-24", 3, 1)]);
    assert!(matches!(
        of(&Identity::default(), &full, &here("10.5.1.7")),
        Err(SubnetError::OutOfSubnets { .. })
    ));
    // What it had before a restart is passed over for its own address, not for what another node says of itself ..
    let had = |key: &str| Identity::from(key.parse::<LeaseKey>().unwrap());
    takes(of(&had("10.5.1.0-24"), &listed, &here("10.5.1.7")), "10.5.3.0-24");
    takes(of(&had("10.5.2.0-24"), &listed, &here("10.5.1.7")), "10.5.2.0-24");
    // .. and the record that it has stays.
    let mut own = record("10.5.1.0-24", 1, 1);
    own.lease.attrs = here("10.5.1.7");
    adopts(&of(&Identity::default(), &listing(&[own]), &here("10.5.1.7")), "10.5.1.0-24");
}

#[test]
fn ten_thousand_records_are_compared_in_an_instant() {
    let config = config(r#"{"Network":"10.0.0.0/8"}"#);
    let range = config.networks.v4.unwrap().range.unwrap();
    let records = (0..10_000_u32).map(|index| {
        let key = LeaseKey::new(PerFamily { v4: range.nth(u128::from(index) + 1), v6: None }).unwrap();
        let mut record = vxlan("10.5.1.0-24", 2, 2, 1);
        record.lease.key = key;
        let [.., high, low] = index.to_be_bytes();
        let text = format!(r#"{{"VNI":1,"VtepMAC":"0a:00:00:01:{high:02x}:{low:02x}"}}"#);
        record.lease.attrs.backend_data.v4 = BackendData::parse(&text).unwrap();
        record.lease.attrs.public_ips.v4 = Some(Ipv4Addr::new(10, 200, high, low).into());
        record
    });
    let listed = Listing { records: records.collect(), taken: Vec::new() };
    let (me, identity) = (with_mac(1, 7), Identity::default());
    let applicant = Applicant { attrs: &me, identity: &identity, local: &PerFamily::default() };
    let decision = decide(&config, &listed, applicant, &mut fastrand::Rng::with_seed(1)).unwrap();
    let Decision::Take(key) = decision else { panic!("{decision:?}") };
    assert!(!listed.records.iter().any(|it| overlaps(it.lease.key, key)));
    let mut last = with_mac(1, 7);
    last.backend_data.v4.clone_from(&listed.records[9_999].lease.attrs.backend_data.v4);
    let applicant = Applicant { attrs: &last, ..applicant };
    let claimed = decide(&config, &listed, applicant, &mut fastrand::Rng::with_seed(1));
    assert!(
        matches!(claimed, Err(SubnetError::Claimed { key, .. }) if key == listed.records[9_999].lease.key)
    );
}
