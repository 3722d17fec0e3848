//! The course of one peer, on a clock that runs as the track says.

use super::Answer::{No, Untried, Yes};
use super::*;

const INTERVAL: Duration = Duration::from_secs(1);

/// A track with a clock that runs as the track says.
struct Course {
    track: Track,
    now: Instant,
    gaps: Gaps,
}

impl Course {
    fn new() -> Self {
        let gaps = Gaps { regular: INTERVAL, unreached: INTERVAL, thorough: Duration::ZERO };
        Self { track: Track::new(SystemTime::UNIX_EPOCH), now: Instant::now(), gaps }
    }

    /// One visit, at which the network is like this.
    fn visit(&mut self, network: &Findings) -> Round {
        let round = self.track.round();
        let sent = self.now;
        self.now += self.track.patience();
        let wall = SystemTime::UNIX_EPOCH;
        let passes = |size: u32| network.small == Yes && size <= network.largest.unwrap_or(network.mtu);
        let at = |size: u32| if passes(size) { Yes } else { No };
        let all = Findings { largest: None, ..network.clone() };
        let answers = match &round {
            Round::Ladder(_) => None,
            Round::First | Round::Regular { .. } => {
                let has_udp = round == Round::Regular { udp: true };
                let offloaded = if has_udp { all.offloaded } else { Untried };
                Some((Findings { offloaded, software: Untried, tcp: Untried, ..all }, Untried))
            }
            Round::Watch(kinds) => Some(watch(kinds, &all, at)),
            Round::Thorough { largest } => Some((all, largest.map_or(Untried, at))),
        };
        if network.small == Yes {
            // What is sent to a peer that comes back waits for its address first.
            let rtt =
                if self.track.is_suspect() { Duration::from_millis(900) } else { Duration::from_micros(100) };
            self.track.answered(false, Some(rtt), wall);
        }
        let wait = match (&round, answers) {
            (Round::Ladder(sizes), _) => self.track.climb(sizes, passes),
            (_, Some((found, at_largest))) => {
                self.track.conclude(&round, found, (at_largest, 52), (sent, self.now), wall, self.gaps)
            }
            (_, None) => unreachable!("only a ladder is climbed"),
        };
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

/// The answers to a round that only watches.
fn watch(kinds: &[Kind], network: &Findings, at: impl Fn(u32) -> Answer) -> (Findings, Answer) {
    let (mut found, mut at_largest) = (Findings { mtu: network.mtu, ..Findings::default() }, Untried);
    for kind in kinds {
        match (*kind, found.of_kind(*kind), network.answer(*kind)) {
            (_, Some(place), Some(answer)) => *place = answer,
            (Kind::AtLargest(size), ..) => at_largest = at(size),
            (kind, ..) => panic!("{kind:?} watches nothing"),
        }
    }
    (found, at_largest)
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

/// A tunnel in whose way something drops what this node sends is left at once, one whose answers are lost isn't: the peer leaves
/// it. The detour has the same time to prove itself.
#[test]
fn a_blocked_tunnel_is_proven_in_less_than_three_seconds() {
    let sideways = Findings { sideways: Yes, ..blocked() };
    for (network, is_ours) in
        [(blocked(), true), (Findings { closed: Yes, ..blocked() }, true), (sideways, false)]
    {
        let mut course = Course::new();
        course.visit(&healthy());
        course.visit(&healthy());
        let start = course.now;
        while !course.track.is_blocked(false) && course.now - start < Duration::from_secs(10) {
            course.visit(&network);
        }
        assert_eq!(course.track.is_blocked(false), is_ours, "{network:?}");
        assert!(!is_ours || course.now - start < Duration::from_secs(3), "{:?}", course.now - start);
        assert!(course.track.is_blocked(true), "no way is a better one");

        course.track.redirected();
        assert!(!course.track.is_blocked(true), "nothing is known of the other way yet");
        let detour = Findings { detour: Some("udp".to_owned()), ..healthy() };
        course.until(Verdict::Bridged, &detour);
        assert!(course.track.evidence.join(", ").contains("packets travel by udp"));
        (0..20).for_each(|_| _ = course.visit(&detour));
        assert_eq!(course.track.verdict, Verdict::Bridged);
        course.until(Verdict::Reachable, &healthy());
    }
}

#[test]
fn one_of_many_that_are_not_reached_is_visited_as_seldom_as_their_number_asks_for() {
    for (unreached, longest) in [(INTERVAL, LONGEST), (Duration::from_secs(470), Duration::from_secs(470))] {
        let mut course = Course::new();
        course.gaps.unreached = unreached;
        course.visit(&healthy());
        (0..40).for_each(|_| _ = course.visit(&blocked()));
        let before = course.now;
        course.visit(&blocked());
        let gap = course.now - before;
        assert!((longest..=longest + MOST_WAIT).contains(&gap), "{unreached:?}: {gap:?}");
    }
}

/// Of many peers that are not reached most rounds only watch, that which confirms the verdict among them. What changes is named
/// all the same after a thorough round and another, and what comes back in the next one.
#[test]
fn one_of_many_is_watched_and_its_changes_are_noticed_at_once() {
    let hole = Findings { full: No, largest: Some(1350), ..healthy() };
    let offload = Findings { offloaded: No, software: Yes, ..healthy() };
    for (network, verdict) in [
        (blocked(), Verdict::TunnelBlocked),
        (hole, Verdict::MtuHole { at_most: 1350 }),
        (offload, Verdict::ChecksumOffload),
    ] {
        let mut course = Course::new();
        course.gaps.thorough = Duration::from_secs(60);
        course.visit(&healthy());
        course.until(verdict, &network);
        let rounds: Vec<_> = (0..60).map(|_| course.visit(&network)).collect();
        let thorough = rounds.iter().filter(|round| matches!(round, Round::Thorough { .. })).count();
        let watching = rounds.iter().filter(|round| matches!(round, Round::Watch(_))).count();
        assert!((3..=7).contains(&thorough) && watching >= 50, "{verdict}: {thorough} and {watching}");
        assert_eq!(course.track.verdict, verdict);
        assert_eq!(course.track.overlay.loss_percent(), if network.small == Yes { 0 } else { 100 });
        let dead = Findings { under_echo: No, under_udp: No, closed: No, ..blocked() };
        let took = course.until(Verdict::PeerDead, &Findings { small: No, full: No, ..dead });
        assert!(took < Duration::from_secs(9), "{verdict}: {took:?}");
        (0..20).for_each(|_| _ = course.visit(&blocked()));
        let took = course.until(Verdict::Reachable, &healthy());
        assert!(took < Duration::from_secs(7), "{verdict}: {took:?}");
    }
}

#[test]
fn a_hole_that_gets_smaller_is_noticed_while_it_is_watched() {
    let hole = |at_most| Findings { full: No, largest: Some(at_most), ..healthy() };
    let mut course = Course::new();
    course.gaps.thorough = Duration::from_secs(600);
    course.visit(&healthy());
    course.until(Verdict::MtuHole { at_most: 1350 }, &hole(1350));
    (0..20).for_each(|_| _ = course.visit(&hole(1350)));
    course.until(Verdict::MtuHole { at_most: 1200 }, &hole(1200));
}

/// Late answers of a peer that comes back make the next fault no later to name.
#[test]
fn how_long_a_peer_took_to_come_back_is_not_waited_for_later() {
    let hole = Findings { full: No, largest: Some(1350), ..healthy() };
    let mut course = Course::new();
    for _ in 0..20 {
        course.visit(&healthy());
        course.until(Verdict::TunnelBlocked, &blocked());
        course.until(Verdict::Reachable, &healthy());
    }
    let took = course.until(Verdict::MtuHole { at_most: 1350 }, &hole);
    assert!(took < Duration::from_secs(4), "{took:?}");
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
    let mut visit =
        |network| (0..128).filter(|_| course.visit(network) == Round::Regular { udp: true }).count();
    assert!((1..=4).contains(&visit(&mute)));
    assert!((48..=64).contains(&visit(&healthy())), "it is answered again");
    assert_eq!(course.track.verdict, Verdict::Reachable);
}

/// A kernel sends one error a second to each host, while rounds come faster.
#[test]
fn a_closed_tunnel_is_named_although_every_other_answer_is_missing() {
    for first in [Yes, No] {
        let mut course = Course::new();
        course.visit(&healthy());
        let (start, mut closed) = (course.now, first);
        while course.track.verdict != Verdict::TunnelClosed {
            let is_thorough = matches!(course.track.round(), Round::Thorough { .. });
            course.visit(&Findings { closed, ..blocked() });
            if is_thorough {
                closed = if closed == Yes { No } else { Yes };
            }
            assert_ne!(course.track.verdict, Verdict::TunnelBlocked);
            assert!(course.now - start < Duration::from_secs(4), "{:?}", course.track);
        }
    }
}

/// A fault that comes and goes uses up what errors the peer's kernel may send, so that at its end none of them comes.
#[test]
fn answers_to_udp_that_run_out_make_the_next_fault_no_later_to_name() {
    let offload = Findings { offloaded: No, software: Yes, ..healthy() };
    let run_out = Findings { offloaded: No, software: No, ..healthy() };
    let mut course = Course::new();
    course.visit(&healthy());
    for missing in [1, 2] {
        course.until(Verdict::ChecksumOffload, &offload);
        (0..missing).for_each(|_| _ = course.visit(&run_out));
        course.until(Verdict::Reachable, &healthy());
        let took = course.until(Verdict::ChecksumOffload, &offload);
        assert!(took < Duration::from_secs(5), "{missing}: {took:?}");
        // In the rounds until then one answer in three comes.
        course.until(Verdict::Reachable, &healthy());
        let start = course.now;
        for round in 0.. {
            if course.track.verdict == Verdict::ChecksumOffload {
                break;
            }
            course.visit(if round % 3 == 1 { &offload } else { &run_out });
            assert!(course.now - start < Duration::from_secs(6), "{:?}", course.track);
        }
    }
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
