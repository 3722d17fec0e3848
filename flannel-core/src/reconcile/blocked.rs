//! Objects that the kernel refuses for now, each with a retry time of its own, so that one failing peer
//! delays no other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::addr::{Family, PerFamily};
use crate::backoff::Delays;
use crate::dataplane::{NamedObject, ObjectKey};
use crate::lease::LeaseKey;
use crate::status::{Harm, Listed, Problem, Reason, RefusedObject, Subject};

/// How long an object must have been refused before pods count as cut off by that, so that a refusal of a second or two
/// does not change readiness.
const SETTLED: Duration = Duration::from_secs(1);

/// Delays between attempts.
const RETRY: Delays = Delays::new(Duration::from_millis(100), Duration::from_secs(30));

/// The objects that wait for their next attempt.
#[derive(Debug, Default)]
pub(super) struct Blocked {
    blocks: BTreeMap<ObjectKey, Block>,
    /// How many objects each peer lacks, by family.
    cut: PerFamily<BTreeMap<LeaseKey, usize>>,
    /// The objects that this node itself needs.
    ours: BTreeSet<ObjectKey>,
}

/// Who needs an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Needed {
    /// This node: a family does not work without the object.
    ByUs,
    /// These peers.
    By(Vec<LeaseKey>),
    /// Nobody: no packets depend on it.
    ByNobody,
}

#[derive(Debug)]
struct Block {
    /// The name of its device.
    device: Option<String>,
    /// The kernel's errno, positive.
    errno: i32,
    reason: Reason,
    needed: Needed,
    attempts: u32,
    since: Instant,
    until: Instant,
    /// Whether it counts for readiness.
    settled: bool,
}

impl Block {
    fn problem(&self, key: &ObjectKey) -> Problem {
        let harm = match self.needed {
            Needed::ByNobody => Harm::None,
            Needed::ByUs | Needed::By(_) => Harm::Some,
        };
        let peer = match &self.needed {
            Needed::By(peers) => peers.first().copied(),
            _ => None,
        };
        let object = NamedObject::new(*key, self.device.clone());
        let problem = Problem::new(Subject::Object(object), harm, self.reason.clone());
        Problem { peer, ..problem.of(key.family()) }
    }
}

impl Blocked {
    /// Adds a refused object. Returns whether that is news: the first refusal, or another reason than before. With
    /// `at_once` it counts for readiness from now on, otherwise only if it lasts.
    pub(super) fn add(
        &mut self,
        object: NamedObject,
        errno: i32,
        reason: Reason,
        needed: Needed,
        at_once: bool,
        now: Instant,
    ) -> bool {
        let NamedObject { key, device } = object;
        let before = self.unlist(&key);
        let news = before.as_ref().is_none_or(|before| before.reason != reason);
        let since = before.as_ref().map_or(now, |before| before.since);
        let attempts = before.as_ref().map_or(0, |before| before.attempts);
        let settled = at_once
            || before.is_some_and(|before| before.settled)
            || now.saturating_duration_since(since) >= SETTLED;
        let until = now + backoff(attempts);
        let block = Block { device, errno, reason, needed, attempts: attempts + 1, since, until, settled };
        if let Needed::By(peers) = &block.needed
            && settled
        {
            let cut = self.cut.get_mut(key.family()).get_or_insert_default();
            for peer in peers {
                *cut.entry(*peer).or_default() += 1;
            }
        }
        if block.needed == Needed::ByUs {
            self.ours.insert(key);
        }
        self.blocks.insert(key, block);
        news
    }

    /// Removes an object from all fields.
    fn unlist(&mut self, key: &ObjectKey) -> Option<Block> {
        let block = self.blocks.remove(key)?;
        self.ours.remove(key);
        if let (Needed::By(peers), true, Some(cut)) =
            (&block.needed, block.settled, self.cut.get_mut(key.family()))
        {
            for peer in peers {
                if let Some(1) = cut.get(peer) {
                    cut.remove(peer);
                } else if let Some(count) = cut.get_mut(peer) {
                    *count -= 1;
                }
            }
        }
        Some(block)
    }

    /// How many peers of a family lack an object that they need.
    pub(super) fn cut(&self, family: Family) -> usize {
        self.cut.get(family).map_or(0, BTreeMap::len)
    }

    /// Whether this peer lacks an object that it needs in this family.
    pub(super) fn is_cut(&self, family: Family, peer: &LeaseKey) -> bool {
        self.cut.get(family).is_some_and(|cut| cut.contains_key(peer))
    }

    /// Whether an object must not be tried yet.
    pub(super) fn is_waiting(&self, key: &ObjectKey, now: Instant) -> bool {
        self.blocks.get(key).is_some_and(|block| block.until > now)
    }

    /// Makes the next attempt for an object due now, because something about it changed. Returns whether it was
    /// waiting.
    pub(super) fn hurry(&mut self, key: &ObjectKey, now: Instant) -> bool {
        self.blocks.get_mut(key).map(|block| block.until = now).is_some()
    }

    /// Makes the next attempts for all objects due now.
    pub(super) fn hurry_all(&mut self, now: Instant) {
        for block in self.blocks.values_mut() {
            block.until = block.until.min(now);
        }
    }

    /// Removes an object that was accepted or is no longer desired. Returns whether it was blocked.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> bool {
        self.unlist(key).is_some()
    }

    /// Updates the objects that a pass compared: removes and returns those that need no operation any more; those whose
    /// operation is due but not permitted yet keep waiting.
    pub(super) fn settle(
        &mut self,
        looked_at: impl Fn(&ObjectKey) -> bool,
        due: &BTreeSet<ObjectKey>,
        now: Instant,
    ) -> Vec<ObjectKey> {
        let over = self.blocks.keys().filter(|key| looked_at(key) && !due.contains(key)).copied();
        let over: Vec<ObjectKey> = over.collect();
        for key in &over {
            self.unlist(key);
        }
        for block in self.blocks.values_mut().filter(|block| block.until <= now) {
            block.until = now + backoff(block.attempts);
        }
        over
    }

    /// Why the kernel refuses an object.
    pub(super) fn refused(&self, key: &ObjectKey) -> Option<RefusedObject> {
        let block = self.blocks.get(key)?;
        let object = NamedObject::new(*key, block.device.clone());
        Some(RefusedObject { object, errno: block.errno, reason: block.reason.to_string() })
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Restarts the backoff of all objects, since their devices are new. Since when they are refused stays; those that
    /// are no longer desired are removed by the next full comparison.
    pub(super) fn restart(&mut self, now: Instant) {
        for block in self.blocks.values_mut() {
            (block.attempts, block.until) = (0, now);
        }
    }

    /// The objects whose next attempt is due.
    pub(super) fn due(&self, now: Instant) -> impl Iterator<Item = ObjectKey> + '_ {
        self.blocks.iter().filter(move |(_, block)| block.until <= now).map(|(key, _)| *key)
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.blocks.values().map(|block| block.until).min()
    }

    /// The refused objects that this node itself needs, as problems. A refused IPv6 address takes only that family out
    /// of service.
    pub(super) fn ours(&self) -> impl Iterator<Item = Problem> {
        let has_no_ipv6 =
            self.ours.iter().any(|key| matches!(key, ObjectKey::Address(_, addr) if addr.is_ipv6()));
        // Without an IPv6 address a device can't have IPv6 routes, so the reason of the address covers both.
        let is_told = move |key: &&ObjectKey| {
            has_no_ipv6 && matches!(key, ObjectKey::Route(dst, _) if dst.family() == Family::V6)
        };
        let ours = self.ours.iter().filter(move |key| !is_told(key));
        ours.filter_map(|key| Some((key, self.blocks.get(key)?))).map(|(key, block)| {
            let harm = match key {
                ObjectKey::Address(_, addr) if addr.is_ipv6() => Harm::Family,
                _ if block.settled => Harm::All,
                _ => Harm::Some,
            };
            Problem { harm, ..block.problem(key) }
        })
    }

    /// The other refused objects, for the status.
    pub(super) fn listed(&self) -> Listed {
        let others = self.blocks.iter().filter(|(_, block)| block.needed != Needed::ByUs);
        let problems = others.map(|(key, block)| block.problem(key));
        Listed::new(self.blocks.len() - self.ours.len(), problems)
    }
}

/// The delay after a failure that follows `attempts` others.
pub(super) fn backoff(attempts: u32) -> Duration {
    RETRY.jittered(attempts)
}
