//! What is known of the way to one peer in one family, and what to do next. Pure: time is an argument.
//!
//! A peer that answers gets a regular visit now and then. One missing answer makes it suspect: it gets thorough rounds
//! soon one after the other, and a verdict once two of them agree and some time has passed, so that a lost packet or a
//! short interruption is none. With a verdict against it the rounds become rare, and where there are many such peers most
//! of them only watch whether it may be over.

#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::kind::Kind;
use super::ladder::Ladder;
use super::pace::Gaps;
use super::status::Verdict;
use super::verdict::{Answer, Findings, judge};
use super::watch::{stands, watched};
use crate::times::Micros;

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
/// How long after an ICMP error the next one may be missing by that limit, and so says nothing.
const ERRORS_APART: Duration = Duration::from_millis(1500);
/// How long after the last answer to UDP silence about it may come from that limit, how often it is then asked again, and when:
/// by then the peer's kernel may send another error.
const UDP_LATELY: Duration = Duration::from_secs(60);
const UDP_RETRIES: u32 = 3;
const UDP_AGAIN: Duration = Duration::from_millis(800);
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
    /// What shows that the verdict against it may be over.
    Watch(Vec<Kind>),
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
    rtt: Option<Micros>,
    /// The smoothed round-trip time.
    smooth: Option<Micros>,
    /// When the last answer came.
    pub(super) last_answer: Option<SystemTime>,
    /// The last 32 small packets, the latest in the lowest bit: one that was lost is set.
    lost: u32,
    /// How many of these bits count.
    known: u8,
}

impl Way {
    /// The last round-trip time.
    pub(super) fn rtt(&self) -> Option<Micros> {
        self.rtt
    }

    /// An answer of any kind came. `is_usual` says whether its time is one to go by.
    fn answered(&mut self, rtt: Option<Duration>, is_usual: bool, wall: SystemTime) {
        self.last_answer = Some(wall);
        let Some(rtt) = rtt else { return };
        self.rtt = Some(rtt.into());
        if is_usual {
            let smooth = self.smooth.map_or(rtt, |smooth| (Duration::from(smooth) * 7 + rtt) / 8);
            self.smooth = Some(smooth.into());
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
    /// What the last thorough round found, if the next round only watches.
    watches: Option<Findings>,
    /// When the last thorough round was sent.
    thorough: Instant,
    /// When the last one was sent in which the peer's kernel said that the tunnel's port is closed, and in which it answered UDP
    /// with a checksum by this node's kernel.
    closed: Option<Instant>,
    software: Option<Instant>,
    /// How many thorough rounds had an answer to all but UDP, although UDP was answered lately.
    mute: u32,
}

impl Suspicion {
    fn new(since: Instant) -> Self {
        Self {
            since,
            candidate: Verdict::Untested,
            agreed: 0,
            ladder: None,
            largest: None,
            rounds: 0,
            watches: None,
            thorough: since,
            closed: None,
            software: None,
            mute: 0,
        }
    }
}

impl Suspicion {
    /// How long to wait for the next round of a peer with this verdict.
    fn back_off(&mut self, verdict: Verdict, gaps: Gaps) -> Duration {
        self.rounds += 1;
        let longest = if verdict.is_trouble() { LONGEST } else { LONGEST_HARMLESS };
        let backoff = Duration::from_secs(1 << self.rounds.min(16)) / 2;
        backoff.max(gaps.unreached / 4).min(longest.max(gaps.unreached))
    }

    /// Some answers are errors, and each packet asks for one, so that next to none of them is answered: one that was counts for
    /// the rounds right after it, too.
    fn remember_errors(&mut self, found: &mut Findings, sent: Instant) {
        let is_late =
            |at: Option<Instant>| at.is_some_and(|at| sent.saturating_duration_since(at) < ERRORS_APART);
        match found.closed {
            Answer::Yes => self.closed = Some(sent),
            Answer::No if is_late(self.closed) => {
                (found.closed, found.under_udp) = (Answer::Yes, Answer::Yes);
            }
            Answer::No | Answer::Untried => {}
        }
        match found.software {
            Answer::Yes => self.software = Some(sent),
            // Only beside another answer: that says that the overlay carries packets still.
            Answer::No if found.small == Answer::Yes && is_late(self.software) => {
                found.software = Answer::Yes;
            }
            Answer::No | Answer::Untried => {}
        }
    }

    /// Whether it is too soon for a thorough round at this time. Before there is a verdict only many other peers make it so.
    fn may_watch(&self, next: Instant, is_settled: bool, gaps: Gaps) -> bool {
        (is_settled || gaps.thorough > LONGEST) && next < self.thorough + gaps.thorough
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
    /// When UDP through the overlay was sent last that was answered.
    udp_answered: Option<Instant>,
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
            udp_answered: None,
        }
    }

    /// What to send at this visit.
    pub(super) fn round(&self) -> Round {
        match &self.mood {
            Mood::New => Round::First,
            Mood::Calm => Round::Regular { udp: self.visits.is_multiple_of(self.udp_every) },
            Mood::Suspect(suspicion) => {
                match (suspicion.ladder.and_then(Ladder::sizes), &suspicion.watches) {
                    (Some(sizes), _) => Round::Ladder(sizes),
                    (None, Some(seen)) => {
                        Round::Watch(watched(suspicion.candidate, seen, self.overlay.rtt.is_some()))
                    }
                    (None, None) => Round::Thorough { largest: suspicion.largest },
                }
            }
        }
    }

    /// An answer of any kind came by one of the two ways.
    pub(super) fn answered(&mut self, is_underlay: bool, rtt: Option<Duration>, wall: SystemTime) {
        // To a peer that comes back the first packets wait for its address on the link, up to a second. Who took that for usual
        // would wait so long for each lost packet of the next fault.
        let is_usual = !matches!(self.mood, Mood::Suspect(_));
        let way = if is_underlay { &mut self.underlay } else { &mut self.overlay };
        way.answered(rtt, is_usual, wall);
    }

    /// How long to wait for answers.
    pub(super) fn patience(&self) -> Duration {
        let usual = self.overlay.smooth.max(self.underlay.smooth);
        usual.map_or(MOST_WAIT, |rtt| (Duration::from(rtt) * 4).clamp(LEAST_WAIT, MOST_WAIT))
    }

    /// Whether it is proven that nothing gets through to its pods, although its node answers. Through its own tunnel only a packet
    /// that did not arrive counts: one whose answer is lost is for the peer to send by another way.
    pub(super) fn is_blocked(&self, has_detour: bool) -> bool {
        let Mood::Suspect(suspicion) = &self.mood else { return false };
        let is_lost = match suspicion.candidate {
            Verdict::TunnelBlocked | Verdict::TunnelClosed | Verdict::Unsent => true,
            Verdict::ReturnPath | Verdict::RecordStale => has_detour,
            _ => false,
        };
        is_lost && suspicion.agreed >= AGREED
    }

    /// Packets to it take another way from now on, of which nothing is proven yet.
    pub(super) fn redirected(&mut self) {
        if let Mood::Suspect(suspicion) = &mut self.mood {
            (suspicion.candidate, suspicion.agreed, suspicion.watches) = (Verdict::Untested, 0, None);
            (suspicion.ladder, suspicion.largest) = (None, None);
        }
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
    /// before, `small` the size of a small one in bytes. Returns how long to wait for the next visit.
    pub(super) fn conclude(
        &mut self,
        round: &Round,
        mut found: Findings,
        (at_largest, small): (Answer, u32),
        (sent, now): (Instant, Instant),
        wall: SystemTime,
        gaps: Gaps,
    ) -> Duration {
        self.overlay.count(found.usual());
        self.underlay.count(found.under_echo);
        if found.offloaded == Answer::Yes || found.software == Answer::Yes {
            (self.udp_answered, self.udp_every) = (Some(sent), UDP_EVERY);
        }
        if let Round::Watch(kinds) = round {
            return self.watch(kinds, &found, at_largest, now, wall, gaps);
        }
        let is_first_look = !matches!(round, Round::Thorough { .. });
        if is_first_look {
            self.visits = self.visits.wrapping_add(1);
            if found.is_good() {
                return self.calm(judge(&found), wall, gaps);
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
        suspicion.thorough = sent;
        suspicion.remember_errors(&mut found, sent);
        found.silent_seconds = now.saturating_duration_since(suspicion.since).as_secs();
        if found.lacks_largest() {
            suspicion.ladder = Some(Ladder::new(small, found.mtu));
            self.mood = Mood::Suspect(suspicion);
            return Duration::ZERO;
        }
        let judged @ (verdict, _) = judge(&found);
        if matches!(verdict, Verdict::Reachable | Verdict::Bridged | Verdict::Untested) {
            let is_mute = found.offloaded == Answer::No;
            let is_lately = |at| sent.saturating_duration_since(at) < UDP_LATELY;
            if is_mute && suspicion.mute < UDP_RETRIES && self.udp_answered.is_some_and(is_lately) {
                suspicion.mute += 1;
                self.mood = Mood::Suspect(suspicion);
                return UDP_AGAIN;
            }
            if is_mute {
                // Somebody filters UDP, or its answers.
                self.udp_every = UDP_SELDOM;
            }
            return self.calm(judged, wall, gaps);
        }
        self.suspect(suspicion, found, judged, now, wall, gaps)
    }

    /// Takes in the answers of a round that only watched.
    fn watch(
        &mut self,
        kinds: &[Kind],
        found: &Findings,
        at_largest: Answer,
        now: Instant,
        wall: SystemTime,
        gaps: Gaps,
    ) -> Duration {
        let Mood::Suspect(mut suspicion) = std::mem::replace(&mut self.mood, Mood::Calm) else {
            return Duration::ZERO;
        };
        let seen = suspicion.watches.take();
        let Some(seen) = seen.filter(|seen| stands(kinds, seen, found, at_largest)) else {
            self.mood = Mood::Suspect(suspicion);
            return Duration::ZERO;
        };
        let judged = judge(&seen);
        self.suspect(suspicion, seen, judged, now, wall, gaps)
    }

    /// Goes on with a suspicion after a round that found this, or that confirmed it.
    fn suspect(
        &mut self,
        mut suspicion: Box<Suspicion>,
        found: Findings,
        (verdict, evidence): (Verdict, Vec<String>),
        now: Instant,
        wall: SystemTime,
        gaps: Gaps,
    ) -> Duration {
        suspicion.mute = 0;
        let is_same = verdict.severity() == suspicion.candidate.severity();
        suspicion.agreed = if is_same { suspicion.agreed + 1 } else { 1 };
        suspicion.candidate = verdict;
        let firm = if self.overlay.last_answer.is_some() { FIRM } else { FIRM_NEW };
        let is_sure = suspicion.agreed >= AGREED && now.saturating_duration_since(suspicion.since) >= firm;
        if is_sure {
            self.settle(verdict, evidence, wall);
        }
        let is_settled = self.verdict.severity() == verdict.severity();
        let wait = if is_settled {
            suspicion.back_off(verdict, gaps)
        } else {
            suspicion.rounds = 0;
            AGAIN
        };
        suspicion.watches = suspicion.may_watch(now + wait, is_settled, gaps).then_some(found);
        self.mood = Mood::Suspect(suspicion);
        wait
    }

    fn calm(
        &mut self,
        (verdict, evidence): (Verdict, Vec<String>),
        wall: SystemTime,
        gaps: Gaps,
    ) -> Duration {
        self.mood = Mood::Calm;
        if verdict == Verdict::Bridged {
            self.settle(verdict, evidence, wall);
            return gaps.unreached;
        }
        self.settle(Verdict::Reachable, Vec::new(), wall);
        gaps.regular
    }

    fn settle(&mut self, verdict: Verdict, evidence: Vec<String>, wall: SystemTime) {
        if verdict.severity() != self.verdict.severity() {
            self.since = wall;
        }
        (self.verdict, self.evidence) = (verdict, evidence);
    }
}
