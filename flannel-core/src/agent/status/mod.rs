//! What the agent says about itself.

mod board;
#[cfg(test)]
mod tests;
mod view;

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

pub(super) use board::Board;

use super::firewall::FirewallOptions;
use super::node::Node;
use crate::backend::NetworkStatus;
use crate::firewall::FirewallStatus;
use crate::state_file::age;
use crate::status::ProblemSummary;
use crate::subnet::StoreStatus;

/// How long the store may be away before a running agent is no longer ready. Pods keep their traffic without
/// it, and one reconnect, such as at a leader election, should not take a node out of service.
const STORE_GRACE: Duration = Duration::from_secs(10);

/// How far the agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Phase {
    /// It is not up yet.
    Starting {
        /// What it waits for.
        waiting_for: String,
    },
    /// The network runs, and the subnet file is there if there is to be one.
    Running,
    /// Another node has this node's subnets. Pods keep their traffic for a minute, and then the agent ends.
    LeaseLost {
        /// Who has them.
        why: String,
    },
    /// It was told to stop, or can't go on.
    Stopping,
}

/// What a [`Condition`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ConditionKind {
    /// The agent is not up yet.
    Starting,
    /// The agent stops.
    Stopping,
    /// Another node has this node's lease.
    LeaseLost,
    /// The lease can't be renewed or put back though the store answers.
    LeaseUnkept,
    /// The store can't be reached, for [ten seconds](AgentStatus::readiness) at least.
    StoreAway,
    /// Traffic flows by what an earlier run stored; the store has not confirmed it yet.
    Unconfirmed,
    /// The other nodes are not in the kernel yet.
    NotSynced,
    /// A device, an object, a peer or the config is not as it should be.
    Network,
    /// Firewall rules, of the agent or of others.
    Firewall,
    /// The clocks that leases are counted by.
    Clock,
    /// Something that was found at the start and stays so.
    Remark,
}

/// Something that an operator should know: a reason why pods can't be started on this node, or a note beside it.
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
    /// Why they can't; empty if they can.
    pub reasons: Vec<Condition>,
    /// What is not as it should be all the same, such as leases that contradict others.
    pub notes: Vec<Condition>,
}

impl Readiness {
    /// Whether they can.
    pub fn is_ready(&self) -> bool {
        self.reasons.is_empty()
    }

    fn starting(why: &str, firewall: Option<&FirewallStatus>) -> Self {
        // It may be the rules that are waited for.
        let rules = firewall.and_then(|firewall| firewall.problem.as_ref());
        let rules = rules.map(|problem| Condition::new(ConditionKind::Firewall, problem));
        let starting = Condition::new(ConditionKind::Starting, why);
        Self { reasons: [starting].into_iter().chain(rules).collect(), notes: Vec::new() }
    }
}

/// How an agent is: a value that is replaced as a whole whenever something of it changes. What can be large, such as the
/// list of peers, is shared by all copies, so a change costs what changed.
///
/// As JSON it has [`Self::readiness`] besides, and all peers. Making that text costs for all of them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AgentStatus {
    /// How far it is.
    pub phase: Phase,
    /// This node in the network: lease, underlay, backend; `None` until it has a lease.
    pub node: Option<Node>,
    /// How well the store is known, and how long it keeps this node's lease; `None` until it is asked.
    pub store: Option<StoreStatus>,
    /// Devices, each peer, what is wrong with them, and counters; `None` until the network runs.
    pub network: Option<NetworkStatus>,
    /// The firewall rules; `None` until it is known what keeps them.
    pub firewall: Option<FirewallStatus>,
    /// What was found at the start and stays so.
    pub remarks: Vec<String>,
    asked: FirewallOptions,
    /// Whether the agent was up once.
    pub(super) was_up: bool,
}

impl AgentStatus {
    fn new(asked: FirewallOptions) -> Self {
        Self {
            phase: Phase::Starting { waiting_for: "starting".to_owned() },
            node: None,
            store: None,
            network: None,
            firewall: None,
            remarks: Vec::new(),
            asked,
            was_up: false,
        }
    }

    /// Whether pods can be started on this node now. A store that is away counts after ten seconds, so the answer may
    /// change with time alone; who watches the status is told then.
    pub fn readiness(&self) -> Readiness {
        readiness(Instant::now(), self)
    }

    /// When readiness changes though nothing else does.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        let store = self.store.as_ref()?;
        let is_recalled = self.network.as_ref().is_some_and(|network| network.recalled.is_some());
        let grace = store.since + STORE_GRACE;
        ((!store.connected || is_recalled) && now < grace).then_some(grace)
    }
}

/// Decides from all that is known at a time.
fn readiness(now: Instant, status: &AgentStatus) -> Readiness {
    let AgentStatus { phase, store, network, firewall, asked, .. } = status;
    let (store, network, firewall) = (store.as_ref(), network.as_ref(), firewall.as_ref());
    let mut reasons = match phase {
        Phase::Starting { waiting_for } => return Readiness::starting(waiting_for, firewall),
        Phase::Stopping => {
            let reasons = vec![Condition::new(ConditionKind::Stopping, "stopping")];
            return Readiness { reasons, notes: Vec::new() };
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
        // Pods have their traffic, so this is as patient as with a store that goes away later.
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

/// Rules that nobody asked for are no reason to keep pods from a node.
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
