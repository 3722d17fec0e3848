//! A store of one's own: leases in memory, for nodes that live in one process.
//!
//! `cargo run -p flannel-core --example own_store` lets two nodes take their subnets, and shows what they see of each
//! other.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use flannel_core::addr::{Family, PerFamily, Subnet};
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::lease::{BadRecords, Lease, LeaseAttrs, LeaseKey, LeaseUpdate};
use flannel_core::subnet::allocate::{holder, is_same_node, published};
use flannel_core::subnet::{Identity, LeaseStream, StoreStatus, SubnetError, SubnetManager};
use futures::{StreamExt, stream};
use tokio::sync::watch;

type Leases = BTreeMap<LeaseKey, Lease>;

/// What one node sees of a store in memory.
pub struct MemoryStore {
    config: NetworkConfig,
    /// Shared by all nodes.
    leases: watch::Sender<Leases>,
    /// What this node knows of itself.
    identity: Mutex<Identity>,
    status: watch::Sender<StoreStatus>,
}

impl MemoryStore {
    /// A store without leases, as its first node sees it.
    pub fn new(config: NetworkConfig) -> Self {
        Self::of(config, watch::Sender::default())
    }

    /// The same store as another node sees it.
    pub fn join(&self) -> Self {
        Self::of(self.config.clone(), self.leases.clone())
    }

    fn of(config: NetworkConfig, leases: watch::Sender<Leases>) -> Self {
        let mut status = StoreStatus::unknown();
        status.succeed();
        Self { config, leases, identity: Mutex::default(), status: watch::Sender::new(status) }
    }

    fn identity(&self) -> Identity {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn free(&self, leases: &Leases) -> Option<LeaseKey> {
        let is_taken = |subnet: &Subnet| {
            leases.keys().any(|key| key.subnets().iter().any(|(_, it)| it.overlaps(*subnet)))
        };
        let first = |family: Family| {
            let range = self.config.networks.get(family)?.range?;
            (0..range.count()).filter_map(|number| range.nth(number)).find(|subnet| !is_taken(subnet))
        };
        LeaseKey::new(PerFamily::from_fn(first))
    }

    /// The own lease is another's.
    fn lost(&self, key: LeaseKey, by: &Lease) -> SubnetError {
        let lost = SubnetError::LeaseLost { key, holder: holder(&by.attrs) };
        self.status.send_modify(|status| status.lease_lost = Some(lost.to_string()));
        lost
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

    async fn published_attrs(&self, ips: &PerFamily<IpAddr>) -> Result<Option<LeaseAttrs>, SubnetError> {
        Ok(published(self.leases.borrow().values(), ips, &self.identity()))
    }

    async fn acquire_lease(&self, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let identity = self.identity();
        let mut taken = Err(SubnetError::Conflict("no subnet is free".to_owned()));
        // One step for all nodes: nobody takes what another is about to take.
        self.leases.send_if_modified(|leases| {
            let is_own = |lease: &&Lease| identity.proves(lease, attrs) || is_same_node(&lease.attrs, attrs);
            let own = leases.values().find(is_own).map(|lease| (lease.key, lease.created));
            let newest = leases.values().map(|lease| lease.created).max().unwrap_or_default();
            let wished = identity.wishes().find(|key| !leases.contains_key(key));
            let free = || Some((wished.or_else(|| self.free(leases))?, newest + 1));
            let Some((key, created)) = own.or_else(free) else { return false };
            let lease = Lease { key, attrs: attrs.clone(), created };
            leases.insert(key, lease.clone());
            taken = Ok(lease);
            true
        });
        self.status.send_modify(|status| status.lease_lost = None);
        taken
    }

    async fn publish(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let now = Lease { attrs: attrs.clone(), ..lease.clone() };
        let mut result = Ok(now.clone());
        self.leases.send_if_modified(|leases| {
            match leases.get(&lease.key).filter(|there| !is_same_node(&there.attrs, &lease.attrs)) {
                Some(other) if !is_same_node(&other.attrs, attrs) => {
                    result = Err(self.lost(lease.key, other))
                }
                _ => _ = leases.insert(lease.key, now),
            }
            result.is_ok()
        });
        result
    }

    /// Nothing expires here. A record that somebody deleted is put back.
    async fn hold_lease(&self, lease: &Lease) -> Result<Infallible, SubnetError> {
        let mut leases = self.leases.subscribe();
        loop {
            let there = leases.borrow_and_update().get(&lease.key).cloned();
            match there {
                Some(there) if is_same_node(&there.attrs, &lease.attrs) => {}
                Some(other) => return Err(self.lost(lease.key, &other)),
                None => _ = self.publish(lease, &lease.attrs).await?,
            }
            // The sender is in `self`, so it has not ended.
            let _ = leases.changed().await;
        }
    }

    async fn release_lease(&self, lease: &Lease) -> Result<(), SubnetError> {
        self.leases.send_if_modified(|leases| {
            let is_own = leases.get(&lease.key).is_some_and(|it| is_same_node(&it.attrs, &lease.attrs));
            is_own && leases.remove(&lease.key).is_some()
        });
        Ok(())
    }

    /// A snapshot for each change. A store with many leases tells single ones ([`LeaseUpdate::Put`], `Removed`).
    fn watch_leases(&self) -> LeaseStream {
        let mut leases = self.leases.subscribe();
        leases.mark_changed();
        let next = |mut leases: watch::Receiver<Leases>| async {
            leases.changed().await.ok()?;
            let all = leases.borrow_and_update().values().cloned().collect();
            Some((Ok(LeaseUpdate::Snapshot { leases: all, undecodable: BadRecords::default() }), leases))
        };
        // It never ends by itself, also where the last node has gone.
        stream::unfold(leases, next).chain(stream::pending()).boxed()
    }

    fn status(&self) -> watch::Receiver<StoreStatus> {
        self.status.subscribe()
    }

    fn place(&self) -> String {
        "memory".to_owned()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = NetworkConfig::parse(r#"{"Network":"10.244.0.0/16"}"#, LeaseSource::Store)?;
    let store = MemoryStore::new(config);
    for (number, node) in [Arc::new(store.join()), Arc::new(store.join())].into_iter().enumerate() {
        let public_ips = PerFamily { v4: Some(IpAddr::from([192, 0, 2, number as u8 + 1])), v6: None };
        let lease = node.acquire_lease(&LeaseAttrs { public_ips, ..LeaseAttrs::default() }).await?;
        println!("node {number} has {lease} and sees {:?}", node.watch_leases().next().await.transpose()?);
    }
    Ok(())
}
