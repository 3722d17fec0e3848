use std::time::{Duration, Instant};

use flannel_backend_udp::datapath::DropReason;
use proptest::prelude::*;

use super::testing::{Node, Target, carry, packet, peer_change, public_key};
use crate::device::{Change, PeerChange};
use crate::key::PresharedKey;

const HERE: [u8; 4] = [10, 0, 1, 1];
const THERE: [u8; 4] = [10, 0, 2, 1];

fn two() -> (Node, Node) {
    (Node::new(1).knows(2), Node::new(2).knows(1))
}

/// Two that have a session.
fn connected(now: Instant) -> (Node, Node) {
    let (a, b) = two();
    let probe = packet(HERE, THERE, b"first");
    a.send(&probe, now).unwrap();
    assert_eq!(carry(&[&a, &b], now), [probe]);
    (a, b)
}

#[test]
fn packets_wait_for_the_session_and_arrive_in_order() {
    let now = Instant::now();
    let (a, b) = two();
    let packets: Vec<_> = (0..20).map(|n| packet(HERE, THERE, &[n; 100])).collect();
    for packet in &packets {
        a.send(packet, now).unwrap();
    }
    let sent = a.sent();
    assert_eq!(sent.iter().map(|(message, _)| message.len()).collect::<Vec<_>>(), [148], "one initiation");
    assert_eq!(b.receive(a.address(), &sent[0].0, now), Ok(None));
    assert_eq!(carry(&[&a, &b], now), packets);
    for (state, other) in [(a.state(), 2), (b.state(), 1)] {
        let peer = &state.peers[&public_key(other)];
        assert!(peer.last_handshake.is_some() && peer.rx_bytes > 0 && peer.tx_bytes > 0, "{peer:?}");
    }
}

#[test]
fn both_may_begin_at_once() {
    let now = Instant::now();
    let (a, b) = two();
    let (there, back) = (packet(HERE, THERE, b"there"), packet(THERE, HERE, b"back"));
    a.send(&there, now).unwrap();
    b.send(&back, now).unwrap();
    let mut arrived = carry(&[&a, &b], now);
    arrived.sort();
    let mut expected = vec![there, back];
    expected.sort();
    assert_eq!(arrived, expected);
}

/// Its peers send with sessions that it does not have any more.
#[test]
fn a_restarted_node_greets_whom_it_knew_and_nobody_else() {
    let now = Instant::now();
    let (before, b) = connected(now);
    drop(before);
    let mut a = Node::new(1);
    a.expects(&[2, 3, 4]);
    for other in 2..=5 {
        a.apply(&Change::Peer(public_key(other), peer_change(other)));
    }
    // One after the other, so that their answers don't come at once.
    let later = Instant::now() + Duration::from_secs(1);
    let due = a.on_time(now).unwrap();
    assert!(due < now + Duration::from_secs(1), "the next one is due soon");
    assert!(a.sent().len() < 3);
    let mut fresh = Node::new(1);
    fresh.expects(&[2, 3, 4]);
    for other in 2..=5 {
        fresh.apply(&Change::Peer(public_key(other), peer_change(other)));
    }
    fresh.on_time(later);
    let sent = fresh.sent();
    let mut to: Vec<_> = sent.iter().map(|(message, to)| (message.len(), to.ip().to_string())).collect();
    to.sort_unstable();
    assert_eq!(to, [2, 3, 4].map(|other| (148, format!("192.0.2.{other}"))));
    // The first packet towards it arrives, with the new session.
    let greeting = sent.iter().find(|(_, to)| *to == b.address()).unwrap();
    b.receive(fresh.address(), &greeting.0, later).unwrap();
    assert_eq!(carry(&[&fresh, &b], later), Vec::<Vec<u8>>::new());
    let packet = packet(THERE, HERE, b"into the node that started again");
    b.send(&packet, later).unwrap();
    assert_eq!(carry(&[&fresh, &b], later), [packet]);
}

#[test]
fn too_many_waiting_packets_are_counted() {
    let now = Instant::now();
    let (a, _) = two();
    let probe = packet(HERE, THERE, b"wait");
    let taken = (0..300).filter(|_| a.send(&probe, now).is_ok()).count();
    assert_eq!(taken, 256);
    assert_eq!(a.send(&probe, now), Err(DropReason::NoSession));
}

#[test]
fn what_came_before_does_not_come_again() {
    let now = Instant::now();
    let (a, b) = connected(now);
    let probe = packet(HERE, THERE, b"once");
    a.send(&probe, now).unwrap();
    let first = a.sent().remove(0).0;
    assert_eq!(b.receive(a.address(), &first, now), Ok(Some(probe.clone())));
    assert_eq!(b.receive(a.address(), &first, now), Err(DropReason::Replayed));
    // Late ones pass as long as they are in the window.
    (0..900).for_each(|_| a.send(&probe, now).unwrap());
    let burst = a.sent();
    for (message, _) in burst.iter().skip(1) {
        assert!(b.receive(a.address(), message, now).is_ok());
    }
    assert!(b.receive(a.address(), &burst[0].0, now).is_ok(), "late, but new");
    assert_eq!(b.receive(a.address(), &burst[0].0, now), Err(DropReason::Replayed));
    (0..1100).for_each(|_| a.send(&probe, now).unwrap());
    let burst = a.sent();
    for (message, _) in burst.iter().skip(1) {
        assert!(b.receive(a.address(), message, now).is_ok());
    }
    assert_eq!(b.receive(a.address(), &burst[0].0, now), Err(DropReason::Replayed), "too late to know");
}

#[test]
fn only_authentic_messages_move_an_endpoint() {
    let now = Instant::now();
    let (a, b) = connected(now);
    let endpoint = || b.state().peers[&public_key(1)].endpoint.unwrap();
    let (thief, moved) = (([203, 0, 113, 1], 7).into(), ([198, 51, 100, 1], 7).into());
    a.send(&packet(HERE, THERE, b"roaming"), now).unwrap();
    let message = a.sent().remove(0).0;
    let mut forged = message.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(b.receive(thief, &forged, now), Err(DropReason::NotAuthentic));
    assert_eq!(endpoint(), a.address());
    assert!(b.receive(moved, &message, now).is_ok());
    assert_eq!(endpoint(), moved);
    assert_eq!(b.receive(thief, &message, now), Err(DropReason::Replayed));
    assert_eq!(endpoint(), moved, "a replay moves nothing");
    b.send(&packet(THERE, HERE, b"back"), now).unwrap();
    assert_eq!(b.sent()[0].1, moved);
}

#[test]
fn addresses_count_both_ways() {
    let now = Instant::now();
    let (a, b) = connected(now);
    assert_eq!(a.send(&packet(HERE, [10, 0, 3, 1], b"to nobody"), now), Err(DropReason::NoRoute));
    a.send(&packet([10, 0, 3, 1], THERE, b"not from here"), now).unwrap();
    let message = a.sent().remove(0).0;
    assert_eq!(b.receive(a.address(), &message, now), Err(DropReason::SourceIsAnothers));
    // The longest prefix counts, and an address belongs to one peer.
    let mut c = Node::new(3).knows(1);
    let wide = PeerChange { allowed_ips: Some(["10.0.0.0/8".parse().unwrap()].into()), ..peer_change(2) };
    c.apply(&Change::Peer(public_key(2), wide));
    let owner = |addr: [u8; 4]| {
        c.send(&packet([10, 0, 3, 1], addr, b"whose"), now).unwrap();
        c.sent().first().map(|(_, to)| to.ip())
    };
    assert_eq!(owner(HERE), Some([192, 0, 2, 1].into()));
    assert_eq!(owner([10, 9, 9, 9]), Some([192, 0, 2, 2].into()));
    let taken = peer_change(1);
    c.apply(&Change::Peer(public_key(2), PeerChange { allowed_ips: taken.allowed_ips, ..peer_change(2) }));
    let state = c.state();
    assert!(state.peers[&public_key(1)].allowed_ips.is_empty());
    assert_eq!(state.peers[&public_key(2)].allowed_ips.len(), 1);
}

#[test]
fn a_change_of_one_peer_leaves_the_others_their_sessions() {
    let now = Instant::now();
    let (mut a, b) = connected(now);
    a.apply(&Change::Peer(public_key(3), peer_change(3)));
    let keepalive = PeerChange { keepalive: Some(25), ..PeerChange::default() };
    a.apply(&Change::Peer(public_key(2), keepalive));
    a.apply(&Change::RemovePeer(public_key(3)));
    let probe = packet(HERE, THERE, b"same session");
    a.send(&probe, now).unwrap();
    let sent = a.sent();
    assert_eq!((sent.len(), sent[0].0[0]), (1, 4), "no handshake");
    assert_eq!(b.receive(a.address(), &sent[0].0, now), Ok(Some(probe)));
    a.apply(&Change::RemovePeer(public_key(2)));
    assert_eq!(a.send(&packet(HERE, THERE, b"x"), now), Err(DropReason::NoRoute));
}

#[test]
fn both_need_the_same_preshared_key() {
    let now = Instant::now();
    let (mut a, mut b) = two();
    let with = |byte| PeerChange { preshared_key: Some(byte), ..PeerChange::default() };
    a.apply(&Change::Peer(public_key(2), with(Some(PresharedKey([7; 32])))));
    let probe = packet(HERE, THERE, b"shared");
    a.send(&probe, now).unwrap();
    assert!(carry(&[&a, &b], now).is_empty());
    b.apply(&Change::Peer(public_key(1), with(Some(PresharedKey([7; 32])))));
    a.apply(&Change::Peer(public_key(2), with(Some(PresharedKey([8; 32])))));
    a.apply(&Change::Peer(public_key(2), with(Some(PresharedKey([7; 32])))));
    a.send(&probe, now).unwrap();
    assert_eq!(carry(&[&a, &b], now), [probe]);
}

#[test]
fn after_a_restart_the_first_message_begins_a_handshake() {
    let now = Instant::now();
    let (a, b) = connected(now);
    drop(b);
    let b = Node::new(2).knows(1);
    let probe = packet(HERE, THERE, b"to the former session");
    let knock = || {
        a.send(&probe, now).unwrap();
        let message = a.sent().remove(0).0;
        assert_eq!(b.receive(a.address(), &message, now), Err(DropReason::UnknownSession));
        b.sent().iter().map(|(message, _)| message.len()).collect::<Vec<_>>()
    };
    assert_eq!(knock(), [148]);
    assert!(knock().is_empty(), "once in a while");
    let stranger = ([203, 0, 113, 1], 7).into();
    let c = Node::new(2).knows(1);
    a.send(&probe, now).unwrap();
    assert!(c.receive(stranger, &a.sent().remove(0).0, now).is_err());
    assert!(c.sent().is_empty(), "a stranger can't have us send anything");
}

#[test]
fn a_handshake_is_not_repeated_by_others() {
    let now = Instant::now();
    let (a, b) = two();
    a.send(&packet(HERE, THERE, b"x"), now).unwrap();
    let initiation = a.sent().remove(0).0;
    assert_eq!(b.receive(a.address(), &initiation, now), Ok(None));
    let thief = ([203, 0, 113, 1], 7).into();
    assert_eq!(b.receive(thief, &initiation, now), Err(DropReason::BadHandshake));
    assert_eq!(b.state().peers[&public_key(1)].endpoint, Some(a.address()));
    let unknown = Node::new(4).knows(2);
    unknown.send(&packet([10, 0, 4, 1], THERE, b"x"), now).unwrap();
    let initiation = unknown.sent().remove(0).0;
    assert_eq!(b.receive(unknown.address(), &initiation, now), Err(DropReason::BadHandshake));
}

#[test]
fn a_flood_of_handshakes_is_asked_for_proof() {
    let now = Instant::now();
    let (a, mut b) = two();
    b.limit(2, 2);
    let initiation = || {
        let node = Node::new(1).knows(2);
        node.send(&packet(HERE, THERE, b"x"), now).unwrap();
        node.sent().remove(0).0
    };
    let answers: Vec<_> = (0..4).map(|_| b.receive(a.address(), &initiation(), now)).collect();
    let limit = Err(DropReason::HandshakeLimit);
    assert_eq!(answers, [Ok(None), Ok(None), limit.clone(), limit]);
    let lengths: Vec<_> = b.sent().iter().map(|(message, _)| message.len()).collect();
    assert_eq!(lengths, [92, 92, 64, 64], "two responses and two cookies");
}

#[test]
fn timers_rest_when_a_peer_is_quiet() {
    let now = Instant::now();
    let (a, b) = connected(now);
    let armed = a.armed();
    assert_eq!(armed, 1);
    assert!(a.on_time(now).is_some_and(|due| due - now < Duration::from_secs(1)));
    let later = now + Duration::from_secs(21);
    let due = a.on_time(later).unwrap();
    assert!(due > now + Duration::from_secs(540), "one look, after which no key is left");
    a.sent();
    assert_eq!(a.on_time(due), None, "nothing is left to wait for");
    // What comes then wakes them again.
    a.send(&packet(HERE, THERE, b"again"), later).unwrap();
    assert_eq!(a.armed(), armed + 1);
    drop(b);
}

#[test]
fn keepalives_keep_to_their_time() {
    let now = Instant::now();
    let (mut a, b) = connected(now);
    let change = PeerChange { keepalive: Some(25), ..PeerChange::default() };
    a.apply(&Change::Peer(public_key(2), change));
    a.on_time(Instant::now());
    let sent = a.sent();
    assert_eq!(sent.iter().map(|(message, _)| message.len()).collect::<Vec<_>>(), [32], "one at once");
    assert_eq!(b.receive(a.address(), &sent[0].0, now), Ok(None));
    let later = Instant::now() + Duration::from_secs(24);
    a.on_time(later);
    assert!(a.sent().is_empty());
    a.on_time(later + Duration::from_secs(1));
    assert_eq!(a.sent().len(), 1);
}

/// The stored corpus of the fuzz target, and mutations of it.
#[test]
fn what_was_stored_and_its_neighbours_harm_nobody() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/messages");
    let target = Target::default();
    flannel_core::testing::fuzz::replay(&folder, 5_000, |bytes| target.receive(bytes));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_bytes_harm_nobody(datagrams in prop::collection::vec(any::<Vec<u8>>(), 1..4)) {
        thread_local!(static TARGET: Target = Target::default());
        TARGET.with(|target| datagrams.iter().for_each(|bytes| target.receive(bytes)));
    }
}
