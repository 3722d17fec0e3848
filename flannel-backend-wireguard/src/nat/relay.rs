//! Which relays answer a node behind a NAT, what it publishes of that, and which of them two such nodes take. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::record::MOST_RELAYS;
use crate::key::PublicKey;

/// Round-trip times are published again after this time at the soonest. That a relay came or went is published at once.
const AGAIN: Duration = Duration::from_secs(30);

/// The relay that two nodes take, by what both publish: that with the least sum of round-trip times; of equal ones that with
/// the least key. Both ends find the same.
pub(crate) fn agree(
    ours: &BTreeMap<PublicKey, u16>,
    theirs: &BTreeMap<PublicKey, u16>,
    is_on_offer: impl Fn(&PublicKey) -> bool,
) -> Option<PublicKey> {
    let both =
        ours.iter().filter_map(|(key, ours)| Some((u32::from(*ours) + u32::from(*theirs.get(key)?), *key)));
    both.filter(|(_, key)| is_on_offer(key)).min().map(|(_, key)| key)
}

/// What a node publishes of the relays that answer it.
#[derive(Debug, Default)]
pub(crate) struct Table {
    published: BTreeMap<PublicKey, u16>,
    measured: Option<Instant>,
}

impl Table {
    /// What is published.
    pub(crate) fn published(&self) -> &BTreeMap<PublicKey, u16> {
        &self.published
    }

    /// Takes the round-trip times of all relays that answer. Small differences change nothing.
    pub(crate) fn update(&mut self, answering: &BTreeMap<PublicKey, Duration>, now: Instant) {
        let ms = |rtt: &Duration| u16::try_from(rtt.as_micros().div_ceil(1000).max(1)).unwrap_or(u16::MAX);
        self.published.retain(|key, _| answering.contains_key(key));
        let is_time = self.measured.is_none_or(|at| now.saturating_duration_since(at) >= AGAIN);
        if is_time {
            self.measured = Some(now);
            let mut nearest: Vec<_> = answering.iter().map(|(key, rtt)| (ms(rtt), *key)).collect();
            nearest.sort_unstable();
            nearest.truncate(MOST_RELAYS);
            let nearest_keys: BTreeSet<PublicKey> = nearest.iter().map(|(_, key)| *key).collect();
            self.published.retain(|key, _| nearest_keys.contains(key));
            for (now, key) in nearest {
                let published = self.published.entry(key).or_insert(now);
                if differs(*published, now) {
                    *published = now;
                }
            }
        }
        let room = MOST_RELAYS - self.published.len();
        let new = answering.iter().filter(|(key, _)| !self.published.contains_key(*key));
        let new: Vec<_> = new.map(|(key, rtt)| (*key, ms(rtt))).take(room).collect();
        self.published.extend(new);
    }
}

/// Whether a round-trip time is another one: by 5 ms, and by a third.
fn differs(before: u16, now: u16) -> bool {
    let by = before.abs_diff(now);
    by >= 5 && by >= before / 3
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    fn table() -> impl Strategy<Value = BTreeMap<PublicKey, u16>> {
        prop::collection::btree_map((1u8..6).prop_map(key), 1u16..4, 0..5)
    }

    proptest! {
        #[test]
        fn both_ends_find_the_same(a in table(), b in table(), offers in prop::collection::btree_set(1u8..6, 0..5)) {
            let is_on_offer = |it: &PublicKey| offers.contains(&it.0[0]);
            let found = agree(&a, &b, is_on_offer);
            prop_assert_eq!(found, agree(&b, &a, is_on_offer));
            if let Some(found) = found {
                prop_assert!(a.contains_key(&found) && b.contains_key(&found) && is_on_offer(&found));
            }
        }
    }

    #[test]
    fn the_nearest_to_both_is_taken() {
        let of = |times: &[(u8, u16)]| times.iter().map(|(n, ms)| (key(*n), *ms)).collect::<BTreeMap<_, _>>();
        let (ours, theirs) = (of(&[(1, 5), (2, 20), (3, 9)]), of(&[(1, 50), (2, 3), (3, 14), (4, 1)]));
        assert_eq!(agree(&ours, &theirs, |_| true), Some(key(2)));
        assert_eq!(agree(&ours, &theirs, |it| *it != key(2)), Some(key(3)));
        assert_eq!(agree(&ours, &of(&[(4, 1)]), |_| true), None);
    }

    #[test]
    fn who_goes_is_published_at_once_and_small_differences_never() {
        let (mut table, begin) = (Table::default(), Instant::now());
        let of = |times: &[(u8, u64)]| {
            times.iter().map(|(n, ms)| (key(*n), Duration::from_millis(*ms))).collect::<BTreeMap<_, _>>()
        };
        let at = |seconds| begin + Duration::from_secs(seconds);
        let published =
            |table: &Table| table.published().iter().map(|(key, ms)| (key.0[0], *ms)).collect::<Vec<_>>();
        table.update(&of(&[(1, 10), (2, 0)]), at(0));
        assert_eq!(published(&table), [(1, 10), (2, 1)]);
        table.update(&of(&[(1, 90), (2, 0), (3, 7)]), at(1));
        assert_eq!(published(&table), [(1, 10), (2, 1), (3, 7)], "one that came, and no other time");
        table.update(&of(&[(1, 90), (3, 9)]), at(2));
        assert_eq!(published(&table), [(1, 10), (3, 7)]);
        table.update(&of(&[(1, 90), (3, 9)]), at(31));
        assert_eq!(published(&table), [(1, 90), (3, 7)]);
        let many: Vec<(u8, u64)> = (1..=20).map(|n| (n, u64::from(n))).collect();
        table.update(&of(&many), at(70));
        assert_eq!(published(&table).len(), MOST_RELAYS);
    }
}
