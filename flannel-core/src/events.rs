//! What happened to a network, as values: an agent shows them, counts them and makes its log lines from them.
//!
//! A backend sends its events into a ring of the last [`KEPT`] events. A reader never blocks the loop: one that is too
//! slow learns how many events it missed ([`NetworkEvent::LeftOut`]) and can read the status, which is always complete.

mod log;
mod memory;
mod ring;

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

pub use memory::{MemoryEvent, MemoryEventSender};
pub use ring::{Event, EventReader, EventSender, KEPT, Timed};

use crate::addr::{Family, Mtu, PerFamily};
use crate::dataplane::NamedObject;
use crate::firewall::gate::Mode;
use crate::lease::LeaseKey;
use crate::times::microseconds;

/// Reads the events of a network. A backend without events returns [`EventReader::none`].
pub type NetworkEvents = EventReader<NetworkEvent>;

/// Sends the events of a network. The reconcile loop has one, so only a backend without the loop needs its own.
pub type NetworkEventSender = EventSender<NetworkEvent>;

/// Up to this many peers that change at once get an event each. More of them are one [`NetworkEvent::PeersChanged`].
pub const MOST_SINGLE: usize = 16;

/// Something that happened to a network.
///
/// It is serialized with its name in `event` (`{"event":"peer-added","lease":"10.5.2.0-24",..}`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NetworkEvent {
    /// The reader was too slow and missed this many events.
    LeftOut {
        /// How many.
        events: u64,
    },
    /// Another node's lease appeared.
    PeerAdded {
        /// The lease.
        lease: LeaseKey,
        /// The addresses that its node published.
        underlay: PerFamily<IpAddr>,
    },
    /// The attributes of another node's lease changed.
    PeerChanged {
        /// The lease.
        lease: LeaseKey,
        /// The addresses that its node publishes now.
        underlay: PerFamily<IpAddr>,
    },
    /// Another node's lease is gone.
    PeerRemoved {
        /// The lease.
        lease: LeaseKey,
        /// The addresses that its node published last.
        underlay: PerFamily<IpAddr>,
    },
    /// More than [`MOST_SINGLE`] leases of other nodes changed at once.
    PeersChanged {
        /// How many appeared.
        added: usize,
        /// How many changed their attributes.
        changed: usize,
        /// How many are gone.
        removed: usize,
    },
    /// A lease can't be used: its record is unreadable, it conflicts with another one, or its subnet is outside of the
    /// network. There is at most one such event a minute for each lease, and twenty a minute in all.
    LeaseRejected {
        /// The key of its record.
        lease: String,
        /// Why, and what to do.
        reason: String,
        /// How many such events were left out since the last one.
        left_out: u64,
    },
    /// A lease that could not be used can be used now.
    LeaseAccepted {
        /// The lease.
        lease: LeaseKey,
    },
    /// More than [`MOST_SINGLE`] leases that could not be used can be used now.
    LeasesAccepted {
        /// How many.
        leases: usize,
    },
    /// The kernel's state had drifted from the desired state, and was repaired.
    Repaired {
        /// How many objects were put or deleted; 0 if only a device was repaired.
        objects: usize,
        /// One of them; `None` if only a device was repaired.
        object: Option<NamedObject>,
        /// Whether a device was repaired.
        device: bool,
        /// How the drift was found.
        cause: RepairCause,
        /// The time from the moment when the loop learned of the drift to the kernel's last acknowledgement.
        #[serde(rename = "took_us", serialize_with = "microseconds")]
        took: Duration,
    },
    /// The kernel refuses an object. The loop tries again until the kernel accepts it, or it is no longer desired.
    ObjectRefused {
        /// The object.
        object: NamedObject,
        /// One of the peers that need it.
        peer: Option<LeaseKey>,
        /// The kernel's errno, positive.
        errno: i32,
        /// Why, and what to do.
        reason: String,
        /// Whether somebody else's object has its key. That object stays.
        conflict: bool,
    },
    /// The kernel accepted an object that it had refused.
    ObjectAccepted {
        /// The object.
        object: NamedObject,
    },
    /// Somebody replaced a route of ours, and it was put back.
    RouteReplaced {
        /// The route.
        route: NamedObject,
        /// The route that took its place, in the words of `ip route`.
        foreign: String,
    },
    /// A device was created.
    DeviceCreated {
        /// Its name.
        link: String,
        /// Its MTU in bytes.
        mtu: Mtu,
        /// Its attributes, as the backend describes them.
        detail: String,
    },
    /// A device was created again: somebody had deleted it, or it could not be changed in place. Traffic was interrupted
    /// meanwhile.
    DeviceRecreated {
        /// Its name.
        link: String,
        /// What was wrong with it.
        reason: String,
    },
    /// A device was changed in place; everything on it stayed.
    DeviceChanged {
        /// Its name.
        link: String,
        /// What was changed.
        detail: String,
    },
    /// A device is missing or wrong.
    DevicesNotReady {
        /// Why, and what to do.
        reason: String,
    },
    /// All devices are there and right.
    DevicesReady,
    /// A family is out of service on this node, such as IPv6 on links with a small MTU.
    FamilyOutOfService {
        /// The family; `None` for all.
        family: Option<Family>,
        /// Why, and what to do.
        reason: String,
    },
    /// All families are in service again.
    FamiliesInService,
    /// A backend was brought up beside others, since leases of peers or the network config name it.
    BackendStarted {
        /// Its kind.
        backend: String,
    },
    /// A backend that leases of peers or the network config name can't be brought up now.
    BackendNotStarted {
        /// Its kind.
        backend: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A backend ended, since nothing needs it any more and no packet came by it.
    BackendEnded {
        /// Its kind.
        backend: String,
    },
    /// The network config names another backend. This node receives by both before it publishes the other one.
    BackendSwitchBegins {
        /// The kind of the backend that this node publishes.
        before: String,
        /// The kind of the other one.
        after: String,
    },
    /// This node publishes another backend now.
    BackendSwitched {
        /// The kind of the backend that it published before.
        before: String,
        /// The kind of the one that it publishes now.
        after: String,
        /// How many nodes had not said that they can receive by it, or had no session yet where its tunnel has such.
        unable: usize,
    },
    /// The underlay is another link, or has other addresses.
    UnderlayMoved {
        /// The link's name.
        link: String,
        /// The source addresses of packets before.
        before: PerFamily<IpAddr>,
        /// The source addresses of packets now.
        local: PerFamily<IpAddr>,
        /// The addresses that peers send to now.
        published: PerFamily<IpAddr>,
        /// Why this underlay was chosen.
        reason: String,
    },
    /// The underlay link has another name.
    UnderlayRenamed {
        /// Its name before.
        before: String,
        /// Its name now.
        link: String,
    },
    /// The underlay's link or an address of it is gone, and there is no replacement.
    UnderlayLost {
        /// Why.
        reason: String,
    },
    /// The underlay's link and addresses are there again.
    UnderlayBack,
    /// The network config changed, and is in force.
    ConfigApplied {
        /// The keys that are in force without a restart; empty if the config is again the one that runs.
        live: Vec<String>,
    },
    /// The network config changed in keys that need a restart. Those are not in force.
    RestartNeeded {
        /// The keys that are in force.
        live: Vec<String>,
        /// The keys that need the restart, and what to do.
        reason: String,
    },
    /// The network config changed to one that can't be used. The running config stays in force.
    ConfigUnusable {
        /// Why.
        reason: String,
    },
    /// A lease of another node has precedence over this node's own record, so that peers don't program this node.
    OwnLeaseContested {
        /// Which, and what to do.
        reason: String,
    },
    /// No lease has precedence over this node's own record any more.
    OwnLeaseUncontested {
        /// This node's lease.
        lease: LeaseKey,
    },
    /// This node publishes new backend data, since another node had the same data first.
    BackendDataChanged {
        /// The family of the data.
        family: Family,
        /// The lease of the other node.
        lease: String,
        /// What this node published before, as JSON.
        before: Option<String>,
        /// What it publishes now, as JSON.
        after: Option<String>,
    },
    /// A setting or an address of the host keeps pods' packets from being forwarded.
    HostCutsPods {
        /// What, and what to do.
        reason: String,
    },
    /// A setting or an address of the host no longer keeps pods' packets from being forwarded.
    HostCutsNoMore {
        /// What it was.
        reason: String,
    },
    /// A link looks like a device of another flannel backend, but nothing proves that it is ours, so it stays.
    LeftoverSuspected {
        /// Its name.
        link: String,
    },
    /// The device of an earlier backend was deleted.
    LeftoverRemoved {
        /// Its name.
        link: String,
    },
    /// The device of an earlier backend, or its gate, could not be deleted and stays for now.
    LeftoverStays {
        /// Its name.
        link: String,
        /// Why.
        reason: String,
    },
    /// The underlay gate is in force, or changed its mode.
    GateInForce {
        /// What is done about packets from strangers.
        mode: Mode,
    },
    /// Somebody removed or changed a table of the underlay gate, and it was put back.
    GateRepaired {
        /// How the difference was found.
        cause: RepairCause,
        /// How long it took to put back.
        #[serde(rename = "took_us", serialize_with = "microseconds")]
        took: Duration,
    },
    /// The kernel lacks what the underlay gate needs, so packets from strangers are not observed.
    GateUnavailable {
        /// Why, and what to do.
        reason: String,
    },
    /// The underlay gate is not as it should be.
    GateNotReady {
        /// Why, and what to do.
        reason: String,
    },
    /// The underlay gate is as it should be again.
    GateReady,
    /// Packets from strangers were seen in the tunnels. Each stranger is named once in a while.
    StrangersSeen {
        /// Who, how many packets, and what was done.
        report: String,
    },
    /// A request to the kernel failed. The loop tries again with backoff.
    KernelAway {
        /// Why.
        reason: String,
    },
}

/// How the loop learned of drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RepairCause {
    /// The kernel notified us of a change.
    Announced,
    /// The kernel had lost notifications (`ENOBUFS`), so everything was read again.
    Overrun,
    /// The regular resync found it.
    Resync,
    /// A further attempt after a failure found it.
    Retry,
    /// The backend's own datapath asked for a check.
    Datapath,
}

impl RepairCause {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Announced, Self::Overrun, Self::Resync, Self::Retry, Self::Datapath];

    /// Its name, as it is serialized.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Announced => "announced",
            Self::Overrun => "overrun",
            Self::Resync => "resync",
            Self::Retry => "retry",
            Self::Datapath => "datapath",
        }
    }
}

impl std::fmt::Display for RepairCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::ObjectKey;

    #[test]
    fn the_text_form_has_names_and_units() {
        let repaired = NetworkEvent::Repaired {
            objects: 2,
            object: Some(NamedObject::new(
                ObjectKey::Route("10.5.2.0/24".parse().unwrap(), 0),
                Some("flannel.1".to_owned()),
            )),
            device: false,
            cause: RepairCause::Announced,
            took: Duration::from_millis(2),
        };
        let added = NetworkEvent::PeerAdded {
            lease: "10.5.2.0-24".parse().unwrap(),
            underlay: PerFamily { v4: "192.0.2.2".parse().ok(), v6: None },
        };
        for (event, text) in [
            (
                repaired,
                r#"{"event":"repaired","objects":2,"object":{"kind":"route","destination":"10.5.2.0/24","metric":0,"device":"flannel.1"},"device":false,"cause":"announced","took_us":2000}"#,
            ),
            (added, r#"{"event":"peer-added","lease":"10.5.2.0-24","underlay":{"v4":"192.0.2.2"}}"#),
            (NetworkEvent::DevicesReady, r#"{"event":"devices-ready"}"#),
        ] {
            assert_eq!(serde_json::to_string(&event).unwrap(), text);
        }
    }
}
