use proptest::prelude::*;

use super::*;
use crate::seen::apply;

fn key(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn ips(list: &[&str]) -> BTreeSet<IpNetwork> {
    list.iter().map(|ip| ip.parse().unwrap()).collect()
}

fn wanted(published: &str, list: &[&str]) -> DesiredPeer {
    DesiredPeer { published: at(published), allowed_ips: ips(list), wish: Wish::default() }
}

fn desired(peers: impl IntoIterator<Item = (u8, DesiredPeer)>) -> Desired {
    Desired {
        private_key: PrivateKey([8; 32]),
        listen_port: 51820,
        psk: None,
        keepalive: 0,
        peers: peers.into_iter().map(|(n, peer)| (key(n), peer)).collect(),
    }
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
}

fn ago(seconds: u64) -> Option<SystemTime> {
    now().checked_sub(Duration::from_secs(seconds))
}

fn planned(want: &Desired, have: &DeviceState, settled: &Settled) -> Plan {
    planned_if(want, have, settled, &|_| true)
}

fn planned_if(
    want: &Desired,
    have: &DeviceState,
    settled: &Settled,
    may_remove: &(dyn Fn(IpNetwork) -> bool + Sync),
) -> Plan {
    let network: IpNetwork = "10.5.0.0/16".parse().unwrap();
    let is_overlay = |addr| network.contains(addr);
    plan(
        want,
        have,
        settled,
        &Rules { now: now(), may_remove, may_remove_empty: true, is_overlay: &is_overlay },
    )
}

/// A device that has all that is desired.
fn made(want: &Desired) -> (DeviceState, Settled) {
    let mut state = DeviceState::default();
    let plan = planned(want, &state, &Settled::new());
    apply(&mut state, &plan.changes);
    (state, plan.settled)
}

#[test]
fn a_peer_is_tried_elsewhere_until_it_is_heard_from_or_when_it_is_lost() {
    let published = "192.0.2.1:51820";
    let want = |tried: Option<&str>, is_lost| {
        let wish = Wish { at: tried.map(at), is_lost, ..Wish::default() };
        desired([(1, DesiredPeer { wish, ..wanted(published, &["10.5.1.0/24"]) })])
    };
    let (mut state, settled) = made(&want(None, false));
    let tried = planned(&want(Some("198.51.100.1:7"), false), &state, &settled);
    apply(&mut state, &tried.changes);
    let endpoint = |state: &DeviceState| state.peers[&key(1)].endpoint.unwrap();
    assert_eq!(endpoint(&state), at("198.51.100.1:7"));
    // It answers from another port.
    state.peers.entry(key(1)).and_modify(|peer| {
        (peer.last_handshake, peer.endpoint) = (ago(3), Some(at("198.51.100.1:8")));
    });
    for (elsewhere, is_lost, writes) in [
        (Some("198.51.100.1:7"), false, false),
        (Some("198.51.100.9:9"), false, false),
        (Some("198.51.100.1:7"), true, false),
        (Some("198.51.100.9:9"), true, true),
    ] {
        let planned = planned(&want(elsewhere, is_lost), &state, &tried.settled);
        assert_eq!(!planned.changes.is_empty(), writes, "{elsewhere:?} {is_lost}");
    }
}

#[test]
fn a_new_device_gets_everything_and_then_nothing() {
    let want = desired([(1, wanted("192.0.2.1:51820", &["10.5.1.0/24"]))]);
    let plan = planned(&want, &DeviceState::default(), &Settled::new());
    let peer = PeerChange {
        endpoint: Some(at("192.0.2.1:51820")),
        allowed_ips: Some(ips(&["10.5.1.0/24"])),
        ..PeerChange::default()
    };
    let all =
        [Change::PrivateKey(PrivateKey([8; 32])), Change::ListenPort(51820), Change::Peer(key(1), peer)];
    assert_eq!(plan.changes, all);
    let (state, settled) = made(&want);
    assert_eq!(planned(&want, &state, &settled).changes, []);
    // After a restart, too, when nothing is known to be settled.
    assert_eq!(planned(&want, &state, &Settled::new()).changes, []);
}

#[test]
fn one_change_touches_one_peer_and_names_nothing_else() {
    let before = desired((1..200).map(|n| (n, wanted("192.0.2.1:51820", &[&format!("10.5.{n}.0/24")]))));
    let (state, settled) = made(&before);
    let mut want = before.clone();
    want.peers.insert(key(7), wanted("192.0.2.1:51820", &["10.5.7.0/24", "10.5.207.0/24"]));
    let plan = planned(&want, &state, &settled);
    let change =
        PeerChange { allowed_ips: Some(ips(&["10.5.7.0/24", "10.5.207.0/24"])), ..PeerChange::default() };
    assert_eq!(plan.changes, [Change::Peer(key(7), change)]);
}

#[test]
fn psk_and_keepalive_of_the_config_are_those_of_all_peers() {
    let before = desired([(1, wanted("192.0.2.1:51820", &["10.5.1.0/24"]))]);
    let (state, settled) = made(&before);
    let want = Desired { psk: Some(PresharedKey([3; 32])), keepalive: 25, ..before.clone() };
    let plan = planned(&want, &state, &settled);
    let change = PeerChange {
        preshared_key: Some(Some(PresharedKey([3; 32]))),
        keepalive: Some(25),
        ..PeerChange::default()
    };
    assert_eq!(plan.changes, [Change::Peer(key(1), change)]);
    let (with, settled) = made(&want);
    let plan = planned(&before, &with, &settled);
    let change = PeerChange { preshared_key: Some(None), keepalive: Some(0), ..PeerChange::default() };
    assert_eq!(plan.changes, [Change::Peer(key(1), change)]);
}

/// Sessions of a former key can't be told from others by their time, so none stays.
#[test]
fn with_another_key_all_peers_are_made_anew_where_they_were_last() {
    let want = desired([
        (1, wanted("192.0.2.1:51820", &["10.5.1.0/24"])),
        (2, wanted("192.0.2.2:51820", &["10.5.2.0/24"])),
    ]);
    let (mut state, settled) = made(&want);
    for peer in state.peers.values_mut() {
        peer.last_handshake = ago(5);
    }
    let roamed = at("203.0.113.7:4711");
    state.peers.get_mut(&key(2)).unwrap().endpoint = Some(roamed);
    let next = Desired { private_key: PrivateKey([16; 32]), ..want };
    let plan = planned(&next, &state, &settled);
    let kinds =
        [Change::PrivateKey(PrivateKey([16; 32])), Change::RemovePeer(key(1)), Change::RemovePeer(key(2))];
    assert_eq!(plan.changes[..3], kinds);
    apply(&mut state, &plan.changes);
    assert!(state.peers.values().all(|peer| peer.last_handshake.is_none()));
    assert_eq!(state.peers[&key(1)].endpoint, Some(at("192.0.2.1:51820")));
    assert_eq!(state.peers[&key(2)].endpoint, Some(roamed), "it has not moved since");
    assert_eq!(planned(&next, &state, &plan.settled).changes, []);
}

/// The rule of endpoints as a table.
#[test]
fn roaming_is_not_undone() {
    let (old, new, roamed, pod) =
        ("192.0.2.1:51820", "192.0.2.9:51820", "203.0.113.7:4711", "10.5.3.4:51820");
    for (what, seen, handshake, settled, published, written, then) in [
        ("as published", Some(old), ago(5), Some(old), old, None, old),
        ("never had one", None, None, Some(old), old, Some(old), old),
        ("roamed", Some(roamed), ago(5), Some(old), old, None, old),
        ("roamed, and idle", Some(roamed), ago(9999), Some(old), old, None, old),
        ("moved, and was where it was", Some(old), ago(5), Some(old), new, Some(new), new),
        ("moved, and roamed before", Some(roamed), ago(5), Some(old), new, None, old),
        ("moved, roamed before, and is silent", Some(roamed), ago(181), Some(old), new, Some(new), new),
        ("moved, and was heard from there", Some(new), ago(5), Some(old), new, None, new),
        ("of an earlier agent, and roamed", Some(roamed), ago(5), None, new, None, new),
        ("of an earlier agent, and silent", Some(roamed), ago(181), None, new, Some(new), new),
        ("of an earlier agent, never heard from", Some(old), None, None, new, Some(new), new),
        ("heard from through the tunnel itself", Some(pod), ago(5), Some(old), old, Some(old), old),
    ] {
        let want = desired([(1, wanted(published, &["10.5.1.0/24"]))]);
        let (mut state, _) = made(&want);
        let peer = state.peers.get_mut(&key(1)).unwrap();
        (peer.endpoint, peer.last_handshake) = (seen.map(at), handshake);
        let settled = settled.map(|settled| (key(1), at(settled))).into_iter().collect();
        let plan = planned(&want, &state, &settled);
        let changes = written.map(|written| {
            Change::Peer(key(1), PeerChange { endpoint: Some(at(written)), ..PeerChange::default() })
        });
        assert_eq!(plan.changes, changes.into_iter().collect::<Vec<_>>(), "{what}");
        assert_eq!(plan.settled[&key(1)], at(then), "{what}");
    }
}

#[test]
fn peers_go_only_when_their_addresses_may() {
    let (mut state, settled) = made(&desired([
        (1, wanted("192.0.2.1:51820", &["10.5.1.0/24"])),
        (2, wanted("192.0.2.2:51820", &["10.5.2.0/24"])),
        (3, wanted("192.0.2.3:51820", &[])),
    ]));
    let foreign = PeerState { allowed_ips: ips(&["172.16.0.0/12"]), ..PeerState::default() };
    state.peers.insert(key(4), foreign);
    let want = desired([]);
    let (one, network): (IpNetwork, IpNetwork) =
        ("10.5.1.0/24".parse().unwrap(), "10.5.0.0/16".parse().unwrap());
    let plan = planned_if(&want, &state, &settled, &|ip| ip != one && network.contains(ip.ip()));
    assert_eq!(plan.changes, [Change::RemovePeer(key(2)), Change::RemovePeer(key(3))]);
}

#[test]
fn addresses_move_without_being_taken() {
    let (state, settled) = made(&desired([
        (1, wanted("192.0.2.1:51820", &["10.5.1.0/24", "10.5.3.0/24"])),
        (2, wanted("192.0.2.2:51820", &["10.5.2.0/24"])),
    ]));
    // They swap, and the one gives up more.
    let want = desired([
        (1, wanted("192.0.2.1:51820", &["10.5.2.0/24"])),
        (2, wanted("192.0.2.2:51820", &["10.5.1.0/24"])),
    ]);
    let plan = planned(&want, &state, &settled);
    let set = |n, list: &[&str]| {
        Change::Peer(key(n), PeerChange { allowed_ips: Some(ips(list)), ..PeerChange::default() })
    };
    let steps = [set(1, &[]), set(2, &[]), set(1, &["10.5.2.0/24"]), set(2, &["10.5.1.0/24"])];
    assert_eq!(plan.changes, steps);
    // Of a peer that must stay nothing is taken.
    let heir = desired([(2, wanted("192.0.2.2:51820", &["10.5.1.0/24", "10.5.2.0/24"]))]);
    let plan = planned_if(&heir, &state, &settled, &|_| false);
    assert_eq!((plan.changes, plan.held_back), (vec![], vec![("10.5.1.0/24".parse().unwrap(), key(2))]));
    let plan = planned(&heir, &state, &settled);
    assert_eq!(plan.changes, [Change::RemovePeer(key(1)), set(2, &["10.5.1.0/24", "10.5.2.0/24"])]);
}

/// A small world, so that keys and addresses collide.
fn any_peers() -> impl Strategy<Value = BTreeMap<u8, DesiredPeer>> {
    let list = prop::collection::btree_set(0..6_u8, 0..4);
    prop::collection::btree_map(1..5_u8, (0..3_u8, list), 0..5).prop_map(|peers| {
        // An address is desired of one peer alone: the claims see to that.
        let mut taken = BTreeSet::new();
        let of = |(n, (node, list)): (u8, (u8, BTreeSet<u8>))| {
            let list = list.into_iter().filter(|ip| taken.insert(*ip));
            let allowed = list.map(|ip| format!("10.5.{ip}.0/24").parse().unwrap()).collect();
            let published = at(&format!("192.0.2.{node}:51820"));
            (n, DesiredPeer { published, allowed_ips: allowed, wish: Wish::default() })
        };
        peers.into_iter().map(of).collect()
    })
}

proptest! {
    #[test]
    fn every_plan_reaches_what_is_desired_and_takes_nothing(
        before in any_peers(), after in any_peers(), kept in 0..6_u8,
    ) {
        let (state, settled) = made(&desired(before));
        let want = desired(after);
        // In force from the first change on: nobody loses an address that he keeps.
        let kept: IpNetwork = format!("10.5.{kept}.0/24").parse().unwrap();
        for may_remove in [&(|_| true) as &(dyn Fn(IpNetwork) -> bool + Sync), &|ip| ip != kept, &|_| false] {
            let plan = planned_if(&want, &state, &settled, may_remove);
            let mut now = state.clone();
            for change in &plan.changes {
                if let Change::Peer(of, PeerChange { allowed_ips: Some(ips), .. }) = change {
                    for (holder, peer) in now.peers.iter().filter(|(holder, _)| *holder != of) {
                        prop_assert!(peer.allowed_ips.is_disjoint(ips), "{holder} loses to {of}");
                    }
                }
                apply(&mut now, std::slice::from_ref(change));
            }
            prop_assert_eq!(&planned_if(&want, &now, &plan.settled, may_remove).changes, &vec![], "it comes to rest");
            for (of, peer) in &want.peers {
                for ip in &peer.allowed_ips {
                    let has = now.peers[of].allowed_ips.contains(ip);
                    prop_assert!(has || plan.held_back.contains(&(*ip, *of)));
                }
            }
            for (of, peer) in &state.peers {
                for ip in peer.allowed_ips.iter().filter(|ip| !may_remove(**ip)) {
                    prop_assert!(now.peers[of].allowed_ips.contains(ip), "what must stay stays");
                }
            }
        }
        let done = planned(&want, &state, &settled);
        let mut now = state.clone();
        apply(&mut now, &done.changes);
        let content = |state: &DeviceState| state.peers.iter().map(|(key, peer)| (*key, peer.allowed_ips.clone())).collect::<Vec<_>>();
        prop_assert_eq!(content(&now), want.peers.iter().map(|(key, peer)| (*key, peer.allowed_ips.clone())).collect::<Vec<_>>());
    }
}
