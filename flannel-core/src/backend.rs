//! The traits that a backend implements, and the status it reports.

mod host_problem;

use std::error::Error;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Serialize, Serializer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::addr::Mtu;
use crate::config::{ConfigError, NetworkConfig};
use crate::events::{NetworkEventSender, NetworkEvents};
use crate::kernel::KernelError;
use crate::lease::{Lease, LeaseAttrs};
use crate::netns::Netns;
use crate::state_file::State;
use crate::status::{Counters, DeviceStatus, PeerList, Problem, Problems, Subject};
use crate::subnet::{LeaseStream, SubnetError, SubnetManager};
use crate::underlay::UnderlayOptions;

pub use crate::underlay::Underlay;
pub use host_problem::HostProblem;

/// All that a backend needs to know to register. [`Registration::new`] has what every one needs.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Registration<'a> {
    /// The network namespace that the node's part of the network is in. All that a backend opens, reads and changes
    /// on the host is in it, wherever its own threads are.
    pub netns: &'a Netns,
    /// The network config.
    pub config: &'a NetworkConfig,
    /// What carries the traffic between nodes.
    pub underlay: &'a Underlay,
    /// The store of leases.
    pub subnets: &'a dyn SubnetManager,
    /// What this node stored last, so that leftovers of an earlier run or another backend are known as ours.
    pub previous: Option<&'a State>,
    /// How the underlay was chosen, so that the choice can be made again when its address changes. Without it
    /// the underlay stays what it is.
    pub chosen_by: Option<&'a UnderlayOptions>,
    /// Whether to keep a blackhole route for each of this node's own subnets, so that packets to addresses that
    /// no pod has end here and don't leave by a default route. For hosts without a bridge.
    pub blackholes: bool,
    /// Where what happens is told from now on: a registration that fails, and is tried again, has done something, too.
    /// The network that comes of it sends its events ([`Network::events`]) there. Without it a network has a sender of its
    /// own.
    pub events: Option<&'a NetworkEventSender>,
}

impl<'a> Registration<'a> {
    /// A registration of a node that knows nothing of an earlier run, whose underlay stays what it is, and which keeps
    /// no blackhole routes.
    pub fn new(
        netns: &'a Netns,
        config: &'a NetworkConfig,
        underlay: &'a Underlay,
        subnets: &'a dyn SubnetManager,
    ) -> Self {
        let (previous, chosen_by, blackholes, events) = (None, None, false, None);
        Self { netns, config, underlay, subnets, previous, chosen_by, blackholes, events }
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
    /// What its name begins with; a number follows, for VXLAN devices their VNI.
    pub prefix: &'static str,
    /// `IFLA_INFO_KIND`, such as `vxlan` or `tun`.
    pub kind: &'static str,
}

impl DeviceKind {
    /// Devices of this kind, with names that begin so.
    pub const fn new(prefix: &'static str, kind: &'static str) -> Self {
        Self { prefix, kind }
    }
}

/// One way to carry overlay packets between nodes.
#[async_trait]
pub trait Backend: Send + Sync {
    /// The name that the network config gives in `Backend.Type`.
    fn kind(&self) -> &'static str;

    /// The kinds of devices that it makes, by which they are known after the agent has ended
    /// ([`Agent::leave`](crate::agent::Agent::leave)).
    fn devices(&self) -> &'static [DeviceKind] {
        &[]
    }

    /// Whether one route leads to all pods of all nodes, so that it takes packets for whatever else the network covers.
    fn routes_whole_network(&self) -> bool {
        false
    }

    /// Creates or adopts the devices, then takes a lease that advertises them.
    async fn register(&self, registration: Registration<'_>) -> Result<Box<dyn Network>, BackendError>;
}

/// A registered backend: this node's lease, and the task that follows all others.
///
/// # What every backend promises
/// `testing::backend_contract` (feature `testing`) tries each of these on a kernel and a store in memory.
/// - What is published is what the node has: the lease's attributes are those of [`Self::attrs`], and
///   [`Self::overlay_mtu`] fits the underlay.
/// - [`NetworkStatus::synced`] is set once the store's first snapshot is programmed, not before.
/// - Each lease of another node has an entry in [`NetworkStatus::peer_list`]; this node's has none.
/// - Whatever is taken away from what is desired is put back, and [`Self::events`] says so.
/// - A peer that comes, goes or changes costs the objects of others no operation.
/// - A record that can't be used is unknown, not gone: its last good state stays in the kernel, and its entry says
///   [`Rejected`](crate::status::PeerState::Rejected).
/// - The end of [`Self::run`] leaves the kernel as it is, and a restart with what [`Self::state`] said changes nothing.
/// - A link that is away takes nothing off what is desired: all is there again once the link is.
#[async_trait]
pub trait Network: Send {
    /// This node's lease.
    fn lease(&self) -> &Lease;

    /// The largest pod packet in bytes: underlay MTU less encapsulation, the smallest of the families.
    fn overlay_mtu(&self) -> Mtu;

    /// What the network is doing. Valid after `run` took the network, too.
    fn status(&self) -> watch::Receiver<NetworkStatus>;

    /// What happens to the network, from now on; the first reader that is asked for has what happened before, too. A
    /// backend that tells nothing has none. Valid after `run` took the network, too.
    fn events(&self) -> NetworkEvents {
        NetworkEvents::none()
    }

    /// What to store for the next start. It is announced whenever it changed, but not before the kernel has
    /// what it says and nothing of an earlier backend is left: until then what was stored before still
    /// counts. Valid after `run` took the network, too.
    fn state(&self) -> watch::Receiver<State>;

    /// What this node has to publish with its lease: it changes when the address of the underlay does. See
    /// [`crate::subnet::hold_and_publish`]. Valid after `run` took the network, too.
    fn attrs(&self) -> watch::Receiver<LeaseAttrs>;

    /// Runs until `cancel` fires. Kernel state stays, so pods keep their traffic meanwhile.
    async fn run(self: Box<Self>, leases: LeaseStream, cancel: CancellationToken)
    -> Result<(), BackendError>;
}

/// What a running network is doing, for health, status and metrics.
///
/// A copy costs nothing for the peers, however many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NetworkStatus {
    /// Whether the first snapshot of leases was programmed.
    pub synced: bool,
    /// When the leases that are programmed were known, in seconds since 1970, while they are those that an
    /// earlier run stored; `None` once the store itself has listed them.
    pub recalled: Option<u64>,
    /// What keeps pods from others, and whatever else is wrong.
    pub problems: Problems,
    /// Peers in the kernel.
    pub peers: usize,
    /// Each peer, in the kernel or not.
    pub peer_list: PeerList,
    /// The devices that carry pods' packets.
    pub devices: Vec<DeviceStatus>,
    /// The largest pod packet in bytes as the underlay is now; `None` while a device is missing.
    pub overlay_mtu: Option<Mtu>,
    /// How packets travel, where the backend has a choice.
    pub datapath: Option<String>,
    /// How often drift was repaired since the start.
    pub repairs: u64,
    /// How long the last repair took: from the kernel's announcement to its last acknowledgement. In the text form
    /// microseconds.
    #[serde(rename = "last_repair_us", serialize_with = "microseconds")]
    pub last_repair: Option<Duration>,
    /// Operations sent to the kernel since the start.
    pub operations: u64,
    /// Reads what the devices, and a datapath outside of the kernel, count. In the text form the values of that moment.
    pub counters: Counters,
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

    /// Which keys of a config that changed since take a restart, and that what runs stays in force until then;
    /// `None` if none does. No harm to traffic.
    pub fn restart_needed(&self) -> Option<String> {
        self.problems.text(&Subject::Restart)
    }

    /// Why the config that is in the store now can't be used; `None` if it can. What runs stays in force.
    pub fn config_problem(&self) -> Option<String> {
        self.problems.text(&Subject::Config)
    }

    /// Objects that the kernel refuses for now, with the reason; a sample where there are many. They are tried
    /// again.
    pub fn refused(&self) -> Vec<String> {
        let is_object = |problem: &&Problem| matches!(problem.subject, Subject::Object(_));
        let ours = self.problems.node.iter().filter(is_object);
        ours.chain(self.problems.objects.sample.iter().filter(is_object)).map(Problem::to_string).collect()
    }

    /// Leases that can't be used, with the reason; a sample where there are many.
    pub fn rejected(&self) -> Vec<String> {
        self.problems.leases.texts()
    }
}

#[expect(clippy::ref_option, reason = "serde hands over the field as it is")]
fn microseconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)).serialize(serializer)
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
    /// The kernel refused something that nothing works without.
    #[error("{what}")]
    Kernel {
        /// What was to be done, and what an operator can do about it.
        what: String,
        /// The kernel's answer.
        #[source]
        source: KernelError,
    },
    /// The host is not in a state in which the backend can work.
    #[error(transparent)]
    Host(#[from] HostProblem),
    /// The lease watch ended, which it never should.
    #[error("the lease watch ended")]
    WatchEnded,
    /// Something particular to one backend.
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
    /// The kernel can't be spoken to at all.
    pub fn no_kernel(source: KernelError) -> Self {
        Self::Kernel { what: "open netlink sockets (the agent needs CAP_NET_ADMIN)".to_owned(), source }
    }
}
