//! The store in etcd v3, with the keys, values and 24 h leases of Go flannel, next to which it works.
//!
//! A lease is a key on an etcd lease of its own. A key without an etcd lease is a reservation: an operator wrote it,
//! its node publishes in it, and it never expires. A renewal keeps the etcd lease alive, which peers don't see.
//! Upstream: `pkg/subnet/etcd`; differences are explained in the code where they are.

mod acquire;
mod client;
mod config_changes;
mod create;
mod error;
mod examine;
mod grants;
mod kept;
mod keys;
mod options;
mod records;
mod renew;
mod tls;
mod txn;
mod watch;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::Client;
use flannel_core::addr::PerFamily;
use flannel_core::config::NetworkConfig;
use flannel_core::lease::{Lease, LeaseAttrs, LeaseKey};
use flannel_core::subnet::kit::{Health, follow_config, grantable};
use flannel_core::subnet::{
    ConfigStream, Examination, Identity, LeaseStream, StoreStatus, SubnetError, SubnetManager,
};
use tokio::time::Instant;

use self::client::Clients;
use self::config_changes::ConfigKey;
use self::error::{CallError, Called};
use self::kept::Kept;
use self::keys::Keys;
pub use self::options::{EndpointError, EtcdOptions, EtcdTimeouts, EtcdTls, check_endpoint};

/// The store in etcd. A clone shares connections and status.
#[derive(Debug, Clone)]
pub struct EtcdSubnetManager(Arc<Store>);

#[derive(Debug)]
struct Store {
    options: EtcdOptions,
    keys: Keys,
    clients: Clients,
    health: Health,
    /// What this node knows of itself.
    identity: Mutex<Identity>,
    /// This node's addresses on the underlay.
    local: Mutex<PerFamily<IpAddr>>,
    /// The config that was returned last.
    used_config: Mutex<Option<NetworkConfig>>,
    kept: Kept,
}

impl EtcdSubnetManager {
    /// Checks the endpoints and reads the certificates; does not connect yet.
    pub fn new(options: EtcdOptions) -> Result<Self, SubnetError> {
        let options = EtcdOptions { ttl: grantable(options.ttl), ..options };
        let clients = Clients::new(&options)?;
        let keys = Keys::new(&options.prefix);
        let (health, local) = (Health::new("etcd"), Mutex::default());
        let identity = Mutex::new(options.identity.clone());
        let (used_config, kept) = (Mutex::default(), Kept::default());
        Ok(Self(Arc::new(Store { options, keys, clients, health, identity, local, used_config, kept })))
    }
}

/// Compiles the code in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[async_trait]
impl SubnetManager for EtcdSubnetManager {
    async fn network_config(&self) -> Result<NetworkConfig, SubnetError> {
        let config = self.0.config().await?;
        *self.0.used_config.lock().unwrap_or_else(PoisonError::into_inner) = Some(config.clone());
        Ok(config)
    }

    fn config_changes(&self) -> Option<ConfigStream> {
        let used = self.0.used_config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(follow_config(ConfigKey::new(Arc::clone(&self.0)), used))
    }

    fn identify(&self, identity: Identity) {
        *self.0.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    fn hosts(&self) -> Vec<String> {
        self.0.options.endpoints.iter().filter_map(|url| url.host().map(str::to_owned)).collect()
    }

    fn avoid(&self, local: &PerFamily<IpAddr>) {
        *self.0.local.lock().unwrap_or_else(PoisonError::into_inner) = *local;
    }

    async fn published_attrs(
        &self,
        public_ips: &PerFamily<IpAddr>,
    ) -> Result<Option<LeaseAttrs>, SubnetError> {
        self.0.published(public_ips).await
    }

    async fn acquire_lease(&self, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let lease = Box::pin(self.0.acquire(attrs)).await?;
        self.0.health.set_lost(None);
        Ok(lease)
    }

    async fn publish(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        self.0.publish(lease, attrs).await
    }

    async fn renew_lease(&self, lease: &Lease) -> Result<Infallible, SubnetError> {
        Box::pin(self.0.keep_renewed(lease)).await
    }

    async fn release_lease(&self, lease: &Lease) -> Result<(), SubnetError> {
        self.0.release(lease).await?;
        self.0.health.set_left(None, Duration::ZERO);
        Ok(())
    }

    fn watch_leases(&self) -> LeaseStream {
        watch::stream(Arc::clone(&self.0))
    }

    fn status(&self) -> tokio::sync::watch::Receiver<StoreStatus> {
        self.0.health.subscribe()
    }

    async fn examine(&self) -> Examination {
        Examination::default().servers(self.0.clients.examine().await)
    }

    fn place(&self) -> String {
        format!("etcd:{}", self.0.keys.config)
    }

    fn release_command(&self, lease: LeaseKey) -> Option<String> {
        Some(self.0.options.delete_command(&format!("{}{lease}", self.0.keys.first)))
    }
}

impl Store {
    /// What this node knows of itself now.
    fn identity(&self) -> Identity {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs a call at one of the endpoints, and records in the status whether there was an answer.
    async fn call<T, F>(&self, what: &'static str, call: impl Fn(Client) -> F) -> Called<T>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let began = Instant::now();
        let called = self.clients.call(what, call).await;
        let problem = called.as_ref().err().and_then(CallError::problem);
        self.health.count(what, began, problem.is_none());
        match problem {
            None => self.health.succeed(),
            Some(problem) => self.health.fail(problem),
        }
        called
    }
}
