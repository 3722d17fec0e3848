//! What happens to a network, as values: an agent shows them, counts them and makes its log lines from them.
//!
//! A backend sends its events into a ring that holds the last [`KEPT`]. Nobody has to read it and no reader holds up the
//! loop: whoever is slower than the ring learns how many events he missed ([`NetworkEvent::LeftOut`]) and can look at the
//! status, which is always whole.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::Stream;
use futures::stream::unfold;
use serde::{Serialize, Serializer};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::addr::{Family, Mtu, PerFamily};
use crate::dataplane::ObjectKey;
use crate::lease::LeaseKey;

/// How many events a reader may be behind before he misses some.
pub const KEPT: usize = 256;

/// How many peers that change at once have an event each. More than these are one [`NetworkEvent::PeersChanged`].
pub const MOST_SINGLE: usize = 16;

/// Something that happened to a network.
///
/// Its text form is JSON with the name in `event` (`{"event":"peer-added","lease":"10.5.2.0-24",..}`).
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
    /// Another node's lease says something else than before.
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
        /// How many say something else than before.
        changed: usize,
        /// How many are gone.
        removed: usize,
    },
    /// A lease can't be used: its record is unreadable, it contradicts another one, or it lies outside of the network.
    /// Each is told once a minute, and twenty in that time at most.
    LeaseRejected {
        /// The key of its record.
        lease: String,
        /// Why, and what to do.
        reason: String,
        /// How many further ones were not told since the last one that was.
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
    /// The kernel's state had drifted from what is desired, and is right again.
    Repaired {
        /// How many objects were put or deleted; 0 if only a device was repaired.
        objects: usize,
        /// One of them; `None` if only a device was repaired.
        object: Option<ObjectKey>,
        /// Whether a device was repaired.
        device: bool,
        /// How the drift was found.
        cause: RepairCause,
        /// From the moment that the loop learned of it to the kernel's last acknowledgement.
        #[serde(rename = "took_us", serialize_with = "microseconds")]
        took: Duration,
    },
    /// The kernel refuses an object. It is tried again until it is accepted or not desired any more.
    ObjectRefused {
        /// The object.
        object: ObjectKey,
        /// One of the peers that need it.
        peer: Option<LeaseKey>,
        /// The kernel's errno, positive.
        errno: i32,
        /// Why, and what to do.
        reason: String,
        /// Whether somebody else's object is in its place, which stays.
        conflict: bool,
    },
    /// The kernel accepted an object that it had refused.
    ObjectAccepted {
        /// The object.
        object: ObjectKey,
    },
    /// Somebody replaced a route of ours, and it was put back.
    RouteReplaced {
        /// The route.
        route: ObjectKey,
        /// The route that took its place, in the words of `ip route`.
        foreign: String,
    },
    /// A device was created.
    DeviceCreated {
        /// Its name.
        link: String,
        /// Its MTU in bytes.
        mtu: Mtu,
        /// Its attributes, in the backend's words.
        detail: String,
    },
    /// A device could not be changed to what it should be, so it was deleted and created again. Traffic stood still
    /// meanwhile.
    DeviceRecreated {
        /// Its name.
        link: String,
        /// What was wrong with it.
        reason: String,
    },
    /// A device was changed in place, with all that hangs on it.
    DeviceChanged {
        /// Its name.
        link: String,
        /// What was changed.
        detail: String,
    },
    /// A device is not there or not as it should be.
    DevicesNotReady {
        /// Why, and what to do.
        reason: String,
    },
    /// All devices are there and as they should be.
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
    /// The underlay is another link, or has other addresses.
    UnderlayMoved {
        /// The link's name.
        link: String,
        /// The addresses from which packets left before.
        before: PerFamily<IpAddr>,
        /// The addresses from which they leave now.
        local: PerFamily<IpAddr>,
        /// The addresses that peers send to now.
        published: PerFamily<IpAddr>,
        /// Why this one.
        reason: String,
    },
    /// The underlay link has another name.
    UnderlayRenamed {
        /// Its name before.
        before: String,
        /// Its name now.
        link: String,
    },
    /// The underlay is not as it should be, and there is no other.
    UnderlayLost {
        /// Why.
        reason: String,
    },
    /// The underlay is as it should be again.
    UnderlayBack,
    /// The network config changed, and is in force.
    ConfigApplied {
        /// The keys that are in force without a restart; none if it is again what runs.
        live: Vec<String>,
    },
    /// The network config changed in a part that takes a restart. That part is not in force.
    RestartNeeded {
        /// The keys that are in force.
        live: Vec<String>,
        /// What takes the restart.
        reason: String,
    },
    /// The network config changed to one that can't be used. What runs stays in force.
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
    /// This node publishes other backend data than before, since another node had the same by right.
    BackendDataChanged {
        /// Of which family.
        family: Family,
        /// The lease of the other node.
        lease: String,
        /// What this node published before, as JSON.
        before: Option<String>,
        /// What it publishes now, as JSON.
        after: Option<String>,
    },
    /// A setting or an address of the host cuts packets of pods.
    HostCutsPods {
        /// What, and what to do.
        reason: String,
    },
    /// A setting or an address of the host cuts no packets any more.
    HostCutsNoMore {
        /// What it was.
        reason: String,
    },
    /// A link looks like a device of another flannel backend but nothing proves that it is ours, so it stays.
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
    /// The kernel could not be asked. The loop tries again with backoff.
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
    /// The kernel announced a change.
    Announced,
    /// The kernel said that it had lost announcements, so that everything was read again.
    Overrun,
    /// The regular reading of everything found it.
    Resync,
    /// Another try, after something had failed.
    Retry,
    /// The backend's own datapath asked for it.
    Datapath,
}

impl std::fmt::Display for RepairCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Announced => "announced",
            Self::Overrun => "overrun",
            Self::Resync => "resync",
            Self::Retry => "retry",
            Self::Datapath => "datapath",
        })
    }
}

fn microseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// Reads the events of a network. A backend without any gives one that ends at once ([`Self::none`]).
#[derive(Debug)]
pub struct NetworkEvents(Option<broadcast::Receiver<NetworkEvent>>);

impl NetworkEvents {
    /// Of a network that has no events.
    pub fn none() -> Self {
        Self(None)
    }

    /// Waits for the next event; `None` once the network has ended. Dropping the future loses none.
    pub async fn recv(&mut self) -> Option<NetworkEvent> {
        match self.0.as_mut()?.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(events)) => Some(NetworkEvent::LeftOut { events }),
            Err(RecvError::Closed) => None,
        }
    }

    /// The same as a stream, which ends with the network.
    pub fn into_stream(self) -> impl Stream<Item = NetworkEvent> + Send {
        unfold(self, |mut events| async { events.recv().await.map(|event| (event, events)) })
    }
}

/// Sends the events of a network. The backends that the reconcile loop runs need none of their own. A clone sends to the
/// same readers.
#[derive(Debug, Clone)]
pub struct NetworkEventSender {
    sender: broadcast::Sender<NetworkEvent>,
    /// Of who asks first: it has what happened before he asked, too.
    first: Arc<Mutex<Option<NetworkEvents>>>,
}

impl Default for NetworkEventSender {
    fn default() -> Self {
        let (sender, first) = broadcast::channel(KEPT);
        Self { sender, first: Arc::new(Mutex::new(Some(NetworkEvents(Some(first))))) }
    }
}

impl NetworkEventSender {
    /// Sends one event. Nobody has to be there to read it.
    pub fn send(&self, event: NetworkEvent) {
        // No reader is no failure.
        let _ = self.sender.send(event);
    }

    /// A reader. The first one that is asked for has all events so far, further ones those from now on.
    pub fn subscribe(&self) -> NetworkEvents {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.unwrap_or_else(|| NetworkEvents(Some(self.sender.subscribe())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(leases: usize) -> NetworkEvent {
        NetworkEvent::LeasesAccepted { leases }
    }

    #[tokio::test]
    async fn a_slow_reader_learns_how_much_he_missed_and_the_first_one_has_what_was_before_him() {
        let sender = NetworkEventSender::default();
        sender.send(accepted(0));
        let (mut first, mut second) = (sender.subscribe(), sender.subscribe());
        assert_eq!(first.recv().await, Some(accepted(0)));
        for n in 0..KEPT + 3 {
            sender.send(accepted(n));
        }
        drop(sender);
        for reader in [&mut first, &mut second] {
            assert_eq!(reader.recv().await, Some(NetworkEvent::LeftOut { events: 3 }));
            for n in 3..KEPT + 3 {
                assert_eq!(reader.recv().await, Some(accepted(n)));
            }
            assert_eq!(reader.recv().await, None);
        }
        assert_eq!(NetworkEvents::none().recv().await, None);
    }

    #[test]
    fn the_text_form_has_names_and_units() {
        let repaired = NetworkEvent::Repaired {
            objects: 2,
            object: Some(ObjectKey::Route("10.5.2.0/24".parse().unwrap(), 0)),
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
                r#"{"event":"repaired","objects":2,"object":"route 10.5.2.0/24","device":false,"cause":"announced","took_us":2000}"#,
            ),
            (added, r#"{"event":"peer-added","lease":"10.5.2.0-24","underlay":{"v4":"192.0.2.2"}}"#),
            (NetworkEvent::DevicesReady, r#"{"event":"devices-ready"}"#),
        ] {
            assert_eq!(serde_json::to_string(&event).unwrap(), text);
        }
    }
}
