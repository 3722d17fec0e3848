//! Objects that the kernel refuses for now, each with a retry time of its own, so that one failing peer
//! delays no other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::dataplane::ObjectKey;

/// The objects that wait for their next try.
#[derive(Debug, Default)]
pub(super) struct Blocked(BTreeMap<ObjectKey, Block>);

#[derive(Debug)]
struct Block {
    reason: String,
    attempts: u32,
    until: Instant,
}

impl Blocked {
    /// Notes a refusal. Returns whether it is news: the first, or for another reason than before.
    pub(super) fn add(&mut self, key: ObjectKey, reason: String, now: Instant) -> bool {
        let block =
            self.0.entry(key).or_insert_with(|| Block { reason: String::new(), attempts: 0, until: now });
        let news = block.reason != reason;
        block.reason = reason;
        block.until = now + backoff(block.attempts);
        block.attempts += 1;
        news
    }

    /// Whether an object must not be tried yet.
    pub(super) fn is_waiting(&self, key: &ObjectKey, now: Instant) -> bool {
        self.0.get(key).is_some_and(|block| block.until > now)
    }

    /// Makes an object's next try due now, since something about it changed. Returns whether it waited.
    pub(super) fn hurry(&mut self, key: &ObjectKey, now: Instant) -> bool {
        self.0.get_mut(key).map(|block| block.until = now).is_some()
    }

    /// Makes the next try of all objects due now.
    pub(super) fn hurry_all(&mut self, now: Instant) {
        for block in self.0.values_mut() {
            block.until = block.until.min(now);
        }
    }

    /// Forgets an object that went through or is no longer asked for. Returns whether it was blocked.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> bool {
        self.0.remove(key).is_some()
    }

    /// Settles the objects that were looked at now: one that needs no operation any more is forgotten, and one
    /// whose operation is due but may not be done yet waits on.
    pub(super) fn settle(
        &mut self,
        looked_at: impl Fn(&ObjectKey) -> bool,
        due: &BTreeSet<ObjectKey>,
        now: Instant,
    ) {
        if self.0.is_empty() {
            return;
        }
        self.0.retain(|key, _| !looked_at(key) || due.contains(key));
        for block in self.0.values_mut().filter(|block| block.until <= now) {
            block.until = now + backoff(block.attempts);
        }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The objects whose time has come.
    pub(super) fn due(&self, now: Instant) -> impl Iterator<Item = ObjectKey> + '_ {
        self.0.iter().filter(move |(_, block)| block.until <= now).map(|(key, _)| *key)
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.0.values().map(|block| block.until).min()
    }

    /// The reason of one whose key is such.
    pub(super) fn reason_where(&self, is_such: impl Fn(&ObjectKey) -> bool) -> Option<&str> {
        self.0.iter().find(|(key, _)| is_such(key)).map(|(_, block)| block.reason.as_str())
    }

    /// The reasons, for the status.
    pub(super) fn reasons(&self) -> impl Iterator<Item = &str> {
        self.0.values().map(|block| block.reason.as_str())
    }
}

/// 100 ms, doubling to 30 s, with up to a quarter on top.
pub(super) fn backoff(attempts: u32) -> Duration {
    let base = Duration::from_millis(100).saturating_mul(1 << attempts.min(16)).min(Duration::from_secs(30));
    base.mul_f64(1.0 + 0.25 * fastrand::f64())
}
