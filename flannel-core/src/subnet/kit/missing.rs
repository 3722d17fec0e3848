//! Leases that are missing because the store was restored from a backup or replaced. They count as unknown, not as
//! deleted.
//!
//! Nodes that joined after the backup are alive although their leases are missing. They put their leases back, ours
//! within seconds, Go nodes at their next renewal, which may be 23 hours away. So each lease is kept for as long as its
//! etcd lease could have lived on, unless it comes back or another record takes its addresses.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::{BootInstant, Clock};
use crate::lease::LeaseKey;
use crate::subnet::allocate::{occupied, overlaps};

/// The leases that are missing since the store was restored from a backup or replaced, by the names of their records. A
/// store lists them as unreadable records in its snapshots, and reports them as removed once their time is over.
#[derive(Debug)]
pub struct Missing {
    kept: BTreeMap<String, Kept>,
    clock: Clock,
}

#[derive(Debug)]
struct Kept {
    key: Option<LeaseKey>,
    until: BootInstant,
}

impl Missing {
    /// An empty set; `clock` measures how long leases are kept.
    pub fn new(clock: Clock) -> Self {
        Self { kept: BTreeMap::new(), clock }
    }

    /// Keeps leases that were known and are no longer listed, for this time. A lease that is kept already keeps its
    /// deadline.
    pub fn keep(&mut self, names: impl Iterator<Item = String>, time: Duration) {
        let until = self.clock.now() + time;
        for name in names {
            let key = occupied(&name);
            self.kept.entry(name).or_insert(Kept { key, until });
        }
    }

    /// Handles a record that was found: the missing lease with its name is back, and missing leases that it overlaps
    /// are dropped. Returns the names of the dropped ones.
    pub fn found(&mut self, name: &str) -> Vec<String> {
        self.kept.remove(name);
        if self.kept.is_empty() {
            return Vec::new();
        }
        let Some(found) = occupied(name) else { return Vec::new() };
        self.extract(|kept| kept.key.is_some_and(|key| overlaps(key, found)))
    }

    /// Removes and returns the leases whose time is over.
    pub fn expire(&mut self) -> Vec<String> {
        let now = self.clock.now();
        self.extract(|kept| kept.until <= now)
    }

    /// The time until the first deadline.
    pub fn time_left(&self) -> Option<Duration> {
        let first = self.kept.values().map(|kept| kept.until).min();
        first.map(|until| until.since(self.clock.now()))
    }

    /// Whether none is missing.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// How many are missing.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// The names of the missing leases (the keys of their records), in order.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.kept.keys()
    }

    fn extract(&mut self, which: impl Fn(&Kept) -> bool) -> Vec<String> {
        self.kept.extract_if(.., |_, kept| which(kept)).map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn kept_until_it_is_back_or_taken_or_its_time_is_over() {
        let (clock, hand) = Clock::with_hand();
        let (minute, mut missing) = (Duration::from_mins(1), Missing::new(clock));
        let names = ["10.5.1.0-24", "10.5.2.0-24&fd00:5:0:2::-64", "10.5.3.0-24", "junk"];
        missing.keep(names.map(str::to_owned).into_iter(), minute);
        assert_eq!(missing.found("10.5.9.0-24"), Vec::<String>::new());
        assert_eq!(missing.found("10.5.1.0-24"), Vec::<String>::new(), "it is back");
        assert_eq!(missing.found("10.5.4.0-24&fd00:5:0:2::-64"), ["10.5.2.0-24&fd00:5:0:2::-64"]);
        assert_eq!(missing.names().collect::<Vec<_>>(), ["10.5.3.0-24", "junk"]);
        // Missing once more, its time goes on from the first loss.
        tokio::time::advance(minute / 2).await;
        missing.keep(["10.5.3.0-24".to_owned()].into_iter(), minute);
        assert_eq!(missing.expire(), Vec::<String>::new());
        assert_eq!(missing.time_left(), Some(minute / 2));
        // The second half passes in suspend.
        hand.suspend(minute / 2);
        assert_eq!(missing.expire(), ["10.5.3.0-24", "junk"]);
        assert!(missing.time_left().is_none());
    }
}
