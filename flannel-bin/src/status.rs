//! What the agent says about itself.

use std::sync::OnceLock;
use std::time::Duration;

use flannel_core::backend::NetworkStatus;
use flannel_core::firewall::FirewallStatus;
use flannel_core::state_file::age;
use flannel_core::status::Verdict;
use flannel_core::subnet::StoreStatus;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long the store may be away before a running agent is no longer ready. Pods keep their traffic without
/// it, and one reconnect, such as at a leader election, should not take a node out of service.
const STORE_GRACE: Duration = Duration::from_secs(10);

/// How far the agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Not up yet: what it waits for.
    Starting(String),
    /// The subnet file is written and the network runs.
    Running,
    /// Another node has our subnets; why.
    LeaseLost(String),
    /// Told to stop.
    Stopping,
}

/// Whether pods on this node can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// Yes; and what is not used all the same, such as leases that contradict others.
    Ready(Vec<String>),
    /// No, for these reasons.
    NotReady(Vec<String>),
}

/// What the operator asked for of firewall rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Whether there are to be rules by more than the default.
    pub(crate) rules: bool,
    /// Whether pods are to reach the world.
    pub(crate) masquerade: bool,
}

/// Decides from all that is known at a time.
pub(crate) fn readiness(
    now: Instant,
    step: &Step,
    store: Option<&StoreStatus>,
    network: Option<&NetworkStatus>,
    firewall: Option<(&FirewallStatus, Asked)>,
) -> Readiness {
    let mut reasons = Vec::new();
    match step {
        Step::Starting(why) => {
            // It may be the rules that are waited for.
            let rules = firewall.and_then(|(firewall, _)| firewall.problem.clone());
            return Readiness::NotReady([why.clone()].into_iter().chain(rules).collect());
        }
        Step::Stopping => return Readiness::NotReady(vec!["stopping".to_owned()]),
        Step::LeaseLost(why) => reasons.push(why.clone()),
        Step::Running => {}
    }
    if let Some(store) = store {
        let lost = store.lease_lost.as_ref().filter(|_| reasons.is_empty());
        reasons.extend(lost.map(|holder| format!("the lease of this node is lost: {holder}")));
        let unkept = store.lease_unkept.as_ref();
        reasons.extend(unkept.map(|why| format!("the lease of this node can't be kept: {why}")));
        let away = now.saturating_duration_since(store.since);
        if !store.connected && away >= STORE_GRACE {
            reasons.push(format!("store away for {} s: {}", away.as_secs(), store.problem));
        }
    }
    let masquerade = firewall.is_some_and(|(_, asked)| asked.masquerade);
    let mut notes = Vec::new();
    let clock = store.and_then(|store| store.clock.clone());
    match network {
        Some(network) => {
            if let Some(saved) = network.recalled {
                // Pods have their traffic, so this is as patient as with a store that goes away later.
                if store.is_none_or(|store| now.saturating_duration_since(store.since) >= STORE_GRACE) {
                    reasons.push(format!(
                        "traffic flows by what was stored {}; the store has not confirmed it yet",
                        age(saved)
                    ));
                }
            } else if !network.synced {
                reasons.push("the other nodes are not in the kernel yet".to_owned());
            }
            let Verdict { reasons: cut, notes: besides } = network.problems.verdict(masquerade);
            reasons.extend(cut);
            notes = besides;
            notes.extend(clock);
        }
        None => reasons.push("the network does not run yet".to_owned()),
    }
    // Rules that nobody asked for are no reason to keep pods from a node.
    let (problem, mut about_rules) = match firewall {
        Some((firewall, Asked { rules: true, .. })) => (firewall.problem.clone(), Vec::new()),
        Some((firewall, Asked { rules: false, .. })) => (None, firewall.problem.iter().cloned().collect()),
        None => (None, Vec::new()),
    };
    reasons.extend(problem);
    reasons.extend(firewall.into_iter().flat_map(|(firewall, _)| firewall.cut_off()));
    about_rules.extend(firewall.into_iter().flat_map(|(firewall, _)| firewall.hindered()));
    about_rules.extend(firewall.into_iter().flat_map(|(firewall, _)| firewall.notes.iter().cloned()));
    if reasons.is_empty() {
        notes.append(&mut about_rules);
        Readiness::Ready(notes)
    } else {
        Readiness::NotReady(reasons)
    }
}

/// Where the parts of the agent leave their status, for the health server to read.
#[derive(Debug)]
pub(crate) struct Board {
    step: watch::Sender<Step>,
    store: OnceLock<watch::Receiver<StoreStatus>>,
    network: OnceLock<watch::Receiver<NetworkStatus>>,
    firewall: OnceLock<(watch::Receiver<FirewallStatus>, Asked)>,
    /// What was found at the start and stays so.
    remarks: OnceLock<Vec<String>>,
}

impl Board {
    /// The board of an agent that just started.
    pub(crate) fn new() -> Self {
        let step = watch::Sender::new(Step::Starting("starting".to_owned()));
        let (store, network, firewall) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        Self { step, store, network, firewall, remarks: OnceLock::new() }
    }

    /// Notes a step. A lost lease stays lost, whatever else goes on, until the agent stops.
    pub(crate) fn set(&self, step: Step) {
        self.step.send_if_modified(|current| {
            let keeps = matches!(current, Step::LeaseLost(_)) && step != Step::Stopping;
            if !keeps {
                *current = step;
            }
            !keeps
        });
    }

    /// Notes what the agent waits for before it is up.
    pub(crate) fn starting(&self, why: impl Into<String>) {
        self.set(Step::Starting(why.into()));
    }

    /// Shows the status of the store from now on.
    pub(crate) fn watch_store(&self, status: watch::Receiver<StoreStatus>) {
        // An agent has one store; a second is not shown.
        let _ = self.store.set(status);
    }

    /// Shows the status of the network from now on.
    pub(crate) fn watch_network(&self, status: watch::Receiver<NetworkStatus>) {
        let _ = self.network.set(status);
    }

    /// Shows the status of the firewall rules from now on.
    pub(crate) fn watch_firewall(&self, status: watch::Receiver<FirewallStatus>, asked: Asked) {
        let _ = self.firewall.set((status, asked));
    }

    /// Shows, while the agent is ready, what was found at its start.
    pub(crate) fn remark(&self, remarks: Vec<String>) {
        let _ = self.remarks.set(remarks);
    }

    /// Whether the agent is ready now.
    pub(crate) fn readiness(&self) -> Readiness {
        let step = self.step.borrow().clone();
        let store = self.store.get().map(|status| status.borrow().clone());
        let network = self.network.get().map(|status| status.borrow().clone());
        let firewall = self.firewall.get().map(|(status, asked)| (status.borrow().clone(), *asked));
        let firewall = firewall.as_ref().map(|(status, asked)| (status, *asked));
        let ready = readiness(Instant::now(), &step, store.as_ref(), network.as_ref(), firewall);
        let remarks = self.remarks.get().into_iter().flatten().cloned();
        match ready {
            Readiness::Ready(notes) => Readiness::Ready(remarks.chain(notes).collect()),
            not_ready @ Readiness::NotReady(_) => not_ready,
        }
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::addr::PerFamily;
    use flannel_core::firewall::{Cuts, Obstacle, Realm};
    use flannel_core::status::{Harm, Listed, Problem, Subject};

    use super::*;

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

    fn reasons(step: &Step, store: &StoreStatus, network: Option<&NetworkStatus>, later: u64) -> String {
        let now = store.since + Duration::from_secs(later);
        match readiness(now, step, Some(store), network, None) {
            Readiness::Ready(notes) => [vec!["ready".to_owned()], notes].concat().join("; "),
            Readiness::NotReady(reasons) => reasons.join("; "),
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
        let garbled = Problem::new(Subject::Lease("x".into()), Harm::None, "lease x: garbled".to_owned());
        strange.problems.leases = Listed::new(1, [garbled].into_iter());
        let old = with(strange.clone(), Subject::Restart, Harm::None, "VNI changed");
        let bad = with(network(), Subject::Config, Harm::None, "VNI is bad");
        let unsynced = NetworkStatus::default();
        let starting = Step::Starting("waiting for the network config".into());
        let recalled = NetworkStatus { recalled: Some(0), ..NetworkStatus::default() };
        let by_memory =
            "traffic flows by what was stored at an unknown time; the store has not confirmed it yet";
        let both = format!("store away for 10 s: refused; {by_memory}");
        let lease_lost = Step::LeaseLost("lease lost".into());
        for (step, store, network, later, want) in [
            (&Step::Running, &up, Some(&network()), 0, "ready"),
            (&Step::Running, &away, Some(&network()), 9, "ready"),
            (&Step::Running, &away, Some(&network()), 10, "store away for 10 s: refused"),
            (&Step::Running, &up, Some(&strange), 0, "ready; lease x: garbled"),
            (&Step::Running, &up, Some(&old), 0, "ready; VNI changed; lease x: garbled"),
            (&Step::Running, &up, Some(&bad), 0, "ready; VNI is bad"),
            (&Step::Running, &skewed, Some(&network()), 0, "ready; clocks differ"),
            (&Step::Running, &lost, Some(&network()), 0, "the lease of this node is lost: 10.0.0.2 has it"),
            (
                &Step::Running,
                &unkept,
                Some(&network()),
                0,
                "the lease of this node can't be kept: etcd is full",
            ),
            (&lease_lost, &lost, Some(&network()), 0, "lease lost"),
            (&Step::Running, &up, Some(&broken), 0, "flannel.1 is gone"),
            (&Step::Running, &up, Some(&moved), 0, "192.0.2.1 is gone"),
            (&Step::Running, &up, Some(&beaten), 0, "this node's VtepMAC is taken"),
            (&Step::Running, &up, Some(&unsynced), 0, "the other nodes are not in the kernel yet"),
            (&Step::Running, &up, None, 0, "the network does not run yet"),
            (&Step::Running, &away, Some(&recalled), 9, "ready"),
            (&Step::Running, &away, Some(&recalled), 10, both.as_str()),
            (&Step::Running, &up, Some(&recalled), 10, by_memory),
            (&starting, &up, Some(&network()), 0, "waiting for the network config"),
            (&Step::Stopping, &up, Some(&network()), 0, "stopping"),
            (&Step::Running, &away, Some(&broken), 99, "store away for 99 s: refused; flannel.1 is gone"),
        ] {
            assert_eq!(reasons(step, store, network, later), want, "{step:?} {later}");
        }
    }

    #[tokio::test]
    async fn rules_that_fail_are_a_reason_and_what_is_around_them_a_note() {
        let of_asked = |firewall: &FirewallStatus, asked| {
            let (store, network) = (store(true, ""), network());
            let firewall = Some((firewall, Asked { rules: asked, masquerade: asked }));
            readiness(Instant::now(), &Step::Running, Some(&store), Some(&network), firewall)
        };
        let of = |firewall: &FirewallStatus| of_asked(firewall, true);
        let note = "chain FORWARD drops".to_owned();
        let mut firewall = FirewallStatus { notes: vec![note.clone()], ..FirewallStatus::default() };
        assert_eq!(of(&firewall), Readiness::Ready(vec![note.clone()]));
        firewall.problem = Some("xtables lock".to_owned());
        assert_eq!(of(&firewall), Readiness::NotReady(vec!["xtables lock".to_owned()]));
        assert_eq!(of_asked(&firewall, false), Readiness::Ready(vec!["xtables lock".to_owned(), note]));
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
            let firewall =
                FirewallStatus { obstacles: vec![obstacle], masquerades, ..FirewallStatus::default() };
            let (store, network) = (store(true, ""), network());
            for asked in [true, false] {
                let firewall = Some((&firewall, Asked { rules: asked, masquerade: asked }));
                let now = Instant::now();
                let said = readiness(now, &Step::Running, Some(&store), Some(&network), firewall);
                let lines = vec![text.clone()];
                let want = if is_ready { Readiness::Ready(lines) } else { Readiness::NotReady(lines) };
                assert_eq!(said, want, "{cuts:?} {masquerades}");
            }
        }
    }

    #[test]
    fn a_lost_lease_stays_lost_until_the_end() {
        let board = Board::new();
        board.set(Step::LeaseLost("lost".into()));
        board.set(Step::Running);
        assert_eq!(*board.step.borrow(), Step::LeaseLost("lost".into()));
        board.set(Step::Stopping);
        assert_eq!(*board.step.borrow(), Step::Stopping);
    }
}
