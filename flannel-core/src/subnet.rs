//! The stores that assign subnets to nodes, behind one trait. The store in a local folder is here; stores that need a
//! client library are crates (`flannel-store-etcd`, `flannel-store-kube`).

pub mod allocate;
mod examination;
pub(crate) mod identity;
pub mod kit;
pub mod local;
mod remedy;
mod renew;
mod requests;
mod term;

use std::convert::Infallible;
use std::error::Error;
use std::net::IpAddr;

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::addr::{Family, PerFamily};
use crate::config::{ConfigError, NetworkConfig};
use crate::lease::{Lease, LeaseAttrs, LeaseKey, LeaseUpdate, UnreadableSample};

pub use examination::{
    ClockGap, Examination, NodeFacts, NodeRecord, Right, RightAnswer, Server, ServerAnswer,
};
pub use identity::Identity;
pub use remedy::Remedy;
pub use renew::renew_and_publish;
pub use requests::{RequestCount, StoreRequests};
pub use term::LeaseTerm;

/// A lease watch. The store reconnects by itself, and the stream never ends by itself. An `Err` is final.
pub type LeaseStream = BoxStream<'static, Result<LeaseUpdate, SubnetError>>;

/// Yields the network config each time it has changed; it may repeat a config. An `Err` says why the present config
/// can't be used; then the one before stays in force. It is not final.
pub type ConfigStream = BoxStream<'static, Result<NetworkConfig, SubnetError>>;

/// A store that assigns subnets to nodes and holds their leases.
///
/// # Contract
/// Every store keeps these rules; `flannel_core::testing::store_contract` (feature `testing`) checks them:
/// - **A record** is a key, which names the subnets, with a value, which has the node's underlay addresses and backend
///   data. An unreadable record counts as unknown, not as deleted: its subnets stay taken, its last good state stays in
///   force, and [`StoreStatus::unreadable`] counts it.
/// - **The same node** is the one that [`Identity`] proves, else the one with the same underlay address (the IPv4
///   address where there is one, [`allocate::is_same_node`]). A store whose subnets somebody else assigns may identify
///   its nodes by other means, such as their names. A node keeps its subnets over restarts and over changes of its
///   address; two nodes never share an address.
/// - **`created`** of a lease stays the same while its record exists: over renewals, restarts and publishing. A store
///   that can't keep it says so; its node then counts as the youngest in a conflict. A call returns the same lease that
///   all watches show.
/// - **The own record is put back** by [`Self::renew_lease`] whenever somebody deleted it, changed it or made it
///   unreadable, with a backoff. Watches of others don't see renewals.
/// - **A lost lease** is one whose subnets are in another node's record. Then `renew_lease` and [`Self::publish`] return
///   [`SubnetError::LeaseLost`], and the store sets [`StoreStatus::lease_lost`]; the next successful
///   [`Self::acquire_lease`] clears it. The store never writes or deletes the record of another node.
/// - **The term** of the own lease, where leases end by themselves, is in [`StoreStatus::lease_term`] while `renew_lease` is
///   polled: when it was renewed last, by whomever, and when it ends unless it is renewed again.
/// - **A snapshot** has all leases that the store itself listed at one moment, including this node's; a lease that is
///   not in it is deleted. A watch begins with a snapshot, and sends another after each gap. Between snapshots it sends
///   the changes of each record in order; it may merge several into one.
/// - **Dropping a future or stream cancels it.** The store begins nothing more after that, not even on other threads. A
///   request that was already sent may still arrive, so its result is unknown until the next call finds out.
#[async_trait]
pub trait SubnetManager: Send + Sync {
    /// Reads and checks the network configuration. It tries once; the caller decides when to try again.
    async fn network_config(&self) -> Result<NetworkConfig, SubnetError>;

    /// The underlay addresses that the store wants this node to publish; they override the options of the node itself.
    /// Empty if the store has no opinion.
    async fn wanted_ips(&self) -> Result<PerFamily<IpAddr>, SubnetError> {
        Ok(PerFamily::default())
    }

    /// Where the addresses of [`Self::wanted_ips`] are written, for the operator who has to correct them.
    fn wanted_by(&self) -> Option<String> {
        None
    }

    /// Tells the store what this node knows of itself, before any other call: which lease it had before a restart, and
    /// which addresses its host has. It replaces what the store's options said. A store that knows its nodes by name
    /// ignores it.
    fn identify(&self, _identity: Identity) {}

    /// Whether the store knows this node by a name, so that every record it shows under this node's key is this node's.
    fn knows_node_by_name(&self) -> bool {
        false
    }

    /// The hosts of the store's servers, as addresses or DNS names: a pod network that covers one of them would cut
    /// this node off from its store. Empty for a store that needs no network.
    fn hosts(&self) -> Vec<String> {
        Vec::new()
    }

    /// Tells the store which addresses this node has on the underlay, before it acquires a lease: the store chooses no
    /// subnet that contains one of them. A store that does not choose subnets ignores it.
    fn avoid(&self, _local: &PerFamily<IpAddr>) {}

    /// Follows changes of the network configuration since the last [`Self::network_config`]; `None` if this store does
    /// not announce them.
    fn config_changes(&self) -> Option<ConfigStream> {
        None
    }

    /// What this node published before, so that it keeps its VTEP MAC: the attributes of its own record ([`Identity`]),
    /// else of the record with one of these underlay addresses.
    async fn published_attrs(
        &self,
        public_ips: &PerFamily<IpAddr>,
    ) -> Result<Option<LeaseAttrs>, SubnetError>;

    /// Acquires a lease and publishes `attrs` with it: the lease that is proven to be this node's ([`Identity`]), under
    /// whatever key it is now, else the one with its underlay address, else the subnet that it had before a restart,
    /// else a free one. Former records of this node are deleted in the same transaction.
    ///
    /// [`SubnetError::Claimed`] if the record of another node has the same backend data: then choose other data first.
    /// A store that does not list all leases here leaves that check to its watch.
    async fn acquire_lease(&self, attrs: &LeaseAttrs) -> Result<Lease, SubnetError>;

    /// Changes the attributes of this node's lease from those of `lease` to `attrs`, and returns the new lease: the
    /// subnet stays. It tries once, with one compare-and-swap at most, and writes nothing if `attrs` are there already.
    /// After an error it is unknown whether they were written. Don't run [`Self::renew_lease`] meanwhile.
    async fn publish(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, SubnetError>;

    /// Renews the lease for as long as it is polled. It waits during outages and shows them in [`Self::status`]. It
    /// returns only when the lease is lost because somebody else has its subnet.
    async fn renew_lease(&self, lease: &Lease) -> Result<Infallible, SubnetError>;

    /// Removes the record of a lease if it still belongs to the node that published `lease`; a record that is gone
    /// already is a success. It tries once. It is for a node that leaves the network: don't run [`Self::renew_lease`]
    /// meanwhile.
    async fn release_lease(&self, lease: &Lease) -> Result<(), SubnetError>;

    /// Tells the store that pods of this node have a network from now on, for a store that publishes that.
    fn network_is_up(&self) {}

    /// Follows all leases, including our own.
    fn watch_leases(&self) -> LeaseStream;

    /// Asks every server about itself, and the store about this node and its rights, for an operator who looks for a
    /// fault. It changes nothing, and what fails is in the answer.
    async fn examine(&self) -> Examination {
        Examination::default()
    }

    /// Whether the store is connected, and when it last confirmed what we know.
    fn status(&self) -> watch::Receiver<StoreStatus>;

    /// What an operator of this store does about a record that conflicts with others.
    fn remedy(&self) -> Remedy {
        Remedy::default()
    }

    /// Identifies this store as far as possible without asking it, for example by etcd's prefix. It is the same for all
    /// instances and over restarts: an agent does not use what it remembers of another place.
    fn place(&self) -> String;

    /// A shell command by which an operator does the same as [`Self::release_lease`], where there is one. It contains
    /// no password.
    fn release_command(&self, _lease: LeaseKey) -> Option<String> {
        None
    }
}

/// The state of the connection to the store, and of what it said. [`StoreStatus::unknown`] is what it begins as; stores keep it by [`kit::Health`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStatus {
    /// Whether the last request succeeded.
    pub connected: bool,
    /// Since when `connected` has this value.
    pub since: Instant,
    /// When the store last confirmed what we know; `None` if it has not yet.
    pub confirmed: Option<Instant>,
    /// Why it is not connected; empty if it is.
    pub problem: String,
    /// Unreadable records.
    pub unreadable: UnreadableSample,
    /// Keys of leases that are missing since the store was restored from a backup or replaced by a new one, 20 at most.
    /// They stay in force until their etcd leases would have expired.
    pub missing: Vec<String>,
    /// How many leases are missing.
    pub missing_count: usize,
    /// Why the own lease can't be renewed or put back at present, although the store answers.
    pub lease_unkept: Option<String>,
    /// Until when the store keeps this node's lease. `None` before the lease is acquired, once it was lost or released, for a
    /// lease without an end (a reservation), and from a store whose leases have none, such as Kubernetes, whose nodes
    /// have their subnets for as long as they exist.
    pub lease_term: Option<LeaseTerm>,
    /// Why this node's lease is lost, with who has it now; `None` if it is not lost.
    pub lease_lost: Option<String>,
    /// What is wrong with the clocks that date leases, if the store notices it.
    pub clock: Option<String>,
    /// Counts the requests to the store. A store that does not count them has none.
    pub requests: StoreRequests,
}

impl StoreStatus {
    /// The status before the first contact.
    pub fn unknown() -> Self {
        Self {
            connected: false,
            since: Instant::now(),
            confirmed: None,
            problem: "no contact yet".to_owned(),
            unreadable: UnreadableSample::default(),
            missing: Vec::new(),
            missing_count: 0,
            lease_unkept: None,
            lease_term: None,
            lease_lost: None,
            clock: None,
            requests: StoreRequests::default(),
        }
    }

    /// Records a success. Returns whether the connection was broken before.
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

    /// Records a failure. Returns whether the connection was up before, or failed for another reason.
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
#[non_exhaustive]
pub enum SubnetError {
    /// There is no configuration yet.
    #[error(
        "no network config at {place}; put one there, such as {{\"Network\":\"10.244.0.0/16\",\"Backend\":{{\"Type\":\"vxlan\"}}}}"
    )]
    NoConfig {
        /// Where the store looked for it.
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
    /// The store does not answer, or answered with a temporary error. Trying again may help.
    #[error("store unavailable: {what}")]
    Unavailable {
        /// What was tried, and on which endpoint or file.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The store refused the request, and would refuse it again: a wrong password, a missing right, an option that
    /// can't be used.
    #[error("store refused: {what}")]
    Refused {
        /// What was tried, and what to do about it.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Something that somebody else assigns to this node is missing or wrong, such as its subnet.
    #[error("{what}")]
    NotAssigned {
        /// What is missing, and who assigns it.
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
    /// Other nodes took the chosen subnet again and again.
    #[error("lost the race for a subnet {attempts} times; many nodes start at once, try again")]
    Contended {
        /// The number of attempts.
        attempts: u32,
    },
    /// Another node has this node's lease.
    #[error("lease {key} is now held by {holder}; this node's pods would share its addresses")]
    LeaseLost {
        /// The lease.
        key: LeaseKey,
        /// Who has it.
        holder: String,
    },
    /// The store answers again after a start without it, and its configuration differs from the stored one.
    #[error(
        "the network config in the store is not the one this node was started with while the store was away; \
         start again to use it"
    )]
    ConfigChanged,
    /// A lease of another node publishes backend data that only one node can have, and this node was about to publish
    /// the same. It has to choose other data first.
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
    /// Whether a later attempt can succeed without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Contended { .. } | Self::NotAssigned { .. })
    }
}
