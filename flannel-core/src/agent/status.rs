//! The status of an agent.

mod board;
mod summary;
#[cfg(test)]
mod tests;
mod view;

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

pub(super) use board::{Board, Inspectors};

use super::firewall::FirewallOptions;
use super::node::Node;
use crate::backend::NetworkStatus;
use crate::firewall::FirewallStatus;
use crate::probe::ProbeStatus;
use crate::state_file::age;
use crate::status::ProblemSummary;
use crate::subnet::StoreStatus;

/// How long the store may be unavailable before a running agent is no longer ready. Pods keep their traffic without it,
/// and one reconnect, as at a leader election, should not take a node out of service.
const STORE_GRACE: Duration = Duration::from_secs(10);

/// The phase of an agent's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Phase {
    /// It is starting.
    Starting {
        /// What it waits for.
        waiting_for: String,
    },
    /// The network runs, and the subnet file is written if there is one.
    Running,
    /// Another node has this node's subnets. Pods keep their traffic for a minute, and then the agent ends.
    LeaseLost {
        /// Who has them.
        why: String,
    },
    /// It was told to stop, or can't continue.
    Stopping,
    /// It has ended. Nobody keeps store, network and firewall of the status up to date any more, so they are gone from it.
    Ended {
        /// Why it ended, with all causes; `None` if it was told to.
        error: Option<String>,
    },
}

impl Phase {
    /// Whether the agent stops or has ended. It never runs again.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Stopping | Self::Ended { .. })
    }
}

/// What a [`Condition`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ConditionKind {
    /// The agent is starting.
    Starting,
    /// The agent stops.
    Stopping,
    /// The agent has ended.
    Ended,
    /// Another node has this node's lease.
    LeaseLost,
    /// The lease can't be renewed or put back, although the store answers.
    LeaseUnkept,
    /// The store has been unavailable for at least [ten seconds](AgentStatus::readiness).
    StoreAway,
    /// The programmed leases come from the state file; the store has not confirmed them yet.
    Unconfirmed,
    /// The other nodes are not programmed yet.
    NotSynced,
    /// There is a problem with a device, an object, a peer or the config.
    Network,
    /// Firewall rules, of the agent or of others.
    Firewall,
    /// There is a problem with the clocks that date leases.
    Clock,
    /// Probes: peers that are not reached, or that readiness waits for.
    Probes,
    /// A remark from the start that stays valid.
    Remark,
}

/// Something that an operator should know: a reason why pods can't be started on this node, or a note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Condition {
    /// What it is about.
    pub kind: ConditionKind,
    /// What is wrong and what to do, in one line.
    pub text: String,
}

impl Condition {
    fn new(kind: ConditionKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

/// Whether pods can be started on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Readiness {
    /// Why pods can't be started; empty if they can.
    pub reasons: Vec<Condition>,
    /// Other problems, such as conflicting leases.
    pub notes: Vec<Condition>,
}

impl Readiness {
    /// Whether pods can be started.
    pub fn is_ready(&self) -> bool {
        self.reasons.is_empty()
    }

    fn starting(why: &str, firewall: Option<&FirewallStatus>) -> Self {
        // The agent may be waiting for the firewall rules.
        let rules = firewall.and_then(|firewall| firewall.problem.as_ref());
        let rules = rules.map(|problem| Condition::new(ConditionKind::Firewall, problem));
        let starting = Condition::new(ConditionKind::Starting, why);
        Self { reasons: [starting].into_iter().chain(rules).collect(), notes: Vec::new() }
    }
}

/// The status of an agent. Each change replaces the whole value. What can be large, such as the
/// list of peers, is shared by all copies, so a change costs what changed.
///
/// As JSON it also has [`Self::readiness`], and all peers. Making that text costs for all of them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AgentStatus {
    /// The phase of the agent.
    pub phase: Phase,
    /// This node in the network: lease, underlay, backend; `None` until it has a lease.
    pub node: Option<Node>,
    /// Which store it is, such as the prefix of its keys ([`SubnetManager::place`](crate::subnet::SubnetManager::place)).
    pub store_place: Option<String>,
    /// The status of the store, and how long it keeps this node's lease; `None` until the first request.
    pub store: Option<StoreStatus>,
    /// Devices, each peer, what is wrong with them, and counters; `None` until the network runs.
    pub network: Option<NetworkStatus>,
    /// The firewall rules; `None` until a manager is chosen, or it is clear that there are no rules to keep.
    pub firewall: Option<FirewallStatus>,
    /// What probes found out about the way to each peer; `None` while the network does not run, and without probes.
    pub probes: Option<ProbeStatus>,
    /// Remarks from the start that stay valid.
    pub remarks: Vec<String>,
    asked: FirewallOptions,
    /// Whether the agent has been ready once.
    pub(super) was_up: bool,
}

impl AgentStatus {
    /// The status of an agent that is about to start. Others come from [`Agent::status`](super::Agent::status); this one is
    /// for tests of what is made of a status.
    pub fn new(asked: FirewallOptions) -> Self {
        Self {
            phase: Phase::Starting { waiting_for: "starting".to_owned() },
            node: None,
            store_place: None,
            store: None,
            network: None,
            firewall: None,
            probes: None,
            remarks: Vec::new(),
            asked,
            was_up: false,
        }
    }

    /// Whether pods can be started on this node now. A store that is unavailable counts after ten seconds, so the
    /// answer may change with time alone; readers of the status are notified then.
    pub fn readiness(&self) -> Readiness {
        readiness(Instant::now(), self)
    }

    /// Whether the agent has been ready to start pods once, whatever it is now.
    pub fn was_ready(&self) -> bool {
        self.was_up
    }

    /// When readiness will change by time alone.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        let store = self.store.as_ref()?;
        let is_recalled = self.network.as_ref().is_some_and(|network| network.recalled.is_some());
        let grace = store.since + STORE_GRACE;
        ((!store.connected || is_recalled) && now < grace).then_some(grace)
    }
}

/// Decides readiness from the status at a point in time.
fn readiness(now: Instant, status: &AgentStatus) -> Readiness {
    let AgentStatus { phase, store, network, firewall, asked, .. } = status;
    let (store, network, firewall) = (store.as_ref(), network.as_ref(), firewall.as_ref());
    let mut reasons = match phase {
        Phase::Starting { waiting_for } => return Readiness::starting(waiting_for, firewall),
        Phase::Stopping => {
            let reasons = vec![Condition::new(ConditionKind::Stopping, "stopping")];
            return Readiness { reasons, notes: Vec::new() };
        }
        Phase::Ended { error } => {
            let text = error.as_ref().map_or("ended".to_owned(), |error| format!("ended: {error}"));
            return Readiness {
                reasons: vec![Condition::new(ConditionKind::Ended, text)],
                notes: Vec::new(),
            };
        }
        Phase::LeaseLost { why } => vec![Condition::new(ConditionKind::LeaseLost, why)],
        Phase::Running => Vec::new(),
    };
    let mut notes: Vec<_> =
        status.remarks.iter().map(|remark| Condition::new(ConditionKind::Remark, remark)).collect();
    if let Some(store) = store {
        let is_told = !reasons.is_empty();
        reasons.extend(of_store(store, now).filter(|it| it.kind != ConditionKind::LeaseLost || !is_told));
    }
    match network {
        Some(network) => {
            of_network(network, store, now, firewall.is_some() && asked.masquerade, &mut reasons, &mut notes);
            let clock = store.and_then(|store| store.clock.as_ref());
            notes.extend(clock.map(|problem| Condition::new(ConditionKind::Clock, problem)));
        }
        None => reasons.push(Condition::new(ConditionKind::Network, "the network does not run yet")),
    }
    if let Some(firewall) = firewall {
        of_firewall(firewall, *asked, &mut reasons, &mut notes);
    }
    if let Some(probes) = &status.probes {
        of_probes(probes, &mut reasons, &mut notes);
    }
    Readiness { reasons, notes }
}

fn of_store(store: &StoreStatus, now: Instant) -> impl Iterator<Item = Condition> {
    let lost = store.lease_lost.as_ref().map(|holder| {
        Condition::new(ConditionKind::LeaseLost, format!("the lease of this node is lost: {holder}"))
    });
    let unkept = store.lease_unkept.as_ref().map(|why| {
        Condition::new(ConditionKind::LeaseUnkept, format!("the lease of this node can't be kept: {why}"))
    });
    let away = now.saturating_duration_since(store.since);
    let is_away = !store.connected && away >= STORE_GRACE;
    let away = is_away.then(|| {
        let text = format!("store away for {} s: {}", away.as_secs(), store.problem);
        Condition::new(ConditionKind::StoreAway, text)
    });
    lost.into_iter().chain(unkept).chain(away)
}

fn of_network(
    network: &NetworkStatus,
    store: Option<&StoreStatus>,
    now: Instant,
    masquerade: bool,
    reasons: &mut Vec<Condition>,
    notes: &mut Vec<Condition>,
) {
    if let Some(saved) = network.recalled {
        // Pods have their traffic, so the grace is the same as for a store that becomes unavailable later.
        if store.is_none_or(|store| now.saturating_duration_since(store.since) >= STORE_GRACE) {
            let text = format!(
                "traffic flows by what was stored {}; the store has not confirmed it yet",
                age(saved)
            );
            reasons.push(Condition::new(ConditionKind::Unconfirmed, text));
        }
    } else if !network.synced {
        reasons.push(Condition::new(ConditionKind::NotSynced, "the other nodes are not in the kernel yet"));
    }
    let ProblemSummary { reasons: cut, notes: besides } = network.problems.summary(masquerade);
    let conditions = |texts: Vec<String>| {
        texts.into_iter().map(|text| Condition::new(ConditionKind::Network, text)).collect::<Vec<_>>()
    };
    reasons.extend(conditions(cut));
    notes.extend(conditions(besides));
}

/// Rules that nobody asked for are no reason against readiness.
fn of_firewall(
    firewall: &FirewallStatus,
    asked: FirewallOptions,
    reasons: &mut Vec<Condition>,
    notes: &mut Vec<Condition>,
) {
    let condition = |text: String| Condition::new(ConditionKind::Firewall, text);
    let problem = firewall.problem.iter().cloned().map(condition);
    if asked.are_required() {
        reasons.extend(problem);
    } else {
        notes.extend(problem);
    }
    reasons.extend(firewall.cut_off().map(condition));
    notes.extend(firewall.hindered().map(condition));
    notes.extend(firewall.notes.iter().cloned().map(condition));
}

/// Verdicts are notes: what probes see is no reason to take a node out of service, unless readiness was to wait for it.
fn of_probes(probes: &ProbeStatus, reasons: &mut Vec<Condition>, notes: &mut Vec<Condition>) {
    let condition = |text: String| Condition::new(ConditionKind::Probes, text);
    reasons.extend(probes.waiting.clone().map(condition));
    let mut troubles: Vec<_> =
        probes.counts.iter().filter(|(verdict, count)| verdict.is_fault() && *count > 0).collect();
    troubles.reverse();
    notes.extend(troubles.into_iter().map(|(verdict, count)| {
        let mut peers =
            probes.peers.iter().flat_map(|peer| peer.families.iter().map(|(_, it)| (peer.lease, it)));
        let more = if count > 1 { format!(" ({count} in all)") } else { String::new() };
        condition(match peers.find(|(_, probe)| probe.verdict.severity() == verdict.severity()) {
            Some((lease, probe)) => {
                let remedy = probe.remedy().map(|remedy| format!("; {remedy}")).unwrap_or_default();
                format!("probes: {lease}{more}: {}: {}{remedy}", probe.text(), probe.evidence.join(", "))
            }
            None => format!("probes: {verdict}{more}"),
        })
    }));
    notes.extend(probes.notes.iter().cloned().map(condition));
}
