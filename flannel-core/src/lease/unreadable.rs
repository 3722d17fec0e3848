//! Unreadable records of a store. Whoever may write to the store can make a hundred thousand of them. So little is kept
//! of each, adding one costs no work for the others, and only a bounded number of them keep their reasons.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::hash::{BuildHasher, RandomState};

use serde::Serialize;

use super::{LeaseAttrs, LeaseKey};
use crate::repack::repack;

/// How many records keep their reasons.
const MOST_NAMED: usize = 256;
/// How many records a status shows.
const SHOWN: usize = 20;
/// The reason that is given for a lease's record whose own reason was not kept.
const MANY: &str = "its value can't be read; why is not known any more, since there were many such records";

/// An unreadable record of the store. It is unknown, not gone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct UnreadableRecord {
    /// The key below `subnets/`, as the store has it.
    pub key: String,
    /// What is wrong with the key or the value.
    pub reason: String,
}

impl UnreadableRecord {
    /// How the key begins if the store makes records of node objects and the whole object is meant. The reason then
    /// says what to do.
    pub const NODE: &str = "node ";
}

impl fmt::Display for UnreadableRecord {
    /// Short enough for a log line, whatever somebody wrote.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.starts_with(Self::NODE) {
            return write!(f, "{}: {}", brief(&self.key), self.reason);
        }
        write!(f, "record {:?}: {}; {}", brief(&self.key), brief(&self.reason), LeaseAttrs::MEND)
    }
}

/// A text that somebody else chose, cut to what fits a log line.
pub fn brief(text: &str) -> String {
    const MOST: usize = 240;
    match text.char_indices().nth(MOST) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}.. ({} bytes)", &text[..at], text.len()),
    }
}

/// All unreadable records of a store: which leases they are, how many others there are, and what is wrong with the
/// first few.
#[derive(Debug, Clone, Default)]
pub struct UnreadableRecords {
    /// Those whose keys are keys of leases.
    keys: BTreeSet<LeaseKey>,
    /// Hashes of the keys of all others. The hash is seeded, so that nobody can write two keys with one hash.
    others: HashSet<u64>,
    hasher: RandomState,
    /// The reasons that are kept, by key.
    named: BTreeMap<String, String>,
}

impl UnreadableRecords {
    /// Adds a record, or takes its new reason. Returns whether either is news.
    pub fn insert(&mut self, record: UnreadableRecord) -> bool {
        let is_new = match record.key.parse() {
            Ok(key) => self.keys.insert(key),
            Err(_) => self.others.insert(self.hasher.hash_one(&record.key)),
        };
        let key = brief(&record.key);
        match self.named.get_mut(&key) {
            Some(reason) if *reason == record.reason => is_new,
            Some(reason) => {
                *reason = record.reason;
                true
            }
            None => {
                if self.named.len() < MOST_NAMED {
                    self.named.insert(key, record.reason);
                }
                is_new
            }
        }
    }

    /// Removes a record that is gone or can be read again. Returns whether it was there.
    pub fn remove(&mut self, key: &str) -> bool {
        // Nearly always there are none, and then the key needs no parsing.
        if self.is_empty() {
            return false;
        }
        let was_there = match key.parse() {
            Ok(key) => self.keys.remove(&key),
            Err(_) => self.others.remove(&self.hasher.hash_one(key)),
        };
        if was_there {
            self.named.remove(&brief(key));
        }
        was_there
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len() + self.others.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.others.is_empty()
    }

    /// Whether the record of a lease is among them.
    pub fn contains(&self, key: &LeaseKey) -> bool {
        self.keys.contains(key)
    }

    /// Those whose keys are keys of leases.
    pub fn keys(&self) -> impl Iterator<Item = LeaseKey> + '_ {
        self.keys.iter().copied()
    }

    /// The records whose reasons were kept, by key; then the other leases, which were found when there were already
    /// many.
    pub fn named(&self) -> impl Iterator<Item = UnreadableRecord> + '_ {
        let named = self
            .named
            .iter()
            .map(|(key, reason)| UnreadableRecord { key: key.clone(), reason: reason.clone() });
        let rest = (self.len() > self.named.len()).then_some(&self.keys);
        let rest = rest.into_iter().flatten().map(ToString::to_string);
        let rest = rest.filter(|key| !self.named.contains_key(key));
        named.chain(rest.map(|key| UnreadableRecord { key, reason: MANY.to_owned() }))
    }

    /// The unreadable record of a lease, with its reason; `None` if it is not among them.
    pub(crate) fn reason(&self, key: &LeaseKey) -> Option<UnreadableRecord> {
        // Nearly always there is none, and then no text is made.
        if !self.contains(key) {
            return None;
        }
        let key = key.to_string();
        let reason = self.named.get(&key).map_or(MANY, String::as_str).to_owned();
        Some(UnreadableRecord { key, reason })
    }

    /// How many there are, and the first of those that are named.
    pub fn sample(&self) -> UnreadableSample {
        UnreadableSample { count: self.len(), records: self.named().take(SHOWN).collect() }
    }

    /// See [`repack`].
    pub(crate) fn repack(&mut self) {
        repack(&mut self.keys);
        self.others.shrink_to_fit();
    }
}

impl PartialEq for UnreadableRecords {
    /// Whether both have the same records, as far as can be told: of keys that are no lease's, only the number is
    /// compared.
    fn eq(&self, other: &Self) -> bool {
        let counted = |it: &Self| it.others.len();
        (&self.keys, counted(self), &self.named) == (&other.keys, counted(other), &other.named)
    }
}

impl Eq for UnreadableRecords {}

/// How many records are unreadable, and the first of them: what a status shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UnreadableSample {
    /// How many there are.
    pub count: usize,
    /// Some of them, by key.
    pub records: Vec<UnreadableRecord>,
}

impl FromIterator<UnreadableRecord> for UnreadableRecords {
    fn from_iter<T: IntoIterator<Item = UnreadableRecord>>(records: T) -> Self {
        let mut all = Self::default();
        records.into_iter().for_each(|record| _ = all.insert(record));
        all
    }
}

impl From<Vec<UnreadableRecord>> for UnreadableRecords {
    fn from(records: Vec<UnreadableRecord>) -> Self {
        records.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bad(key: &str, reason: &str) -> UnreadableRecord {
        UnreadableRecord { key: key.to_owned(), reason: reason.to_owned() }
    }

    /// The key of the nth record: of a lease, or not.
    fn key(n: usize) -> String {
        if n.is_multiple_of(2) { format!("10.{}.{}.0-24", n / 512, n / 2 % 256) } else { format!("junk{n}") }
    }

    #[test]
    fn what_is_kept_of_many_is_a_count_and_the_names_of_some() {
        let mut all: UnreadableRecords = (0..10_000).map(|n| bad(&key(n), "unreadable")).collect();
        assert_eq!((all.len(), all.named.len(), all.keys().count()), (10_000, MOST_NAMED, 5000));
        assert!(!all.insert(bad(&key(9_999), "unreadable")), "no news");
        assert!(all.insert(bad(&key(0), "unreadable otherwise")));
        for n in 0..9_996 {
            assert!(all.remove(&key(n)), "{n}");
            assert!(!all.remove(&key(n)), "{n}");
        }
        let named: Vec<String> = all.named().map(|record| record.to_string()).collect();
        assert_eq!(
            (all.len(), named.len()),
            (4, 2),
            "leases are named by their keys when the first are gone"
        );
        assert!(named[0].contains("10.19.134.0-24") && named[0].contains("can't be read"), "{named:?}");
        assert!(all.insert(bad(&key(0), "unreadable")) && all.named().next().unwrap().reason == "unreadable");
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((any::<bool>(), 0..8_usize, 0..2_u8), 0..60)) {
            let (mut all, mut model) = (UnreadableRecords::default(), BTreeMap::new());
            for (insert, n, reason) in steps {
                let (key, reason) = (key(n), reason.to_string());
                if insert {
                    let before = model.insert(key.clone(), reason.clone());
                    prop_assert_eq!(all.insert(bad(&key, &reason)), before.as_ref() != Some(&reason));
                } else {
                    prop_assert_eq!(all.remove(&key), model.remove(&key).is_some());
                }
                let named: BTreeMap<_, _> = all.named().map(|it| (it.key, it.reason)).collect();
                prop_assert_eq!((all.len(), all.is_empty(), &named), (model.len(), model.is_empty(), &model));
            }
        }
    }
}
