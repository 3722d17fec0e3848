//! A store in memory.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use futures::channel::mpsc;
use futures::{StreamExt, stream};
use tokio::sync::watch;

use crate::addr::{Family, PerFamily};
use crate::config::{ConfigError, NetworkConfig};
use crate::lease::{BadRecords, Lease, LeaseAttrs, LeaseKey, LeaseUpdate};
use crate::subnet::identity::shared_data;
use crate::subnet::{ConfigStream, Identity, LeaseStream, StoreStatus, SubnetError, SubnetManager};

/// A store in memory. Clones are handles of the same one; every node gives out the lowest free subnet.
#[derive(Clone)]
pub struct FakeStore {
    state: Arc<Mutex<State>>,
    away: watch::Sender<bool>,
    status: watch::Sender<StoreStatus>,
}

struct State {
    config: NetworkConfig,
    wanted_ips: PerFamily<IpAddr>,
    identity: Identity,
    refuses_claimed: bool,
    leases: BTreeMap<LeaseKey, Lease>,
    created: u64,
    watchers: Vec<mpsc::UnboundedSender<LeaseUpdate>>,
    config_watchers: Vec<mpsc::UnboundedSender<Result<NetworkConfig, ConfigError>>>,
}

impl State {
    fn tell(&mut self, update: &LeaseUpdate) {
        self.watchers.retain(|watcher| watcher.unbounded_send(update.clone()).is_ok());
    }

    fn tell_config(&mut self, config: &Result<NetworkConfig, ConfigError>) {
        self.config_watchers.retain(|watcher| watcher.unbounded_send(config.clone()).is_ok());
    }
}

impl FakeStore {
    /// An empty store with this network configuration.
    pub fn new(config: NetworkConfig) -> Self {
        let status = StoreStatus { connected: true, problem: String::new(), ..StoreStatus::unknown() };
        let state = State {
            config,
            wanted_ips: PerFamily::default(),
            identity: Identity::default(),
            refuses_claimed: false,
            leases: BTreeMap::new(),
            created: 0,
            watchers: Vec::new(),
            config_watchers: Vec::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            away: watch::Sender::new(false),
            status: watch::Sender::new(status),
        }
    }

    /// Lets it answer nothing but errors from now on, or again as before. Watches that began stay.
    pub fn set_away(&self, away: bool) {
        self.away.send_replace(away);
        self.status.send_modify(|status| {
            if away {
                status.fail("away".to_owned());
            } else {
                status.succeed();
            }
        });
    }

    /// Writes another network configuration.
    pub fn set_config(&self, config: NetworkConfig) {
        let mut state = self.lock();
        state.tell_config(&Ok(config.clone()));
        state.config = config;
    }

    /// Says which addresses the node is to publish.
    pub fn set_wanted_ips(&self, wanted_ips: PerFamily<IpAddr>) {
        self.lock().wanted_ips = wanted_ips;
    }

    /// From now on no lease is given out with backend data that another one has, as by stores that list all leases
    /// for that.
    pub fn refuse_claimed(&self) {
        self.lock().refuses_claimed = true;
    }

    /// Says what the node that asks next knows of itself.
    pub fn set_identity(&self, identity: Identity) {
        self.lock().identity = identity;
    }

    /// Lets those who follow the configuration know that what is there now can't be used.
    pub fn spoil_config(&self, error: ConfigError) {
        self.lock().tell_config(&Err(error));
    }

    fn answer(&self) -> Result<MutexGuard<'_, State>, SubnetError> {
        if *self.away.borrow() {
            return Err(SubnetError::Unavailable { what: "ask the store".to_owned(), source: "away".into() });
        }
        Ok(self.lock())
    }

    fn watch_now(&self) -> LeaseStream {
        let (sender, updates) = mpsc::unbounded();
        let mut state = self.lock();
        let leases = state.leases.values().cloned().collect();
        let _ = sender.unbounded_send(LeaseUpdate::Snapshot { leases, undecodable: BadRecords::default() });
        state.watchers.push(sender);
        updates.map(Ok).boxed()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Writes a lease as another node would.
    pub fn put(&self, key: &str, attrs: &str) -> Lease {
        let mut state = self.lock();
        let key: LeaseKey = key.parse().expect("a test writes a valid key");
        let attrs = LeaseAttrs::from_json(attrs).expect("a test writes a valid value");
        let created = state.leases.get(&key).map(|lease| lease.created);
        state.created += 1;
        let lease = Lease { key, attrs, created: created.unwrap_or(state.created) };
        state.leases.insert(key, lease.clone());
        state.tell(&LeaseUpdate::Put(lease.clone()));
        lease
    }

    /// Deletes a lease.
    pub fn remove(&self, key: &str) {
        let mut state = self.lock();
        state.leases.remove(&key.parse().expect("a test names a valid key"));
        state.tell(&LeaseUpdate::Removed(key.to_owned()));
    }

    /// Sends any message to all watches.
    pub fn tell(&self, update: &LeaseUpdate) {
        self.lock().tell(update);
    }

    /// All leases.
    pub fn leases(&self) -> Vec<Lease> {
        self.lock().leases.values().cloned().collect()
    }

    fn free_subnets(state: &State) -> Option<LeaseKey> {
        let taken = |candidate: &crate::addr::Subnet| {
            let family = candidate.family();
            state
                .leases
                .keys()
                .any(|key| key.subnet(family).is_some_and(|subnet| subnet.overlaps(*candidate)))
        };
        let free = |family: Family| {
            let range = state.config.networks.get(family)?.range?;
            (0..range.count()).filter_map(|index| range.nth(index)).find(|candidate| !taken(candidate))
        };
        LeaseKey::new(PerFamily::from_fn(free))
    }
}

#[async_trait]
impl SubnetManager for FakeStore {
    async fn network_config(&self) -> Result<NetworkConfig, SubnetError> {
        Ok(self.answer()?.config.clone())
    }

    async fn wanted_ips(&self) -> Result<PerFamily<IpAddr>, SubnetError> {
        Ok(self.answer()?.wanted_ips)
    }

    fn config_changes(&self) -> Option<ConfigStream> {
        let (sender, changes) = mpsc::unbounded();
        self.lock().config_watchers.push(sender);
        let in_memory = |source| SubnetError::Config { place: "the store in memory".to_owned(), source };
        Some(changes.map(move |config| config.map_err(in_memory)).boxed())
    }

    async fn published_attrs(
        &self,
        public_ips: &PerFamily<IpAddr>,
    ) -> Result<Option<LeaseAttrs>, SubnetError> {
        let state = self.answer()?;
        let asked = LeaseAttrs { public_ips: *public_ips, ..LeaseAttrs::default() };
        let proven = state.leases.values().find(|lease| state.identity.proves(lease, &asked));
        let by_address = || state.leases.values().find(|lease| lease.attrs.public_ips == *public_ips);
        let own = proven.or_else(by_address);
        Ok(own.map(|lease| lease.attrs.clone()))
    }

    async fn acquire_lease(&self, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let mut state = self.answer()?;
        let proven = state.leases.values().find(|lease| state.identity.proves(lease, attrs));
        let by_address = || state.leases.values().find(|lease| lease.attrs.public_ips == attrs.public_ips);
        let own = proven.or_else(by_address);
        let found = own.map(|lease| (lease.key, lease.created));
        let others = state.leases.values().filter(|lease| found.is_none_or(|(own, _)| own != lease.key));
        let mut claimed =
            others.filter_map(|lease| Some((lease.key, shared_data(&lease.attrs, attrs).next()?)));
        if let Some((key, family)) = claimed.next().filter(|_| state.refuses_claimed) {
            return Err(SubnetError::Claimed { key, family });
        }
        state.created += 1;
        let created = state.created;
        let (key, created) = match found {
            Some(found) => found,
            None => (
                Self::free_subnets(&state)
                    .ok_or_else(|| SubnetError::Conflict("no free subnet".to_owned()))?,
                created,
            ),
        };
        let lease = Lease { key, attrs: attrs.clone(), created };
        if state.leases.insert(key, lease.clone()).as_ref() != Some(&lease) {
            state.tell(&LeaseUpdate::Put(lease.clone()));
        }
        Ok(lease)
    }

    async fn publish(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let next = Lease { attrs: attrs.clone(), ..lease.clone() };
        let mut state = self.lock();
        state.leases.insert(next.key, next.clone());
        state.tell(&LeaseUpdate::Put(next.clone()));
        Ok(next)
    }

    async fn hold_lease(&self, _: &Lease) -> Result<Infallible, SubnetError> {
        std::future::pending().await
    }

    async fn release_lease(&self, lease: &Lease) -> Result<(), SubnetError> {
        let mut state = self.answer()?;
        if state.leases.remove(&lease.key).is_some() {
            state.tell(&LeaseUpdate::Removed(lease.key.to_string()));
        }
        Ok(())
    }

    fn watch_leases(&self) -> LeaseStream {
        let (store, mut away) = (self.clone(), self.away.subscribe());
        let back = async move {
            // It fails only if the store is gone, and this holds one.
            let _ = away.wait_for(|away| !away).await;
            store.watch_now()
        };
        stream::once(back).flatten().boxed()
    }

    fn status(&self) -> watch::Receiver<StoreStatus> {
        self.status.subscribe()
    }
}
