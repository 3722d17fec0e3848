use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn at(n: u8, port: u16) -> SocketAddr {
    SocketAddr::new([198, 51, 100, n].into(), port)
}

fn key(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

fn published() -> SocketAddr {
    at(200, 51820)
}

/// A peer behind a NAT that was never heard from, of a node behind one.
fn view() -> View<'static> {
    View {
        we_are_behind: true,
        it_is_behind: true,
        we_are_seen: &[],
        it_is_seen: &[],
        published: published(),
        handshake: None,
        bytes: (0, 0),
        of_questions: (0, 0),
        misses: 0,
        relay: None,
        keepalive: 0,
    }
}

/// A pair at a time that a test moves on.
struct Bench {
    pair: Pair,
    begin: Instant,
    seconds: u64,
}

impl Bench {
    fn new() -> Self {
        let begin = Instant::now();
        Self { pair: Pair::new(begin), begin, seconds: 0 }
    }

    fn now(&self) -> Instant {
        self.begin + seconds(self.seconds)
    }

    /// A look so many seconds later. The wall clock begins with a minute.
    fn look(&mut self, later: u64, view: &View<'_>) -> Wish {
        self.seconds += later;
        self.pair.step(view, self.now(), self.seconds)
    }

    /// A pair that is heard from.
    fn straight() -> Self {
        let mut bench = Self::new();
        let view = View { handshake: Some(SECOND), bytes: (148, 92), ..view() };
        bench.look(1, &view);
        assert!(bench.pair.is_straight());
        bench
    }
}

#[test]
fn each_place_is_tried_and_inside_of_one_nat_the_inner_one_first() {
    let (seen, ours, elsewhere) = ([at(1, 51820), at(2, 7)], [at(1, 9)], [at(9, 9)]);
    for (ours, first) in
        [(&ours, [published(), at(1, 51820), at(2, 7)]), (&elsewhere, [at(1, 51820), at(2, 7), published()])]
    {
        let mut bench = Bench::new();
        let view = View { we_are_seen: ours, it_is_seen: &seen, ..view() };
        let slot = SLOT.as_secs();
        let mut tried = vec![bench.look(0, &view).at];
        tried.extend((0..3).map(|_| bench.look(slot, &view).at));
        let want = [first[0], first[1], first[2], first[0]].map(Some);
        assert_eq!(tried, want);
    }
}

#[test]
fn who_was_heard_from_stays_where_it_is() {
    let seen = [at(1, 51820)];
    let mut bench = Bench::new();
    let trying = View { it_is_seen: &seen, ..view() };
    assert_eq!(bench.look(1, &trying).at, Some(seen[0]));
    // Another node sees it elsewhere now.
    let other = [at(3, 3)];
    let met = View { it_is_seen: &other, handshake: Some(SECOND), bytes: (148, 92), ..view() };
    let wish = bench.look(1, &met);
    assert_eq!((wish.at, wish.is_lost, wish.relay), (Some(seen[0]), false, None));
    assert_eq!(Bench::straight().pair.at, None, "an earlier run wrote what it knew");
}

#[test]
fn packets_keep_a_mapping_and_more_often_while_pods_use_it() {
    let mut bench = Bench::straight();
    let handshake = Some(SECOND);
    let quiet = View { handshake, bytes: (148, 92), ..view() };
    assert_eq!(bench.look(1, &quiet).keepalive, Some(KEEPALIVE));
    let own = View { handshake, bytes: (148 + 32, 92), ..view() };
    assert_eq!(bench.look(1, &own).keepalive, Some(KEEPALIVE), "a keepalive is no packet of pods");
    let asked = View { handshake, bytes: (148 + 32 + 80, 92 + 80), of_questions: (80, 80), ..view() };
    assert_eq!(bench.look(1, &asked).keepalive, Some(KEEPALIVE), "nor is a question of ours");
    let used = View { handshake, bytes: (999, 92), ..view() };
    assert_eq!(bench.look(1, &used).keepalive, Some(FAST));
    assert_eq!(bench.look(29, &used).keepalive, Some(FAST));
    assert_eq!(bench.look(2, &used).keepalive, Some(KEEPALIVE));
    assert_eq!(bench.look(1, &View { keepalive: 7, ..used }).keepalive, Some(7));
    assert_eq!(
        bench.look(1, &View { we_are_behind: false, ..used }).keepalive,
        None,
        "it keeps the way open"
    );
}

#[test]
fn a_peer_that_does_not_answer_is_asked_and_goes_by_a_relay_at_once() {
    let mut bench = Bench::straight();
    let mut view = View { handshake: Some(SECOND), bytes: (148, 92), relay: Some(key(1)), ..view() };
    for _ in 0..2 {
        assert!(!bench.pair.is_doubtful(bench.now()));
        view.bytes.0 += 500;
        bench.look(1, &view);
    }
    assert!(bench.pair.is_doubtful(bench.now()));
    view.misses = MISSES - 1;
    assert_eq!(bench.look(1, &view).relay, None);
    view.misses = MISSES;
    let wish = bench.look(1, &view);
    assert_eq!((wish.relay, bench.pair.is_straight()), (Some(key(1)), false));
    // Without a relay it is tried elsewhere, though its session is not over.
    let mut bench = Bench::straight();
    let wish = bench.look(1, &View { relay: None, ..view });
    assert_eq!((wish.relay, wish.is_lost, wish.at), (None, true, Some(published())));
    let heard = View { misses: 0, bytes: (view.bytes.0, 200), relay: None, ..view };
    assert!(!bench.look(1, &heard).is_lost && bench.pair.is_straight());
}

#[test]
fn a_relay_is_the_last_resort_but_for_two_symmetric_nats() {
    let mut bench = Bench::new();
    let patient = View { relay: Some(key(1)), ..view() };
    assert_eq!(bench.look(0, &patient).relay, None);
    assert_eq!(bench.look(PATIENCE.as_secs(), &patient).relay, Some(key(1)));
    assert_eq!(
        bench.look(1, &View { relay: Some(key(2)), ..patient }).relay,
        Some(key(2)),
        "the next one at once"
    );
    let wish = bench.look(1, &View { relay: None, ..patient });
    assert_eq!((wish.relay, wish.is_lost), (None, true));
    let (ours, its) = ([at(1, 1), at(1, 2)], [at(2, 1), at(2, 2)]);
    let hopeless = View { we_are_seen: &ours, it_is_seen: &its, ..patient };
    assert_eq!(Bench::new().look(0, &hopeless).relay, Some(key(1)));
    let one_side = View { we_are_seen: &ours, it_is_seen: &its[..1], ..patient };
    assert_eq!(Bench::new().look(0, &one_side).relay, None);
    for it_is_behind in [false, true] {
        let view = View { we_are_behind: !it_is_behind, it_is_behind, ..hopeless };
        assert_eq!(Bench::new().look(99, &view).relay, None, "one end is public");
    }
}

#[test]
fn a_relayed_peer_is_tried_in_windows_of_the_clock_and_left_alone_between_them() {
    let mut bench = Bench::new();
    let relayed = View { relay: Some(key(1)), ..view() };
    bench.look(30, &relayed);
    assert_eq!(bench.look(1, &relayed).keepalive, Some(0), "at 31 s");
    assert_eq!(bench.look(30, &relayed).keepalive, Some(FAST), "at 61 s");
    assert_eq!(bench.look(30, &relayed).keepalive, Some(0), "at 91 s");
    assert_eq!(bench.look(3600 + 30 - bench.seconds, &relayed).keepalive, Some(0));
    assert_eq!(bench.look(3780 - bench.seconds, &relayed).keepalive, Some(0), "each quarter of an hour then");
    assert_eq!(bench.look(3840 - bench.seconds, &relayed).keepalive, Some(FAST));
}

/// Two ends of a pair that look at different times, at which handshakes happen.
#[test]
fn both_ends_leave_a_relay_at_the_same_moment() {
    let relayed = View { relay: Some(key(1)), ..view() };
    let mut bench = Bench::new();
    bench.look(30, &relayed);
    let met = |ago: u64| View { handshake: Some(seconds(ago)), ..relayed };
    assert_eq!(bench.look(40, &met(41)).relay, Some(key(1)), "one from before");
    assert_eq!(bench.pair.leaves_in(&met(41), bench.now()), None);
    let wish = bench.look(10, &met(1));
    assert_eq!((wish.relay, wish.is_lost, wish.keepalive), (Some(key(1)), false, Some(FAST)));
    assert_eq!(bench.pair.leaves_in(&met(1), bench.now()), Some(SECOND));
    assert_eq!(bench.look(1, &met(2)).relay, None);
    assert!(bench.pair.is_straight());
}

#[derive(Debug, Clone)]
enum Act {
    Second(u8),
    Handshake,
    Carried(u8, u8),
    Misses(u8),
    Relay(Option<u8>),
    Seen(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1u8..40).prop_map(Act::Second),
        1 => Just(Act::Handshake),
        3 => any::<(u8, u8)>().prop_map(|(sent, received)| Act::Carried(sent, received)),
        1 => (0u8..9).prop_map(Act::Misses),
        1 => prop::option::of(1u8..4).prop_map(Act::Relay),
        1 => (0u8..4).prop_map(Act::Seen),
    ]
}

proptest! {
    /// Whatever happens: packets go by the relay that both ends would take or straight, a peer that is heard from is not tried
    /// elsewhere, and the way does not change as long as nothing happens.
    #[test]
    fn the_way_is_one_that_both_ends_know_and_stays(acts in prop::collection::vec(act(), 1..60)) {
        let (mut bench, mut relay, mut seen) = (Bench::new(), None, Vec::new());
        let (mut met, mut bytes, mut misses) = (None::<u64>, (0, 0), 0);
        for act in acts {
            let (before, place) = (bench.pair.phase, bench.pair.at);
            let is_time_alone = matches!(act, Act::Second(_));
            let mut later = 0;
            match act {
                Act::Second(more) => later = u64::from(more),
                Act::Handshake => met = Some(bench.seconds),
                Act::Carried(sent, received) => {
                    bytes = (bytes.0 + u64::from(sent), bytes.1 + u64::from(received));
                }
                Act::Misses(more) => misses = u32::from(more),
                Act::Relay(of) => relay = of.map(key),
                Act::Seen(n) => seen = (0..n).map(|n| at(n, 1)).collect(),
            }
            let ago = met.map(|met| seconds(bench.seconds + later - met));
            let view = View { it_is_seen: &seen, handshake: ago, bytes, misses, relay, ..view() };
            let wish = bench.look(later, &view);
            prop_assert!(wish.relay.is_none() || wish.relay == relay);
            prop_assert!(wish.is_nat && wish.keepalive.is_some());
            prop_assert!(wish.at.is_none() || wish.at == place || view.places().contains(&wish.at.unwrap()));
            if bench.pair.is_straight() {
                prop_assert!(!wish.is_lost && wish.relay.is_none() && view.handshake.is_some());
                prop_assert_eq!(wish.at, place, "it is left where it was heard from");
            }
            // No pair flaps: as time goes on alone, one that is not heard from never becomes straight but by a handshake that
            // there was.
            if is_time_alone && matches!(before, Phase::Relayed { .. }) && bench.pair.is_straight() {
                prop_assert!(ago.is_some_and(|ago| ago <= STALE));
            }
            let again = bench.look(0, &view);
            if misses < MISSES {
                prop_assert_eq!(again.relay, wish.relay);
            }
        }
    }
}
