use proptest::prelude::*;

use super::*;

const AGO: Option<Duration> = Some(Duration::from_secs(5));
const LONG_AGO: Option<Duration> = Some(Duration::from_secs(181));

/// The rule of ways as a table.
#[test]
fn nobody_sends_where_there_is_no_session() {
    use Phase::{Idle, Offered, Switched};
    for (ours, theirs, first, second, want) in [
        (Offered, Idle, AGO, None, Way::First),
        (Offered, Idle, AGO, AGO, Way::Second),
        (Offered, Idle, None, AGO, Way::Second),
        (Offered, Idle, AGO, LONG_AGO, Way::First),
        (Idle, Offered, AGO, AGO, Way::Second),
        (Switched, Offered, AGO, AGO, Way::Second),
        (Switched, Idle, None, AGO, Way::Second),
        (Switched, Idle, None, LONG_AGO, Way::Second),
        (Switched, Idle, AGO, AGO, Way::First),
        (Switched, Idle, LONG_AGO, AGO, Way::First),
        (Idle, Switched, AGO, AGO, Way::First),
        (Idle, Switched, None, None, Way::First),
        (Switched, Switched, AGO, AGO, Way::First),
    ] {
        let sessions = Sessions { first, second };
        assert_eq!(way(ours, theirs, sessions), want, "{ours:?} {theirs:?} {sessions:?}");
    }
}

#[test]
fn a_device_that_is_left_becomes_quiet_and_one_that_is_needed_begins() {
    use Keepalive::{AsConfigured, Handshake, Off};
    use Phase::{Idle, Offered, Switched};
    for (device, used, phase, want) in [
        (Way::First, Way::First, Offered, AsConfigured),
        (Way::First, Way::Second, Offered, Off),
        (Way::First, Way::Second, Switched, Handshake),
        (Way::First, Way::First, Switched, Handshake),
        (Way::Second, Way::First, Offered, Handshake),
        (Way::Second, Way::Second, Offered, Handshake),
        (Way::Second, Way::Second, Switched, Handshake),
        (Way::Second, Way::First, Switched, Off),
    ] {
        assert_eq!(keepalive(device, used, phase, Idle), want, "{device:?} {used:?} {phase:?}");
        assert_eq!(keepalive(device, used, Idle, phase), want, "theirs: {device:?} {used:?} {phase:?}");
    }
}

/// The rule of steps as a table.
#[test]
fn each_step_waits_for_the_store_and_for_peers() {
    use Phase::{Idle, Offered, Switched};
    let peer = |has_answered, way, quiet| PeerView { has_answered, way, quiet: Duration::from_secs(quiet) };
    let moved = peer(true, Way::Second, 6);
    let back = peer(true, Way::First, 6);
    let mute = peer(false, Way::First, 0);
    let own = |phase, is_announced, is_published, waited| Own {
        phase,
        is_announced,
        is_published,
        waited: Duration::from_secs(waited),
    };
    for (what, own, peers, want) in [
        ("nothing to do", own(Idle, false, false, 0), &[mute][..], Step::Rest),
        ("no store", own(Offered, false, false, 9999), &[moved], Step::AwaitStore),
        ("all moved", own(Offered, false, true, 0), &[moved, moved], Step::Announce),
        ("no peers", own(Offered, false, true, 0), &[], Step::Announce),
        (
            "one still sends",
            own(Offered, false, true, 899),
            &[moved, peer(true, Way::Second, 5)],
            Step::AwaitPeers,
        ),
        (
            "one still sends, for ever",
            own(Offered, false, true, 900),
            &[peer(true, Way::Second, 0)],
            Step::Announce,
        ),
        (
            "to one this node still sends",
            own(Offered, false, true, 0),
            &[peer(true, Way::First, 99)],
            Step::AwaitPeers,
        ),
        ("one is mute", own(Offered, false, true, 299), &[moved, mute], Step::AwaitPeers),
        ("one stays mute", own(Offered, false, true, 300), &[moved, mute], Step::Announce),
        ("the store has not heard", own(Offered, true, false, 0), &[moved], Step::AwaitStore),
        ("the store has heard", own(Offered, true, true, 0), &[mute], Step::Switch),
        ("nobody is back", own(Switched, false, true, 9999), &[moved, back], Step::AwaitPeers),
        (
            "one still sends there",
            own(Switched, false, true, 9999),
            &[peer(true, Way::First, 3)],
            Step::AwaitPeers,
        ),
        ("all are back", own(Switched, false, true, 0), &[back, mute], Step::Finish),
        ("the store is away", own(Switched, false, false, 0), &[back], Step::AwaitStore),
    ] {
        let awaited = peers.iter().filter(|peer| is_awaited(own, **peer)).count();
        assert_eq!(step(own, awaited), want, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_is_quiet_since_its_last_byte() {
    let (mut quiet, key) = (Quiet::default(), PublicKey([1; 32]));
    let start = Instant::now();
    let mut seen =
        |bytes, after| quiet.observe(Way::First, 0, key, bytes, start + Duration::from_secs(after)).as_secs();
    assert_eq!([seen(100, 0), seen(100, 5), seen(164, 6), seen(164, 20)], [0, 5, 0, 14]);
    // A keepalive, a handshake, and both.
    assert_eq!([seen(196, 21), seen(288, 22), seen(436, 23), seen(616, 24)], [15, 16, 17, 18]);
    assert_eq!([seen(680, 25), seen(744, 26)], [0, 0], "two keepalives in a second are none");
    // A device that was made anew counts from zero.
    assert_eq!(seen(0, 27), 0);
}

/// What a node publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    key: u8,
    next: Option<u8>,
}

impl Record {
    fn phase(self) -> Phase {
        let key = |n| PublicKey([n; 32]);
        Phase::of(key(self.key), self.next.map(key))
    }
}

/// A device with the one peer of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Device {
    key: u8,
    peer: u8,
    /// The session, by which both ends recognise each other's packets.
    session: Option<u32>,
}

impl Device {
    /// Sets key and peer; another key or another peer ends the session.
    fn set(device: &mut Option<Self>, key: u8, peer: u8) {
        match device {
            Some(it) if (it.key, it.peer) == (key, peer) => {}
            _ => *device = Some(Self { key, peer, session: None }),
        }
    }
}

#[derive(Debug, Clone)]
struct Node {
    main: u8,
    next: Option<u8>,
    announced: bool,
    first: Option<Device>,
    second: Option<Device>,
    route: Way,
    /// The other node's record, and its own, as it saw them last.
    theirs: Record,
    echo: Option<Record>,
}

impl Node {
    fn record(&self) -> Record {
        let key = if self.announced { self.next.unwrap() } else { self.main };
        Record { key, next: self.next.filter(|_| self.second.is_some()) }
    }

    fn phase(&self) -> Phase {
        Record { key: self.main, next: self.next }.phase()
    }

    fn wants_second(&self) -> bool {
        self.next.is_some() || self.theirs.next.is_some()
    }

    fn way(&self) -> Way {
        let of = |device: Option<Device>, key: u8, peer: u8| {
            let device = device.filter(|it| (it.key, it.peer) == (key, peer));
            device.and_then(|it| it.session).map(|_| Duration::ZERO)
        };
        let theirs = self.theirs;
        let sessions = Sessions {
            first: of(self.first, self.main, theirs.key),
            second: of(self.second, self.next.unwrap_or(self.main), theirs.next.unwrap_or(theirs.key)),
        };
        way(self.phase(), self.theirs.phase(), sessions)
    }
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Begin,
    Publish,
    /// The watch brings the other's record.
    Hear,
    /// The watch brings its own record.
    Echo,
    /// A pass of the loop: devices, then what is in them, then the route.
    Devices,
    Hold,
    Route,
    Step,
    /// A crash and a restart: what is not in files and devices is lost.
    Crash,
    Shake(Way),
}

struct World {
    nodes: [Node; 2],
    store: [Record; 2],
    sessions: u32,
    keys: u8,
    finished: [u32; 2],
}

impl World {
    fn new() -> Self {
        let record = |key| Record { key, next: None };
        let node = |main, peer| Node {
            main,
            next: None,
            announced: false,
            first: Some(Device { key: main, peer, session: Some(0) }),
            second: None,
            route: Way::First,
            theirs: record(peer),
            echo: Some(record(main)),
        };
        Self {
            nodes: [node(1, 2), node(2, 1)],
            store: [record(1), record(2)],
            sessions: 1,
            keys: 3,
            finished: [0; 2],
        }
    }

    fn act(&mut self, at: usize, action: Action) {
        let (store, other) = (self.store, 1 - at);
        let other_route = self.nodes[other].route;
        let node = &mut self.nodes[at];
        match action {
            Action::Begin if node.next.is_none() && node.theirs.next.is_none() => {
                node.next = Some(self.keys);
                self.keys = self.keys.wrapping_add(1);
            }
            Action::Begin => {}
            Action::Publish => self.store[at] = node.record(),
            Action::Hear => node.theirs = store[other],
            Action::Echo => node.echo = Some(store[at]),
            Action::Devices if node.wants_second() => {
                node.second.get_or_insert(Device {
                    key: node.next.unwrap_or(node.main),
                    peer: 0,
                    session: None,
                });
            }
            Action::Devices if node.route == Way::First => node.second = None,
            Action::Devices => {}
            Action::Hold => {
                Device::set(&mut node.first, node.main, node.theirs.key);
                if node.second.is_some() {
                    let peer = node.theirs.next.unwrap_or(node.theirs.key);
                    Device::set(&mut node.second, node.next.unwrap_or(node.main), peer);
                }
            }
            Action::Route => node.route = node.way(),
            Action::Step => {
                let left = if node.phase() == Phase::Offered { Way::Second } else { Way::First };
                let view = PeerView {
                    has_answered: node.second.is_some_and(|it| it.session.is_some()),
                    way: node.route,
                    quiet: if other_route == left { QUIET } else { Duration::ZERO },
                };
                let own = Own {
                    phase: node.phase(),
                    is_announced: node.announced,
                    is_published: node.echo == Some(node.record()),
                    waited: Duration::ZERO,
                };
                match step(own, usize::from(is_awaited(own, view))) {
                    Step::Announce => node.announced = true,
                    Step::Switch => (node.main, node.announced) = (node.next.unwrap(), false),
                    Step::Finish => {
                        node.next = None;
                        self.finished[at] += 1;
                    }
                    Step::Rest | Step::AwaitStore | Step::AwaitPeers => {}
                }
            }
            Action::Crash => (node.announced, node.echo) = (false, None),
            Action::Shake(level) => {
                let [a, b] = &mut self.nodes;
                let of = |node: &Node| if level == Way::First { node.first } else { node.second };
                if let (Some(one), Some(two)) = (of(a), of(b))
                    && (one.key, one.peer) == (two.peer, two.key)
                {
                    for node in [a, b] {
                        let device = if level == Way::First { &mut node.first } else { &mut node.second };
                        device.as_mut().unwrap().session = Some(self.sessions);
                    }
                    self.sessions += 1;
                }
            }
        }
    }

    /// Whether what a node sends is accepted by the other.
    fn arrives(&self, from: usize) -> bool {
        let of = |node: &Node, way| if way == Way::First { node.first } else { node.second };
        let way = self.nodes[from].route;
        let [sends, receives] = [from, 1 - from].map(|at| of(&self.nodes[at], way).and_then(|it| it.session));
        sends.is_some() && sends == receives
    }

    /// Lets everything happen that is to happen, until all is at rest.
    fn settle(&mut self) {
        use Action::{Devices, Echo, Hear, Hold, Publish, Route, Shake, Step};
        for _ in 0..40 {
            for at in 0..2 {
                for action in
                    [Hear, Echo, Step, Devices, Hold, Shake(Way::First), Shake(Way::Second), Route, Publish]
                {
                    self.act(at, action);
                    assert!(self.arrives(0) && self.arrives(1), "{action:?} at {at}: {:?}", self.nodes);
                }
            }
        }
    }
}

fn any_action() -> impl Strategy<Value = (usize, Action)> {
    let action = prop_oneof![
        1 => Just(Action::Begin),
        2 => Just(Action::Publish),
        2 => Just(Action::Hear),
        2 => Just(Action::Echo),
        2 => Just(Action::Devices),
        2 => Just(Action::Hold),
        2 => Just(Action::Route),
        3 => Just(Action::Step),
        1 => Just(Action::Crash),
        1 => Just(Action::Shake(Way::First)),
        1 => Just(Action::Shake(Way::Second)),
    ];
    (0..2_usize, action)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order, each packet is accepted, and in the end each rotation is over.
    #[test]
    fn no_interleaving_loses_a_packet(actions in prop::collection::vec(any_action(), 0..150)) {
        let mut world = World::new();
        for (n, (at, action)) in actions.iter().enumerate() {
            world.act(*at, *action);
            for from in 0..2 {
                prop_assert!(world.arrives(from), "after {n} {action:?} at {at}, from {from}: {:?}", world.nodes);
            }
        }
        world.settle();
        for node in &world.nodes {
            prop_assert_eq!((node.next, node.second, node.route), (None, None, Way::First));
        }
    }
}

#[test]
fn a_rotation_comes_to_its_end_and_changes_the_key() {
    let mut world = World::new();
    world.act(0, Action::Begin);
    world.settle();
    assert_eq!((world.nodes[0].main, world.nodes[1].main, world.finished), (3, 2, [1, 0]));
    // Both at once.
    world.act(0, Action::Begin);
    world.act(1, Action::Begin);
    world.settle();
    assert_eq!((world.nodes[0].main, world.nodes[1].main, world.finished), (4, 5, [2, 1]));
}
