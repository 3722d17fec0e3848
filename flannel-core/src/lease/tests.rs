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

fn bad() -> impl Strategy<Value = BadRecord> {
    key().prop_map(|key| BadRecord { key, reason: "garbled".into() })
}

fn update() -> impl Strategy<Value = LeaseUpdate> {
    prop_oneof![
        4 => lease().prop_map(LeaseUpdate::Put),
        2 => key().prop_map(LeaseUpdate::Removed),
        2 => bad().prop_map(LeaseUpdate::Undecodable),
        2 => (prop::collection::vec(lease(), 0..4), prop::collection::vec(bad(), 0..3))
            .prop_map(|(leases, undecodable)| LeaseUpdate::Snapshot { leases, undecodable }),
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
            LeaseUpdate::Undecodable(record) => _ = self.bad.insert(record.key),
            LeaseUpdate::Recalled { .. } if self.listed => {}
            LeaseUpdate::Recalled { leases, .. } => {
                for lease in leases {
                    self.apply(LeaseUpdate::Put(lease));
                }
            }
            LeaseUpdate::Snapshot { leases, undecodable } => {
                self.listed = true;
                let listed: BTreeSet<String> = leases
                    .iter()
                    .map(|lease| lease.key.to_string())
                    .chain(undecodable.iter().map(|bad| bad.key.clone()))
                    .collect();
                self.good.retain(|key, _| listed.contains(key));
                self.bad = undecodable.into_iter().map(|bad| bad.key).collect();
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
            let good: Vec<_> = after.values().map(|lease| (lease.key.to_string(), (**lease).clone())).collect();
            prop_assert_eq!(good.into_iter().collect::<BTreeMap<_, _>>(), model.good.clone());
            let bad: BTreeSet<_> = table.undecodable().map(|record| record.key).collect();
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
