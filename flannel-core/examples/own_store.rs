//! A store of one's own: leases in memory, for nodes that live in one process. It keeps records as text, as any store
//! does, and fulfils the contract of `SubnetManager`, which `flannel-core/tests/embed.rs` checks.
//!
//! `cargo run -p flannel-core --example own_store` lets two nodes take their subnets, and shows what they see of each
//! other.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use flannel_core::addr::PerFamily;
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::lease::{Lease, LeaseAttrs, LeaseKey, LeaseUpdate, UnreadableRecords};
use flannel_core::subnet::allocate::{self, Applicant, Decision, Listing, Occupied};
use flannel_core::subnet::kit::{Backoff, Health, is_ours};
use flannel_core::subnet::{Identity, LeaseStream, StoreStatus, SubnetError, SubnetManager};
use futures::{StreamExt, stream};
use tokio::sync::watch;

/// What is stored.
#[derive(Clone, Default)]
struct Records {
    /// Each value with the number of its creation, by key.
    values: BTreeMap<String, (u64, String)>,
    created: u64,
}

impl Records {
    /// All that can be read, and what can't.
    fn list(&self) -> (Vec<Lease>, UnreadableRecords) {
        let mut leases = Vec::new();
        let decode = |(key, (created, value)): (&String, &(u64, String))| {
            Lease::decode(key, value.as_bytes(), *created).map(|lease| leases.push(lease)).err()
        };
        let bad = self.values.iter().filter_map(decode).collect();
        (leases, bad)
    }

    /// What became of each record since.
    fn changes_since(&self, known: &Self) -> Vec<LeaseUpdate> {
        let gone = known.values.keys().filter(|key| !self.values.contains_key(*key));
        let gone = gone.map(|key| LeaseUpdate::Removed(key.clone()));
        let changed = self.values.iter().filter(|(key, value)| known.values.get(*key) != Some(value));
        let changed = changed.map(|(key, (created, value))| {
            Lease::decode(key, value.as_bytes(), *created)
                .map_or_else(LeaseUpdate::Unreadable, LeaseUpdate::Put)
        });
        gone.chain(changed).collect()
    }

    fn get(&self, key: LeaseKey) -> Option<Lease> {
        let (created, value) = self.values.get(&key.to_string())?;
        Lease::decode(&key.to_string(), value.as_bytes(), *created).ok()
    }

    fn put(&mut self, lease: &Lease) {
        self.values.insert(lease.key.to_string(), (lease.created, lease.attrs.to_json()));
    }
}

/// A store in memory as one node sees it.
pub struct MemoryStore {
    config: NetworkConfig,
    /// Shared by all nodes.
    records: watch::Sender<Records>,
    health: Arc<Health>,
    /// What this node knows of itself.
    identity: Mutex<Identity>,
    /// Its addresses on the underlay.
    local: Mutex<PerFamily<IpAddr>>,
}

impl MemoryStore {
    /// A store without leases, as its first node sees it.
    pub fn new(config: NetworkConfig) -> Self {
        Self::of(config, watch::Sender::default())
    }

    /// The same store as another node sees it.
    pub fn join(&self) -> Self {
        Self::of(self.config.clone(), self.records.clone())
    }

    fn of(config: NetworkConfig, records: watch::Sender<Records>) -> Self {
        let health = Arc::new(Health::new("memory"));
        health.succeed();
        Self { config, records, health, identity: Mutex::default(), local: Mutex::default() }
    }

    /// Writes any value, or deletes one, as an operator does behind the backs of the nodes.
    pub fn edit(&self, key: LeaseKey, value: Option<&str>) {
        self.records.send_modify(|records| {
            let key = key.to_string();
            match (value, records.values.get_mut(&key)) {
                (Some(value), Some((_, old))) => value.clone_into(old),
                (Some(value), None) => {
                    records.created += 1;
                    records.values.insert(key, (records.created, value.to_owned()));
                }
                (None, _) => _ = records.values.remove(&key),
            }
        });
    }

    fn identity(&self) -> Identity {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which lease this node gets is decided by a pure function, as for all stores.
    fn decide(&self, records: &mut Records, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let (leases, bad) = records.list();
        let occupied =
            |key: &str| Some(Occupied { key: allocate::occupied(key)?, created: records.values[key].0 });
        let listing = Listing {
            records: leases.into_iter().map(|lease| allocate::Record { lease, reserved: false }).collect(),
            taken: bad.named().filter_map(|bad| occupied(&bad.key)).collect(),
        };
        let (identity, local) = (self.identity(), *self.local.lock().unwrap_or_else(PoisonError::into_inner));
        let applicant = Applicant { attrs, identity: &identity, local: &local };
        let decision = allocate::decide(&self.config, &listing, applicant, &mut allocate::Rng::new())?;
        let mut next = || {
            records.created += 1;
            records.created
        };
        let (key, created) = match decision {
            Decision::Adopt(own) => (own.lease.key, own.lease.created),
            Decision::Take(key) | Decision::Reclaim(key) => (key, next()),
            Decision::Replace { old, new } => {
                let created = next();
                records.values.remove(&old.lease.key.to_string());
                (new, created)
            }
        };
        for former in allocate::former(&listing, key, applicant) {
            records.values.remove(&former.lease.key.to_string());
        }
        let lease = Lease { key, attrs: attrs.clone(), created };
        records.put(&lease);
        Ok(lease)
    }

    /// Puts what this node publishes in place, if its subnets are not another's.
    fn put(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let mut result = Ok(Lease { attrs: attrs.clone(), ..lease.clone() });
        self.records.send_if_modified(|records| match records.get(lease.key) {
            Some(there) if there.attrs == *attrs => {
                result = Ok(there);
                false
            }
            Some(there) if !is_ours(&there.attrs, &lease.attrs) => {
                let holder = allocate::holder(&there.attrs);
                result = Err(SubnetError::LeaseLost { key: lease.key, holder });
                false
            }
            there => {
                let created = there.map_or(lease.created, |there| there.created);
                let now = Lease { key: lease.key, attrs: attrs.clone(), created };
                records.put(&now);
                result = Ok(now);
                true
            }
        });
        self.health.set_lost(result.as_ref().err().map(ToString::to_string));
        result
    }
}

#[async_trait]
impl SubnetManager for MemoryStore {
    async fn network_config(&self) -> Result<NetworkConfig, SubnetError> {
        Ok(self.config.clone())
    }

    fn identify(&self, identity: Identity) {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    fn avoid(&self, local: &PerFamily<IpAddr>) {
        *self.local.lock().unwrap_or_else(PoisonError::into_inner) = *local;
    }

    async fn published_attrs(&self, ips: &PerFamily<IpAddr>) -> Result<Option<LeaseAttrs>, SubnetError> {
        let (leases, _) = self.records.borrow().list();
        Ok(allocate::published(leases.iter(), ips, &self.identity()))
    }

    /// One step for all nodes: nobody takes what another is about to take.
    async fn acquire_lease(&self, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let mut taken = Err(SubnetError::Contended { attempts: 0 });
        self.records.send_if_modified(|records| {
            taken = self.decide(records, attrs);
            taken.is_ok()
        });
        if taken.is_ok() {
            self.health.set_lost(None);
        }
        taken
    }

    async fn publish(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        self.put(lease, attrs)
    }

    /// Nothing expires here. What somebody deleted, changed or spoilt is put back.
    async fn renew_lease(&self, lease: &Lease) -> Result<Infallible, SubnetError> {
        let (mut records, mut backoff) = (self.records.subscribe(), Backoff::new());
        loop {
            let there = records.borrow_and_update().get(lease.key);
            if there.is_none_or(|there| there.attrs != lease.attrs) {
                self.put(lease, &lease.attrs)?;
                tokio::time::sleep(backoff.pause()).await;
            }
            // The sender is in `self`, so it has not ended.
            let _ = records.changed().await;
        }
    }

    async fn release_lease(&self, lease: &Lease) -> Result<(), SubnetError> {
        self.records.send_if_modified(|records| {
            let is_own = records.get(lease.key).is_some_and(|there| is_ours(&there.attrs, &lease.attrs));
            is_own && records.values.remove(&lease.key.to_string()).is_some()
        });
        Ok(())
    }

    /// A snapshot first, and then what changed.
    fn watch_leases(&self) -> LeaseStream {
        let mut records = self.records.subscribe();
        records.mark_changed();
        let next =
            |(mut records, health, known): (watch::Receiver<Records>, Arc<Health>, Option<Records>)| async {
                records.changed().await.ok()?;
                let now = records.borrow_and_update().clone();
                let (leases, unreadable) = now.list();
                health.set_unreadable(&unreadable);
                let updates = match known {
                    None => vec![LeaseUpdate::Snapshot { leases, unreadable }],
                    Some(known) => now.changes_since(&known),
                };
                Some((stream::iter(updates.into_iter().map(Ok)), (records, health, Some(now))))
            };
        // It never ends by itself, also where the last node has gone.
        let updates = stream::unfold((records, Arc::clone(&self.health), None), next);
        updates.flatten().chain(stream::pending()).boxed()
    }

    fn status(&self) -> watch::Receiver<StoreStatus> {
        self.health.subscribe()
    }

    fn place(&self) -> String {
        "memory".to_owned()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = NetworkConfig::parse(r#"{"Network":"10.244.0.0/16"}"#, LeaseSource::Store)?;
    let store = MemoryStore::new(config);
    for (number, node) in [store.join(), store.join()].into_iter().enumerate() {
        let public_ips = PerFamily { v4: Some(IpAddr::from([192, 0, 2, number as u8 + 1])), v6: None };
        let lease = node.acquire_lease(&LeaseAttrs { public_ips, ..LeaseAttrs::default() }).await?;
        println!("node {number} has {lease} and sees {:?}", node.watch_leases().next().await.transpose()?);
    }
    Ok(())
}
