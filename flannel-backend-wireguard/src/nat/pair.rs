//! One peer of a pair of which at least one is behind a NAT: where it is tried, how often packets keep the way open, and
//! whether a relay carries its packets. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::key::PublicKey;
use crate::plan::{STALE, Wish};
use crate::rotation::CONTROL;

/// Seconds between packets that keep a NAT's mapping, if the config has none: NATs forget one after 30 s or more.
const KEEPALIVE: u16 = 25;
/// Seconds between such packets while pods use the session, so that one is back soon after a NAT has forgotten it. They are sent
/// only when nothing else was.
pub(crate) const FAST: u16 = 2;
/// For how long after the last packet of pods a session counts as used.
const IN_USE: Duration = Duration::from_secs(30);
/// A peer that was heard from within this time is where it was, however old the last handshake is.
const HEARD: Duration = Duration::from_secs(60);
/// A peer that pods send to and that says nothing for this time is asked whether it is there. With the looks, each half a second, and
/// the questions a mapping that a NAT lost is noticed within 5 s.
const SILENT: Duration = Duration::from_secs(1);
/// So many questions without an answer mean that a peer is lost.
pub(crate) const MISSES: u32 = 4;
/// How long an endpoint is tried: two handshake messages, 5 s apart (`REKEY_TIMEOUT`).
const SLOT: Duration = Duration::from_secs(11);
/// How long a peer is tried before a relay carries its packets.
const PATIENCE: Duration = Duration::from_secs(7);
/// How long after a handshake both ends leave the relay. Each knows that moment to half a round trip.
const SETTLE: Duration = Duration::from_secs(2);
/// For how long a relayed peer is tried each time. Both ends try at the same time by their clocks, since a NAT is open only for
/// a short while.
const WINDOW: u64 = 20;

/// What is known of a peer at a look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    /// Whether this node is behind a NAT.
    pub(crate) we_are_behind: bool,
    /// Whether the peer is.
    pub(crate) it_is_behind: bool,
    /// Where other nodes see this node.
    pub(crate) we_are_seen: &'a [SocketAddr],
    /// Where other nodes see the peer, the most likely first.
    pub(crate) it_is_seen: &'a [SocketAddr],
    /// Where the peer says that it receives.
    pub(crate) published: SocketAddr,
    /// How long ago the last handshake was.
    pub(crate) handshake: Option<Duration>,
    /// Bytes sent and received.
    pub(crate) bytes: (u64, u64),
    /// How many of the bytes since the last look are those of our own questions and of their answers.
    pub(crate) of_questions: (u64, u64),
    /// How many of the last questions whether it is there it did not answer.
    pub(crate) misses: u32,
    /// The relay that both ends would take.
    pub(crate) relay: Option<PublicKey>,
    /// Seconds of the config's keepalive, 0 for none.
    pub(crate) keepalive: u16,
}

impl View<'_> {
    /// Whether only a relay, or both ends at once, can make a way between the two.
    pub(crate) fn are_both_behind(&self) -> bool {
        self.we_are_behind && self.it_is_behind
    }

    /// Where the peer may be, in the order in which it is tried. Two nodes behind one NAT reach each other inside.
    fn places(&self) -> Vec<SocketAddr> {
        let is_same_nat =
            self.it_is_seen.iter().any(|at| self.we_are_seen.iter().any(|our| our.ip() == at.ip()));
        let mut places = self.it_is_seen.to_vec();
        places.insert(if is_same_nat { 0 } else { places.len() }, self.published);
        places
    }

    /// Whether neither end can know by which port the other one's packets will come.
    fn is_hopeless(&self) -> bool {
        is_symmetric(self.we_are_seen) && is_symmetric(self.it_is_seen)
    }
}

/// Whether a NAT takes another port for each destination: nodes that look from several places see several.
fn is_symmetric(seen: &[SocketAddr]) -> bool {
    seen.iter().any(|one| seen.iter().any(|other| one.ip() == other.ip() && one.port() != other.port()))
}

/// What is remembered of a peer from one look to the next.
#[derive(Debug)]
pub(crate) struct Pair {
    phase: Phase,
    bytes: (u64, u64),
    /// When it was heard from last.
    heard: Option<Instant>,
    /// When packets of pods were last carried in some direction.
    used: Option<Instant>,
    /// Since when something was sent to which it did not answer.
    waits: Option<Instant>,
    /// Where it was tried last.
    at: Option<SocketAddr>,
    places: Vec<SocketAddr>,
    /// Since when these places are tried.
    tried: Instant,
}

/// By which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Straight: it was heard from.
    Straight,
    /// Straight, to one place after the other.
    Trying { since: Instant, is_lost: bool },
    /// By a relay.
    Relayed { relay: PublicKey, since: Instant },
}

impl Pair {
    /// A peer of which nothing is known yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Trying { since: now, is_lost: false },
            bytes: (0, 0),
            heard: None,
            used: None,
            waits: None,
            at: None,
            places: Vec::new(),
            tried: now,
        }
    }

    /// Whether it should be asked, after this look, whether it is there.
    pub(crate) fn is_doubtful(&self, now: Instant) -> bool {
        self.is_straight()
            && self.is_used(now)
            && self.waits.is_some_and(|since| now.saturating_duration_since(since) >= SILENT)
    }

    /// Whether its packets go straight, and it was heard from.
    pub(crate) fn is_straight(&self) -> bool {
        self.phase == Phase::Straight
    }

    /// Whether pods use the session.
    pub(crate) fn is_used(&self, now: Instant) -> bool {
        self.used.is_some_and(|used| now.saturating_duration_since(used) < IN_USE)
    }

    /// Takes what a look found. Returns what is to be done with the peer. `unix` are seconds since 1970.
    pub(crate) fn step(&mut self, view: &View<'_>, now: Instant, unix: u64) -> Wish {
        let was_heard = self.count(view, now);
        self.phase = self.next(view, was_heard, now);
        let places = view.places();
        if places != self.places {
            (self.places, self.tried) = (places, now);
        }
        let (is_used, is_met) = (self.is_used(now), self.is_met(view, now));
        let is_window = self.is_window(view, now, unix);
        let slow = if view.keepalive == 0 { KEEPALIVE } else { view.keepalive };
        let keepalive = match self.phase {
            Phase::Relayed { .. } if !is_window && !is_met => Some(0),
            _ if !view.we_are_behind => None,
            _ if is_used || matches!(self.phase, Phase::Relayed { .. }) => Some(FAST.min(slow)),
            _ => Some(slow),
        };
        let place = match self.phase {
            Phase::Trying { .. } => {
                Some(now.saturating_duration_since(self.tried).as_secs() / SLOT.as_secs())
            }
            // Both ends take the same one, by their clocks.
            Phase::Relayed { .. } if is_window && !is_met => Some(unix / 60 + unix / 10),
            Phase::Straight | Phase::Relayed { .. } => None,
        };
        if let Some(number) = place {
            // There is always the published one.
            self.at = self.places.get(number as usize % self.places.len().max(1)).copied();
        }
        let (relay, is_lost) = match self.phase {
            Phase::Straight => (None, false),
            Phase::Trying { is_lost, .. } => (None, is_lost),
            Phase::Relayed { relay, .. } => (Some(relay), !is_met),
        };
        Wish { keepalive, at: self.at, is_lost, relay, is_nat: true }
    }

    /// Counts what was carried. Returns whether something came.
    fn count(&mut self, view: &View<'_>, now: Instant) -> bool {
        let (sent, received) = view.bytes;
        // What a new device counts begins at 0.
        let more = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        let is_first = self.heard.is_none() && self.bytes == (0, 0);
        let (sent, received) = (more(sent, self.bytes.0), more(received, self.bytes.1));
        self.bytes = view.bytes;
        if is_first {
            // What was carried before nobody knows when.
            return false;
        }
        let is_pods = |bytes: u64, of_questions| {
            let bytes = bytes.saturating_sub(of_questions);
            bytes > 0 && !CONTROL.contains(&bytes)
        };
        if is_pods(sent, view.of_questions.0) || is_pods(received, view.of_questions.1) {
            self.used = Some(now);
        }
        if received > 0 {
            (self.heard, self.waits) = (Some(now), None);
        } else if sent > 0 {
            self.waits.get_or_insert(now);
        }
        received > 0
    }

    fn next(&self, view: &View<'_>, was_heard: bool, now: Instant) -> Phase {
        let since = |at: Instant| now.saturating_duration_since(at);
        let is_fresh = view.handshake.is_some_and(|ago| ago <= STALE);
        let is_proven =
            is_fresh || view.handshake.is_some() && self.heard.is_some_and(|at| since(at) < HEARD);
        let relay = view.relay.filter(|_| view.are_both_behind());
        let relayed = |since| relay.map(|relay| Phase::Relayed { relay, since });
        match self.phase {
            Phase::Straight if view.misses >= MISSES && view.are_both_behind() => {
                relayed(now).unwrap_or(Phase::Trying { since: now, is_lost: true })
            }
            Phase::Straight if is_proven => Phase::Straight,
            Phase::Straight => Phase::Trying { since: now, is_lost: false },
            Phase::Trying { is_lost: false, .. } if is_proven => Phase::Straight,
            Phase::Trying { is_lost: true, .. } if is_proven && was_heard => Phase::Straight,
            Phase::Trying { since: at, is_lost } => {
                let is_time = is_lost || since(at) >= PATIENCE || view.is_hopeless();
                let relayed = relayed(now).filter(|_| is_time);
                relayed.unwrap_or(self.phase)
            }
            // Both ends leave the relay at the same moment.
            Phase::Relayed { .. } if is_fresh && self.is_met(view, now) && view.handshake >= Some(SETTLE) => {
                Phase::Straight
            }
            Phase::Relayed { since: at, .. } => match relay {
                Some(relay) => Phase::Relayed { relay, since: at },
                None => Phase::Trying { since: now, is_lost: true },
            },
        }
    }

    /// Whether there was a handshake with a relayed peer since it is relayed.
    fn is_met(&self, view: &View<'_>, now: Instant) -> bool {
        let Phase::Relayed { since, .. } = self.phase else { return false };
        view.handshake.is_some_and(|ago| ago < now.saturating_duration_since(since))
    }

    /// How long until a relayed peer leaves the relay, after a handshake with it.
    pub(crate) fn leaves_in(&self, view: &View<'_>, now: Instant) -> Option<Duration> {
        let ago = view.handshake.filter(|_| self.is_met(view, now))?;
        SETTLE.checked_sub(ago)
    }

    /// Whether a relayed peer is tried now: once a minute at first, and at last each quarter of an hour.
    fn is_window(&self, view: &View<'_>, now: Instant, unix: u64) -> bool {
        let Phase::Relayed { since, .. } = self.phase else { return false };
        let minutes = match now.saturating_duration_since(since).as_secs() {
            ..300 => 1,
            300..1800 => 4,
            _ => 16,
        };
        !view.is_hopeless() && unix % (60 * minutes) < WINDOW
    }
}

#[cfg(test)]
mod tests;
