//! Whether readiness waits for answers of peers. Pure: time is an argument.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::options::ReadyPeers;
use crate::lease::LeaseKey;

/// Holds readiness back until enough peers have answered, and never again.
#[derive(Debug)]
pub(super) struct PeersGate {
    options: ReadyPeers,
    deadline: Instant,
    /// The peers of the store's first list, once it is there.
    known: Option<BTreeSet<LeaseKey>>,
}

impl PeersGate {
    pub(super) fn new(options: ReadyPeers, now: Instant) -> Self {
        Self { options, deadline: now + options.timeout, known: None }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The store has listed these peers. Only the first list counts.
    pub(super) fn listed(&mut self, peers: impl Iterator<Item = LeaseKey>) {
        if self.known.is_none() {
            self.known = Some(peers.collect());
        }
    }

    /// Why readiness waits; `None` from the moment on when it doesn't. `answered` says whether a peer has answered
    /// through the overlay; `None` for one that is gone.
    pub(super) fn waiting(
        &self,
        answered: impl Fn(&LeaseKey) -> Option<bool>,
        now: Instant,
    ) -> Option<String> {
        if now >= self.deadline {
            return None;
        }
        let ReadyPeers { percent, timeout } = self.options;
        let end = format!("or until {} s after the start", timeout.as_secs());
        let Some(known) = &self.known else {
            return Some(format!(
                "waiting for {percent}% of the peers, which the store has not listed yet, {end}"
            ));
        };
        let left: Vec<bool> = known.iter().filter_map(answered).collect();
        let (there, needed) =
            (left.iter().filter(|answered| **answered).count(), self.options.needed(left.len()));
        (there < needed).then(|| {
            let all = left.len();
            format!("waiting for {needed} of {all} peers to answer through the overlay, {end}; {there} do")
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(n: u8) -> LeaseKey {
        format!("10.5.{n}.0-24").parse().unwrap()
    }

    #[test]
    fn it_opens_by_answers_or_by_time_whichever_comes_first() {
        let start = Instant::now();
        let gate = || PeersGate::new(ReadyPeers::new(50, Duration::from_secs(60)), start);
        let nobody = |_: &LeaseKey| Some(false);
        assert!(gate().waiting(nobody, start).unwrap().contains("has not listed"));
        assert_eq!(gate().waiting(nobody, start + Duration::from_secs(60)), None);
        let mut listed = gate();
        listed.listed((1..=3).map(key));
        // Later peers are none of those known at the start.
        listed.listed((1..=30).map(key));
        let of = |there: u8, gone: u8| {
            listed
                .waiting(|lease| (*lease != key(gone)).then(|| (1..=there).any(|n| *lease == key(n))), start)
        };
        assert_eq!(
            of(1, 0).unwrap(),
            "waiting for 2 of 3 peers to answer through the overlay, or until 60 s after the start; 1 do"
        );
        assert_eq!(of(2, 0), None);
        assert_eq!(of(1, 3), None, "one of two is enough when the third is gone");
        let mut alone = gate();
        alone.listed(std::iter::empty());
        assert_eq!(alone.waiting(nobody, start), None);
    }
}
