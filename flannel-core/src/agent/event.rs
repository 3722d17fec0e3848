//! What happens to an agent, as values, for embedders and for the log.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::addr::{Family, Mtu, Subnet};
use crate::events::{MemoryEvent, NetworkEvent};
use crate::firewall::FirewallEvent;
use crate::lease::LeaseKey;
use crate::probe::{ProbeEvent, Verdict};
use crate::times::{instant, seconds};

/// An event of an agent, with its number and the time at which it happened.
///
/// It is serialized as one flat object: `{"seq":7,"time":"2026-11-29T18:00:00.123Z","event":"peer-added",..}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TimedEvent {
    /// Its number: 1 for the first event of the agent, and one more for each further one. A reader who missed some finds
    /// a gap here. The number of [`AgentEvent::LeftOut`] is that of the last event that the reader missed.
    pub seq: u64,
    /// When it happened, by the wall clock. An event of a part of the agent, such as its network, reaches the agent a
    /// little later, so the times of two events can be in another order than their numbers.
    #[serde(serialize_with = "instant")]
    pub time: SystemTime,
    /// What happened.
    #[serde(flatten)]
    pub event: AgentEvent,
}

impl TimedEvent {
    /// An event with its number and time.
    pub fn new(seq: u64, time: SystemTime, event: AgentEvent) -> Self {
        Self { seq, time, event }
    }
}

/// Something that happened to an agent, or to the network that it runs.
///
/// Its text form is JSON with the name in `event` (`{"event":"store-lost","problem":".."}`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AgentEvent {
    /// `flanneld cleanup` runs on this host. The agent waits for its end.
    CleanupRuns {
        /// The lock file that it has.
        path: PathBuf,
    },
    /// The lock file that shows that an agent runs can't be used, so `flanneld cleanup` won't see this one.
    LockUnusable {
        /// The lock file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Temporary files that an earlier run left can't be removed.
    DraftsStay {
        /// The file beside which they are.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The subnet file of an earlier run has something that can't be used.
    OldSubnetFile {
        /// What.
        problem: String,
    },
    /// The state file can't be used: the start waits for the store, and leftovers that only the file could prove to be
    /// ours stay.
    StateFileUnusable {
        /// Which file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The state file came here with the disk of another machine, so it does not prove that its lease is this node's.
    StateFileOfAnotherHost {
        /// The lease in the file; empty if there is none.
        lease: String,
    },
    /// If the store does not answer, this agent can't start without it: the stored state can't be used for that.
    NoStandIn {
        /// Why.
        why: String,
    },
    /// A step of the start failed and is tried again. The same failure is reported once; outages of the store are
    /// [`AgentEvent::StoreLost`].
    Waiting {
        /// What the agent waits for.
        step: &'static str,
        /// Why it failed.
        why: String,
    },
    /// The network config was read and can be used.
    ConfigRead {
        /// The networks of the pods.
        networks: Vec<Subnet>,
        /// The backend that it names.
        backend: String,
    },
    /// The underlay was chosen.
    UnderlayChosen {
        /// The link's name.
        link: String,
        /// The link's MTU.
        mtu: Mtu,
        /// The source addresses of packets to other nodes.
        local: Vec<String>,
        /// The addresses that are published to peers.
        published: Vec<String>,
        /// Why this underlay was chosen.
        reason: String,
    },
    /// This node publishes other addresses than before; [`NetworkEvent::UnderlayMoved`] says why.
    PublishedAddressesChanged {
        /// The addresses that it publishes from now on.
        published: Vec<String>,
    },
    /// An address that this node needs (underlay, gateway, store) lies among those of the pods.
    AddressAmongPods {
        /// Which address, and what to do about it.
        remark: String,
    },
    /// This node has acquired its lease.
    LeaseAcquired {
        /// Its subnets.
        lease: String,
        /// The largest pod packet in bytes.
        overlay_mtu: Mtu,
    },
    /// This node's lease was renewed in the store. Not told by a store whose leases have no end.
    LeaseRenewed {
        /// Its subnets.
        lease: String,
        /// When it ends without another renewal, by the wall clock.
        #[serde(serialize_with = "instant")]
        expires: SystemTime,
    },
    /// Another node has this node's subnets. The datapath stays for a minute, and then the agent ends.
    LeaseLost {
        /// Who has them.
        why: String,
    },
    /// Firewall rules are kept from now on.
    FirewallKept {
        /// The manager that keeps them, as in [`FirewallStatus::manager`](crate::firewall::FirewallStatus::manager).
        manager: Option<&'static str>,
        /// The same with the reason, for people.
        choice: String,
        /// Whether pods are masqueraded.
        masquerade: bool,
        /// Whether forwarded packets of pods are accepted.
        forward: bool,
    },
    /// The subnet file is in place.
    SubnetFileWritten {
        /// Where.
        path: PathBuf,
        /// The pods' MTU in it.
        overlay_mtu: Mtu,
        /// Whether it was written; false if it had the same content already.
        written: bool,
    },
    /// The subnet file can't be written; it is tried again.
    SubnetFileRefused {
        /// Why.
        why: String,
    },
    /// New pods get another MTU from now on; running pods keep theirs.
    MtuChanged {
        /// The MTU before, in bytes.
        before: Mtu,
        /// The MTU now, in bytes.
        overlay_mtu: Mtu,
    },
    /// The verdict of probes about a peer changed.
    PeerJudged {
        /// The peer's lease.
        lease: LeaseKey,
        /// The family.
        family: Family,
        /// The name of the verdict before.
        before: &'static str,
        /// The verdict now.
        #[serde(flatten)]
        verdict: Verdict,
        /// The same in words.
        text: String,
        /// What it was made from.
        evidence: Vec<String>,
        /// What to do about it; `None` if there is nothing to do.
        remedy: Option<String>,
    },
    /// The verdicts about more than [`MOST_SINGLE`](crate::events::MOST_SINGLE) peers changed at once.
    PeersJudged {
        /// How many changed.
        changed: usize,
        /// How many verdicts say now that pods' packets are lost.
        trouble: usize,
    },
    /// The store can't be reached.
    StoreLost {
        /// Why.
        problem: String,
    },
    /// The store can be reached again.
    StoreBack {
        /// How long it was unavailable. In the text form whole seconds.
        #[serde(rename = "away_s", serialize_with = "seconds")]
        away: Duration,
    },
    /// Pods can be started on this node.
    Ready,
    /// Pods can't be started on this node any more, or their traffic is cut.
    NotReady {
        /// Why.
        reasons: Vec<String>,
    },
    /// The agent stops.
    Stopping,
    /// The agent has ended. This is its last event.
    Ended {
        /// Why it ended, with all causes; `None` if it was told to.
        error: Option<String>,
    },
    /// A part of the agent failed while it stopped, or did not stop in time.
    StopFailed {
        /// The part.
        part: &'static str,
        /// The error.
        why: String,
    },
    /// The reader was too slow and missed this many events.
    LeftOut {
        /// How many.
        events: u64,
    },
    /// Something that happened to the network: to peers, devices, objects, the underlay or the config that is in force.
    /// In the text form it is that event itself, with its name in `event`. [`NetworkEvent::LeftOut`] never comes here:
    /// [`AgentEvent::LeftOut`] counts those, too.
    #[serde(untagged)]
    Network(NetworkEvent),
    /// Something that happened to the firewall rules, of the agent or of others; in the text form that event itself.
    #[serde(untagged)]
    Firewall(FirewallEvent),
    /// Something that happened to what the agent remembers over restarts; in the text form that event itself.
    #[serde(untagged)]
    Memory(MemoryEvent),
}

impl From<NetworkEvent> for AgentEvent {
    fn from(event: NetworkEvent) -> Self {
        match event {
            NetworkEvent::LeftOut { events } => Self::LeftOut { events },
            event => Self::Network(event),
        }
    }
}

impl From<ProbeEvent> for AgentEvent {
    fn from(event: ProbeEvent) -> Self {
        match event {
            ProbeEvent::Judged { lease, family, before, verdict, text, evidence, remedy } => {
                Self::PeerJudged { lease, family, before: before.name(), verdict, text, evidence, remedy }
            }
            ProbeEvent::ManyJudged { changed, trouble } => Self::PeersJudged { changed, trouble },
        }
    }
}

impl From<FirewallEvent> for AgentEvent {
    fn from(event: FirewallEvent) -> Self {
        match event {
            FirewallEvent::LeftOut { events } => Self::LeftOut { events },
            event => Self::Firewall(event),
        }
    }
}

impl From<MemoryEvent> for AgentEvent {
    fn from(event: MemoryEvent) -> Self {
        match event {
            MemoryEvent::LeftOut { events } => Self::LeftOut { events },
            event => Self::Memory(event),
        }
    }
}
