//! The store of the cluster: a folder or an etcd server, written to as other nodes would.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flannel_lab::cluster::Cluster;
use flannel_lab::etcd::{Etcd, EtcdOptions};

use crate::Fallible;
use crate::options::StoreChoice;

/// Where everything of the soak is. `/run` is the sandbox's own.
pub(crate) const FOLDER: &str = "/run/flannel-soak";
/// Upstream's default of `--etcd-prefix`.
const PREFIX: &str = "/coreos.com/network";

/// The store.
#[derive(Debug)]
pub(crate) enum Store {
    Local(PathBuf),
    Etcd(Box<Mutex<Etcd>>),
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
                let etcd = Etcd::start(EtcdOptions::at(cluster.fabric(), cluster.fabric_address()))?;
                etcd.put(&format!("{PREFIX}/config"), config)?;
                Ok(Self::Etcd(Box::new(Mutex::new(etcd))))
            }
        }
    }

    /// The flag that makes an agent use it.
    pub(crate) fn flag(&self) -> String {
        match self {
            Self::Local(folder) => format!("--store=local:{}", folder.display()),
            Self::Etcd(etcd) => format!("--etcd-endpoints={}", lock(etcd).endpoint()),
        }
    }

    /// Writes a record.
    pub(crate) fn put(&self, key: &str, value: &str) -> Fallible<()> {
        match self {
            Self::Local(folder) => {
                // Beside, so that nobody reads half of it.
                let beside = folder.join("subnets").join(".written-by-the-soak");
                fs::write(&beside, value)?;
                Ok(fs::rename(beside, folder.join("subnets").join(key))?)
            }
            Self::Etcd(etcd) => Ok(lock(etcd).put(&format!("{PREFIX}/subnets/{key}"), value)?),
        }
    }

    /// Deletes a record.
    pub(crate) fn delete(&self, key: &str) -> Fallible<()> {
        match self {
            Self::Local(folder) => Ok(fs::remove_file(folder.join("subnets").join(key))?),
            Self::Etcd(etcd) => Ok(lock(etcd).del(&format!("{PREFIX}/subnets/{key}"))?),
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
                let prefix = format!("{PREFIX}/subnets/");
                let list = lock(etcd).list(&prefix)?.into_iter();
                Ok(list.map(|one| (one.key.trim_start_matches(&prefix).to_owned(), one.value)).collect())
            }
        }
    }

    /// Answers nobody from now on: a server that stands still, a folder that is not mounted.
    pub(crate) fn pause(&self) -> Fallible<()> {
        match self {
            Self::Local(folder) => Ok(fs::rename(folder, hidden(folder))?),
            Self::Etcd(etcd) => Ok(lock(etcd).pause()?),
        }
    }

    /// Answers again.
    pub(crate) fn resume(&self) -> Fallible<()> {
        match self {
            Self::Local(folder) => Ok(fs::rename(hidden(folder), folder)?),
            Self::Etcd(etcd) => Ok(lock(etcd).resume()?),
        }
    }

    /// Ends the server at once.
    pub(crate) fn kill(&self) -> Fallible<()> {
        Ok(lock(self.server()?).kill().map(drop)?)
    }

    /// Starts the server again with what it had.
    pub(crate) fn restart(&self) -> Fallible<()> {
        Ok(lock(self.server()?).restart()?)
    }

    /// Makes the server forget all revisions but the last.
    pub(crate) fn compact(&self) -> Fallible<()> {
        Ok(lock(self.server()?).compact().map(drop)?)
    }

    fn server(&self) -> io::Result<&Mutex<Etcd>> {
        match self {
            Self::Local(_) => Err(io::Error::other("a folder has no server")),
            Self::Etcd(etcd) => Ok(etcd),
        }
    }
}

fn hidden(folder: &Path) -> PathBuf {
    folder.with_extension("hidden")
}

fn lock(etcd: &Mutex<Etcd>) -> MutexGuard<'_, Etcd> {
    etcd.lock().unwrap_or_else(PoisonError::into_inner)
}
