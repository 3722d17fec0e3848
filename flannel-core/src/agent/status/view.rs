//! The JSON form of the status: addresses as text. Times of the runtime's clock are seconds since then (`for_s`, `.._s_ago`), those
//! of the wall clock seconds since 1970. The network's part is [`NetworkStatus`] itself, with an entry a peer.

use std::net::IpAddr;

use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::{AgentStatus, Phase, Readiness};
use crate::addr::{Mtu, PerFamily};
use crate::agent::node::Node;
use crate::backend::NetworkStatus;
use crate::firewall::FirewallStatus;
use crate::probe::ProbeStatus;
use crate::subnet::{LeaseTerm, StoreRequests, StoreStatus};

impl Serialize for AgentStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        View::of(self, Instant::now()).serialize(serializer)
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        NodeView::of(self).serialize(serializer)
    }
}

#[derive(Serialize)]
struct View<'a> {
    phase: &'a Phase,
    ready: bool,
    #[serde(flatten)]
    readiness: Readiness,
    node: Option<NodeView<'a>>,
    store_place: Option<&'a str>,
    store: Option<StoreView<'a>>,
    network: Option<&'a NetworkStatus>,
    firewall: Option<FirewallView<'a>>,
    probes: Option<&'a ProbeStatus>,
}

impl<'a> View<'a> {
    fn of(status: &'a AgentStatus, now: Instant) -> Self {
        let readiness = super::readiness(now, status);
        Self {
            phase: &status.phase,
            ready: readiness.is_ready(),
            readiness,
            node: status.node.as_ref().map(NodeView::of),
            store_place: status.store_place.as_deref(),
            store: status.store.as_ref().map(|store| StoreView::of(store, now)),
            network: status.network.as_ref(),
            firewall: status.firewall.as_ref().map(FirewallView::of),
            probes: status.probes.as_ref(),
        }
    }
}

#[derive(Serialize)]
struct NodeView<'a> {
    lease: String,
    networks: Vec<String>,
    backend: &'a str,
    overlay_mtu: Mtu,
    link: &'a str,
    link_mtu: Mtu,
    local: Vec<IpAddr>,
    published: Vec<IpAddr>,
    /// Why this underlay was chosen.
    reason: &'a str,
}

impl<'a> NodeView<'a> {
    fn of(node: &'a Node) -> Self {
        let list = |addresses: &PerFamily<IpAddr>| addresses.iter().map(|(_, addr)| *addr).collect();
        Self {
            lease: node.lease.key.to_string(),
            networks: node.networks.iter().map(|(_, network)| network.to_string()).collect(),
            backend: &node.backend,
            overlay_mtu: node.overlay_mtu,
            link: &node.underlay.name,
            link_mtu: node.underlay.mtu,
            local: list(&node.underlay.local),
            published: list(&node.underlay.published),
            reason: &node.underlay.reason,
        }
    }
}

#[derive(Serialize)]
struct StoreView<'a> {
    connected: bool,
    /// For how long that is so.
    for_s: u64,
    confirmed_s_ago: Option<u64>,
    problem: Option<&'a str>,
    unreadable: usize,
    missing: usize,
    lease_term: Option<LeaseTerm>,
    lease_unkept: Option<&'a str>,
    lease_lost: Option<&'a str>,
    clock: Option<&'a str>,
    requests: &'a StoreRequests,
}

impl<'a> StoreView<'a> {
    fn of(store: &'a StoreStatus, now: Instant) -> Self {
        let since = |time: Instant| now.saturating_duration_since(time).as_secs();
        Self {
            connected: store.connected,
            for_s: since(store.since),
            confirmed_s_ago: store.confirmed.map(since),
            problem: Some(store.problem.as_str()).filter(|problem| !problem.is_empty()),
            unreadable: store.unreadable.count,
            missing: store.missing_count,
            lease_term: store.lease_term,
            lease_unkept: store.lease_unkept.as_deref(),
            lease_lost: store.lease_lost.as_deref(),
            clock: store.clock.as_deref(),
            requests: &store.requests,
        }
    }
}

#[derive(Serialize)]
struct FirewallView<'a> {
    manager: &'a str,
    in_place: bool,
    masquerades: bool,
    problem: Option<&'a str>,
    notes: &'a [String],
    obstacles: Vec<String>,
    repairs: u64,
    last_repair_us: Option<u128>,
}

impl<'a> FirewallView<'a> {
    fn of(firewall: &'a FirewallStatus) -> Self {
        Self {
            manager: &firewall.manager,
            in_place: firewall.in_place,
            masquerades: firewall.masquerades,
            problem: firewall.problem.as_deref(),
            notes: &firewall.notes,
            obstacles: firewall.obstacles.iter().map(ToString::to_string).collect(),
            repairs: firewall.repairs,
            last_repair_us: firewall.last_repair.map(|took| took.as_micros()),
        }
    }
}
