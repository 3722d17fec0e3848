//! How fast to go: the interval of visits, and the budget of packets. Pure: time is an argument.

use std::time::Duration;

use tokio::time::Instant;

use super::options::ProbeInterval;
use crate::backend::Answers;

/// Visits of a second, at most, over all peers that answer.
const VISITS: u32 = 20;
/// Thorough rounds of a second over all peers, at most: new suspects get theirs at once, and what is left is shared by the
/// peers with a verdict against them, of which at least a small part is left.
const THOROUGH: f64 = 2.0;
const LEAST_THOROUGH: f64 = 0.2;
/// Over which time the rounds of suspects count.
const LATELY: Duration = Duration::from_secs(10);
/// Visits of a second to all of them, if there are many, unless those that answer are visited more often.
const WATCHED: u32 = 8;
/// Packets of a second, at most, and how many may be sent at once after a rest.
const PACKETS: u32 = 400;
const BURST: u32 = 200;
/// What is due within this time happens at one wake-up where there are many targets.
const LONGEST_GRAIN: Duration = Duration::from_millis(50);
/// How many targets that takes.
const MANY: usize = 100;
/// How long the kernel keeps a neighbour that nobody uses (`gc_stale_time`).
const FORGOTTEN: Duration = Duration::from_secs(60);
/// The shortest interval of visits to a peer.
const SHORTEST: Duration = Duration::from_secs(1);
/// The same where answers are ICMP errors, of which a kernel sends one a second to each host.
const SHORTEST_OF_ERRORS: Duration = Duration::from_millis(1500);

/// Peers that are visited in turn, as far as their number decides how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crowd {
    /// How many targets there are: a peer is one in each family.
    pub(super) targets: usize,
    /// How many of them are on a link of this node, with the one in question: each takes an entry in the kernel's table
    /// of neighbours. 0 for a target that is reached through a gateway, which all of those share.
    pub(super) neighbours: usize,
    /// How many neighbours may be visited within the time after which the kernel forgets them: [`room`].
    pub(super) room: usize,
}

/// The time between visits of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gaps {
    /// Between those of a peer that answers.
    pub(super) regular: Duration,
    /// Between those of a peer with a verdict against it, once it has had it for long, at least.
    pub(super) unreached: Duration,
    /// Between thorough rounds of such a peer, at least, unless something changes.
    pub(super) thorough: Duration,
}

/// The kernel's limits for a table of neighbours, which is one for all namespaces: `gc_thresh1` to `gc_thresh3` of
/// `net.ipv4.neigh.default` or `net.ipv6.neigh.default`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Thresholds {
    /// So many are kept whatever their age.
    pub(super) kept: usize,
    /// From here on the kernel looks for old ones every five seconds.
    pub(super) soft: usize,
    /// From here on it refuses new ones, those of pods among them.
    pub(super) hard: usize,
}

impl Default for Thresholds {
    /// Those of a kernel that nobody has told others.
    fn default() -> Self {
        Self { kept: 128, soft: 512, hard: 1024 }
    }
}

/// How many entries of the table probes may take: as many as make the kernel forget nobody else's, and never more than an
/// eighth of all.
pub(super) fn room(Thresholds { kept, soft, hard }: Thresholds) -> usize {
    kept.max(soft / 4).min(hard / 8).max(1)
}

/// The time between two visits of a peer that answers.
pub(super) fn interval(asked: ProbeInterval, crowd: Crowd, answers: Answers) -> Duration {
    let shortest = match answers {
        Answers::Base => SHORTEST,
        Answers::Bridge => SHORTEST_OF_ERRORS,
    };
    let fair = Duration::from_secs(1) * count(crowd.targets) / VISITS;
    let asked = if let ProbeInterval::Every(asked) = asked { asked } else { Duration::ZERO };
    shortest.max(fair).max(crowd.among_neighbours()).max(asked)
}

/// The time between two thorough rounds of one of so many peers with a verdict against them, while suspects take so many a
/// second.
pub(super) fn between_thorough_rounds(unreached: usize, of_suspects: f64) -> Duration {
    Duration::from_secs_f64(f64::from(count(unreached)) / (THOROUGH - of_suspects).max(LEAST_THOROUGH))
}

/// The time between two visits of one of so many peers with a verdict against them, as far as their number decides. It is no
/// longer than that between the `regular` visits of peers that answer, so that one that comes back is seen as soon as a fault.
pub(super) fn between_visits_of_unreached(unreached: usize, regular: Duration) -> Duration {
    (Duration::from_secs(1) * count(unreached) / WATCHED).min(regular)
}

/// Within which time so many new targets get their first packet: soon if readiness waits for them.
pub(super) fn first_sweep(new: Crowd, is_waited_for: bool) -> Duration {
    let soonest = Duration::from_secs(1) * count(new.targets) * 2 / PACKETS;
    if is_waited_for { soonest } else { soonest.max(new.among_neighbours()) }
}

/// When to wake up for what is due at a time, counted from some beginning: the more targets, the more of them share a wake-up,
/// which costs an idle node more than the packets do.
pub(super) fn wake_up(due: Duration, targets: usize) -> Duration {
    let grain = LONGEST_GRAIN * count(targets.min(MANY)) / count(MANY);
    let due = due.as_nanos().next_multiple_of(grain.as_nanos().max(1));
    Duration::from_nanos(u64::try_from(due).unwrap_or(u64::MAX))
}

impl Crowd {
    /// The time in which so many can be visited without filling the table of neighbours.
    fn among_neighbours(self) -> Duration {
        if self.neighbours > self.room {
            FORGOTTEN.mul_f64(self.neighbours as f64 / self.room as f64)
        } else {
            Duration::ZERO
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// How many things happen a second, where what is long past counts less.
#[derive(Debug)]
pub(super) struct Rate {
    lately: f64,
    at: Instant,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { lately: 0.0, at: now }
    }

    /// One more.
    pub(super) fn count(&mut self, now: Instant) {
        (self.lately, self.at) = (self.lately(now) + 1.0, now);
    }

    pub(super) fn per_second(&self, now: Instant) -> f64 {
        self.lately(now) / LATELY.as_secs_f64()
    }

    fn lately(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.at).as_secs_f64() / LATELY.as_secs_f64();
        self.lately * (-age).exp()
    }
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

    fn crowd(targets: usize, neighbours: usize) -> Crowd {
        Crowd { targets, neighbours, room: room(Thresholds::default()) }
    }

    #[test]
    fn the_interval_follows_the_crowd_and_what_was_asked_for() {
        use Answers::{Base, Bridge};
        use ProbeInterval::{Auto, Every};
        let s = Duration::from_secs;
        for (what, asked, crowd, answers, want) in [
            ("one peer", Auto, crowd(1, 1), Base, s(1)),
            ("twenty", Auto, crowd(20, 20), Base, s(1)),
            ("more get twenty visits a second", Auto, crowd(100, 100), Base, s(5)),
            ("each family counts", Auto, crowd(200, 100), Base, s(10)),
            ("as seldom as asked for", Every(s(30)), crowd(3, 3), Base, s(30)),
            ("not more often than without", Every(s(3)), crowd(100, 100), Base, s(5)),
            ("and not more than once a second", Every(s(0)), crowd(3, 3), Base, s(1)),
            ("answers that are errors", Auto, crowd(1, 1), Bridge, Duration::from_millis(1500)),
            ("as many as there is room for", Auto, crowd(128, 128), Base, Duration::from_millis(6400)),
            ("more neighbours than that", Auto, crowd(256, 256), Base, s(120)),
            ("a thousand of them", Auto, crowd(1024, 1024), Base, s(480)),
            ("also when asked for more", Every(s(1)), crowd(1024, 1024), Base, s(480)),
            ("a thousand behind a gateway", Auto, crowd(1000, 0), Base, s(50)),
            ("one of few on the link among them", Auto, crowd(1000, 100), Base, s(50)),
            ("a table that was made larger", Auto, Crowd { room: 2048, ..crowd(1000, 1000) }, Base, s(50)),
        ] {
            assert_eq!(interval(asked, crowd, answers), want, "{what}");
        }
    }

    /// Few are looked at thoroughly each time (`track` visits them every five seconds); many share the rest.
    #[test]
    fn thorough_rounds_have_a_budget_of_their_own() {
        for (what, unreached, of_suspects, gap) in [
            ("none", 0, 0.0, 0),
            ("a few", 2, 0.0, 1_000),
            ("as many as are looked at each time", 10, 0.0, 5_000),
            ("a thousand", 1_000, 0.0, 500_000),
            ("a fault of two families", 2, 0.4, 1_250),
            ("while a sweep finds as many as two a second", 100, 2.1, 500_000),
        ] {
            assert_eq!(between_thorough_rounds(unreached, of_suspects).as_millis(), gap, "{what}");
        }
    }

    #[test]
    fn what_is_due_for_many_at_about_the_same_time_takes_one_wake_up() {
        let ms = Duration::from_millis;
        for (what, due, targets, want) in [
            ("no peer", ms(1_234), 0, ms(1_234)),
            ("a few wait for nobody", ms(1_233), 4, ms(1_234)),
            ("many", ms(1_234), 100, ms(1_250)),
            ("on time", ms(1_250), 100, ms(1_250)),
            ("more do not wait for longer", ms(1_251), 10_000, ms(1_300)),
        ] {
            assert_eq!(wake_up(due, targets), want, "{what}");
        }
    }

    #[test]
    fn a_rate_follows_what_happens_and_forgets() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        assert!(rate.per_second(start) < f64::EPSILON);
        let mut now = start;
        while now < start + 6 * LATELY {
            rate.count(now);
            now += Duration::from_millis(500);
        }
        assert!((1.9..=2.1).contains(&rate.per_second(now)), "{rate:?}");
        assert!(rate.per_second(now + 4 * LATELY) < 0.05, "{rate:?}");
    }

    #[test]
    fn many_that_are_not_reached_are_visited_no_more_seldom_than_the_others() {
        let s = Duration::from_secs;
        for (what, unreached, regular, want) in [
            ("a few", 8, s(50), s(1)),
            ("many of more", 120, s(50), s(15)),
            ("all of a thousand behind a gateway", 1_000, s(50), s(50)),
            ("all of a thousand on the link", 1_000, s(480), s(125)),
        ] {
            assert_eq!(between_visits_of_unreached(unreached, regular), want, "{what}");
        }
    }

    /// From the first visit on, however many there are and whatever is asked for.
    #[test]
    fn no_more_neighbours_are_visited_within_a_minute_than_there_is_room_for() {
        for neighbours in [129, 1_000, 10_000] {
            let crowd = crowd(neighbours, neighbours);
            let sweeps = [
                interval(ProbeInterval::Auto, crowd, Answers::Base),
                interval(ProbeInterval::Every(SHORTEST), crowd, Answers::Base),
                first_sweep(crowd, false),
            ];
            for sweep in sweeps {
                let a_minute = neighbours as f64 * FORGOTTEN.as_secs_f64() / sweep.as_secs_f64();
                assert!((127.9..=128.1).contains(&a_minute), "{neighbours}: {a_minute}");
            }
        }
        assert_eq!(first_sweep(crowd(1_000, 1_000), true), Duration::from_secs(5), "somebody waits for it");
        assert_eq!(first_sweep(crowd(1_000, 0), false), Duration::from_secs(5), "they share a gateway");
    }

    #[test]
    fn the_room_is_a_small_share_of_the_table() {
        for (what, kept, soft, hard, want) in [
            ("the kernel's own", 128, 512, 1024, 128),
            ("all three raised", 4096, 8192, 16384, 2048),
            ("many are kept anyway", 80_000, 90_000, 100_000, 12_500),
            ("only the last one raised", 128, 512, 65_536, 128),
            ("none is kept", 0, 4096, 8192, 1024),
            ("a small table", 128, 512, 256, 32),
            ("no table at all", 0, 0, 0, 1),
        ] {
            assert_eq!(room(Thresholds { kept, soft, hard }), want, "{what}");
        }
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
