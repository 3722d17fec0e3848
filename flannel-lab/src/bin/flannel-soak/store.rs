//! The store of the cluster: a folder, an etcd server or a Kubernetes API server, written to as other nodes would.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flannel_lab::cluster::Cluster;
use flannel_lab::etcd::{Etcd, EtcdOptions};
use flannel_lab::kube::fake::Snapshot;
use flannel_lab::kube::store::KubeStore;
use flannel_lab::node::Node;

use crate::Fallible;
use crate::model::Lease;
use crate::options::StoreChoice;
use crate::phantom::subnet;

/// Where everything of the soak is. `/run` is the sandbox's own.
pub(crate) const FOLDER: &str = "/run/flannel-soak";
/// Upstream's default of `--etcd-prefix`.
const PREFIX: &str = "/coreos.com/network";

/// In Kubernetes, the subnets of the nodes come after the one of this number.
const FIRST: u8 = 200;

/// The store.
#[derive(Debug)]
pub(crate) enum Store {
    Local(PathBuf),
    Etcd(Box<Mutex<Etcd>>),
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
        match choice {
            StoreChoice::Local => {
                let folder = Path::new(FOLDER).join("store");
                fs::create_dir_all(folder.join("subnets"))?;
                fs::write(folder.join("config"), config)?;
                Ok(Self::Local(folder))
            }
            StoreChoice::Etcd => {
                let mut options = EtcdOptions::at(cluster.fabric(), cluster.fabric_address());
                // Giant records, written all the time, would fill the 2 GiB of the default.
                options.args.push(format!("--quota-backend-bytes={}", 8_u64 << 30));
                let etcd = Etcd::start(options)?;
                etcd.put(&format!("{PREFIX}/config"), config)?;
                Ok(Self::Etcd(Box::new(Mutex::new(etcd))))
            }
            StoreChoice::Kube => {
                let store = KubeStore::without_nodes(cluster)?;
                store.put_config(config)?;
                for node in cluster.nodes() {
                    let families = cluster.families();
                    let used = [families.v4().then_some(false), families.v6().then_some(true)];
                    // Above those of phantoms.
                    let subnet = |v6| subnet(FIRST + node.number(), v6).to_string();
                    store.register(node.name(), &used.into_iter().flatten().map(subnet).collect::<Vec<_>>());
                }
                let first_backup = store.api().snapshot();
                Ok(Self::Kube(Box::new(Kube { store, first_backup })))
            }
        }
    }

    /// The flags that make an agent use it.
    pub(crate) fn flags(&self) -> Vec<String> {
        match self {
            Self::Local(folder) => vec![format!("--store=local:{}", folder.display())],
            Self::Etcd(etcd) => vec![format!("--etcd-endpoints={}", lock(etcd).endpoint())],
            Self::Kube(kube) => kube.store.args(),
        }
    }

    /// The environment of a node's agent.
    pub(crate) fn env(&self, node: &Node) -> Vec<(&'static str, String)> {
        match self {
            Self::Local(_) | Self::Etcd(_) => Vec::new(),
            Self::Kube(kube) => kube.store.env(node.name()),
        }
    }

    /// Writes a record that is no node's of this cluster.
    pub(crate) fn put(&self, key: &str, value: &str) -> Fallible<()> {
        match self {
            Self::Local(folder) => {
                // Beside, so that nobody reads half of it.
                let beside = folder.join("subnets").join(".written-by-the-soak");
                fs::write(&beside, value)?;
                Ok(fs::rename(beside, folder.join("subnets").join(key))?)
            }
            Self::Etcd(etcd) => Ok(lock(etcd).put(&of_subnets(key), value)?),
            Self::Kube(kube) => {
                kube.store.put_foreign(key, value);
                Ok(())
            }
        }
    }

    /// Writes a record of any bytes that is nobody's. What the store itself refuses (a name that is none for a file)
    /// is nothing that an agent could see.
    pub(crate) fn put_bytes(&self, key: &str, value: &[u8]) -> Fallible<()> {
        match self {
            Self::Local(folder) => {
                let beside = folder.join("subnets").join(".written-by-an-attacker");
                fs::write(&beside, value)?;
                Ok(fs::rename(beside, folder.join("subnets").join(key))?)
            }
            Self::Etcd(etcd) => Ok(lock(etcd).put_bytes(of_subnets(key).as_bytes(), value)?),
            Self::Kube(kube) => {
                kube.store.put_foreign(key, &String::from_utf8_lossy(value));
                Ok(())
            }
        }
    }

    /// Deletes a record that is nobody's.
    pub(crate) fn delete_bytes(&self, key: &str) -> Fallible<()> {
        match self {
            Self::Etcd(etcd) => Ok(lock(etcd).del_bytes(of_subnets(key).as_bytes())?),
            Self::Local(_) | Self::Kube(_) => self.delete(key),
        }
    }

    /// Writes many records with one value.
    pub(crate) fn put_many(&self, keys: &[String], value: &str) -> Fallible<()> {
        match self {
            Self::Local(folder) => {
                keys.iter().try_for_each(|key| Ok(fs::write(folder.join("subnets").join(key), value)?))
            }
            Self::Etcd(etcd) => {
                let pairs = keys.iter().map(|key| (of_subnets(key), value)).collect::<Vec<_>>();
                Ok(lock(etcd).put_many(&pairs)?)
            }
            Self::Kube(kube) => {
                for key in keys {
                    kube.store.put_foreign(key, value);
                }
                Ok(())
            }
        }
    }

    /// Deletes many records, of which the first six characters are the same and nobody else's: in one revision,
    /// where there is such a thing.
    pub(crate) fn delete_many(&self, keys: &[String]) -> Fallible<()> {
        match (self, keys.first()) {
            (_, None) => Ok(()),
            (Self::Etcd(etcd), Some(first)) => Ok(lock(etcd).del_many(of_subnets(&first[..6]).as_bytes())?),
            (Self::Local(_) | Self::Kube(_), _) => keys.iter().try_for_each(|key| self.delete(key)),
        }
    }

    /// Writes another value into a record that is there. In etcd it stays on its lease.
    pub(crate) fn rewrite(&self, key: &str, value: &str) -> Fallible<()> {
        match self {
            Self::Local(_) => self.put(key, value),
            Self::Kube(kube) => {
                kube.store.put(key, value);
                Ok(())
            }
            Self::Etcd(etcd) => Ok(lock(etcd).put_in_place(&of_subnets(key), value)?),
        }
    }

    /// Deletes the record of a node that is gone, and lets a new one of its name come.
    pub(crate) fn forget(&self, node: &Node, lease: &Lease) -> Fallible<()> {
        match self {
            Self::Local(_) | Self::Etcd(_) => self.delete(&lease.key()),
            Self::Kube(kube) => {
                kube.store.api().delete_node(node.name());
                let subnets = lease.0.iter().map(|side| side.subnet.to_string());
                kube.store.register(node.name(), &subnets.collect::<Vec<_>>());
                Ok(())
            }
        }
    }

    /// Deletes a record.
    pub(crate) fn delete(&self, key: &str) -> Fallible<()> {
        match self {
            Self::Local(folder) => Ok(fs::remove_file(folder.join("subnets").join(key))?),
            Self::Etcd(etcd) => Ok(lock(etcd).del(&of_subnets(key))?),
            Self::Kube(kube) => {
                kube.store.delete(key);
                Ok(())
            }
        }
    }

    /// All records by their key.
    pub(crate) fn records(&self) -> Fallible<BTreeMap<String, String>> {
        match self {
            Self::Local(folder) => {
                let mut records = BTreeMap::new();
                for entry in fs::read_dir(folder.join("subnets"))? {
                    let entry = entry?;
                    let name = entry.file_name().to_string_lossy().into_owned();
                    if !name.starts_with('.') {
                        records.insert(name, fs::read_to_string(entry.path())?);
                    }
                }
                Ok(records)
            }
            Self::Etcd(etcd) => {
                let prefix = of_subnets("");
                let list = lock(etcd).list(&prefix)?.into_iter();
                Ok(list.map(|one| (one.key.trim_start_matches(&prefix).to_owned(), one.value)).collect())
            }
            Self::Kube(kube) => Ok(kube.store.records()),
        }
    }

    /// Answers nobody from now on: a server that stands still, a folder that is not mounted.
    pub(crate) fn pause(&self) -> Fallible<()> {
        match self {
            Self::Local(folder) => Ok(fs::rename(folder, hidden(folder))?),
            Self::Etcd(etcd) => Ok(lock(etcd).pause()?),
            Self::Kube(kube) => {
                kube.store.pause();
                Ok(())
            }
        }
    }

    /// Answers again.
    pub(crate) fn resume(&self) -> Fallible<()> {
        match self {
            Self::Local(folder) => Ok(fs::rename(hidden(folder), folder)?),
            Self::Etcd(etcd) => Ok(lock(etcd).resume()?),
            Self::Kube(kube) => {
                kube.store.resume();
                Ok(())
            }
        }
    }

    /// Ends the server at once.
    pub(crate) fn kill(&self) -> Fallible<()> {
        match self {
            Self::Local(_) => Err(no_server()),
            Self::Etcd(etcd) => Ok(lock(etcd).kill().map(drop)?),
            Self::Kube(kube) => {
                kube.store.kill();
                Ok(())
            }
        }
    }

    /// Starts the server again with what it had.
    pub(crate) fn restart(&self) -> Fallible<()> {
        match self {
            Self::Local(_) => Err(no_server()),
            Self::Etcd(etcd) => Ok(lock(etcd).restart()?),
            Self::Kube(kube) => Ok(kube.store.restart()?),
        }
    }

    /// Makes the server forget all revisions but the last.
    pub(crate) fn compact(&self) -> Fallible<()> {
        match self {
            Self::Local(_) => Err(no_server()),
            Self::Etcd(etcd) => Ok(lock(etcd).compact().map(drop)?),
            Self::Kube(kube) => {
                kube.store.api().compact();
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

/// The whole key of a record in etcd.
fn of_subnets(key: &str) -> String {
    format!("{PREFIX}/subnets/{key}")
}

fn no_server() -> Box<dyn Error + Send + Sync> {
    "a folder has no server".into()
}

fn hidden(folder: &Path) -> PathBuf {
    folder.with_extension("hidden")
}

fn lock(etcd: &Mutex<Etcd>) -> MutexGuard<'_, Etcd> {
    etcd.lock().unwrap_or_else(PoisonError::into_inner)
}
