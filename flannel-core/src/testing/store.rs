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
use crate::lease::{Lease, LeaseAttrs, LeaseKey, LeaseUpdate, UnreadableRecord, UnreadableRecords};
use crate::subnet::allocate::{holder, overlaps};
use crate::subnet::identity::{is_ours, shared_data};
use crate::subnet::{ConfigStream, Identity, LeaseStream, StoreStatus, SubnetError, SubnetManager};

/// A store in memory. Clones are handles of the same store. It assigns the lowest free subnet.
#[derive(Clone)]
pub struct FakeStore {
    state: Arc<Mutex<State>>,
    away: watch::Sender<bool>,
    status: watch::Sender<StoreStatus>,
    /// Counts what happened to leases.
    changes: watch::Sender<u64>,
    node: Option<Arc<Node>>,
}

/// The state of one node's handle.
struct Node {
    identity: Identity,
    local: Mutex<PerFamily<IpAddr>>,
}

struct State {
    config: NetworkConfig,
    wanted_ips: PerFamily<IpAddr>,
    identity: Identity,
    refuses_claimed: bool,
    leases: BTreeMap<LeaseKey, Lease>,
    unreadable: BTreeMap<LeaseKey, UnreadableRecord>,
    /// The statuses of all nodes.
    statuses: Vec<watch::Sender<StoreStatus>>,
    created: u64,
    watchers: Vec<mpsc::UnboundedSender<LeaseUpdate>>,
    config_watchers: Vec<mpsc::UnboundedSender<Result<NetworkConfig, ConfigError>>>,
}

impl State {
    fn tell(&mut self, update: &LeaseUpdate) {
        self.watchers.retain(|watcher| watcher.unbounded_send(update.clone()).is_ok());
    }

    fn tell_unreadable(&self) {
        let sample = self.unreadable().sample();
        for status in &self.statuses {
            status.send_if_modified(|status| {
                let is_news = status.unreadable != sample;
                status.unreadable = sample.clone();
                is_news
            });
        }
    }

    fn unreadable(&self) -> UnreadableRecords {
        self.unreadable.values().cloned().collect()
    }

    /// The node of another record with addresses of a key.
    fn rival(&self, own: LeaseKey) -> Option<String> {
        let has = |key: &LeaseKey| *key != own && overlaps(*key, own);
        let lease = self.leases.values().find(|lease| has(&lease.key));
        lease.map(|lease| holder(&lease.attrs))
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
            unreadable: BTreeMap::new(),
            statuses: Vec::new(),
            created: 0,
            watchers: Vec::new(),
            config_watchers: Vec::new(),
        };
        let (state, status) = (Arc::new(Mutex::new(state)), watch::Sender::new(status));
        let store = Self {
            state,
            away: watch::Sender::new(false),
            status,
            changes: watch::Sender::new(0),
            node: None,
        };
        store.lock().statuses.push(store.status.clone());
        store
    }

    /// A handle of the same store for another node, with this identity and a status of its own.
    pub fn of_node(&self, identity: Identity) -> Self {
        let node = Some(Arc::new(Node { identity, local: Mutex::default() }));
        let status = watch::Sender::new(self.status.borrow().clone());
        self.lock().statuses.push(status.clone());
        Self { status, node, ..self.clone() }
    }

    /// Makes it answer only errors from now on, or work again. Watches that have begun stay.
    pub fn set_away(&self, away: bool) {
        self.away.send_replace(away);
        for status in &self.lock().statuses {
            status.send_modify(|status| {
                if away {
                    status.fail("away".to_owned());
                } else {
                    status.succeed();
                }
            });
        }
    }

    /// Writes another network configuration.
    pub fn set_config(&self, config: NetworkConfig) {
        let mut state = self.lock();
        state.tell_config(&Ok(config.clone()));
        state.config = config;
    }

    /// The same without a word to those that follow it, as if they had no connection.
    pub fn set_config_silently(&self, config: NetworkConfig) {
        self.lock().config = config;
    }

    /// Sets which addresses the node should publish.
    pub fn set_wanted_ips(&self, wanted_ips: PerFamily<IpAddr>) {
        self.lock().wanted_ips = wanted_ips;
    }

    /// Refuses leases from now on with backend data that another one has, as stores do that list all leases.
    pub fn refuse_claimed(&self) {
        self.lock().refuses_claimed = true;
    }

    /// Sets the identity of the node that asks next.
    pub fn set_identity(&self, identity: Identity) {
        self.lock().identity = identity;
    }

    /// Tells followers of the configuration that the present one can't be used.
    pub fn spoil_config(&self, error: ConfigError) {
        self.lock().tell_config(&Err(error));
    }

    fn answer(&self) -> Result<MutexGuard<'_, State>, SubnetError> {
        if *self.away.borrow() {
            return Err(SubnetError::Unavailable { what: "ask the store".to_owned(), source: "away".into() });
        }
        self.status.send_if_modified(StoreStatus::succeed);
        Ok(self.lock())
    }

    /// The identity of the node that asks.
    fn identity(&self, state: &State) -> Identity {
        self.node.as_ref().map_or_else(|| state.identity.clone(), |node| node.identity.clone())
    }

    fn watch_now(&self) -> LeaseStream {
        let (sender, updates) = mpsc::unbounded();
        let mut state = self.lock();
        let leases = state.leases.values().cloned().collect();
        let _ = sender.unbounded_send(LeaseUpdate::Snapshot { leases, unreadable: state.unreadable() });
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
        self.insert(&mut state, &lease);
        lease
    }

    fn insert(&self, state: &mut State, lease: &Lease) {
        let was_unreadable = state.unreadable.remove(&lease.key).is_some();
        if was_unreadable {
            state.tell_unreadable();
        }
        state.leases.insert(lease.key, lease.clone());
        state.tell(&LeaseUpdate::Put(lease.clone()));
        self.changes.send_modify(|count| *count += 1);
    }

    /// Deletes a lease.
    pub fn remove(&self, key: &str) {
        let mut state = self.lock();
        let lease = key.parse().expect("a test names a valid key");
        state.leases.remove(&lease);
        if state.unreadable.remove(&lease).is_some() {
            state.tell_unreadable();
        }
        state.tell(&LeaseUpdate::Removed(key.to_owned()));
        self.changes.send_modify(|count| *count += 1);
    }

    /// Makes the record of a lease unreadable.
    pub fn spoil(&self, key: LeaseKey) {
        let mut state = self.lock();
        state.leases.remove(&key);
        let record = UnreadableRecord { key: key.to_string(), reason: "spoilt by a test".to_owned() };
        state.unreadable.insert(key, record.clone());
        state.tell_unreadable();
        state.tell(&LeaseUpdate::Unreadable(record));
        self.changes.send_modify(|count| *count += 1);
    }

    /// Puts the own record back if it was deleted, changed or made unreadable.
    fn put_back(&self, own: &Lease) -> Result<(), SubnetError> {
        let mut state = self.answer()?;
        let lost = match state.leases.get(&own.key) {
            Some(there) if there.attrs == own.attrs => return Ok(()),
            Some(there) if is_ours(&there.attrs, &own.attrs) => None,
            Some(there) => Some(holder(&there.attrs)),
            None => state.rival(own.key),
        };
        if let Some(holder) = lost {
            return Err(self.lose(own.key, holder));
        }
        state.created += 1;
        let created = state.leases.get(&own.key).map_or(state.created, |there| there.created);
        self.insert(&mut state, &Lease { created, ..own.clone() });
        Ok(())
    }

    /// Records in the status that another node has a lease.
    fn lose(&self, key: LeaseKey, holder: String) -> SubnetError {
        let lost = SubnetError::LeaseLost { key, holder };
        self.status.send_modify(|status| status.lease_lost = Some(lost.to_string()));
        lost
    }

    /// Sends any message to all watches.
    pub fn tell(&self, update: &LeaseUpdate) {
        self.lock().tell(update);
    }

    /// All leases.
    pub fn leases(&self) -> Vec<Lease> {
        self.lock().leases.values().cloned().collect()
    }

    fn free_subnets(&self, state: &State) -> Option<LeaseKey> {
        let local = self.node.as_ref().map(|node| *node.local.lock().expect("no holder panics"));
        let taken = |candidate: &crate::addr::Subnet| {
            let family = candidate.family();
            let mut keys = state.leases.keys().chain(state.unreadable.keys());
            let mut avoided = local.iter().filter_map(|ips| ips.get(family));
            keys.any(|key| key.subnet(family).is_some_and(|subnet| subnet.overlaps(*candidate)))
                || avoided.any(|ip| candidate.contains(*ip))
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

    fn avoid(&self, local: &PerFamily<IpAddr>) {
        if let Some(node) = &self.node {
            *node.local.lock().expect("no holder panics") = *local;
        }
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
        let identity = self.identity(&state);
        let asked = LeaseAttrs { public_ips: *public_ips, ..LeaseAttrs::default() };
        let proven = state.leases.values().find(|lease| identity.proves(lease, &asked));
        let by_address = || state.leases.values().find(|lease| lease.attrs.public_ips == *public_ips);
        let own = proven.or_else(by_address);
        Ok(own.map(|lease| lease.attrs.clone()))
    }

    async fn acquire_lease(&self, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let mut state = self.answer()?;
        let identity = self.identity(&state);
        let proven = state.leases.values().find(|lease| identity.proves(lease, attrs));
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
                self.free_subnets(&state)
                    .ok_or_else(|| SubnetError::Conflict("no free subnet".to_owned()))?,
                created,
            ),
        };
        let lease = Lease { key, attrs: attrs.clone(), created };
        if state.leases.get(&key) != Some(&lease) {
            self.insert(&mut state, &lease);
        }
        self.status.send_modify(|status| status.lease_lost = None);
        Ok(lease)
    }

    async fn publish(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let mut state = self.answer()?;
        let lost = match state.leases.get(&lease.key) {
            Some(there) if there.attrs == *attrs => return Ok(there.clone()),
            Some(there) if is_ours(&there.attrs, &lease.attrs) => None,
            Some(there) => Some(holder(&there.attrs)),
            None => state.rival(lease.key),
        };
        if let Some(holder) = lost {
            return Err(self.lose(lease.key, holder));
        }
        state.created += 1;
        let created = state.leases.get(&lease.key).map_or(state.created, |there| there.created);
        let next = Lease { attrs: attrs.clone(), created, ..lease.clone() };
        self.insert(&mut state, &next);
        Ok(next)
    }

    async fn renew_lease(&self, lease: &Lease) -> Result<Infallible, SubnetError> {
        let (mut changes, mut away) = (self.changes.subscribe(), self.away.subscribe());
        loop {
            changes.mark_unchanged();
            match self.put_back(lease) {
                // Both fail only if all handles of the store are gone, and this is one.
                Ok(()) => _ = changes.changed().await,
                Err(lost @ SubnetError::LeaseLost { .. }) => return Err(lost),
                Err(_) => _ = away.wait_for(|away| !away).await,
            }
        }
    }

    async fn release_lease(&self, lease: &Lease) -> Result<(), SubnetError> {
        let mut state = self.answer()?;
        match state.leases.get(&lease.key) {
            None => return Ok(()),
            Some(there) if !is_ours(&there.attrs, &lease.attrs) => {
                return Err(SubnetError::LeaseLost { key: lease.key, holder: holder(&there.attrs) });
            }
            Some(_) => _ = state.leases.remove(&lease.key),
        }
        state.tell(&LeaseUpdate::Removed(lease.key.to_string()));
        Ok(())
    }

    fn watch_leases(&self) -> LeaseStream {
        let (store, mut away) = (self.clone(), self.away.subscribe());
        let back = async move {
            // It fails only if all handles of the store are gone, and this is one.
            let _ = away.wait_for(|away| !away).await;
            store.watch_now()
        };
        stream::once(back).flatten().boxed()
    }

    fn status(&self) -> watch::Receiver<StoreStatus> {
        self.status.subscribe()
    }

    fn place(&self) -> String {
        // The place of an empty state, with which tests compare it.
        String::new()
    }
}
