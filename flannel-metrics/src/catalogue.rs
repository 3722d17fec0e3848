//! All metrics: names, types, units and labels. `docs/metrics.md` is checked against this list.

use prometheus_client::registry::Unit;

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A value that rises and falls.
    Gauge,
    /// A number that only rises while the agent runs.
    Counter,
    /// Durations by their size.
    Histogram,
    /// Facts as labels of a value that is always 1.
    Info,
}

/// A base unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BaseUnit {
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// A share, from 0 to 1.
    Ratio,
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metric {
    /// Its name without unit and without the suffix of its type.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Its unit.
    pub unit: Option<BaseUnit>,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
    /// Whether it has one value or more for each peer, so that it is left out unless that is asked for.
    pub is_per_peer: bool,
}

impl Metric {
    /// The name by which a query finds it; the buckets of a histogram are `.._bucket`.
    pub fn full_name(&self) -> String {
        let unit = match self.unit {
            Some(BaseUnit::Seconds) => "_seconds",
            Some(BaseUnit::Bytes) => "_bytes",
            Some(BaseUnit::Ratio) => "_ratio",
            None => "",
        };
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        format!("{}{unit}{suffix}", self.name)
    }

    pub(crate) fn unit(&self) -> Option<Unit> {
        self.unit.map(|unit| match unit {
            BaseUnit::Seconds => Unit::Seconds,
            BaseUnit::Bytes => Unit::Bytes,
            // The library's own writes "ratios".
            BaseUnit::Ratio => Unit::Other("ratio".to_owned()),
        })
    }
}

macro_rules! catalogue {
    (always { $($id:ident = $kind:ident $(in $unit:ident)? $name:literal [$($label:literal),*] $help:literal;)* }
     per_peer { $($peer_id:ident = $peer_kind:ident $(in $peer_unit:ident)? $peer_name:literal [$($peer_label:literal),*] $peer_help:literal;)* }) => {
        $(pub(crate) const $id: Metric = Metric {
            name: $name, kind: Kind::$kind, unit: catalogue!(@unit $($unit)?), labels: &[$($label),*], help: $help,
            is_per_peer: false,
        };)*
        $(pub(crate) const $peer_id: Metric = Metric {
            name: $peer_name, kind: Kind::$peer_kind, unit: catalogue!(@unit $($peer_unit)?), labels: &[$($peer_label),*],
            help: $peer_help, is_per_peer: true,
        };)*
        /// All metrics, in the order in which they are written.
        pub const ALL: &[Metric] = &[$($id,)* $($peer_id,)*];
    };
    (@unit) => { None };
    (@unit $unit:ident) => { Some(BaseUnit::$unit) };
}

catalogue! {
always {
    BUILD = Info "flannel_build" ["version"]
        "The version of the agent.";
    NODE = Info "flannel_node" ["backend", "link", "datapath"]
        "The backend of this node, its underlay link, and how packets travel where the backend has a choice.";
    READY = Gauge "flannel_ready" []
        "1 if pods can be started on this node, as /readyz says.";
    PHASE = Gauge "flannel_phase" ["phase"]
        "1 for the phase of the agent's life, 0 for the others.";
    CONDITIONS = Gauge "flannel_conditions" ["kind", "effect"]
        "What an operator should know: reasons why pods can not be started, and notes; /readyz and flanneld status have the texts.";
    OVERLAY_MTU = Gauge in Bytes "flannel_overlay_mtu" []
        "The largest packet of a pod.";
    LEASE_REMAINING = Gauge in Seconds "flannel_lease_remaining" []
        "How long the store keeps the lease of this node if it is not renewed; left out if the lease has no end.";
    LEASES = Gauge "flannel_leases" []
        "Leases of other nodes in the store, usable or not.";
    PEERS = Gauge "flannel_peers" ["state"]
        "Leases of other nodes by what became of them in the kernel.";
    PEERS_EXPECTED = Gauge "flannel_peers_expected" ["family"]
        "Peers that pods of this node should reach.";
    PEERS_CUT = Gauge "flannel_peers_cut" ["family"]
        "Those of flannel_peers_expected that pods can not reach: their lease conflicts with another one, or the kernel refuses an object.";
    UNREADABLE = Gauge "flannel_unreadable_records" []
        "Records in the store that can not be decoded. They count as unknown, and what they last said stays in force.";
    MISSING = Gauge "flannel_missing_leases" []
        "Leases that are missing since the store was restored or replaced, and are kept.";
    REJECTED = Gauge "flannel_rejected_leases" []
        "Leases and records that can not be used: unreadable, in conflict with others, or outside of the network.";
    REFUSED = Gauge "flannel_refused_objects" []
        "Kernel objects that the kernel refuses for now, or whose place an object of others has.";
    SYNCED = Gauge "flannel_synced" []
        "1 once the first snapshot of leases was programmed.";
    RECALLED = Gauge "flannel_recalled" []
        "1 while the programmed leases are those that an earlier run stored, since the store has not answered yet.";
    DEVICE_USABLE = Gauge "flannel_device_usable" ["device"]
        "1 if the device exists and is up.";
    DEVICE_MTU = Gauge in Bytes "flannel_device_mtu" ["device"]
        "The MTU of the device.";
    REPAIRS = Counter "flannel_repairs" []
        "Repairs of drift, each of one object or many.";
    REPAIRED = Counter "flannel_repaired_objects" ["kind", "cause"]
        "Kernel objects and devices that were repaired, by how their drift was found.";
    OPERATIONS = Counter "flannel_operations" []
        "Operations that were sent to the kernel: objects put or deleted.";
    REFUSALS = Counter "flannel_refusals" []
        "Operations that the kernel refused; one that is tried again counts each time.";
    PLAN = Histogram in Seconds "flannel_plan_duration" []
        "Time to compare the desired with the observed state, once a pass of the loop.";
    READ = Histogram in Seconds "flannel_read_duration" []
        "Time to read all objects of ours from the kernel.";
    NETLINK = Histogram in Seconds "flannel_netlink_duration" []
        "Time of one batch of operations, up to the last acknowledgement of the kernel.";
    WATCH_LAG = Histogram in Seconds "flannel_watch_lag" []
        "Time from the moment when changed leases came out of the watch of the store until all are in the desired state.";
    PROGRAM = Histogram in Seconds "flannel_program_duration" []
        "Time from the moment when changed leases came out of the watch of the store until the kernel has them.";
    REPAIR = Histogram in Seconds "flannel_repair_duration" []
        "Time of a repair, from the notification of the kernel to its last acknowledgement.";
    STORE_CONNECTED = Gauge "flannel_store_connected" []
        "1 if the last request to the store succeeded.";
    STORE_ANSWER = Gauge in Seconds "flannel_store_last_answer_timestamp" []
        "When the store last answered, in seconds since 1970; left out before its first answer.";
    STORE_REQUESTS = Counter "flannel_store_requests" ["request"]
        "Requests to the store, also those that failed.";
    STORE_FAILURES = Counter "flannel_store_request_failures" ["request"]
        "Requests that the store did not answer, or answered with a temporary error.";
    STORE_REQUEST = Histogram in Seconds "flannel_store_request_duration" []
        "Time of a request to the store, up to its answer or failure.";
    FIREWALL_IN_PLACE = Gauge "flannel_firewall_in_place" []
        "1 if the firewall rules are in the kernel; left out if there are none to keep.";
    FIREWALL_TROUBLED = Gauge "flannel_firewall_troubled" []
        "1 if the firewall rules may be missing or wrong.";
    FIREWALL_OBSTACLES = Gauge "flannel_firewall_obstacles" []
        "Chains of others that surely drop traffic of pods.";
    FIREWALL_REPAIRS = Counter "flannel_firewall_repairs" []
        "Repairs of firewall rules.";
    PROBE_VERDICTS = Gauge "flannel_probe_verdicts" ["verdict"]
        "Ways to peers, one a peer and family, by what probes found out; left out without probes.";
    PROBES = Counter "flannel_probes" ["way"]
        "Small echoes to peers that were answered, or whose time is over, through the overlay or on the underlay.";
    PROBES_LOST = Counter "flannel_probes_lost" ["way"]
        "Those of flannel_probes that were not answered.";
    PROBE_PACKETS = Counter "flannel_probe_packets" []
        "Packets that probes sent, of all kinds.";
    PROBE_RTT = Histogram in Seconds "flannel_probe_rtt" []
        "Round-trip time of small echoes through the overlay.";
    PACKETS = Counter "flannel_datapath_packets" ["device", "direction"]
        "Packets that a device or datapath carried; of host-gw and direct routes the device is the underlay link with all its traffic.";
    BYTES = Counter in Bytes "flannel_datapath" ["device", "direction"]
        "Bytes of those packets, without what the tunnel puts around them.";
    DROPPED = Counter "flannel_datapath_dropped_packets" ["device", "reason"]
        "Packets that a device or datapath dropped, by reason.";
    GATE_DROPPED = Counter "flannel_gate_dropped_packets" ["reason"]
        "Packets that the gate of vxlan's tunnels dropped, by reason, since its rules were put; left out without a gate.";
    GATE_LET_IN = Counter "flannel_gate_let_in_packets" ["reason"]
        "Packets that the gate let in because it only observes, by the reason for which it would have dropped them.";
    SESSIONS = Gauge "flannel_sessions" ["device", "state"]
        "Sessions of a device with peers, by how far they are; left out for backends whose tunnel has none.";
    SESSION_PATHS = Gauge "flannel_session_paths" ["device", "path"]
        "Sessions of a device with peers, by the way that packets to the peer take; left out for backends whose tunnel has none.";
    SESSION_OLDEST = Gauge in Seconds "flannel_session_oldest_handshake_timestamp" ["device"]
        "When the last handshake was with the peer for which that is longest ago, in seconds since 1970; left out before the first one.";
    EVENTS = Counter "flannel_events" ["event"]
        "What happened to the agent, by the name that the log and flanneld events have for it.";
    EVENTS_MISSED = Counter "flannel_events_missed" []
        "Events that came faster than they were counted.";
}
per_peer {
    PEER = Info "flannel_peer" ["subnet", "underlay", "path"]
        "A lease of another node: its subnets, the addresses that it publishes, and the way that packets to it take.";
    PEER_STATE = Gauge "flannel_peer_state" ["subnet", "state"]
        "1 for the state of the lease in the kernel.";
    PEER_SINCE = Gauge in Seconds "flannel_peer_state_timestamp" ["subnet"]
        "Since when it is in that state, in seconds since 1970.";
    PEER_HANDSHAKE = Gauge in Seconds "flannel_peer_handshake_timestamp" ["subnet", "device"]
        "When the last handshake with the peer was, in seconds since 1970; left out before the first one.";
    PEER_SESSION = Counter in Bytes "flannel_peer_session" ["subnet", "device", "direction"]
        "Bytes on the underlay to and from the peer, with those of handshakes, since the device knows the peer.";
    PEER_VERDICT = Gauge "flannel_peer_verdict" ["subnet", "family", "verdict"]
        "1 for what probes found out about the way to the peer.";
    PEER_RTT = Gauge in Seconds "flannel_peer_rtt" ["subnet", "family", "way"]
        "Round-trip time of the last answer of the peer to a probe; left out if there was none.";
    PEER_LOSS = Gauge in Ratio "flannel_peer_loss" ["subnet", "family", "way"]
        "Share of the last 32 small echoes to the peer that were not answered.";
}
}

/// Metrics of the process, by the names that all programs have for them.
pub mod process {
    use super::{BaseUnit, Kind, Metric};

    const fn metric(name: &'static str, kind: Kind, unit: Option<BaseUnit>, help: &'static str) -> Metric {
        Metric { name, kind, unit, labels: &[], help, is_per_peer: false }
    }

    pub(crate) const CPU: Metric = metric(
        "process_cpu",
        Kind::Counter,
        Some(BaseUnit::Seconds),
        "Processor time of the process in user and kernel mode.",
    );
    pub(crate) const RESIDENT: Metric = metric(
        "process_resident_memory",
        Kind::Gauge,
        Some(BaseUnit::Bytes),
        "Memory of the process that is resident.",
    );
    pub(crate) const VIRTUAL: Metric =
        metric("process_virtual_memory", Kind::Gauge, Some(BaseUnit::Bytes), "Address space of the process.");
    pub(crate) const START: Metric = metric(
        "process_start_time",
        Kind::Gauge,
        Some(BaseUnit::Seconds),
        "When the process started, in seconds since 1970.",
    );
    pub(crate) const OPEN_FDS: Metric =
        metric("process_open_fds", Kind::Gauge, None, "Open files and sockets of the process.");
    pub(crate) const MAX_FDS: Metric =
        metric("process_max_fds", Kind::Gauge, None, "How many files and sockets the process may have open.");

    /// All of them, in the order in which they are written.
    pub const ALL: &[Metric] = &[CPU, RESIDENT, VIRTUAL, START, OPEN_FDS, MAX_FDS];
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_say_what_they_are() {
        let names: BTreeSet<String> = ALL.iter().map(Metric::full_name).collect();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            assert!(metric.name.starts_with("flannel_") && metric.help.ends_with('.'), "{}", metric.name);
            let has_suffix = ["_total", "_seconds", "_bytes", "_ratio", "_info", "_count", "_sum", "_bucket"];
            assert!(!has_suffix.iter().any(|suffix| metric.name.ends_with(suffix)), "{}", metric.name);
            let is_timed = metric.kind == Kind::Histogram;
            assert!(!is_timed || metric.unit == Some(BaseUnit::Seconds), "{}", metric.name);
            // A subnet is as many values as there are nodes.
            let grows = metric.labels.iter().any(|label| matches!(*label, "subnet" | "underlay"));
            assert_eq!(grows, metric.is_per_peer, "{}", metric.name);
        }
    }
}
