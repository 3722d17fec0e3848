//! The traits that a backend implements, and the status it reports.

mod host_problem;
mod maker;
mod probing;
mod upstream;

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::addr::Mtu;
use crate::config::{ConfigError, NetworkConfig};
use crate::events::{NetworkEventSender, NetworkEvents};
use crate::firewall::gate::GateCounters;
use crate::heartbeat::Pulse;
use crate::inspect::Inspector;
use crate::kernel::{KernelError, Link};
use crate::lease::{Lease, LeaseAttrs};
use crate::netns::Netns;
use crate::state_file::State;
use crate::status::{
    Counters, DeviceStatus, PeerList, Problem, Problems, RepairCounts, Sessions, Subject, Timings,
};
use crate::subnet::{LeaseStream, SubnetError, SubnetManager};
use crate::times::{optional_microseconds, optional_unix_instant};
use crate::underlay::UnderlayOptions;

pub use crate::proofs::{PathFact, PathProofs, Proven};
pub use crate::underlay::Underlay;
pub use host_problem::HostProblem;
pub use maker::{Driven, DriverMaker, DriverNeeds};
pub use probing::{Answers, ChecksumSwitch, Probing, Tunnel};
pub(crate) use upstream::why_not;

/// What a backend needs to register. [`Registration::new`] takes what every registration needs.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Registration<'a> {
    /// The network namespace of this node. The backend opens, reads and changes everything on the host in this
    /// namespace, wherever its own threads are.
    pub netns: &'a Netns,
    /// The network config.
    pub config: &'a NetworkConfig,
    /// The link and addresses that carry the traffic between nodes.
    pub underlay: &'a Underlay,
    /// The store of leases.
    pub subnets: &'a dyn SubnetManager,
    /// What this node stored last. It proves that leftovers of an earlier run or another backend are ours.
    pub previous: Option<&'a State>,
    /// The options by which the underlay was chosen, so that it can be chosen again when its address changes. Without
    /// them the underlay never changes.
    pub chosen_by: Option<&'a UnderlayOptions>,
    /// Whether to keep a blackhole route for each of this node's own subnets, so that packets to addresses that no pod
    /// has are dropped here and don't leave by a default route. For hosts without a bridge.
    pub blackholes: bool,
    /// The backends of the agent, so that this node can run others beside the configured one; see [`Backend::drivers`].
    pub beside: &'a [Arc<dyn Backend>],
    /// What the store has for a network config, if another one is in force ([`Self::config`]): the loop takes it as a change.
    pub told: Option<&'a NetworkConfig>,
    /// Where what happens is told from now on: a registration that fails, and is tried again, has done something, too.
    /// The network that comes of it sends its events ([`Network::events`]) there. Without it a network has a sender of its
    /// own.
    pub events: Option<&'a NetworkEventSender>,
}

impl<'a> Registration<'a> {
    /// A registration without state of an earlier run, with an underlay that never changes, and without blackhole
    /// routes.
    pub fn new(
        netns: &'a Netns,
        config: &'a NetworkConfig,
        underlay: &'a Underlay,
        subnets: &'a dyn SubnetManager,
    ) -> Self {
        let (previous, chosen_by, blackholes, beside, told, events) = (None, None, false, &[], None, None);
        Self { netns, config, underlay, subnets, previous, chosen_by, blackholes, beside, told, events }
    }

    /// Sets what this node stored last; see [`Registration::previous`].
    #[must_use]
    pub fn previous(self, previous: Option<&'a State>) -> Self {
        Self { previous, ..self }
    }

    /// Sets how the underlay was chosen; see [`Registration::chosen_by`].
    #[must_use]
    pub fn chosen_by(self, options: &'a UnderlayOptions) -> Self {
        Self { chosen_by: Some(options), ..self }
    }

    /// Sets which backends this node can run beside the configured one; see [`Registration::beside`].
    #[must_use]
    pub fn beside(self, backends: &'a [Arc<dyn Backend>]) -> Self {
        Self { beside: backends, ..self }
    }

    /// Sets what the store has for a network config; see [`Registration::told`].
    #[must_use]
    pub fn told(self, config: Option<&'a NetworkConfig>) -> Self {
        Self { told: config, ..self }
    }

    /// Sets where to tell what happens; see [`Registration::events`].
    #[must_use]
    pub fn events(self, events: &'a NetworkEventSender) -> Self {
        Self { events: Some(events), ..self }
    }

    /// Sets whether to keep blackhole routes; see [`Registration::blackholes`].
    #[must_use]
    pub fn blackholes(self, blackholes: bool) -> Self {
        Self { blackholes, ..self }
    }
}

/// A kind of device that a backend makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceKind {
    /// The beginning of its name; a number follows, for VXLAN devices their VNI. If [`Self::is_only`], its name.
    pub prefix: &'static str,
    /// Whether there is only one, without a number in its name.
    pub is_only: bool,
    /// `IFLA_INFO_KIND`, such as `vxlan`, `tun` or `ipip`.
    pub kind: &'static str,
}

impl DeviceKind {
    /// Devices of this kind whose names begin with `prefix`.
    pub const fn new(prefix: &'static str, kind: &'static str) -> Self {
        Self { prefix, is_only: false, kind }
    }

    /// The one device of this kind with this name.
    pub const fn named(name: &'static str, kind: &'static str) -> Self {
        Self { prefix: name, is_only: true, kind }
    }
}

/// The file with this node's private key, of a backend that has one ([`Backend::key_file`]).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KeyFile {
    /// Where it is.
    pub path: PathBuf,
    /// Makes the public key of the file's content, as leases publish it. The error says what is wrong with the content, without
    /// showing it.
    pub public: fn(&str) -> Result<String, String>,
}

impl KeyFile {
    /// The key file at this path, whose content is read by this function.
    pub fn new(path: impl Into<PathBuf>, public: fn(&str) -> Result<String, String>) -> Self {
        Self { path: path.into(), public }
    }
}

/// One way to carry overlay packets between nodes.
#[async_trait]
pub trait Backend: Send + Sync {
    /// The name that the network config gives in `Backend.Type`.
    fn kind(&self) -> &'static str;

    /// The kinds of devices that it makes. They are recognised by that after the agent has ended
    /// ([`Agent::leave`](crate::agent::Agent::leave)).
    fn devices(&self) -> &'static [DeviceKind] {
        &[]
    }

    /// Whether the backend has one route for the whole network, which also takes packets for other addresses that the
    /// network covers.
    fn routes_whole_network(&self) -> bool {
        false
    }

    /// The file with this node's private key; `None` for a backend without one.
    fn key_file(&self) -> Option<KeyFile> {
        None
    }

    /// What is in the devices of the backend among `links` that none of these leases needs, such as the peers of others, one
    /// line each. Nothing is changed.
    async fn strangers(
        &self,
        netns: &Netns,
        links: &[Link],
        leases: &[Lease],
    ) -> Result<Vec<String>, BackendError> {
        let _ = (netns, links, leases);
        Ok(Vec::new())
    }

    /// Checks the backend's keys in a network config, and whether it can carry these networks. [`Self::register`] refuses
    /// what this refuses, by the same code; so a config can be checked where no agent starts. By default everything is good.
    fn check(&self, config: &NetworkConfig) -> Result<(), ConfigError> {
        let _ = config;
        Ok(())
    }

    /// Makes the backend's driver alone, so that a node can run it beside others; `None` for a backend that can't share a node.
    fn drivers(&self) -> Option<&dyn DriverMaker> {
        None
    }

    /// Creates or adopts the devices, then acquires a lease that publishes their data.
    async fn register(&self, registration: Registration<'_>) -> Result<Box<dyn Network>, BackendError>;
}

/// A registered backend: this node's lease, and the task that follows all other leases.
///
/// # What every backend promises
/// `testing::backend_contract` (feature `testing`) checks each of these with a kernel and a store in memory.
/// - The node publishes what it has: the lease's attributes are those of [`Self::attrs`], and [`Self::overlay_mtu`]
///   fits the underlay.
/// - [`NetworkStatus::synced`] is set once the store's first snapshot is programmed, not before.
/// - Each lease of another node has an entry in [`NetworkStatus::peer_list`]; this node's has none.
/// - A desired object that somebody deletes is put back, and [`Self::events`] reports it.
/// - A peer that is added, removed or changed causes no operation on objects of others.
/// - A record that can't be used counts as unknown, not as deleted: its last good state stays in the kernel, and its
///   entry says [`Rejected`](crate::status::PeerState::Rejected).
/// - When [`Self::run`] ends it leaves the kernel as it is, and a restart with the last [`Self::state`] changes
///   nothing.
/// - A link that is down or gone does not change the desired state: all objects are put back once the link is there.
#[async_trait]
pub trait Network: Send {
    /// This node's lease.
    fn lease(&self) -> &Lease;

    /// The largest pod packet in bytes: underlay MTU less encapsulation, the smallest of the families.
    fn overlay_mtu(&self) -> Mtu;

    /// The status of the network. The receiver stays valid after `run` has consumed the network.
    fn status(&self) -> watch::Receiver<NetworkStatus>;

    /// The events of the network from now on; the first reader also gets earlier events. A backend without events
    /// returns an empty stream. It stays valid after `run` has consumed the network.
    fn events(&self) -> NetworkEvents {
        NetworkEvents::none()
    }

    /// Answers what differs from the desired state; `None` if the backend can't tell. It stays valid after `run` has consumed
    /// the network.
    fn inspector(&self) -> Option<Inspector> {
        None
    }

    /// How the network is probed; `None` if the backend does not say it, and then nothing is.
    fn probing(&self) -> Option<Probing> {
        None
    }

    /// The same whenever it changes, since the node publishes another backend; `None` if it never does. It stays valid after
    /// `run` has consumed the network.
    fn probing_changes(&self) -> Option<watch::Receiver<Option<Probing>>> {
        None
    }

    /// What to store for the next start. It changes only once the kernel has been changed accordingly and nothing of an
    /// earlier backend is left: until then what was stored before still counts. The receiver stays valid after `run`
    /// has consumed the network.
    fn state(&self) -> watch::Receiver<State>;

    /// What this node has to publish with its lease. It changes when the address of the underlay does. See
    /// [`crate::subnet::renew_and_publish`]. The receiver stays valid after `run` has consumed the network.
    fn attrs(&self) -> watch::Receiver<LeaseAttrs>;

    /// Asks the loop of [`run`](Self::run) whether it still turns; see [`crate::heartbeat`]. It stays valid after `run` has
    /// consumed the network. Of a backend without it nobody notices a loop that hangs.
    fn pulse(&self) -> Option<Pulse> {
        None
    }

    /// Runs until `cancel` fires. Kernel state stays, so that pods' traffic goes on afterwards.
    async fn run(self: Box<Self>, leases: LeaseStream, cancel: CancellationToken)
    -> Result<(), BackendError>;
}

/// The state of a running network, for health, status and metrics.
///
/// A copy is cheap, however many peers there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NetworkStatus {
    /// Whether the first snapshot of leases was programmed.
    pub synced: bool,
    /// While the programmed leases are those that an earlier run stored: when they were stored, in seconds since 1970.
    /// 0 means that the file does not say. `None` once the store itself has listed its leases.
    #[serde(serialize_with = "optional_unix_instant")]
    pub recalled: Option<u64>,
    /// What cuts pods off, and what else is wrong.
    pub problems: Problems,
    /// How many peers are programmed.
    pub peers: usize,
    /// Each peer, programmed or not.
    pub peer_list: PeerList,
    /// The devices that carry pods' packets.
    pub devices: Vec<DeviceStatus>,
    /// The largest pod packet in bytes with the present underlay; `None` while a device is missing.
    pub overlay_mtu: Option<Mtu>,
    /// The kinds of the backends that the node runs, first the one that its lease names. In the text form it is left out
    /// where there is one.
    #[serde(skip_serializing_if = "are_one")]
    pub backends: Vec<String>,
    /// How packets travel, where the backend has a choice.
    pub datapath: Option<String>,
    /// How often drift was repaired since the start.
    pub repairs: u64,
    /// What was repaired since the start, and how its drift was found.
    pub repaired: RepairCounts,
    /// How long the last repair took: from the kernel's notification to its last acknowledgement.
    #[serde(rename = "last_repair_us", serialize_with = "optional_microseconds")]
    pub last_repair: Option<Duration>,
    /// Operations sent to the kernel since the start.
    pub operations: u64,
    /// Operations that the kernel refused since the start; one that is tried again counts each time.
    pub refusals: u64,
    /// How long the loop takes for what it does.
    pub timings: Timings,
    /// Reads what the devices, and a datapath outside of the kernel, count. In the text form the values of that moment.
    pub counters: Counters,
    /// Reads how many packets the gate of the tunnels dropped, or would have. In the text form the values of that moment;
    /// `null` without a gate.
    pub gate: GateCounters,
    /// Reads the sessions of the tunnel with peers, where it has such. In the text form they are those of that moment.
    #[serde(skip_serializing_if = "Sessions::are_not_kept")]
    pub sessions: Sessions,
}

fn are_one(backends: &[String]) -> bool {
    backends.len() < 2
}

impl NetworkStatus {
    /// Why a device of ours is not as it should be; `None` if all are.
    pub fn device_problem(&self) -> Option<String> {
        self.problems.text(&Subject::Device)
    }

    /// Why the underlay's addresses are not as they should be; `None` if they are.
    pub fn underlay_problem(&self) -> Option<String> {
        self.problems.text(&Subject::Underlay)
    }

    /// Which changed keys of the config need a restart, and that the running config stays in force until then; `None`
    /// if there are none. It does not affect traffic.
    pub fn restart_needed(&self) -> Option<String> {
        self.problems.text(&Subject::Restart)
    }

    /// Why the config that is in the store now can't be used; `None` if it can. The running config stays in force.
    pub fn config_problem(&self) -> Option<String> {
        self.problems.text(&Subject::Config)
    }

    /// Objects that the kernel refuses for now, with the reason; a sample if there are many. They are tried again.
    pub fn refused(&self) -> Vec<String> {
        let is_object = |problem: &&Problem| matches!(problem.subject, Subject::Object(_));
        let ours = self.problems.node.iter().filter(is_object);
        ours.chain(self.problems.objects.sample.iter().filter(is_object)).map(Problem::to_string).collect()
    }

    /// Leases that can't be used, with the reason; a sample if there are many.
    pub fn rejected(&self) -> Vec<String> {
        self.problems.leases.texts()
    }
}

/// The backend can't start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The backend's own keys in the network config can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store failed.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    /// The kernel refused something that the backend can't work without.
    #[error("{what}")]
    Kernel {
        /// What was tried, and what an operator can do about the failure.
        what: String,
        /// The kernel's answer.
        #[source]
        source: KernelError,
    },
    /// Something on the host keeps the backend from working.
    #[error(transparent)]
    Host(#[from] HostProblem),
    /// The lease watch ended, which breaks the contract of the store.
    #[error("the lease watch ended")]
    WatchEnded,
    /// An error that only one backend has.
    #[error("{what}")]
    Other {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl BackendError {
    /// The error for a kernel to which no netlink socket can be opened.
    pub fn no_kernel(source: KernelError) -> Self {
        Self::Kernel { what: "open netlink sockets (the agent needs CAP_NET_ADMIN)".to_owned(), source }
    }
}
