//! From the status of an agent to metrics.

mod network;
mod peers;
mod probes;
mod sessions;
mod store;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use flannel_core::agent::{AgentEvents, AgentStatus, Condition, ConditionKind, Phase};
use flannel_core::firewall::FirewallStatus;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::catalogue as all;
use crate::events::{Counted, EventCounts};
use crate::format::{Format, render};
use crate::output::{Output, Written};

/// What metrics show.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Whether there are values for each peer, with its subnets and underlay addresses as labels. On a cluster of a thousand
    /// nodes that is some million series in all.
    pub per_peer: bool,
    /// The version in `flannel_build_info`.
    pub version: String,
}

impl Default for Options {
    /// Nothing for each peer, and the version of this library.
    fn default() -> Self {
        Self { per_peer: false, version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

impl Options {
    /// Shows values for each peer, too.
    #[must_use]
    pub fn per_peer(mut self, per_peer: bool) -> Self {
        self.per_peer = per_peer;
        self
    }

    /// Shows this version, for a program that has one of its own.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }
}

/// The metrics of one agent. A clone shows the same agent. It is a collector for a registry of `prometheus_client`, and
/// writes a whole answer by itself ([`Self::render`]).
#[derive(Clone)]
pub struct AgentMetrics {
    status: watch::Receiver<Arc<AgentStatus>>,
    events: Arc<EventCounts>,
    options: Arc<Options>,
}

impl fmt::Debug for AgentMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentMetrics").field("options", &self.options).finish_non_exhaustive()
    }
}

impl AgentMetrics {
    /// The metrics of the agent with this status ([`Agent::status`](flannel_core::agent::Agent::status)).
    pub fn new(status: watch::Receiver<Arc<AgentStatus>>, options: Options) -> Self {
        Self { status, events: Arc::default(), options: Arc::new(options) }
    }

    /// Counts the agent's events until it has ended, for as long as the future is polled. Without it there are no
    /// metrics of events. The future keeps nothing but the counts alive.
    pub fn count_events(&self, events: AgentEvents) -> impl Future<Output = ()> + Send + use<> {
        let counts = Arc::clone(&self.events);
        async move { counts.follow(events).await }
    }

    /// Writes all metrics of the agent, as an answer to a scrape. It reads counters of the kernel, and
    /// costs in proportion to the number of peers; the benches of the source have figures.
    pub fn render(&self, format: Format) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self.clone()));
        render(&registry, format)
    }
}

impl Collector for AgentMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Written {
        // The lock of the channel is not kept: who writes the status must not wait for a scrape.
        let status = Arc::clone(&self.status.borrow());
        let (now, wall) = (Instant::now(), SystemTime::now());
        let out = &mut Output(encoder);
        out.info(&all::BUILD, [&self.options.version])?;
        of_agent(out, &status)?;
        if let Some(store) = &status.store {
            store::lease(out, store, wall)?;
        }
        if let Some(network) = &status.network {
            network::state(out, network, status.store.as_ref())?;
            network::work(out, network)?;
        }
        if let Some(store) = &status.store {
            store::store(out, store, now, wall)?;
        }
        if let Some(firewall) = status.firewall.as_ref().filter(|firewall| firewall.manager.is_some()) {
            of_firewall(out, firewall)?;
        }
        if let Some(found) = &status.probes {
            probes::in_all(out, found)?;
        }
        if let Some(network) = &status.network {
            network::traffic(out, &network.counters.read())?;
            network::gate(out, network.gate.read().as_ref())?;
        }
        let sessions = status.network.as_ref().map(|network| network.sessions.read()).unwrap_or_default();
        sessions::in_all(out, &sessions)?;
        of_events(out, &self.events.read())?;
        if !self.options.per_peer {
            return Ok(());
        }
        if let Some(network) = &status.network {
            peers::each(out, &network.peer_list)?;
        }
        sessions::each(out, &sessions)?;
        status.probes.as_ref().map_or(Ok(()), |found| probes::each(out, &found.peers))
    }
}

fn of_agent(out: &mut Output<'_>, status: &AgentStatus) -> Written {
    if let Some(node) = &status.node {
        let datapath = status.network.as_ref().and_then(|network| network.datapath.as_deref());
        out.info(&all::NODE, [&node.backend, &node.underlay.name, datapath.unwrap_or_default()])?;
    }
    let readiness = status.readiness();
    out.value(&all::READY, u32::from(readiness.is_ready()))?;
    let phase = phase(&status.phase);
    out.values(&all::PHASE, PHASES.map(|name| ([name], u32::from(name == phase))))?;
    let count = |kind, conditions: &[Condition]| {
        conditions.iter().filter(|condition| condition.kind == kind).count() as u64
    };
    let conditions = CONDITIONS.into_iter().flat_map(|(kind, name)| {
        let (reasons, notes) = (count(kind, &readiness.reasons), count(kind, &readiness.notes));
        [([name, "reason"], reasons), ([name, "note"], notes)]
    });
    out.values(&all::CONDITIONS, conditions)?;
    let mtu = status.network.as_ref().and_then(|network| network.overlay_mtu);
    out.values(&all::OVERLAY_MTU, mtu.map(|mtu| ([], u64::from(mtu.0))))
}

/// The phases by the names of their text form.
const PHASES: [&str; 5] = ["starting", "running", "lease-lost", "stopping", "ended"];

fn phase(phase: &Phase) -> &'static str {
    match phase {
        Phase::Starting { .. } => PHASES[0],
        Phase::Running => PHASES[1],
        Phase::LeaseLost { .. } => PHASES[2],
        Phase::Stopping => PHASES[3],
        Phase::Ended { .. } => PHASES[4],
        _ => "unknown",
    }
}

/// The kinds of conditions by the names of their text form.
const CONDITIONS: [(ConditionKind, &str); 13] = [
    (ConditionKind::Starting, "starting"),
    (ConditionKind::Stopping, "stopping"),
    (ConditionKind::Ended, "ended"),
    (ConditionKind::LeaseLost, "lease-lost"),
    (ConditionKind::LeaseUnkept, "lease-unkept"),
    (ConditionKind::StoreAway, "store-away"),
    (ConditionKind::Unconfirmed, "unconfirmed"),
    (ConditionKind::NotSynced, "not-synced"),
    (ConditionKind::Network, "network"),
    (ConditionKind::Firewall, "firewall"),
    (ConditionKind::Clock, "clock"),
    (ConditionKind::Probes, "probes"),
    (ConditionKind::Remark, "remark"),
];

fn of_firewall(out: &mut Output<'_>, firewall: &FirewallStatus) -> Written {
    out.value(&all::FIREWALL_IN_PLACE, u32::from(firewall.in_place))?;
    out.value(&all::FIREWALL_TROUBLED, u32::from(firewall.problem.is_some()))?;
    out.value(&all::FIREWALL_OBSTACLES, firewall.obstacles.len() as u64)?;
    out.count(&all::FIREWALL_REPAIRS, firewall.repairs)
}

fn of_events(out: &mut Output<'_>, events: &Counted) -> Written {
    out.counts(&all::EVENTS, events.named.iter().map(|(name, count)| ([name.as_str()], *count)))?;
    out.count(&all::EVENTS_MISSED, events.missed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_text_form() {
        for (kind, name) in CONDITIONS {
            assert_eq!(serde_json::to_value(kind).unwrap(), name);
        }
        for phase in [
            Phase::Starting { waiting_for: String::new() },
            Phase::Running,
            Phase::LeaseLost { why: String::new() },
            Phase::Stopping,
            Phase::Ended { error: None },
        ] {
            assert_eq!(serde_json::to_value(&phase).unwrap()["name"], super::phase(&phase));
        }
    }
}
