//! Whether readiness waits for answers of peers. Pure: time is an argument.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::options::ReadyPeers;
use crate::lease::LeaseKey;

/// Holds readiness back until enough peers have answered, and never again.
///
/// It counts along as peers answer and go, so that a look costs the same for any number of them.
#[derive(Debug)]
pub(super) struct PeersGate {
    options: ReadyPeers,
    deadline: Instant,
    /// The peers of the store's first list, once it is there.
    known: Option<BTreeMap<LeaseKey, Known>>,
    /// How many of them are not gone, and how many of these have answered.
    left: usize,
    there: usize,
    /// Whether that changed since the last look.
    is_changed: bool,
}

/// What is known of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// It is not among the peers any more.
    Gone,
    /// It has not answered through the overlay.
    Silent,
    /// It has.
    Answered,
}

/// What a look at the gate finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    /// Readiness does not wait, from now on.
    Open,
    /// Nothing has changed since the last look.
    Same,
    /// Readiness waits for this.
    Waits(String),
}

impl PeersGate {
    pub(super) fn new(options: ReadyPeers, now: Instant) -> Self {
        let deadline = now + options.timeout;
        Self { options, deadline, known: None, left: 0, there: 0, is_changed: true }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether the store has listed its peers.
    pub(super) fn is_listed(&self) -> bool {
        self.known.is_some()
    }

    /// The store has listed these peers. Only the first list counts.
    pub(super) fn listed(&mut self, peers: impl Iterator<Item = (LeaseKey, Known)>) {
        if self.known.is_some() {
            return;
        }
        let known: BTreeMap<_, _> = peers.collect();
        for state in known.values() {
            self.left += state.left();
            self.there += state.there();
        }
        (self.known, self.is_changed) = (Some(known), true);
    }

    /// A peer answered, went, or came back.
    pub(super) fn update(&mut self, lease: &LeaseKey, now: Known) {
        let Some(state) = self.known.as_mut().and_then(|known| known.get_mut(lease)) else { return };
        if *state != now {
            self.left = self.left + now.left() - state.left();
            self.there = self.there + now.there() - state.there();
            (*state, self.is_changed) = (now, true);
        }
    }

    /// Whether readiness waits, and why.
    pub(super) fn look(&mut self, now: Instant) -> Look {
        if now >= self.deadline {
            return Look::Open;
        }
        if !std::mem::take(&mut self.is_changed) {
            return Look::Same;
        }
        let ReadyPeers { percent, timeout } = self.options;
        let end = format!("or until {} s after the start", timeout.as_secs());
        if self.known.is_none() {
            return Look::Waits(format!(
                "waiting for {percent}% of the peers, which the store has not listed yet, {end}"
            ));
        }
        let (left, there, needed) = (self.left, self.there, self.options.needed(self.left));
        if there >= needed {
            return Look::Open;
        }
        Look::Waits(format!(
            "waiting for {needed} of {left} peers to answer through the overlay, {end}; {there} do"
        ))
    }
}

impl Known {
    fn left(self) -> usize {
        usize::from(self != Self::Gone)
    }

    fn there(self) -> usize {
        usize::from(self == Self::Answered)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::Known::{Answered, Gone, Silent};
    use super::*;

    fn key(n: u8) -> LeaseKey {
        format!("10.5.{n}.0-24").parse().unwrap()
    }

    #[test]
    fn it_opens_by_answers_or_by_time_whichever_comes_first() {
        let start = Instant::now();
        let gate = || PeersGate::new(ReadyPeers::new(50, Duration::from_secs(60)), start);
        assert!(matches!(gate().look(start), Look::Waits(why) if why.contains("has not listed")));
        assert_eq!(gate().look(start + Duration::from_secs(60)), Look::Open);
        let listed = || {
            let mut gate = gate();
            gate.listed((1..=3).map(|n| (key(n), Silent)));
            // Later peers are none of those known at the start.
            gate.listed((1..=30).map(|n| (key(n), Silent)));
            gate.update(&key(9), Answered);
            gate.update(&key(1), Answered);
            gate
        };
        let mut waits = listed();
        assert_eq!(
            waits.look(start),
            Look::Waits(
                "waiting for 2 of 3 peers to answer through the overlay, or until 60 s after the start; 1 do"
                    .to_owned()
            )
        );
        assert_eq!(waits.look(start), Look::Same);
        waits.update(&key(2), Answered);
        assert_eq!(waits.look(start), Look::Open);
        let mut fewer = listed();
        fewer.update(&key(3), Gone);
        assert_eq!(fewer.look(start), Look::Open, "one of two is enough when the third is gone");
        let mut back = listed();
        back.update(&key(3), Gone);
        back.update(&key(3), Silent);
        assert!(matches!(back.look(start), Look::Waits(_)));
        let mut alone = gate();
        alone.listed(std::iter::empty());
        assert_eq!(alone.look(start), Look::Open);
    }

    proptest! {
        #[test]
        fn it_counts_as_if_it_counted_all(
            first in prop::collection::vec(0..3_u8, 0..6), changes in prop::collection::vec((0..8_u8, 0..3_u8), 0..20),
        ) {
            let state = |n: u8| [Gone, Silent, Answered][usize::from(n)];
            let mut gate = PeersGate::new(ReadyPeers::new(50, Duration::from_secs(60)), Instant::now());
            gate.listed((0..).zip(&first).map(|(n, it)| (key(n), state(*it))));
            for (n, now) in changes {
                gate.update(&key(n), state(now));
                let all: Vec<Known> = gate.known.as_ref().unwrap().values().copied().collect();
                prop_assert_eq!(gate.left, all.iter().filter(|it| **it != Gone).count());
                prop_assert_eq!(gate.there, all.iter().filter(|it| **it == Answered).count());
            }
        }
    }
}
