//! The store of an agent, with a count of what its watch of all leases delivers.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use flannel_core::addr::PerFamily;
use flannel_core::config::NetworkConfig;
use flannel_core::lease::{Lease, LeaseAttrs, LeaseKey, LeaseUpdate};
use flannel_core::subnet::{
    ConfigStream, Examination, Identity, LeaseStream, StoreStatus, SubnetError, SubnetManager,
};
use flannel_store_etcd::{EtcdOptions, EtcdSubnetManager};
use futures::StreamExt;
use tokio::sync::watch;

/// What the watches of an agent delivered so far.
#[derive(Default)]
struct Heard {
    snapshots: AtomicU64,
    changes: AtomicU64,
}

/// A store that counts. It passes on every call that the store answers otherwise than by the trait's default.
pub(crate) struct Heeded {
    store: EtcdSubnetManager,
    heard: Arc<Heard>,
}

impl Heeded {
    pub(crate) fn new(options: EtcdOptions) -> Result<Self, SubnetError> {
        Ok(Self { store: EtcdSubnetManager::new(options)?, heard: Arc::default() })
    }

    /// Lists of all leases so far.
    pub(crate) fn snapshots(&self) -> u64 {
        self.heard.snapshots.load(Ordering::Relaxed)
    }

    /// Changes of single leases so far.
    pub(crate) fn changes(&self) -> u64 {
        self.heard.changes.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl SubnetManager for Heeded {
    async fn network_config(&self) -> Result<NetworkConfig, SubnetError> {
        self.store.network_config().await
    }

    fn config_changes(&self) -> Option<ConfigStream> {
        self.store.config_changes()
    }

    fn identify(&self, identity: Identity) {
        self.store.identify(identity);
    }

    fn hosts(&self) -> Vec<String> {
        self.store.hosts()
    }

    fn avoid(&self, local: &PerFamily<IpAddr>) {
        self.store.avoid(local);
    }

    async fn published_attrs(&self, ips: &PerFamily<IpAddr>) -> Result<Option<LeaseAttrs>, SubnetError> {
        self.store.published_attrs(ips).await
    }

    async fn acquire_lease(&self, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        self.store.acquire_lease(attrs).await
    }

    async fn publish(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        self.store.publish(lease, attrs).await
    }

    async fn renew_lease(&self, lease: &Lease) -> Result<Infallible, SubnetError> {
        self.store.renew_lease(lease).await
    }

    async fn release_lease(&self, lease: &Lease) -> Result<(), SubnetError> {
        self.store.release_lease(lease).await
    }

    fn watch_leases(&self) -> LeaseStream {
        let heard = Arc::clone(&self.heard);
        let counted = self.store.watch_leases().inspect(move |update| {
            let is_snapshot = matches!(update, Ok(LeaseUpdate::Snapshot { .. }));
            let count = if is_snapshot { &heard.snapshots } else { &heard.changes };
            count.fetch_add(1, Ordering::Relaxed);
        });
        counted.boxed()
    }

    async fn examine(&self) -> Examination {
        self.store.examine().await
    }

    fn status(&self) -> watch::Receiver<StoreStatus> {
        self.store.status()
    }

    fn place(&self) -> String {
        self.store.place()
    }

    fn release_command(&self, lease: LeaseKey) -> Option<String> {
        self.store.release_command(lease)
    }
}
