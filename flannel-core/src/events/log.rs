//! The log lines of a network. Each is made from an event, here and nowhere else.

use std::net::IpAddr;

use tracing::{info, warn};

use super::{Event, NetworkEvent};
use crate::addr::PerFamily;

impl NetworkEvent {
    /// What happens to the config and to the set of backends.
    fn log_config(&self) {
        use NetworkEvent as E;
        match self {
            E::BackendStarted { backend } => info!(backend, "backend brought up beside the others"),
            E::BackendNotStarted { backend, reason } => warn!(backend, reason, "backend can't be brought up"),
            E::BackendEnded { backend } => info!(backend, "backend ended, since nothing needs it any more"),
            E::BackendSwitchBegins { before, after } => {
                info!(
                    before,
                    after, "the network config names another backend; this node receives by both from now on"
                );
            }
            E::BackendSwitched { before, after, unable } => {
                info!(before, after, unable, "this node publishes another backend now");
            }
            E::ConfigApplied { live } if live.is_empty() => {
                info!("network config is again the one that runs");
            }
            E::ConfigApplied { live } => {
                info!(live = live.join(", "), "network config changed, and is in force");
            }
            E::RestartNeeded { live, reason } => {
                warn!(
                    live = live.join(", "),
                    restart = reason,
                    "network config changed; some keys need a restart"
                );
            }
            E::ConfigUnusable { reason } => {
                warn!(error = reason, "network config changed to one that can't be used");
            }
            _ => {}
        }
    }
}

impl Event for NetworkEvent {
    fn left_out(events: u64) -> Self {
        Self::LeftOut { events }
    }

    fn log(&self) {
        use NetworkEvent as E;
        match self {
            E::PeerAdded { lease, underlay } => {
                info!(subnet = %lease, underlay = list(underlay), "peer added");
            }
            E::PeerChanged { lease, underlay } => {
                info!(subnet = %lease, underlay = list(underlay), "peer changed");
            }
            E::PeerRemoved { lease, underlay } => {
                info!(subnet = %lease, underlay = list(underlay), "peer removed");
            }
            E::PeersChanged { added, changed, removed } => info!(added, removed, changed, "peers changed"),
            E::LeaseRejected { lease: _, reason, left_out } => {
                let left_out = (*left_out > 0).then_some(left_out);
                warn!(error = reason, left_out, "lease not used");
            }
            E::LeaseAccepted { lease } => info!(subnet = %lease, "lease used again"),
            E::LeasesAccepted { leases } => info!(leases, "leases used again"),
            E::Repaired { objects, object, device: _, cause, took } => {
                let object = object.as_ref().map(ToString::to_string);
                warn!(ops = objects, object, %cause, took_us = took.as_micros(), "drift repaired");
            }
            E::ObjectRefused { reason, conflict: true, .. } => warn!(error = reason, "route conflict"),
            E::ObjectRefused { reason, .. } => {
                warn!(error = reason, "object refused by the kernel; trying again");
            }
            E::ObjectAccepted { object } => info!(%object, "object accepted after earlier refusals"),
            E::RouteReplaced { route, foreign } => {
                warn!(%route, foreign, "route of ours was replaced; put back");
            }
            E::DeviceCreated { link, mtu, detail } => info!(link, %mtu, detail, "device created"),
            E::DeviceRecreated { link, reason } => warn!(link, why = reason, "device recreated"),
            E::DeviceChanged { link, detail } => info!(link, changes = detail, "device changed in place"),
            E::DevicesNotReady { reason } => warn!(error = reason, "device not ready"),
            E::DevicesReady => info!("devices ready"),
            E::FamilyOutOfService { family: _, reason } => {
                warn!(error = reason, "a family is out of service");
            }
            E::ConfigApplied { .. }
            | E::RestartNeeded { .. }
            | E::ConfigUnusable { .. }
            | E::BackendStarted { .. }
            | E::BackendNotStarted { .. }
            | E::BackendEnded { .. }
            | E::BackendSwitchBegins { .. }
            | E::BackendSwitched { .. } => self.log_config(),
            E::FamiliesInService => info!("all families are in service"),
            E::UnderlayMoved { link, before, local, published, reason } => warn!(
                link,
                before = list(before),
                local = list(local),
                published = list(published),
                reason,
                "underlay changed"
            ),
            E::UnderlayRenamed { before, link } => info!(before, link, "underlay link renamed"),
            E::UnderlayLost { reason } => warn!(error = reason, "underlay not as it should be"),
            E::UnderlayBack => info!("underlay is as it should be again"),
            E::OwnLeaseContested { reason } => warn!(error = reason, "this node's record lost a conflict"),
            E::OwnLeaseUncontested { lease } => {
                info!(subnet = %lease, "conflict of this node's record is over");
            }
            E::BackendDataChanged { family, lease, before, after } => {
                warn!(%family, lease, before, after, "another node had this node's backend data first; new data chosen");
            }
            E::HostCutsPods { reason } => warn!(error = reason, "a setting of the host cuts packets of pods"),
            E::HostCutsNoMore { reason } => {
                info!(was = reason, "a setting of the host cuts packets of pods no more");
            }
            E::LeftoverSuspected { link } => warn!(
                link,
                "looks like a device of another flannel backend; it stays, since no stored state proves that it is ours"
            ),
            E::LeftoverRemoved { link } => info!(link, "device of an earlier backend removed"),
            E::LeftoverStays { link, reason } => {
                warn!(link, error = reason, "device or gate of an earlier backend stays for now");
            }
            E::GateInForce { mode } => info!(%mode, "underlay gate is in force"),
            E::GateRepaired { cause, took } => {
                warn!(%cause, took_us = took.as_micros(), "underlay gate repaired");
            }
            E::GateUnavailable { reason } => {
                warn!(problem = reason, "packets from strangers are not observed");
            }
            E::GateNotReady { reason } => warn!(problem = reason, "underlay gate not as it should be"),
            E::GateReady => info!("underlay gate is as it should be again"),
            E::StrangersSeen { report } => warn!(news = report, "packets from strangers seen"),
            E::KernelAway { reason } => warn!(error = reason, "kernel could not be asked; trying again"),
            // For readers who were too slow.
            E::LeftOut { .. } => {}
        }
    }
}

fn list(addresses: &PerFamily<IpAddr>) -> String {
    addresses.iter().map(|(_, addr)| addr.to_string()).collect::<Vec<_>>().join(",")
}
