//! Nodes with several backends, on kernels and a store in memory: the ways between all pairs at every moment of a change.

mod model;

use std::time::Duration;

use model::{Cluster, Kind};
use proptest::prelude::*;

/// A change of `Backend.Type` on a cluster of this size: at no moment is there a pair of nodes of which one sends by a backend
/// by which the other one does not receive.
async fn switch(nodes: usize, from: Kind, to: Kind) {
    let mut cluster = Cluster::start(nodes, from).await;
    cluster.settle().await;
    cluster.must_be_connected("before");
    assert!(cluster.all_publish(from), "{:?}", cluster.published());
    cluster.set_type(to, "");
    cluster.watch_until(Duration::from_secs(30), |cluster| cluster.all_publish(to)).await;
    cluster.watch_until(Duration::from_secs(60), |cluster| cluster.all_run_only(to)).await;
    cluster.must_be_connected("after");
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_backend_cuts_nobody_off() {
    for from in Kind::ALL {
        for to in Kind::ALL.into_iter().filter(|to| *to != from) {
            switch(4, from, to).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_nodes_change_their_backend() {
    switch(100, Kind::HostGw, Kind::Vxlan).await;
}

/// An operator who takes the change back at once finds all as it was.
#[tokio::test(start_paused = true)]
async fn a_change_that_is_taken_back_cuts_nobody_off() {
    for after in [0, 1, 5, 50, 500, 5_000, 15_000] {
        let mut cluster = Cluster::start(4, Kind::Vxlan).await;
        cluster.settle().await;
        cluster.set_type(Kind::HostGw, "");
        cluster.watch_for(Duration::from_millis(after)).await;
        cluster.set_type(Kind::Vxlan, "");
        cluster
            .watch_until(Duration::from_secs(60), |it| {
                it.all_publish(Kind::Vxlan) && it.all_run_only(Kind::Vxlan)
            })
            .await;
    }
}

/// A change that is taken back, and one of the keys of a backend that is up beside the configured one: both have the new keys.
#[tokio::test(start_paused = true)]
async fn keys_of_a_backend_that_is_up_already_count_at_once() {
    for after in [1, 300, 5_000] {
        let mut cluster = Cluster::start(3, Kind::Vxlan).await;
        cluster.settle().await;
        cluster.set_type(Kind::HostGw, "");
        cluster.watch_for(Duration::from_millis(after)).await;
        cluster.set_type(Kind::Vxlan, r#","MTU":1400"#);
        let are_changed = |it: &Cluster| it.all_publish(Kind::Vxlan) && it.mtus(Kind::Vxlan) == [1350; 3];
        cluster.watch_until(Duration::from_secs(60), are_changed).await;
    }
    let mut cluster = Cluster::start(3, Kind::HostGw).await;
    cluster.add_go_node(Kind::Vxlan);
    cluster.set_type(Kind::HostGw, r#","Accept":["vxlan"]"#);
    cluster.settle().await;
    assert_eq!(cluster.mtus(Kind::Vxlan), [1450; 3]);
    cluster.set_type(Kind::HostGw, r#","Accept":[{"Type":"vxlan","MTU":1400}]"#);
    cluster.watch_until(Duration::from_secs(5), |it| it.mtus(Kind::Vxlan) == [1350; 3]).await;
}

/// A node that says nothing of the next backend, such as Go flannel's, holds the change up for the time that the config gives, and
/// stays reachable after it.
#[tokio::test(start_paused = true)]
async fn a_node_that_says_nothing_holds_the_change_up_for_a_while() {
    let mut cluster = Cluster::start(3, Kind::HostGw).await;
    cluster.add_go_node(Kind::HostGw);
    cluster.settle().await;
    cluster.set_type(Kind::Vxlan, r#","SwitchAfter":20"#);
    cluster.watch_for(Duration::from_secs(19)).await;
    assert!(cluster.all_publish(Kind::HostGw), "{:?}", cluster.published());
    cluster.watch_until(Duration::from_secs(5), |it| it.all_publish(Kind::Vxlan)).await;
    cluster.watch_for(Duration::from_secs(60)).await;
    cluster.must_be_connected("its lease still names the former backend");
    cluster.remove_go_node();
    cluster.watch_until(Duration::from_secs(60), |it| it.all_run_only(Kind::Vxlan)).await;
}

/// A node whose agent ends in the middle of a change, and one that joins.
#[tokio::test(start_paused = true)]
async fn nodes_that_restart_or_join_in_the_middle_cut_nobody_off() {
    for after in [0, 1, 10, 100, 1_000, 12_000] {
        let mut cluster = Cluster::start(4, Kind::Vxlan).await;
        cluster.settle().await;
        cluster.stop(1).await;
        cluster.set_type(Kind::HostGw, r#","SwitchAfter":5"#);
        cluster.watch_for(Duration::from_millis(after)).await;
        cluster.stop(2).await;
        cluster.restart(1).await;
        cluster.join().await;
        cluster.watch_for(Duration::from_millis(after)).await;
        cluster.restart(2).await;
        cluster
            .watch_until(Duration::from_secs(90), |it| {
                it.all_publish(Kind::HostGw) && it.all_run_only(Kind::HostGw)
            })
            .await;
        cluster.must_be_connected("in the end");
    }
}

/// A node that starts with another config than those that run: its config accepts their backends, theirs accepts nothing.
#[tokio::test(start_paused = true)]
async fn what_a_config_does_not_accept_is_not_run() {
    let mut cluster = Cluster::start(2, Kind::Vxlan).await;
    cluster.settle().await;
    cluster.set_type_for_new_nodes(Kind::HostGw, r#","Accept":["vxlan","ipip"]"#);
    cluster.join().await;
    cluster.settle().await;
    assert_eq!(cluster.way(2, 0), Some(Kind::Vxlan), "as its lease names");
    assert_eq!(cluster.way(0, 2), Some(Kind::Vxlan), "by which it receives, too");
    assert_eq!(cluster.devices(0), ["eth0", "flannel.1"]);
    cluster.set_type(Kind::Vxlan, "");
    cluster.watch_until(Duration::from_secs(5), |it| it.all_publish(Kind::Vxlan)).await;
    cluster.watch_until(Duration::from_secs(60), |it| it.all_run_only(Kind::Vxlan)).await;
}

/// The backends for detours of a network of vxlan.
const FALLBACK: &str = r#","SwitchAfter":5,"Fallback":["host-gw","ipip"]"#;

/// One direction is blocked, then the first detour, too, then all ways; an agent restarts in between, and the change of
/// the backend takes all of it away.
#[tokio::test(start_paused = true)]
async fn a_way_that_is_blocked_is_left_until_it_is_open_again() {
    let mut cluster = Cluster::start(3, Kind::Vxlan).await;
    cluster.set_type(Kind::Vxlan, FALLBACK);
    cluster.settle().await;
    assert_eq!(cluster.devices(0), ["eth0", "flannel.1", "flannel.ipip"], "they are up in advance");
    cluster.block(0, 1, Kind::Vxlan, true);
    cluster.probe_for(Duration::from_secs(2)).await;
    let ways = |it: &Cluster| [it.way(0, 1), it.way(1, 0), it.way(0, 2)].map(Option::unwrap);
    assert_eq!(ways(&cluster), [Kind::HostGw, Kind::Vxlan, Kind::Vxlan]);
    cluster.restart(0).await;
    cluster.must_be_connected("after a restart");
    assert_eq!(ways(&cluster), [Kind::HostGw, Kind::Vxlan, Kind::Vxlan], "it is remembered");
    cluster.block(0, 1, Kind::HostGw, true);
    cluster.probe_for(Duration::from_secs(12)).await;
    assert_eq!(ways(&cluster)[0], Kind::Ipip);
    cluster.block(0, 1, Kind::Ipip, true);
    cluster.probe_for(Duration::from_secs(62)).await;
    assert_eq!(ways(&cluster)[0], Kind::Vxlan, "no way is better than its own");
    cluster.block(0, 1, Kind::HostGw, false);
    cluster.probe_for(Duration::from_secs(62)).await;
    assert_eq!(ways(&cluster)[0], Kind::HostGw, "all are tried again after a while");
    cluster.block(0, 1, Kind::Vxlan, false);
    cluster.probe_for(Duration::from_secs(58)).await;
    assert_eq!(ways(&cluster)[0], Kind::HostGw);
    cluster.probe_for(Duration::from_secs(5)).await;
    assert_eq!(ways(&cluster), [Kind::Vxlan; 3]);
    cluster.block(0, 1, Kind::Vxlan, true);
    cluster.probe_for(Duration::from_secs(2)).await;
    cluster.set_type(Kind::Vxlan, "");
    cluster.probe_for(Duration::from_secs(60)).await;
    assert!(cluster.all_run_only(Kind::Vxlan), "{:?}", cluster.published());
}

#[derive(Debug, Clone)]
enum Action {
    Switch(Kind),
    Block(usize, usize, Kind, bool),
    Restart(usize),
    Stop(usize),
    Join,
    Leave(usize),
    Damage(usize),
    Pause(u64),
}

fn action() -> impl Strategy<Value = Action> {
    let kind = prop::sample::select(Kind::ALL.to_vec());
    prop_oneof![
        3 => kind.clone().prop_map(Action::Switch),
        3 => (0..4_usize, 0..4_usize, kind, any::<bool>()).prop_map(|(from, to, by, is)| Action::Block(from, to, by, is)),
        2 => (0..6_usize).prop_map(Action::Restart),
        1 => (0..6_usize).prop_map(Action::Stop),
        1 => Just(Action::Join),
        1 => (0..6_usize).prop_map(Action::Leave),
        2 => (0..6_usize).prop_map(Action::Damage),
        4 => prop::sample::select(vec![0, 1, 10, 300, 2_000, 12_000, 40_000]).prop_map(Action::Pause),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever happens: when things are quiet each pair of live nodes is connected in both directions, by devices that both
    /// have and, if the network has detours, by a way that is not blocked, and nothing of a former backend is left. An agent that has just started has the time to store what proves that its
    /// devices are its own.
    #[test]
    fn whatever_happens_all_pairs_are_connected_in_the_end(actions in prop::collection::vec(action(), 1..14)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let keys = |kind: Kind| if kind == Kind::Vxlan { FALLBACK } else { r#","SwitchAfter":5"# };
            let mut cluster = Cluster::start(3, Kind::Vxlan).await;
            cluster.set_type(Kind::Vxlan, FALLBACK);
            cluster.settle().await;
            let mut last = Kind::Vxlan;
            for action in &actions {
                match action {
                    Action::Switch(kind) => {
                        last = *kind;
                        cluster.set_type(*kind, keys(*kind));
                    }
                    Action::Block(from, to, by, is_blocked) => cluster.block(*from, *to, *by, *is_blocked),
                    Action::Restart(node) => {
                        cluster.restart(*node).await;
                        cluster.settle().await;
                    }
                    Action::Stop(node) => cluster.stop(*node).await,
                    Action::Join => {
                        cluster.join().await;
                        cluster.settle().await;
                    }
                    Action::Leave(node) => cluster.leave(*node).await,
                    Action::Damage(node) => cluster.damage(*node),
                    Action::Pause(ms) => cluster.probe_for(Duration::from_millis(*ms)).await,
                }
            }
            cluster.restart_all().await;
            cluster.probe_for(Duration::from_secs(180)).await;
            cluster.must_be_connected(&format!("{actions:?}"));
            if last == Kind::Vxlan {
                // A pair without any way tries all of them once a minute.
                cluster.no_packet_is_lost_that_could_arrive(&format!("{actions:?}"));
            }
            cluster.unblock_all();
            cluster.set_type(last, r#","SwitchAfter":5"#);
            cluster.probe_for(Duration::from_secs(60)).await;
            cluster.must_be_connected(&format!("without detours: {actions:?}"));
            assert!(cluster.all_publish(last) && cluster.all_run_only(last), "{actions:?}: {:?}", cluster.published());
        });
    }
}
