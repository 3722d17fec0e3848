//! The lease table against a model.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "10.5.1.0-24",
        "10.5.2.0-24",
        "10.5.3.0-24",
        "10.5.3.0-24&fd00::-64",
        "junk",
        "10.5.1.7-24",
    ])
    .prop_map(str::to_owned)
}

fn lease() -> impl Strategy<Value = Lease> {
    let valid = key().prop_filter_map("a lease's key", |text| text.parse::<LeaseKey>().ok());
    (valid, 0..3_u64, 0..3_u8).prop_map(|(key, created, version)| {
        let attrs = LeaseAttrs { backend_type: version.to_string(), ..LeaseAttrs::default() };
        Lease { key, attrs, created }
    })
}

fn bad() -> impl Strategy<Value = UnreadableRecord> {
    key().prop_map(|key| UnreadableRecord { key, reason: "unreadable".into() })
}

fn update() -> impl Strategy<Value = LeaseUpdate> {
    prop_oneof![
        4 => lease().prop_map(LeaseUpdate::Put),
        2 => key().prop_map(LeaseUpdate::Removed),
        2 => bad().prop_map(LeaseUpdate::Unreadable),
        2 => (prop::collection::vec(lease(), 0..4), prop::collection::vec(bad(), 0..3))
            .prop_map(|(leases, bad)| LeaseUpdate::Snapshot { leases, unreadable: bad.into() }),
        1 => prop::collection::vec(lease(), 0..4).prop_map(|leases| LeaseUpdate::Recalled { leases, saved: 7 }),
    ]
}

/// What the store holds, and what was last readable of it.
#[derive(Default)]
struct Model {
    good: BTreeMap<String, Lease>,
    bad: BTreeSet<String>,
    listed: bool,
}

impl Model {
    fn apply(&mut self, update: LeaseUpdate) {
        match update {
            LeaseUpdate::Put(lease) => {
                self.bad.remove(&lease.key.to_string());
                self.good.insert(lease.key.to_string(), lease);
            }
            LeaseUpdate::Removed(key) => {
                self.good.remove(&key);
                self.bad.remove(&key);
            }
            LeaseUpdate::Unreadable(record) => _ = self.bad.insert(record.key),
            LeaseUpdate::Recalled { .. } if self.listed => {}
            LeaseUpdate::Recalled { leases, .. } => {
                for lease in leases {
                    self.apply(LeaseUpdate::Put(lease));
                }
            }
            LeaseUpdate::Snapshot { leases, unreadable } => {
                self.listed = true;
                let listed: BTreeSet<String> = leases
                    .iter()
                    .map(|lease| lease.key.to_string())
                    .chain(unreadable.named().map(|bad| bad.key))
                    .collect();
                self.good.retain(|key, _| listed.contains(key));
                self.bad = unreadable.named().map(|bad| bad.key).collect();
                for lease in leases {
                    self.apply(LeaseUpdate::Put(lease));
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn the_table_follows_the_model(updates in prop::collection::vec(update(), 0..30)) {
        let (mut table, mut model) = (LeaseTable::default(), Model::default());
        for update in updates {
            let before: BTreeMap<_, _> = table.iter().map(|lease| (lease.key, lease.clone())).collect();
            let changes = table.apply(update.clone());
            model.apply(update);
            let after: BTreeMap<_, _> = table.iter().map(|lease| (lease.key, lease.clone())).collect();
            let good: Vec<_> = after.values().map(|aged| (aged.key.to_string(), aged.lease.clone())).collect();
            prop_assert_eq!(good.into_iter().collect::<BTreeMap<_, _>>(), model.good.clone());
            let bad: BTreeSet<_> = table.unreadable().named().map(|record| record.key).collect();
            prop_assert_eq!(&bad, &model.bad);
            prop_assert!(table.is_synced() == model.listed && !(model.listed && table.recalled().is_some()));
            // Replaying the changes on what was there gives what is there, so nothing is told wrong or kept quiet.
            let mut replayed = before;
            for change in changes {
                prop_assert_eq!(replayed.get(&change.key), change.before.as_ref());
                prop_assert_ne!(&change.before, &change.after);
                match change.after {
                    Some(lease) => _ = replayed.insert(change.key, lease),
                    None => _ = replayed.remove(&change.key),
                }
            }
            prop_assert_eq!(replayed, after);
        }
    }
}

const MAC: &str = r#"{"VNI":1,"VtepMAC":"0a:00:00:00:00:01"}"#;

/// A lease with this underlay address, at a node with this last byte, and this backend data.
fn at(ip: u8, data: &str) -> Lease {
    let value = format!(
        r#"{{"PublicIP":"192.0.2.{ip}","PublicIPv6":"2001:db8::{ip}","BackendType":"vxlan","BackendData":{data},"BackendV6Data":{data}}}"#
    );
    Lease::decode("10.5.1.0-24", value.as_bytes(), 1).unwrap()
}

fn other(subnet: &str) -> Lease {
    Lease { key: subnet.parse().unwrap(), ..at(9, MAC) }
}

fn ages(table: &LeaseTable, key: &str) -> [u32; 5] {
    table.get(&key.parse().unwrap()).unwrap().ages.to_array()
}

fn snapshot(leases: &[Lease]) -> LeaseUpdate {
    LeaseUpdate::Snapshot { leases: leases.to_vec(), unreadable: UnreadableRecords::default() }
}

#[test]
fn each_part_has_the_age_of_the_message_that_brought_its_value() {
    let (spaced, data) =
        (r#"{ "VtepMAC":"0a:00:00:00:00:01", "VNI":1 }"#, r#"{"VNI":1,"VtepMAC":"0a:00:00:00:00:02"}"#);
    let mut table = LeaseTable::default();
    table.apply(snapshot(&[at(1, MAC), other("10.5.2.0-24")]));
    assert_eq!((ages(&table, "10.5.1.0-24"), ages(&table, "10.5.2.0-24")), ([1; 5], [1; 5]), "seen together");
    for (update, want) in [
        (LeaseUpdate::Put(at(1, MAC)), [1, 1, 1, 1, 1]),
        (LeaseUpdate::Put(at(2, MAC)), [1, 2, 2, 1, 1]),
        (LeaseUpdate::Put(at(2, spaced)), [1, 2, 2, 1, 1]),
        (LeaseUpdate::Put(other("10.5.3.0-24")), [1, 2, 2, 1, 1]),
        (LeaseUpdate::Put(at(2, data)), [1, 2, 2, 4, 4]),
        (LeaseUpdate::Put(at(1, MAC)), [1, 5, 5, 5, 5]),
        (
            LeaseUpdate::Unreadable(UnreadableRecord {
                key: "10.5.1.0-24".into(),
                reason: "unreadable".into(),
            }),
            [1, 5, 5, 5, 5],
        ),
        (LeaseUpdate::Put(at(1, MAC)), [1, 5, 5, 5, 5]),
        (snapshot(&[at(1, MAC), other("10.5.4.0-24")]), [1, 5, 5, 5, 5]),
    ] {
        table.apply(update);
        assert_eq!(ages(&table, "10.5.1.0-24"), want);
    }
    assert_eq!(ages(&table, "10.5.4.0-24"), [6; 5]);
    table.apply(LeaseUpdate::Removed("10.5.1.0-24".into()));
    table.apply(LeaseUpdate::Put(at(1, MAC)));
    assert_eq!(ages(&table, "10.5.1.0-24"), [7; 5], "what went and came back is a new claim");
}

#[test]
fn by_what_a_node_receives_besides_is_news_and_no_claim() {
    let mut table = LeaseTable::default();
    table.apply(snapshot(&[at(1, MAC)]));
    let before = ages(&table, "10.5.1.0-24");
    let mut more = at(1, MAC);
    more.attrs.receives = Reception::parse_list(r#"[{"Type":"udp"}]"#).unwrap();
    let changes = table.apply(LeaseUpdate::Put(more.clone()));
    assert_eq!(changes[0].after.as_ref().map(|aged| &aged.lease), Some(&more));
    assert_eq!(ages(&table, "10.5.1.0-24"), before);
    let mut restarted = remembering(&stored(&table));
    restarted.apply(snapshot(&[at(1, MAC)]));
    assert_eq!(ages(&restarted, "10.5.1.0-24"), before, "nor over a restart");
}

fn stored(table: &LeaseTable) -> Vec<(Lease, Ages)> {
    table.iter().map(|aged| (aged.lease.clone(), aged.ages)).collect()
}

fn remembering(stored: &[(Lease, Ages)]) -> LeaseTable {
    LeaseTable::remembering(stored.iter().map(|(lease, ages)| (lease, *ages)))
}

#[test]
fn what_is_still_the_same_keeps_its_age_over_a_restart_and_all_else_is_younger() {
    let before =
        [(at(1, MAC), Ages::from_array([7, 900, 7, 7, u32::MAX])), (other("10.5.2.0-24"), Ages::all(8))];
    let unreadable = UnreadableRecord { key: "10.5.1.0-24".into(), reason: "unreadable".into() };
    let recalled = LeaseUpdate::Recalled { leases: vec![at(1, MAC)], saved: 7 };
    for (name, updates, want) in [
        ("the same", vec![snapshot(&[at(1, MAC)])], Some([1, 3, 1, 1, 4])),
        ("another address", vec![snapshot(&[at(2, MAC)])], Some([1, 5, 5, 1, 4])),
        ("other data", vec![snapshot(&[at(1, "7")])], Some([1, 3, 1, 5, 5])),
        (
            "recalled, and then the same",
            vec![recalled.clone(), snapshot(&[at(1, MAC)])],
            Some([1, 3, 1, 1, 4]),
        ),
        ("recalled, and then another", vec![recalled, snapshot(&[at(2, MAC)])], Some([1, 5, 5, 1, 4])),
        (
            "unreadable for a while",
            vec![
                LeaseUpdate::Snapshot { leases: vec![], unreadable: vec![unreadable].into() },
                snapshot(&[at(1, MAC)]),
            ],
            Some([1, 3, 1, 1, 4]),
        ),
        ("gone, and back", vec![snapshot(&[]), LeaseUpdate::Put(at(1, MAC))], Some([5; 5])),
        ("gone", vec![snapshot(&[])], None),
        ("new", vec![snapshot(&[at(1, MAC), other("10.5.3.0-24")])], Some([1, 3, 1, 1, 4])),
    ] {
        let mut table = remembering(&before);
        for update in updates {
            table.apply(update);
        }
        let found = table.get(&"10.5.1.0-24".parse().unwrap()).map(|aged| aged.ages.to_array());
        assert_eq!(found, want, "{name}");
        if name == "new" {
            assert_eq!(ages(&table, "10.5.3.0-24"), [5; 5]);
        }
    }
}

proptest! {
    /// Restarts in between change no order of ages.
    #[test]
    fn restarts_keep_the_order_of_ages(
        updates in prop::collection::vec((update(), any::<bool>()), 0..30),
    ) {
        let (mut steady, mut restarted) = (LeaseTable::default(), LeaseTable::default());
        for (update, restarts) in updates {
            // Nothing is stored before the first snapshot, and what is not readable then is not.
            if restarts && restarted.is_synced() && restarted.unknown().is_empty() {
                let bad: Vec<_> = steady.unreadable().named().collect();
                let leases: Vec<_> = steady.iter().map(|aged| aged.lease.clone()).collect();
                restarted = remembering(&stored(&restarted));
                let readable = leases.iter().filter(|lease| bad.iter().all(|bad| bad.key != lease.key.to_string()));
                let again = LeaseUpdate::Snapshot { leases: readable.cloned().collect(), unreadable: bad.into() };
                restarted.apply(again.clone());
                steady.apply(again);
            }
            steady.apply(update.clone());
            restarted.apply(update);
            let all = |table: &LeaseTable| table.iter().flat_map(|aged| aged.ages.to_array()).collect::<Vec<_>>();
            let (a, b) = (all(&steady), all(&restarted));
            if restarted.len() != steady.len() {
                // One that was unreadable at the restart is not known to the one that started.
                return Ok(());
            }
            for (x, y) in (0..a.len()).flat_map(|x| (0..x).map(move |y| (x, y))) {
                prop_assert_eq!(a[x].cmp(&a[y]), b[x].cmp(&b[y]));
            }
        }
    }
}
