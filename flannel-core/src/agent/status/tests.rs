mod json;

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use super::*;
use crate::addr::PerFamily;
use crate::firewall::{Cuts, Obstacle, Realm};
use crate::status::{Harm, Listed, PeerState, PeerStatus, Problem, Subject};

fn store(connected: bool, problem: &str) -> StoreStatus {
    StoreStatus { connected, problem: problem.into(), ..StoreStatus::unknown() }
}

fn network() -> NetworkStatus {
    NetworkStatus { synced: true, ..NetworkStatus::default() }
}

fn with(mut network: NetworkStatus, subject: Subject, harm: Harm, text: &str) -> NetworkStatus {
    network.problems.node.push(Problem::new(subject, harm, text.to_owned()));
    network
}

fn status(phase: &Phase, store: &StoreStatus, network: Option<&NetworkStatus>) -> AgentStatus {
    let (phase, store, network) = (phase.clone(), Some(store.clone()), network.cloned());
    AgentStatus { phase, store, network, ..AgentStatus::new(FirewallOptions::default()) }
}

fn texts(readiness: Readiness) -> (bool, Vec<String>) {
    let is_ready = readiness.is_ready();
    let told = if is_ready { readiness.notes } else { readiness.reasons };
    (is_ready, told.into_iter().map(|condition| condition.text).collect())
}

fn reasons(phase: &Phase, store: &StoreStatus, network: Option<&NetworkStatus>, later: u64) -> String {
    let now = store.since + Duration::from_secs(later);
    match texts(readiness(now, &status(phase, store, network))) {
        (true, notes) => [vec!["ready".to_owned()], notes].concat().join("; "),
        (false, reasons) => reasons.join("; "),
    }
}

#[tokio::test(start_paused = true)]
async fn readiness_turns_red_for_store_lease_and_device() {
    let (up, away) = (store(true, ""), store(false, "refused"));
    let skewed = StoreStatus { clock: Some("clocks differ".into()), ..store(true, "") };
    let lost = StoreStatus { lease_lost: Some("10.0.0.2 has it".into()), ..store(true, "") };
    let unkept = StoreStatus { lease_unkept: Some("etcd is full".into()), ..store(true, "") };
    let broken = with(network(), Subject::Device, Harm::All, "flannel.1 is gone");
    let moved = with(network(), Subject::Underlay, Harm::All, "192.0.2.1 is gone");
    let beaten = with(network(), Subject::OwnLease, Harm::All, "this node's VtepMAC is taken");
    let mut strange = network();
    let unreadable = Problem::new(Subject::Lease("x".into()), Harm::None, "lease x: unreadable".to_owned());
    strange.problems.leases = Listed::new(1, [unreadable].into_iter());
    let old = with(strange.clone(), Subject::Restart, Harm::None, "VNI changed");
    let bad = with(network(), Subject::Config, Harm::None, "VNI is bad");
    let unsynced = NetworkStatus::default();
    let starting = Phase::Starting { waiting_for: "waiting for the network config".into() };
    let recalled = NetworkStatus { recalled: Some(0), ..NetworkStatus::default() };
    let by_memory = "traffic flows by what was stored at an unknown time; the store has not confirmed it yet";
    let both = format!("store away for 10 s: refused; {by_memory}");
    let lease_lost = Phase::LeaseLost { why: "lease lost".into() };
    for (phase, store, network, later, want) in [
        (&Phase::Running, &up, Some(&network()), 0, "ready"),
        (&Phase::Running, &away, Some(&network()), 9, "ready"),
        (&Phase::Running, &away, Some(&network()), 10, "store away for 10 s: refused"),
        (&Phase::Running, &up, Some(&strange), 0, "ready; lease x: unreadable"),
        (&Phase::Running, &up, Some(&old), 0, "ready; VNI changed; lease x: unreadable"),
        (&Phase::Running, &up, Some(&bad), 0, "ready; VNI is bad"),
        (&Phase::Running, &skewed, Some(&network()), 0, "ready; clocks differ"),
        (&Phase::Running, &lost, Some(&network()), 0, "the lease of this node is lost: 10.0.0.2 has it"),
        (&Phase::Running, &unkept, Some(&network()), 0, "the lease of this node can't be kept: etcd is full"),
        (&lease_lost, &lost, Some(&network()), 0, "lease lost"),
        (&Phase::Running, &up, Some(&broken), 0, "flannel.1 is gone"),
        (&Phase::Running, &up, Some(&moved), 0, "192.0.2.1 is gone"),
        (&Phase::Running, &up, Some(&beaten), 0, "this node's VtepMAC is taken"),
        (&Phase::Running, &up, Some(&unsynced), 0, "the other nodes are not in the kernel yet"),
        (&Phase::Running, &up, None, 0, "the network does not run yet"),
        (&Phase::Running, &away, Some(&recalled), 9, "ready"),
        (&Phase::Running, &away, Some(&recalled), 10, both.as_str()),
        (&Phase::Running, &up, Some(&recalled), 10, by_memory),
        (&starting, &up, Some(&network()), 0, "waiting for the network config"),
        (&Phase::Stopping, &up, Some(&network()), 0, "stopping"),
        (&Phase::Ended { error: None }, &up, None, 0, "ended"),
        (&Phase::Ended { error: Some("it broke".into()) }, &up, None, 0, "ended: it broke"),
        (&Phase::Running, &away, Some(&broken), 99, "store away for 99 s: refused; flannel.1 is gone"),
    ] {
        assert_eq!(reasons(phase, store, network, later), want, "{phase:?} {later}");
    }
}

/// What a supervisor shows.
#[tokio::test(start_paused = true)]
async fn the_summary_says_where_the_node_is_or_what_it_waits_for() {
    let (up, starting) = (store(true, ""), Phase::Starting { waiting_for: "waiting for the config".into() });
    let mut busy = network();
    busy.peers = 41;
    let line = |phase: &Phase, network: Option<&NetworkStatus>| status(phase, &up, network).summary();
    assert_eq!(line(&starting, None), "not ready: waiting for the config");
    assert_eq!(line(&Phase::Running, Some(&busy)), "ready: 41 peers");
    let broken = with(network(), Subject::Device, Harm::All, "flannel.1 is gone");
    assert_eq!(line(&Phase::Running, Some(&broken)), "not ready: flannel.1 is gone");
    let worse = with(broken, Subject::Underlay, Harm::All, "192.0.2.1 is gone");
    assert_eq!(line(&Phase::Running, Some(&worse)), "not ready: flannel.1 is gone (1 more)");
    assert_eq!(line(&Phase::Stopping, Some(&busy)), "stopping");
    assert_eq!(line(&Phase::Ended { error: Some("it broke".into()) }, None), "ended: it broke");
    let mut noted = with(busy, Subject::Restart, Harm::None, "VNI changed");
    noted.peers = 1;
    assert_eq!(line(&Phase::Running, Some(&noted)), "ready: 1 peer, 1 note");
    let attrs = crate::lease::LeaseAttrs::default();
    let lease = crate::lease::Lease { key: "10.5.3.0-24&fd00::-64".parse().unwrap(), attrs, created: 1 };
    let node = Node {
        lease,
        networks: PerFamily::default(),
        backend: "vxlan".into(),
        overlay_mtu: crate::addr::Mtu(1450),
        underlay: crate::backend::Underlay {
            name: "eth0".into(),
            link: crate::addr::LinkIndex(2),
            mtu: crate::addr::Mtu(1500),
            local: PerFamily::default(),
            published: PerFamily::default(),
            reason: String::new(),
        },
    };
    let status = AgentStatus { node: Some(node), ..status(&Phase::Running, &up, Some(&network())) };
    assert_eq!(status.summary(), "ready: 10.5.3.0/24 fd00::/64 by vxlan, 0 peers");
}

/// What is said with these rules, that were asked for or not, while all else is well.
fn with_rules(firewall: &FirewallStatus, asked: bool) -> (bool, Vec<String>) {
    let asked = FirewallOptions::default().with_masquerade(asked);
    let (store, network) = (Some(store(true, "")), Some(network()));
    let (phase, firewall) = (Phase::Running, Some(firewall.clone()));
    let status = AgentStatus { phase, store, network, firewall, ..AgentStatus::new(asked) };
    texts(status.readiness())
}

#[tokio::test]
async fn rules_that_fail_are_a_reason_and_what_is_around_them_a_note() {
    let note = "chain FORWARD drops".to_owned();
    let mut firewall = FirewallStatus { notes: vec![note.clone()], ..FirewallStatus::default() };
    assert_eq!(with_rules(&firewall, true), (true, vec![note.clone()]));
    firewall.problem = Some("xtables lock".to_owned());
    assert_eq!(with_rules(&firewall, true), (false, vec!["xtables lock".to_owned()]));
    assert_eq!(with_rules(&firewall, false), (true, vec!["xtables lock".to_owned(), note]));
}

/// Pods that reach no peer, or not the world although they are masqueraded, are no service.
#[tokio::test]
async fn chains_that_cut_pods_off_are_a_reason_and_others_a_note() {
    let [all, none] = [true, false].map(|it| Cuts { to_peers: it, from_peers: it, world: it });
    let (v4, v6) =
        (|cuts| PerFamily { v4: Some(cuts), v6: None }, |cuts| PerFamily { v4: None, v6: Some(cuts) });
    for (cuts, masquerades, is_ready) in [
        (v4(all), false, false),
        (v6(Cuts { to_peers: true, ..none }), false, false),
        (PerFamily { v4: Some(none), v6: Some(all) }, true, false),
        (v4(Cuts { world: true, ..none }), true, false),
        (v4(Cuts { world: true, ..none }), false, true),
        (v4(Cuts { from_peers: true, ..none }), true, true),
    ] {
        let obstacle = Obstacle {
            realm: Realm::NfTables,
            family: "inet".into(),
            table: "fw".into(),
            chain: "forward".into(),
            ends_in: "forward".into(),
            rule: Some("reject".into()),
            cuts,
            advice: "accept pods there".into(),
        };
        let text = obstacle.to_string();
        let firewall = FirewallStatus { obstacles: vec![obstacle], masquerades, ..FirewallStatus::default() };
        for asked in [true, false] {
            let want = (is_ready, vec![text.clone()]);
            assert_eq!(with_rules(&firewall, asked), want, "{cuts:?} {masquerades}");
        }
    }
}

#[test]
fn a_lost_lease_stays_lost_until_the_end() {
    let board = Board::new(FirewallOptions::default(), Vec::new());
    let phase = || board.subscribe().borrow().phase.clone();
    let lost = Phase::LeaseLost { why: "lost".into() };
    board.enter(lost.clone());
    board.enter(Phase::Running);
    assert_eq!(phase(), lost);
    board.enter(Phase::Stopping);
    assert_eq!(phase(), Phase::Stopping);
    board.enter(lost.clone());
    board.end(Some("gone".into()));
    assert_eq!(phase(), Phase::Ended { error: Some("gone".into()) });
}

/// Who watches hears of an answer that changes with time alone, and of a part that is looked at later than another.
#[tokio::test(start_paused = true)]
async fn the_board_follows_its_parts_and_the_clock() {
    let board = Board::new(FirewallOptions::default(), vec!["a remark".to_owned()]);
    let (stores, networks) = (watch::Sender::new(store(true, "")), watch::Sender::new(network()));
    board.watch_store(stores.subscribe());
    board.watch_network(networks.subscribe());
    board.enter(Phase::Running);
    let ready = |status: &Arc<AgentStatus>| status.readiness().is_ready();
    let mut seen = board.subscribe();
    assert!(ready(&seen.borrow_and_update()));
    let course = async {
        stores.send_modify(|status| _ = status.fail("refused".to_owned()));
        let begin = Instant::now();
        let status = seen.wait_for(|status| !ready(status)).await.unwrap().clone();
        assert_eq!(begin.elapsed(), STORE_GRACE);
        let [away] = &status.readiness().reasons[..] else { panic!("{:?}", status.readiness()) };
        assert_eq!((away.kind, &*away.text), (ConditionKind::StoreAway, "store away for 10 s: refused"));
        stores.send_modify(|status| _ = status.succeed());
        seen.wait_for(ready).await.unwrap();
        networks.send_modify(|status| status.synced = false);
        let status = seen.wait_for(|status| !ready(status)).await.unwrap().clone();
        let json = serde_json::to_value(&*status).unwrap();
        assert_eq!((&json["ready"], &json["phase"]["name"]), (&false.into(), &"running".into()));
        assert_eq!(json["reasons"][0]["kind"], "not-synced");
        assert_eq!(json["notes"][0]["text"], "a remark");
        assert_eq!(json["store"]["connected"], true);
    };
    tokio::select! {
        never = board.follow() => match never {},
        () = course => {}
    }
}

/// Ten thousand peers of which one changes: what readers of the status hold shares all others with what is shown next.
#[tokio::test(start_paused = true)]
async fn a_change_of_one_peer_copies_no_other() {
    let peer = |number: u32, state| {
        let lease = format!("10.{}.{}.0-24", number / 256, number % 256).parse().unwrap();
        PeerStatus::new(lease, PerFamily::default(), state, SystemTime::UNIX_EPOCH)
    };
    let mut many = network();
    many.peer_list = (0..10_000).map(|number| peer(number, PeerState::Programmed)).collect();
    let networks = watch::Sender::new(many);
    let board = Board::new(FirewallOptions::default(), Vec::new());
    board.watch_network(networks.subscribe());
    let mut seen = board.subscribe();
    let held = seen.borrow_and_update().clone();
    let course = async {
        networks.send_modify(|status| status.peer_list.put(peer(4711, PeerState::Waiting)));
        let lease = peer(4711, PeerState::Waiting).lease;
        let is_waiting = |status: &Arc<AgentStatus>| {
            let network = status.network.as_ref();
            network.and_then(|it| it.peer_list.get(&lease)).is_some_and(|it| it.state == PeerState::Waiting)
        };
        seen.wait_for(is_waiting).await.unwrap();
    };
    tokio::select! {
        never = board.follow() => match never {},
        () = course => {}
    }
    let list = |status: &AgentStatus| status.network.as_ref().unwrap().peer_list.clone();
    let (before, now) = (list(&held), list(&seen.borrow()));
    let is_shared = |entry: &&PeerStatus| {
        now.get(&entry.lease).is_some_and(|other| std::ptr::eq::<PeerStatus>(other, *entry))
    };
    assert_eq!((before.iter().filter(is_shared).count(), now.len()), (9_999, 10_000));
    let json = serde_json::to_value(&**seen.borrow()).unwrap();
    assert_eq!(json["network"]["peer_list"][4711]["state"], "waiting");
}
