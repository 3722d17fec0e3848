//! The store of the cluster: a folder, an etcd server or a Kubernetes API server, written to as other nodes would.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use flannel_lab::LabError;
use flannel_lab::cluster::Cluster;
use flannel_lab::kube::fake::Snapshot;
use flannel_lab::kube::store::KubeStore;
use flannel_lab::node::Node;
use flannel_lab::store::{EtcdStore, Folder, Server, Store as _};

use crate::Fallible;
use crate::model::Lease;
use crate::options::StoreChoice;
use crate::phantom::subnet;

/// Where everything of the soak is. `/run` is the sandbox's own.
pub(crate) const FOLDER: &str = "/run/flannel-soak";

/// In Kubernetes, the subnets of the nodes come after the one of this number.
const FIRST: u8 = 200;

/// The store.
#[derive(Debug)]
pub(crate) enum Store {
    Local(Folder),
    Etcd(Box<EtcdStore>),
    Kube(Box<Kube>),
}

/// An API server, and what it had before all agents.
#[derive(Debug)]
pub(crate) struct Kube {
    pub(crate) store: KubeStore,
    pub(crate) first_backup: Snapshot,
}

impl Store {
    /// An empty store with a network config.
    pub(crate) fn start(choice: StoreChoice, cluster: &Cluster, config: &str) -> Fallible<Self> {
        let store = match choice {
            StoreChoice::Local => Self::Local(Folder::new(Path::new(FOLDER).join("store"))?),
            StoreChoice::Etcd => {
                // Giant records, written all the time, would fill the 2 GiB of the default.
                let quota = format!("--quota-backend-bytes={}", 8_u64 << 30);
                Self::Etcd(Box::new(EtcdStore::start(cluster, &[quota])?))
            }
            StoreChoice::Kube => {
                let store = KubeStore::without_nodes(cluster)?;
                for node in cluster.nodes() {
                    // Above those of phantoms.
                    let subnet = |v6| subnet(FIRST + node.number(), v6).to_string();
                    let families = cluster.families().list().into_iter();
                    store.register(node.name(), &families.map(subnet).collect::<Vec<_>>());
                }
                let first_backup = store.api().snapshot();
                Self::Kube(Box::new(Kube { store, first_backup }))
            }
        };
        store.put_config(config)?;
        Ok(store)
    }

    /// What all stores can.
    fn any(&self) -> &dyn Server {
        match self {
            Self::Local(folder) => folder,
            Self::Etcd(etcd) => &**etcd,
            Self::Kube(kube) => &kube.store,
        }
    }

    /// Deletes a record that is nobody's.
    pub(crate) fn delete_bytes(&self, key: &str) -> Fallible<()> {
        match self {
            Self::Etcd(etcd) => Ok(etcd.etcd().del_bytes(EtcdStore::key(key).as_bytes())?),
            Self::Local(_) | Self::Kube(_) => Ok(self.delete(key)?),
        }
    }

    /// Writes many records with one value.
    pub(crate) fn put_many(&self, keys: &[String], value: &str) -> Fallible<()> {
        match self {
            Self::Local(folder) => {
                // In place, as an attacker would.
                let subnets = folder.path().join("subnets");
                keys.iter().try_for_each(|key| Ok(fs::write(subnets.join(key), value)?))
            }
            Self::Etcd(etcd) => {
                let pairs = keys.iter().map(|key| (EtcdStore::key(key), value)).collect::<Vec<_>>();
                Ok(etcd.etcd().put_many(&pairs)?)
            }
            Self::Kube(_) => Ok(keys.iter().try_for_each(|key| self.put(key, value))?),
        }
    }

    /// Deletes many records, of which the first six characters are the same and nobody else's: in one revision,
    /// where there is such a thing.
    pub(crate) fn delete_many(&self, keys: &[String]) -> Fallible<()> {
        match (self, keys.first()) {
            (_, None) => Ok(()),
            (Self::Etcd(etcd), Some(first)) => {
                Ok(etcd.etcd().del_many(EtcdStore::key(&first[..6]).as_bytes())?)
            }
            (Self::Local(_) | Self::Kube(_), _) => Ok(keys.iter().try_for_each(|key| self.delete(key))?),
        }
    }

    /// Writes another value into a record that is there. In etcd it stays on its lease.
    pub(crate) fn rewrite(&self, key: &str, value: &str) -> Fallible<()> {
        match self {
            Self::Local(folder) => Ok(folder.put(key, value)?),
            Self::Kube(kube) => Ok(kube.store.put(key, value)?),
            Self::Etcd(etcd) => Ok(etcd.etcd().put_in_place(&EtcdStore::key(key), value)?),
        }
    }

    /// Deletes the record of a node that is gone, and lets a new one of its name come.
    pub(crate) fn forget(&self, node: &Node, lease: &Lease) -> Fallible<()> {
        match self {
            Self::Local(_) | Self::Etcd(_) => Ok(self.delete(&lease.key())?),
            Self::Kube(kube) => {
                kube.store.api().delete_node(node.name());
                let subnets = lease.0.iter().map(|side| side.subnet.to_string());
                kube.store.register(node.name(), &subnets.collect::<Vec<_>>());
                Ok(())
            }
        }
    }

    /// The store, if it is Kubernetes.
    pub(crate) fn kube(&self) -> Fallible<&Kube> {
        match self {
            Self::Kube(kube) => Ok(kube),
            Self::Local(_) | Self::Etcd(_) => Err("only Kubernetes can do that".into()),
        }
    }
}

impl flannel_lab::store::Store for Store {
    fn flags(&self) -> Vec<String> {
        self.any().flags()
    }

    fn env(&self, node: &str) -> Vec<(&'static str, String)> {
        self.any().env(node)
    }

    fn put_config(&self, config: &str) -> Result<(), LabError> {
        self.any().put_config(config)
    }

    /// Writes a record that is no node's of this cluster.
    fn put(&self, key: &str, value: &str) -> Result<(), LabError> {
        match self {
            Self::Kube(kube) => kube.store.put_foreign(key, value),
            _ => self.any().put(key, value)?,
        }
        Ok(())
    }

    /// Writes a record of any bytes that is nobody's. What the store itself refuses (a name that is none for a file)
    /// is nothing that an agent could see.
    fn put_bytes(&self, key: &str, value: &[u8]) -> Result<(), LabError> {
        match self {
            Self::Kube(_) => self.put(key, &String::from_utf8_lossy(value)),
            _ => self.any().put_bytes(key, value),
        }
    }

    fn delete(&self, key: &str) -> Result<(), LabError> {
        self.any().delete(key)
    }

    fn records(&self) -> Result<BTreeMap<String, String>, LabError> {
        self.any().records()
    }
}

impl Server for Store {
    fn pause(&self) -> Result<(), LabError> {
        self.any().pause()
    }

    fn resume(&self) -> Result<(), LabError> {
        self.any().resume()
    }

    fn kill(&self) -> Result<(), LabError> {
        self.any().kill()
    }

    fn restart(&self) -> Result<(), LabError> {
        self.any().restart()
    }

    fn compact(&self) -> Result<(), LabError> {
        self.any().compact()
    }
}
