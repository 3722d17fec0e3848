//! An etcd server as the store of a cluster.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Server, Store};
use crate::LabError;
use crate::cluster::Cluster;
use crate::etcd::{Etcd, EtcdOptions};

/// A server in the underlay, where every node reaches it.
#[derive(Debug)]
pub struct EtcdStore(Mutex<Etcd>);

impl EtcdStore {
    /// Upstream's default of `--etcd-prefix`.
    pub const PREFIX: &str = "/coreos.com/network";

    /// Starts a server with these arguments beside its own.
    pub fn start(cluster: &Cluster, args: &[String]) -> Result<Self, LabError> {
        let options = EtcdOptions::at(cluster.fabric(), cluster.fabric_address());
        let etcd = Etcd::start(EtcdOptions { args: args.to_vec(), ..options })?;
        Ok(Self(Mutex::new(etcd)))
    }

    /// The server.
    pub fn etcd(&self) -> MutexGuard<'_, Etcd> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole key of a record.
    pub fn key(key: &str) -> String {
        format!("{}/subnets/{key}", Self::PREFIX)
    }
}

impl Store for EtcdStore {
    fn flags(&self) -> Vec<String> {
        vec![format!("--etcd-endpoints={}", self.etcd().endpoint())]
    }

    fn put_config(&self, config: &str) -> Result<(), LabError> {
        self.etcd().put(&format!("{}/config", Self::PREFIX), config)
    }

    fn put_bytes(&self, key: &str, value: &[u8]) -> Result<(), LabError> {
        self.etcd().put_bytes(Self::key(key).as_bytes(), value)
    }

    fn put(&self, key: &str, value: &str) -> Result<(), LabError> {
        self.etcd().put(&Self::key(key), value)
    }

    fn delete(&self, key: &str) -> Result<(), LabError> {
        self.etcd().del(&Self::key(key))
    }

    fn records(&self) -> Result<BTreeMap<String, String>, LabError> {
        let prefix = Self::key("");
        let list = self.etcd().list(&prefix)?.into_iter();
        Ok(list.map(|one| (one.key.trim_start_matches(&prefix).to_owned(), one.value)).collect())
    }
}

impl Server for EtcdStore {
    fn pause(&self) -> Result<(), LabError> {
        self.etcd().pause()
    }

    fn resume(&self) -> Result<(), LabError> {
        self.etcd().resume()
    }

    fn kill(&self) -> Result<(), LabError> {
        self.etcd().kill().map(drop)
    }

    fn restart(&self) -> Result<(), LabError> {
        self.etcd().restart()
    }

    fn compact(&self) -> Result<(), LabError> {
        self.etcd().compact().map(drop)
    }
}
