//! How fast to go: the interval of visits, and the budget of packets. Pure: time is an argument.

use std::time::Duration;

use tokio::time::Instant;

use super::options::ProbeInterval;
use crate::backend::Answers;

/// Visits of a second, at most, over all peers that answer.
const VISITS: u32 = 20;
/// Packets of a second, at most, and how many may be sent at once after a rest.
const PACKETS: u32 = 400;
const BURST: u32 = 200;
/// The shortest interval of visits to a peer.
const SHORTEST: Duration = Duration::from_secs(1);
/// The same where answers are ICMP errors, of which a kernel sends one a second to each host.
const SHORTEST_OF_ERRORS: Duration = Duration::from_millis(1500);

/// The time between two visits of a peer that answers, when there are so many peers.
pub(super) fn interval(asked: ProbeInterval, peers: usize, answers: Answers) -> Duration {
    let shortest = match answers {
        Answers::Base => SHORTEST,
        Answers::Bridge => SHORTEST_OF_ERRORS,
    };
    let fair = Duration::from_secs(1) * u32::try_from(peers).unwrap_or(u32::MAX) / VISITS;
    let asked = if let ProbeInterval::Every(asked) = asked { asked } else { Duration::ZERO };
    shortest.max(fair).max(asked)
}

/// Within which time so many new peers get their first packet.
pub(super) fn first_sweep(new: usize) -> Duration {
    Duration::from_secs(1) * u32::try_from(new).unwrap_or(u32::MAX) * 2 / PACKETS
}

/// The packets that may be sent.
#[derive(Debug)]
pub(super) struct Budget {
    left: f64,
    at: Instant,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: f64::from(BURST), at: now }
    }

    /// Takes so many packets, or says how long to wait for them.
    pub(super) fn take(&mut self, packets: usize, now: Instant) -> Result<(), Duration> {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(PACKETS);
        self.left = (self.left + earned).min(f64::from(BURST));
        self.at = now;
        let lacking = packets as f64 - self.left;
        if lacking > 0.0 {
            return Err(Duration::from_secs_f64(lacking / f64::from(PACKETS)) + Duration::from_millis(1));
        }
        self.left -= packets as f64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_grows_with_the_cluster_and_never_falls_below_what_was_asked_for() {
        let auto = |peers| interval(ProbeInterval::Auto, peers, Answers::Base).as_secs_f64();
        assert_eq!((auto(1), auto(20), auto(1000), auto(10_000)), (1.0, 1.0, 50.0, 500.0));
        let every = |s, peers| interval(ProbeInterval::Every(Duration::from_secs(s)), peers, Answers::Base);
        assert_eq!((every(30, 3).as_secs(), every(30, 1000).as_secs(), every(0, 3).as_secs()), (30, 50, 1));
        assert_eq!(interval(ProbeInterval::Auto, 1, Answers::Bridge).as_millis(), 1500);
    }

    /// Whatever is asked for, no more is sent in any second than the rate and one burst.
    #[test]
    fn the_budget_is_kept() {
        let start = Instant::now();
        let (mut budget, mut now, mut sent) = (Budget::new(start), start, 0);
        while now < start + Duration::from_secs(10) {
            match budget.take(13, now) {
                Ok(()) => sent += 13,
                Err(wait) => now += wait,
            }
        }
        assert!((4000..=4200).contains(&sent), "{sent}");
    }
}
