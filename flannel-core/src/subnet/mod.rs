//! The stores that hand out subnets, behind one trait: the one in a local folder is here, those with a client of their own
//! are crates (`flannel-store-etcd`, `flannel-store-kube`).

pub mod allocate;
mod hold;
pub(crate) mod identity;
pub mod kit;
pub mod local;
mod remedy;

use std::convert::Infallible;
use std::error::Error;
use std::net::IpAddr;

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::addr::{Family, PerFamily};
use crate::config::{ConfigError, NetworkConfig};
use crate::lease::{BadSample, Lease, LeaseAttrs, LeaseKey, LeaseUpdate};

pub use hold::hold_and_publish;
pub use identity::Identity;
pub use remedy::Remedy;

/// A lease watch. The store reconnects by itself and the stream never ends by itself. An `Err` is final.
pub type LeaseStream = BoxStream<'static, Result<LeaseUpdate, SubnetError>>;

/// The network config whenever it became another one; one that is known already may come again. An `Err` says
/// why what is there now can't be used, so that the one before stays in force, and is not final.
pub type ConfigStream = BoxStream<'static, Result<NetworkConfig, SubnetError>>;

/// The store that hands out subnets.
///
/// # Contract
/// What every store does, and `flannel_core::testing::store_contract` (feature `testing`) checks:
/// - **A record** is a key, which names the subnets, with a value, which says where its node is and what its backend
///   publishes. A record that can't be read is unknown, not gone: it keeps its subnets, its last good state stays, and
///   [`StoreStatus::undecodable`] counts it.
/// - **The same node** is what [`Identity`] proves, else the one with the same underlay address (that of IPv4 where there is
///   one, [`allocate::is_same_node`]). A store whose subnets somebody else assigns may know its nodes by other means,
///   such as their names. A node keeps its subnets over restarts and over changes of its address; two nodes never share
///   an address.
/// - **`created`** of a lease is kept while its record is there: by renewal, by a restart, and by publishing. A store that
///   can't keep it says so; its node becomes the youngest of those that contradict each other. What a call returns is
///   what all watches tell.
/// - **The own record is put back** by [`Self::hold_lease`] whenever somebody deleted, changed or spoilt it, with a backoff.
///   Renewing is no event for others.
/// - **A lost lease** is one whose subnets another node's record has. Then `hold_lease` and [`Self::publish`] return
///   [`SubnetError::LeaseLost`], and it is the store that sets [`StoreStatus::lease_lost`] as it does so; a lease that
///   [`Self::acquire_lease`] returns ends that. A record of another node is neither written nor deleted.
/// - **A snapshot** is all that the store itself listed, at one moment, the own record among it: what is not in it is gone. A
///   watch begins with one, and has another after each gap. Between them the changes of each record are told in their
///   order, though several may be told as one.
/// - **Dropping a future or stream cancels it.** Nothing more is begun then, not even on other threads. A request that is on
///   its way may still arrive, so what came of it is unknown, and the next call finds out.
#[async_trait]
pub trait SubnetManager: Send + Sync {
    /// Reads and checks the network configuration. One try: the caller decides how long to wait.
    async fn network_config(&self) -> Result<NetworkConfig, SubnetError>;

    /// The underlay addresses that this node is to publish, as the store says; it wins over what the operator said
    /// on the node itself. None from a store that has no word in it.
    async fn wanted_ips(&self) -> Result<PerFamily<IpAddr>, SubnetError> {
        Ok(PerFamily::default())
    }

    /// What says the addresses of [`Self::wanted_ips`], for who has to mend them.
    fn wanted_by(&self) -> Option<String> {
        None
    }

    /// Tells the store what this node knows of itself, before anything else is asked: which lease was its own before a
    /// restart, and which addresses its host has. It replaces what the store's options said. Nothing to a store that
    /// knows its nodes by name.
    fn identify(&self, _identity: Identity) {}

    /// Whether the store knows this node by a name, so that every record it shows under this node's key is this node's.
    fn knows_node_by_name(&self) -> bool {
        false
    }

    /// The hosts by which the store is reached, as addresses or DNS names: a network of pods that covers one of them
    /// would cut this node from its store. None for a store that is not reached by the network.
    fn hosts(&self) -> Vec<String> {
        Vec::new()
    }

    /// Says which addresses this node has on the underlay, before it takes a lease: no subnet is chosen that holds
    /// one of them. Nothing to a store that does not choose.
    fn avoid(&self, _local: &PerFamily<IpAddr>) {}

    /// Follows the network configuration from what [`Self::network_config`] said last; `None` if this store
    /// does not tell.
    fn config_changes(&self) -> Option<ConfigStream> {
        None
    }

    /// What this node published before, so that it keeps its VTEP MAC: what its own record says ([`Identity`]), else
    /// the record with one of these underlay addresses.
    async fn published_attrs(
        &self,
        public_ips: &PerFamily<IpAddr>,
    ) -> Result<Option<LeaseAttrs>, SubnetError>;

    /// Adopts the lease that is proven to be this node's ([`Identity`]), wherever it is now, else the one with its
    /// underlay address, else the subnet it had before a restart, else takes a free one, and publishes `attrs` with
    /// it. Former records of this node go with that.
    ///
    /// [`SubnetError::Claimed`] if the record of another node says the same for the backend: take another value first.
    /// A store that does not list all leases for this leaves that to its watch.
    async fn acquire_lease(&self, attrs: &LeaseAttrs) -> Result<Lease, SubnetError>;

    /// Publishes `attrs` with a lease of this node that published what `lease` says, and returns it as it is
    /// now: the subnet stays. One try and one write at most, by compare-and-swap; none if it is there already.
    /// What came of a try that failed is unknown. Don't hold the lease meanwhile.
    async fn publish(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, SubnetError>;

    /// Renews for as long as it is polled. Outages are waited out and shown in [`Self::status`]. Returns only
    /// when the lease is lost for good: somebody else has its subnet.
    async fn hold_lease(&self, lease: &Lease) -> Result<Infallible, SubnetError>;

    /// Removes the record of a lease if it still is of the node that published `lease`. One that is gone is no
    /// failure. One try. For a node that leaves for good: don't hold the lease meanwhile.
    async fn release_lease(&self, lease: &Lease) -> Result<(), SubnetError>;

    /// Says that pods of this node have a network from now on, for a store that tells others.
    fn network_is_up(&self) {}

    /// Follows all leases, our own among them.
    fn watch_leases(&self) -> LeaseStream;

    /// Connected or not, and how old the last confirmed knowledge is.
    fn status(&self) -> watch::Receiver<StoreStatus>;

    /// What an operator of this store does about a record that contradicts others.
    fn remedy(&self) -> Remedy {
        Remedy::default()
    }

    /// What tells this store from others as far as that can be said without asking it, such as etcd's prefix. The same
    /// for each instance of one store, over restarts, too: what an agent remembers of another place is not used.
    fn place(&self) -> String;

    /// A shell command by which an operator does the same as [`Self::release_lease`], where there is one. It names no
    /// password.
    fn release_command(&self, _lease: LeaseKey) -> Option<String> {
        None
    }
}

/// How well the store is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStatus {
    /// Whether the last contact was a success.
    pub connected: bool,
    /// Since when that is so.
    pub since: Instant,
    /// When the store last confirmed what we know; `None` if it never did.
    pub confirmed: Option<Instant>,
    /// Why it is not connected; empty if it is.
    pub problem: String,
    /// Records that are there but can't be read.
    pub undecodable: BadSample,
    /// Keys of leases that are missing since the store was set up anew or restored from a backup, 20 at most. They
    /// are kept until their etcd leases would have run out.
    pub missing: Vec<String>,
    /// How many are missing.
    pub missing_count: usize,
    /// Why the own lease can't be renewed or put back at present, though the store answers.
    pub lease_unkept: Option<String>,
    /// The own lease is in the hands of another.
    pub lease_lost: Option<String>,
    /// What is wrong with the clocks that leases are counted by, where the store sees it.
    pub clock: Option<String>,
}

impl StoreStatus {
    /// The status before the first contact.
    pub fn unknown() -> Self {
        Self {
            connected: false,
            since: Instant::now(),
            confirmed: None,
            problem: "no contact yet".to_owned(),
            undecodable: BadSample::default(),
            missing: Vec::new(),
            missing_count: 0,
            lease_unkept: None,
            lease_lost: None,
            clock: None,
        }
    }

    /// Notes a success. Returns whether the connection came back by it.
    pub fn succeed(&mut self) -> bool {
        let now = Instant::now();
        self.confirmed = Some(now);
        if self.connected {
            return false;
        }
        (self.connected, self.since) = (true, now);
        self.problem.clear();
        true
    }

    /// Notes a failure. Returns whether the connection broke by it, or for another reason than before.
    pub fn fail(&mut self, problem: String) -> bool {
        let news = self.connected || self.problem != problem;
        if self.connected {
            (self.connected, self.since) = (false, Instant::now());
        }
        self.problem = problem;
        news
    }
}

/// The store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SubnetError {
    /// There is no configuration yet.
    #[error(
        "no network config at {place}; put one there, such as {{\"Network\":\"10.244.0.0/16\",\"Backend\":{{\"Type\":\"vxlan\"}}}}"
    )]
    NoConfig {
        /// Where it was looked for.
        place: String,
    },
    /// The configuration can't be used.
    #[error("config at {place} can't be used")]
    Config {
        /// Where it was found.
        place: String,
        /// What is wrong with it.
        #[source]
        source: ConfigError,
    },
    /// The store does not answer, or answered with a passing error. Trying again may help.
    #[error("store unavailable: {what}")]
    Unavailable {
        /// What was tried, and on which endpoint or file.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The store answered no, and would do so again: a wrong password, a missing right, an option that can't
    /// be used.
    #[error("store refused: {what}")]
    Refused {
        /// What was tried, and what to do about it.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Something about this node is not said yet, or not rightly, where the store only reads it: its subnet, say.
    #[error("{what}")]
    NotAssigned {
        /// What is missing, and who says it.
        what: String,
    },
    /// All subnets of the range are taken.
    #[error("no free {family} subnet between {min} and {max}; widen the network or delete stale leases")]
    OutOfSubnets {
        /// The family without a free subnet.
        family: Family,
        /// The first subnet of the range.
        min: IpAddr,
        /// The base of the last subnet of the range.
        max: IpAddr,
    },
    /// Others took the chosen subnet again and again.
    #[error("lost the race for a subnet {attempts} times; many nodes start at once, try again")]
    Contended {
        /// How often it was tried.
        attempts: u32,
    },
    /// The node's own lease is in the hands of another.
    #[error("lease {key} is now held by {holder}; this node's pods would share its addresses")]
    LeaseLost {
        /// The lease.
        key: LeaseKey,
        /// Who has it.
        holder: String,
    },
    /// The store is back after a start without it, with another configuration than the one that was stored.
    #[error(
        "the network config in the store is not the one this node was started with while the store was away; \
         start again to use it"
    )]
    ConfigChanged,
    /// A lease of another node publishes backend data that only one node can have, and this node was about to
    /// publish the same. It has to take another value first.
    #[error(
        "lease {key} of another node publishes the same {family} backend data; this node has to take its own"
    )]
    Claimed {
        /// The lease of the other node.
        key: LeaseKey,
        /// The family whose backend data is the same.
        family: Family,
    },
    /// The configuration and the leases in the store contradict each other.
    #[error("{0}")]
    Conflict(String),
}

impl SubnetError {
    /// Whether trying again later can help without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Contended { .. } | Self::NotAssigned { .. })
    }
}
