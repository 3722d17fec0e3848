//! The JSON form of the status, which `docs/status-json.md` describes. Names are those of the fields in Rust; a duration has
//! its unit in its name, and an instant is RFC 3339 text. Instants of the runtime's clock, which counts on when the wall
//! clock jumps, become those of the wall clock by how long ago they were.

use std::time::SystemTime;

use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::{AgentStatus, Phase, Readiness};
use crate::addr::{Mtu, PerFamily, Subnet};
use crate::agent::node::Node;
use crate::backend::{NetworkStatus, Underlay};
use crate::firewall::FirewallStatus;
use crate::lease::{LeaseKey, UnreadableSample};
use crate::probe::ProbeStatus;
use crate::subnet::{LeaseTerm, StoreRequests, StoreStatus};
use crate::times::rfc3339;

impl Serialize for AgentStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        View::of(self, Now::new()).serialize(serializer)
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        NodeView::of(self).serialize(serializer)
    }
}

impl Serialize for StoreStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        StoreView::of(self, Now::new()).serialize(serializer)
    }
}

/// One moment by both clocks.
#[derive(Clone, Copy)]
struct Now {
    clock: Instant,
    wall: SystemTime,
}

impl Now {
    fn new() -> Self {
        Self { clock: Instant::now(), wall: SystemTime::now() }
    }

    /// An instant of the runtime's clock as text.
    fn text(self, instant: Instant) -> String {
        let ago = self.clock.saturating_duration_since(instant);
        rfc3339(self.wall.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH))
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
    firewall: Option<&'a FirewallStatus>,
    probes: Option<&'a ProbeStatus>,
    time: String,
}

impl<'a> View<'a> {
    fn of(status: &'a AgentStatus, now: Now) -> Self {
        let readiness = super::readiness(now.clock, status);
        Self {
            phase: &status.phase,
            ready: readiness.is_ready(),
            readiness,
            node: status.node.as_ref().map(NodeView::of),
            store_place: status.store_place.as_deref(),
            store: status.store.as_ref().map(|store| StoreView::of(store, now)),
            network: status.network.as_ref(),
            firewall: status.firewall.as_ref(),
            probes: status.probes.as_ref(),
            time: rfc3339(now.wall),
        }
    }
}

#[derive(Serialize)]
struct NodeView<'a> {
    lease: LeaseKey,
    subnets: PerFamily<Subnet>,
    networks: PerFamily<Subnet>,
    backend: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    receives: Vec<&'a str>,
    overlay_mtu: Mtu,
    underlay: &'a Underlay,
}

impl<'a> NodeView<'a> {
    fn of(node: &'a Node) -> Self {
        Self {
            lease: node.lease.key,
            subnets: node.lease.key.subnets(),
            networks: node.networks,
            backend: &node.backend,
            receives: node.lease.attrs.receives.iter().map(|reception| &*reception.kind).collect(),
            overlay_mtu: node.overlay_mtu,
            underlay: &node.underlay,
        }
    }
}

#[derive(Serialize)]
struct StoreView<'a> {
    connected: bool,
    since: String,
    confirmed: Option<String>,
    problem: Option<&'a str>,
    unreadable: &'a UnreadableSample,
    missing: &'a [String],
    missing_count: usize,
    lease_term: Option<LeaseTerm>,
    lease_unkept: Option<&'a str>,
    lease_lost: Option<&'a str>,
    clock: Option<&'a str>,
    requests: &'a StoreRequests,
}

impl<'a> StoreView<'a> {
    fn of(store: &'a StoreStatus, now: Now) -> Self {
        Self {
            connected: store.connected,
            since: now.text(store.since),
            confirmed: store.confirmed.map(|instant| now.text(instant)),
            problem: Some(store.problem.as_str()).filter(|problem| !problem.is_empty()),
            unreadable: &store.unreadable,
            missing: &store.missing,
            missing_count: store.missing_count,
            lease_term: store.lease_term,
            lease_unkept: store.lease_unkept.as_deref(),
            lease_lost: store.lease_lost.as_deref(),
            clock: store.clock.as_deref(),
            requests: &store.requests,
        }
    }
}
