//! A store that may be unavailable at the start: until it answers, the answers come from what an earlier run stored.
//!
//! 1. The agent asks for the config. If the store does not answer within a second, the stored config is used, the
//!    stored own lease counts as acquired, and the watch begins with [`LeaseUpdate::Recalled`]: peers are programmed,
//!    nothing is deleted.
//! 2. Once the store answers, [`SubnetManager::renew_lease`] compares its config with the stored one, acquires the own
//!    lease again, and lets the real watch begin, whose first message is a snapshot. Only then stale objects are
//!    deleted.
//! 3. If the config is another one, or somebody else has the subnet, `renew_lease` returns an error. The kernel's state
//!    stays, and the next start takes the usual course.
//!
//! So the caller must poll `renew_lease` while it watches.

use std::convert::Infallible;
use std::future::pending;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use tokio::sync::watch;

use crate::addr::{Family, PerFamily};
use crate::config::NetworkConfig;
use crate::error::chain;
use crate::events::{MemoryEvent, MemoryEventSender};
use crate::lease::{AgedLease, Lease, LeaseAttrs, LeaseKey, LeaseUpdate};
use crate::state_file::{State, StoredOn};
use crate::subnet::allocate::{holder, is_same_node};
use crate::subnet::kit::Backoff;
use crate::subnet::{
    ConfigStream, Examination, Identity, LeaseStream, Remedy, StoreStatus, SubnetError, SubnetManager,
};

/// How long the store may take to answer the first question before the stored state is used.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a stored state can't stand in for the store. Each text is about the state file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// It lacks config or lease.
    #[error("it has no config and no lease, since an older agent wrote it")]
    Incomplete,
    /// It is of another store.
    #[error("it is of the store {stored:?}, but this agent uses {used:?}")]
    OtherStore {
        /// The store that it is of.
        stored: String,
        /// The store that this agent uses.
        used: String,
    },
    /// Its parts are of two backends.
    #[error("it is of backend {stored:?}, but its config says {configured:?}")]
    OtherBackend {
        /// The backend that it is of.
        stored: String,
        /// The backend that its config names.
        configured: String,
    },
    /// Its lease lies outside of the networks that its config names.
    #[error("its lease {0} does not fit its config")]
    LeaseOutside(LeaseKey),
}

/// What an earlier run knew of the store, which is enough to start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    config: NetworkConfig,
    own: Lease,
    peers: Vec<Arc<AgedLease>>,
    wanted_ips: PerFamily<IpAddr>,
    saved: u64,
    /// Whether it was stored on this host, so that its lease is ours whatever our address is.
    is_of_this_host: bool,
}

impl Memory {
    /// The memory from a stored state, if that is of this store (`place`, see [`SubnetManager::place`]) and consistent.
    /// Without [`Self::stored_on`] it is used only at the address that it names.
    pub fn of(state: &State, place: &str) -> Result<Self, MemoryError> {
        let (Some(config), Some(own)) = (&state.config, &state.own) else {
            return Err(MemoryError::Incomplete);
        };
        if state.store != place {
            return Err(MemoryError::OtherStore { stored: state.store.clone(), used: place.to_owned() });
        }
        if state.backend != config.backend.kind {
            let (stored, configured) = (state.backend.clone(), config.backend.kind.clone());
            return Err(MemoryError::OtherBackend { stored, configured });
        }
        if !fits(config, own.key) {
            return Err(MemoryError::LeaseOutside(own.key));
        }
        let peers = state.leases.values().cloned().collect();
        let (config, own, saved) = (config.clone(), own.clone(), state.saved);
        Ok(Self { config, own, peers, wanted_ips: state.wanted_ips, saved, is_of_this_host: false })
    }

    /// Sets on which host it was stored.
    #[must_use]
    pub fn stored_on(self, host: StoredOn) -> Self {
        Self { is_of_this_host: host == StoredOn::ThisHost, ..self }
    }

    /// Whether it is the memory of a node that publishes these attributes.
    fn is_of(&self, attrs: &LeaseAttrs) -> bool {
        self.is_of_this_host || is_same_node(&self.own.attrs, attrs)
    }
}

/// Whether a key has a subnet inside the network of each enabled family, and no other.
fn fits(config: &NetworkConfig, key: LeaseKey) -> bool {
    Family::ALL.into_iter().all(|family| match (config.networks.get(family), key.subnet(family)) {
        (Some(it), Some(subnet)) => it.network.covers(subnet) && it.network.prefix() < subnet.prefix(),
        (None, None) => true,
        _ => false,
    })
}

/// Where answers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The store.
    Store,
    /// The memory, until the store confirmed it.
    Memory,
    /// The store, but the config came from a memory that turned out to be of another node.
    Doubt,
}

/// A store with a memory. Without a memory it is the store itself.
pub struct Remembering {
    store: Arc<dyn SubnetManager>,
    /// `None` once the store has answered.
    memory: Mutex<Option<Arc<Memory>>>,
    mode: watch::Sender<Mode>,
    events: MemoryEventSender,
}

impl Remembering {
    /// Puts a memory in front of a store.
    pub fn new(store: Arc<dyn SubnetManager>, memory: Option<Memory>) -> Self {
        let (memory, mode) = (Mutex::new(memory.map(Arc::new)), watch::Sender::new(Mode::Store));
        Self { store, memory, mode, events: MemoryEventSender::default() }
    }

    /// Sends what happens to `events` instead of a sender of its own.
    #[must_use]
    pub fn telling(self, events: MemoryEventSender) -> Self {
        Self { events, ..self }
    }

    /// The memory, if answers come from there.
    fn memory_in(&self, mode: Mode) -> Option<Arc<Memory>> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.clone().filter(|_| *self.mode.borrow() == mode)
    }

    /// The memory, while it stands in for the store.
    fn standing_in(&self) -> Option<Arc<Memory>> {
        self.memory_in(Mode::Memory)
    }

    /// Drops the memory once the store answers: the leases that the store lists take as much space.
    fn forget(&self) {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn recall(&self, memory: &Memory, why: &str) -> NetworkConfig {
        self.events.send(MemoryEvent::StartedFromMemory {
            lease: memory.own.key,
            peers: memory.peers.len(),
            stored: memory.saved,
            reason: why.to_owned(),
        });
        self.mode.send_replace(Mode::Memory);
        memory.config.clone()
    }

    /// Refuses a config that is not the one this node runs with.
    async fn check_config(&self, memory: &Memory) -> Result<(), SubnetError> {
        let is_same = self.store.network_config().await? == memory.config
            && self.store.wanted_ips().await? == memory.wanted_ips;
        if is_same { Ok(()) } else { Err(SubnetError::ConfigChanged) }
    }

    /// Waits for the store, and acquires the own lease again.
    async fn confirm(&self, memory: &Memory, own: &Lease) -> Result<Lease, SubnetError> {
        let (mut backoff, mut told) = (Backoff::new(), String::new());
        loop {
            let confirmed = async {
                self.check_config(memory).await?;
                self.store.acquire_lease(&own.attrs).await
            };
            match confirmed.await {
                Ok(lease) if lease.key == own.key => {
                    self.events.send(MemoryEvent::LeaseConfirmed { lease: own.key });
                    self.mode.send_replace(Mode::Store);
                    return Ok(lease);
                }
                // The own record stays as it is. The watch shows both records, and the running network then chooses
                // another value and publishes it.
                Err(SubnetError::Claimed { key, family }) => {
                    let other = key.to_string();
                    self.events.send(MemoryEvent::BackendDataTaken { lease: own.key, other, family });
                    self.mode.send_replace(Mode::Store);
                    return Ok(own.clone());
                }
                Ok(other) => {
                    let holder = format!("another node, and this one would get {}", other.key);
                    return Err(SubnetError::LeaseLost { key: own.key, holder });
                }
                Err(error) if can_be_waited_out(&error) || matches!(error, SubnetError::Config { .. }) => {
                    let why = chain(&error);
                    // Stores log their outages themselves.
                    if !matches!(error, SubnetError::Unavailable { .. }) && told != why {
                        self.events.send(MemoryEvent::NotConfirmed { reason: why.clone() });
                        told = why;
                    }
                    tokio::time::sleep(backoff.pause()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether the error only means that the store can't answer now.
fn can_be_waited_out(error: &SubnetError) -> bool {
    error.is_transient() || matches!(error, SubnetError::NoConfig { .. })
}

#[async_trait]
impl SubnetManager for Remembering {
    async fn network_config(&self) -> Result<NetworkConfig, SubnetError> {
        let Some(memory) = self.memory_in(Mode::Store) else {
            return self.store.network_config().await;
        };
        match tokio::time::timeout(PATIENCE, self.store.network_config()).await {
            Ok(Err(error)) if can_be_waited_out(&error) => Ok(self.recall(&memory, &chain(&error))),
            Ok(answer) => answer.inspect(|_| self.forget()),
            Err(_) => Ok(self.recall(&memory, "no answer within a second")),
        }
    }

    async fn wanted_ips(&self) -> Result<PerFamily<IpAddr>, SubnetError> {
        match self.standing_in() {
            Some(memory) => Ok(memory.wanted_ips),
            None => self.store.wanted_ips().await,
        }
    }

    fn wanted_by(&self) -> Option<String> {
        self.store.wanted_by()
    }

    fn identify(&self, identity: Identity) {
        self.store.identify(identity);
    }

    fn knows_node_by_name(&self) -> bool {
        self.store.knows_node_by_name()
    }

    fn hosts(&self) -> Vec<String> {
        self.store.hosts()
    }

    async fn examine(&self) -> Examination {
        self.store.examine().await
    }

    fn avoid(&self, local: &PerFamily<IpAddr>) {
        self.store.avoid(local);
    }

    fn config_changes(&self) -> Option<ConfigStream> {
        self.store.config_changes()
    }

    async fn published_attrs(
        &self,
        public_ips: &PerFamily<IpAddr>,
    ) -> Result<Option<LeaseAttrs>, SubnetError> {
        match self.standing_in() {
            Some(memory) => {
                let asked = LeaseAttrs { public_ips: *public_ips, ..LeaseAttrs::default() };
                Ok(memory.is_of(&asked).then(|| memory.own.attrs.clone()))
            }
            None => self.store.published_attrs(public_ips).await,
        }
    }

    async fn acquire_lease(&self, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        if let Some(memory) = self.standing_in() {
            if memory.is_of(attrs) {
                return Ok(Lease { attrs: attrs.clone(), ..memory.own.clone() });
            }
            let (stored, here) = (holder(&memory.own.attrs), holder(attrs));
            self.events.send(MemoryEvent::StoredLeaseForeign { stored, here });
            self.mode.send_replace(Mode::Doubt);
        }
        if let Some(memory) = self.memory_in(Mode::Doubt) {
            self.check_config(&memory).await?;
            self.mode.send_replace(Mode::Store);
        }
        self.store.acquire_lease(attrs).await
    }

    async fn publish(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        match self.standing_in() {
            Some(memory) => {
                let confirmed = self.confirm(&memory, lease).await?;
                self.store.publish(&confirmed, attrs).await
            }
            None => self.store.publish(lease, attrs).await,
        }
    }

    async fn renew_lease(&self, lease: &Lease) -> Result<Infallible, SubnetError> {
        match self.standing_in() {
            Some(memory) => {
                let confirmed = self.confirm(&memory, lease).await?;
                self.store.renew_lease(&confirmed).await
            }
            None => self.store.renew_lease(lease).await,
        }
    }

    async fn release_lease(&self, lease: &Lease) -> Result<(), SubnetError> {
        self.store.release_lease(lease).await
    }

    fn network_is_up(&self) {
        self.store.network_is_up();
    }

    fn watch_leases(&self) -> LeaseStream {
        let Some(memory) = self.standing_in() else { return self.store.watch_leases() };
        let leases = memory.peers.iter().map(|lease| lease.lease.clone()).collect();
        let recalled = LeaseUpdate::Recalled { leases, saved: memory.saved };
        let (store, mut mode) = (Arc::clone(&self.store), self.mode.subscribe());
        let confirmed = async move {
            if mode.wait_for(|mode| *mode == Mode::Store).await.is_err() {
                // The sender is gone, so nobody will confirm.
                pending::<()>().await;
            }
            store.watch_leases()
        };
        stream::iter([Ok(recalled)]).chain(stream::once(confirmed).flatten()).boxed()
    }

    fn status(&self) -> watch::Receiver<StoreStatus> {
        self.store.status()
    }

    fn remedy(&self) -> Remedy {
        self.store.remedy()
    }

    fn place(&self) -> String {
        self.store.place()
    }

    fn release_command(&self, lease: LeaseKey) -> Option<String> {
        self.store.release_command(lease)
    }
}

#[cfg(test)]
mod tests;
