//! What is known of the way to one peer in one family, and what to do next. Pure: time is an argument.
//!
//! A peer that answers gets a regular visit now and then. One missing answer makes it suspect: it gets thorough rounds
//! soon one after the other, and a verdict once two of them agree and some time has passed, so that a lost packet or a
//! short interruption is none. With a verdict against it the rounds become rare.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::ladder::Ladder;
use super::status::Verdict;
use super::verdict::{Answer, Findings, judge};

/// How long something must have been wrong before there is a verdict.
const FIRM: Duration = Duration::from_millis(1500);
/// The same for a peer that has not answered yet: it may have just joined.
const FIRM_NEW: Duration = Duration::from_secs(3);
/// How many rounds must agree.
const AGREED: u32 = 2;
/// The time between thorough rounds before there is a verdict.
const AGAIN: Duration = Duration::from_millis(300);
/// The longest time between them afterwards, unless there are many such peers: while pods lose packets, and otherwise.
const LONGEST: Duration = Duration::from_secs(5);
const LONGEST_HARMLESS: Duration = Duration::from_secs(30);
/// Every how many regular visits have a UDP datagram. Its answer is an ICMP error, of which a kernel sends one a second
/// to each host (`net.ipv4.icmp_ratelimit`).
const UDP_EVERY: u32 = 2;
/// The same where UDP is not answered.
const UDP_SELDOM: u32 = 32;
/// Within which time answers are expected, at least and at most.
const LEAST_WAIT: Duration = Duration::from_millis(300);
const MOST_WAIT: Duration = Duration::from_secs(1);

/// What is sent at a visit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Round {
    /// One small packet: is it there at all?
    First,
    /// What pods need, and the underlay.
    Regular {
        /// Whether UDP is sent, too.
        udp: bool,
    },
    /// Everything that tells what is wrong.
    Thorough {
        /// An echo of this size is sent, too: the largest that passed.
        largest: Option<u32>,
    },
    /// Echoes of these sizes.
    Ladder(Vec<u32>),
}

/// What is known of one of the two ways to a peer.
#[derive(Debug, Clone, Default)]
pub(super) struct Way {
    /// The last round-trip time.
    pub(super) rtt: Option<Duration>,
    /// The smoothed round-trip time.
    smooth: Option<Duration>,
    /// When the last answer came.
    pub(super) last_answer: Option<SystemTime>,
    /// The last 32 small packets, the latest in the lowest bit: one that was lost is set.
    lost: u32,
    /// How many of these bits count.
    known: u8,
}

impl Way {
    /// An answer of any kind came.
    pub(super) fn answered(&mut self, rtt: Option<Duration>, wall: SystemTime) {
        self.last_answer = Some(wall);
        if let Some(rtt) = rtt {
            self.rtt = Some(rtt);
            self.smooth = Some(self.smooth.map_or(rtt, |smooth| (smooth * 7 + rtt) / 8));
        }
    }

    fn count(&mut self, answer: Answer) {
        if answer != Answer::Untried {
            self.lost = self.lost << 1 | u32::from(answer == Answer::No);
            self.known = (self.known + 1).min(32);
        }
    }

    /// How many percent of the last small packets were lost.
    pub(super) fn loss_percent(&self) -> u8 {
        let mask = if self.known == 32 { u32::MAX } else { (1 << self.known) - 1 };
        let lost = (self.lost & mask).count_ones() * 100;
        lost.checked_div(u32::from(self.known)).unwrap_or(0) as u8
    }
}

/// What a peer is taken for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mood {
    /// It was not visited yet.
    New,
    /// It answers.
    Calm,
    /// An answer is missing.
    Suspect(Box<Suspicion>),
}

/// Since when, and how it looks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Suspicion {
    since: Instant,
    candidate: Verdict,
    /// How many rounds in a row had this verdict.
    agreed: u32,
    /// The search for the largest packet that passes, while it goes on, and its result.
    ladder: Option<Ladder>,
    largest: Option<u32>,
    /// How many rounds there were since the verdict.
    rounds: u32,
}

impl Suspicion {
    fn new(since: Instant) -> Self {
        Self { since, candidate: Verdict::Untested, agreed: 0, ladder: None, largest: None, rounds: 0 }
    }
}

/// The way to one peer in one family.
#[derive(Debug, Clone)]
pub(super) struct Track {
    pub(super) overlay: Way,
    pub(super) underlay: Way,
    pub(super) verdict: Verdict,
    pub(super) evidence: Vec<String>,
    pub(super) since: SystemTime,
    mood: Mood,
    /// Regular visits so far.
    visits: u32,
    udp_every: u32,
}

impl Track {
    pub(super) fn new(now: SystemTime) -> Self {
        Self {
            overlay: Way::default(),
            underlay: Way::default(),
            verdict: Verdict::Untested,
            evidence: Vec::new(),
            since: now,
            mood: Mood::New,
            visits: 0,
            udp_every: UDP_EVERY,
        }
    }

    /// What to send at this visit.
    pub(super) fn round(&self) -> Round {
        match &self.mood {
            Mood::New => Round::First,
            Mood::Calm => Round::Regular { udp: self.visits.is_multiple_of(self.udp_every) },
            Mood::Suspect(suspicion) => match suspicion.ladder.and_then(Ladder::sizes) {
                Some(sizes) => Round::Ladder(sizes),
                None => Round::Thorough { largest: suspicion.largest },
            },
        }
    }

    /// How long to wait for answers.
    pub(super) fn patience(&self) -> Duration {
        let usual = self.overlay.smooth.max(self.underlay.smooth);
        usual.map_or(MOST_WAIT, |rtt| (rtt * 4).clamp(LEAST_WAIT, MOST_WAIT))
    }

    /// Whether something is wrong with it, or may be.
    #[cfg(test)]
    fn is_suspect(&self) -> bool {
        matches!(self.mood, Mood::Suspect(_))
    }

    /// Takes in the answers of a ladder's sizes. Returns when to go on.
    pub(super) fn climb(&mut self, sizes: &[u32], answered: impl Fn(u32) -> bool) -> Duration {
        if let Mood::Suspect(suspicion) = &mut self.mood {
            suspicion.ladder = suspicion.ladder.map(|ladder| ladder.climb(sizes, answered));
            if suspicion.ladder.is_some_and(|ladder| ladder.sizes().is_none()) {
                suspicion.largest = suspicion.ladder.take().map(Ladder::largest);
            }
        }
        Duration::ZERO
    }

    /// Takes in the answers of a round that was sent at `sent`. `at_largest` is that of the largest packet that passed
    /// before, `small` the size of a small one in bytes. Returns how long to wait for the next visit, where a regular
    /// one comes after `interval`, and one of a peer with a verdict against it not sooner than after `again` for long.
    pub(super) fn conclude(
        &mut self,
        round: &Round,
        mut found: Findings,
        (at_largest, small): (Answer, u32),
        (sent, now): (Instant, Instant),
        wall: SystemTime,
        (interval, again): (Duration, Duration),
    ) -> Duration {
        self.overlay.count(found.usual());
        self.underlay.count(found.under_echo);
        let is_first_look = !matches!(round, Round::Thorough { .. });
        if is_first_look {
            self.visits = self.visits.wrapping_add(1);
            if found.is_good() {
                return self.calm(wall, interval);
            }
            self.mood = Mood::Suspect(Box::new(Suspicion::new(sent)));
            return Duration::ZERO;
        }
        let mut suspicion = match std::mem::replace(&mut self.mood, Mood::Calm) {
            Mood::Suspect(suspicion) => suspicion,
            Mood::New | Mood::Calm => Box::new(Suspicion::new(sent)),
        };
        if at_largest == Answer::No && found.small == Answer::Yes {
            suspicion.largest = None;
        }
        found.largest = suspicion.largest;
        if found.lacks_largest() {
            suspicion.ladder = Some(Ladder::new(small, found.mtu));
            self.mood = Mood::Suspect(suspicion);
            return Duration::ZERO;
        }
        let (verdict, evidence) = judge(&found);
        if matches!(verdict, Verdict::Reachable | Verdict::Untested) {
            // Somebody filters UDP, or its answers.
            let is_mute = found.offloaded == Answer::No;
            self.udp_every = if is_mute { UDP_SELDOM } else { UDP_EVERY };
            return self.calm(wall, interval);
        }
        let is_same = verdict.severity() == suspicion.candidate.severity();
        suspicion.agreed = if is_same { suspicion.agreed + 1 } else { 1 };
        suspicion.candidate = verdict;
        let firm = if self.overlay.last_answer.is_some() { FIRM } else { FIRM_NEW };
        let is_sure = suspicion.agreed >= AGREED && now.saturating_duration_since(suspicion.since) >= firm;
        if is_sure {
            self.settle(verdict, evidence, wall);
        }
        let wait = if self.verdict.severity() == verdict.severity() {
            suspicion.rounds += 1;
            let longest = if verdict.is_trouble() { LONGEST } else { LONGEST_HARMLESS };
            let backoff = Duration::from_secs(1 << suspicion.rounds.min(16)) / 2;
            backoff.min(longest.max(again))
        } else {
            suspicion.rounds = 0;
            AGAIN
        };
        self.mood = Mood::Suspect(suspicion);
        wait
    }

    fn calm(&mut self, wall: SystemTime, interval: Duration) -> Duration {
        self.settle(Verdict::Reachable, Vec::new(), wall);
        self.mood = Mood::Calm;
        interval
    }

    fn settle(&mut self, verdict: Verdict, evidence: Vec<String>, wall: SystemTime) {
        if verdict.severity() != self.verdict.severity() {
            self.since = wall;
        }
        (self.verdict, self.evidence) = (verdict, evidence);
    }
}

#[cfg(test)]
mod tests {
    use super::Answer::{No, Untried, Yes};
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(1);

    /// A track with a clock that runs as the track says.
    struct Course {
        track: Track,
        now: Instant,
        /// The least time between visits of many peers that are not reached.
        again: Duration,
    }

    impl Course {
        fn new() -> Self {
            Self { track: Track::new(SystemTime::UNIX_EPOCH), now: Instant::now(), again: INTERVAL }
        }

        /// One visit, at which the network is like this.
        fn visit(&mut self, network: &Findings) -> Round {
            let round = self.track.round();
            let sent = self.now;
            self.now += self.track.patience();
            let wall = SystemTime::UNIX_EPOCH;
            let passes = |size: u32| network.small == Yes && size <= network.largest.unwrap_or(network.mtu);
            let wait = match &round {
                Round::Ladder(sizes) => self.track.climb(sizes, passes),
                Round::First | Round::Regular { .. } => {
                    let found =
                        Findings { software: Untried, tcp: Untried, largest: None, ..network.clone() };
                    self.track.conclude(
                        &round,
                        found,
                        (Untried, 52),
                        (sent, self.now),
                        wall,
                        (INTERVAL, self.again),
                    )
                }
                Round::Thorough { largest } => {
                    let at = largest.map_or(Untried, |size| if passes(size) { Yes } else { No });
                    let found = Findings { largest: None, ..network.clone() };
                    self.track.conclude(
                        &round,
                        found,
                        (at, 52),
                        (sent, self.now),
                        wall,
                        (INTERVAL, self.again),
                    )
                }
            };
            if network.small == Yes {
                self.track.overlay.answered(Some(Duration::from_micros(100)), wall);
            }
            self.now += wait;
            round
        }

        /// How long it takes until there is this verdict.
        fn until(&mut self, verdict: Verdict, network: &Findings) -> Duration {
            let (start, mut concluded) = (self.now, self.now);
            while self.track.verdict != verdict {
                concluded = self.now + self.track.patience();
                self.visit(network);
                assert!(self.now - start < Duration::from_secs(60), "{:?}", self.track);
            }
            concluded - start
        }
    }

    fn healthy() -> Findings {
        Findings { small: Yes, full: Yes, offloaded: Yes, under_echo: Yes, mtu: 1450, ..Findings::default() }
    }

    fn blocked() -> Findings {
        Findings { small: No, full: No, offloaded: No, node_answered: true, port: Some(8472), ..healthy() }
    }

    #[test]
    fn each_fault_of_a_peer_that_answered_is_named_within_four_seconds_and_its_end_in_six() {
        let hole = Findings { full: No, largest: Some(1350), ..healthy() };
        let offload = Findings { offloaded: No, software: Yes, ..healthy() };
        for (network, verdict) in [
            (blocked(), Verdict::TunnelBlocked),
            (hole, Verdict::MtuHole { at_most: 1350 }),
            (offload, Verdict::ChecksumOffload),
        ] {
            let mut course = Course::new();
            course.visit(&healthy());
            course.visit(&healthy());
            assert_eq!(course.track.verdict, Verdict::Reachable);
            // The fault comes right after a visit.
            let took = course.until(verdict, &network);
            assert!(took < Duration::from_secs(3), "{verdict}: {took:?}");
            assert!(!course.track.evidence.is_empty());
            (0..20).for_each(|_| _ = course.visit(&network));
            assert_eq!(course.track.verdict, verdict);
            let took = course.until(Verdict::Reachable, &healthy());
            assert!(took < Duration::from_secs(6), "{verdict}: {took:?}");
        }
    }

    #[test]
    fn one_of_many_that_are_not_reached_is_visited_as_seldom_as_their_number_asks_for() {
        for (again, longest) in [(INTERVAL, LONGEST), (Duration::from_secs(470), Duration::from_secs(470))] {
            let mut course = Course { again, ..Course::new() };
            course.visit(&healthy());
            (0..40).for_each(|_| _ = course.visit(&blocked()));
            let before = course.now;
            course.visit(&blocked());
            let gap = course.now - before;
            assert!((longest..=longest + MOST_WAIT).contains(&gap), "{again:?}: {gap:?}");
        }
    }

    #[test]
    fn a_lost_packet_and_a_short_interruption_are_no_verdict() {
        let mut course = Course::new();
        course.visit(&healthy());
        let start = course.now;
        while course.now - start < Duration::from_secs(1) {
            course.visit(&blocked());
            assert_eq!(course.track.verdict, Verdict::Reachable);
        }
        course.visit(&healthy());
        assert_eq!((course.track.verdict, course.track.is_suspect()), (Verdict::Reachable, false));
    }

    #[test]
    fn udp_that_nobody_answers_is_asked_for_seldom_and_is_no_verdict() {
        let mute = Findings { offloaded: No, software: No, ..healthy() };
        let mut course = Course::new();
        (0..8).for_each(|_| _ = course.visit(&mute));
        let rounds: Vec<_> = (0..64).map(|_| course.visit(&healthy())).collect();
        assert!(rounds.iter().filter(|round| **round == Round::Regular { udp: true }).count() <= 32);
        assert_eq!(course.track.verdict, Verdict::Reachable);
    }

    #[test]
    fn a_hole_that_gets_smaller_is_measured_again() {
        let hole = |at_most| Findings { full: No, largest: Some(at_most), ..healthy() };
        let mut course = Course::new();
        course.visit(&healthy());
        course.until(Verdict::MtuHole { at_most: 1350 }, &hole(1350));
        course.until(Verdict::MtuHole { at_most: 1200 }, &hole(1200));
    }

    #[test]
    fn loss_is_that_of_the_last_packets() {
        let mut way = Way::default();
        assert_eq!(way.loss_percent(), 0);
        way.count(No);
        way.count(Yes);
        way.count(Untried);
        assert_eq!(way.loss_percent(), 50);
        (0..40).for_each(|_| way.count(No));
        assert_eq!(way.loss_percent(), 100);
        (0..8).for_each(|_| way.count(Yes));
        assert_eq!(way.loss_percent(), 75);
    }
}
