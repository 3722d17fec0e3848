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
/// How many peers may be visited within [`FORGOTTEN`]. A peer on the underlay's link takes an entry in the kernel's table of
/// neighbours, also one that nobody else on this host asks for. That table is one for all namespaces; by default the kernel
/// keeps 128 entries whatever their age, and refuses new ones, those of pods among them, from 1024 on
/// (`net/ipv4/neigh/default/gc_thresh1` and `gc_thresh3`).
const NEIGHBOURS: usize = 128;
/// How long the kernel keeps an entry that nobody uses (`gc_stale_time`).
const FORGOTTEN: Duration = Duration::from_secs(60);
/// The shortest interval of visits to a peer.
const SHORTEST: Duration = Duration::from_secs(1);
/// The same where answers are ICMP errors, of which a kernel sends one a second to each host.
const SHORTEST_OF_ERRORS: Duration = Duration::from_millis(1500);

/// The time between two visits of a peer that answers, when there are so many peers, and so many targets: a peer is one in
/// each family.
pub(super) fn interval(asked: ProbeInterval, peers: usize, targets: usize, answers: Answers) -> Duration {
    let shortest = match answers {
        Answers::Base => SHORTEST,
        Answers::Bridge => SHORTEST_OF_ERRORS,
    };
    let fair = Duration::from_secs(1) * count(targets) / VISITS;
    let asked = if let ProbeInterval::Every(asked) = asked { asked } else { Duration::ZERO };
    shortest.max(fair).max(among_neighbours(peers)).max(asked)
}

/// Within which time so many new targets get their first packet: soon if readiness waits for them.
pub(super) fn first_sweep(new: usize, is_waited_for: bool) -> Duration {
    let soonest = Duration::from_secs(1) * count(new) * 2 / PACKETS;
    if is_waited_for { soonest } else { soonest.max(among_neighbours(new)) }
}

/// The time in which so many peers can be visited without filling the table of neighbours.
fn among_neighbours(peers: usize) -> Duration {
    if peers > NEIGHBOURS { FORGOTTEN * count(peers) / count(NEIGHBOURS) } else { Duration::ZERO }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
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
        let with = |asked, peers| interval(asked, peers, peers, Answers::Base);
        let auto = |peers| with(ProbeInterval::Auto, peers).as_secs_f64();
        assert_eq!((auto(1), auto(20), auto(100)), (1.0, 1.0, 5.0));
        let every = |s, peers| with(ProbeInterval::Every(Duration::from_secs(s)), peers);
        assert_eq!((every(30, 3).as_secs(), every(3, 100).as_secs(), every(0, 3).as_secs()), (30, 5, 1));
        assert_eq!(interval(ProbeInterval::Auto, 1, 1, Answers::Bridge).as_millis(), 1500);
        assert_eq!(
            interval(ProbeInterval::Auto, 100, 200, Answers::Base).as_secs(),
            10,
            "each family counts"
        );
    }

    /// From the first visit on, however many there are.
    #[test]
    fn no_more_peers_are_visited_a_minute_than_the_kernel_keeps_neighbours() {
        for peers in [129, 1_000, 10_000] {
            let sweeps = [
                interval(ProbeInterval::Auto, peers, peers, Answers::Base),
                interval(ProbeInterval::Every(SHORTEST), peers, peers, Answers::Base),
                first_sweep(peers, false),
            ];
            for sweep in sweeps {
                let a_minute = peers as f64 * FORGOTTEN.as_secs_f64() / sweep.as_secs_f64();
                assert!((127.0..=128.1).contains(&a_minute), "{peers}: {a_minute}");
            }
        }
        assert_eq!(first_sweep(1_000, true).as_secs(), 5, "somebody waits for it");
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
