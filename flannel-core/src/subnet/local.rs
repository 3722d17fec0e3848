//! A store without a server: a folder laid out like the etcd prefix, `config` and `subnets/<key>`, with the
//! same JSON. Agents on one machine (or on a shared file system with locks) form a cluster with it.
//!
//! - A lease expires `ttl` after the time of its file (mtime), which a renewal updates. A file that is dated in the
//!   future lives that much longer. An agent that has the lock removes expired leases. Times are those of the folder's
//!   clock, which is read by dating a file, not those of one host.
//! - A folder that others can write to is refused unless [`LocalOptions::allow_shared`] is set, and no link, FIFO or
//!   device in it is opened. An entry that is not a regular file is reported as an unreadable record.
//! - A file **without owner-write permission** (`chmod 400`) is a reservation: it never expires, is never renewed, and
//!   stays a reservation when its node publishes in it.
//! - The order of creation is the birth time of the file, or its mtime where the file system has no birth times. A
//!   write makes a new file, so a node that changes its attributes becomes the youngest. The lock keeps leases from
//!   overlapping, so this order matters only for records that were written by hand.
//! - A folder without `config` counts as unavailable, never as empty: the file system may not be mounted.

mod clock;
mod files;
mod renew;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::clock::FolderClock;
use self::files::{Cache, Entry, Folder, Found, Scan};
use super::allocate::{Applicant, Decision, decide, former, holder, is_same_node, published};
use super::kit::{ConfigFile, Health, follow_config, grantable};
use super::{ConfigStream, Identity, LeaseStream, StoreStatus, SubnetError, SubnetManager};
use crate::addr::PerFamily;
use crate::clock::Clock;
use crate::config::{LeaseSource, NetworkConfig};
use crate::dataplane::command::word;
use crate::lease::{Lease, LeaseAttrs, LeaseKey};

/// The options of a local store.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LocalOptions {
    /// The folder that holds `config`. The folder `subnets` is made in it with mode 0700.
    pub dir: PathBuf,
    /// Whether users other than root and that of this process may have write permission for the folder. They can
    /// redirect the traffic of all pods.
    pub allow_shared: bool,
    /// What this node knows of itself, to find its own lease again.
    pub identity: Identity,
    /// How long a lease lives after its last renewal.
    /// Out of a range from a second to ten years the nearest counts.
    pub ttl: Duration,
    /// How long before its expiry a lease is renewed.
    pub renew_margin: Duration,
    /// The clocks by which leases are dated.
    pub clock: Clock,
}

impl LocalOptions {
    /// The options for a folder, with the times of the etcd store: leases expire after 24 hours and are renewed one
    /// hour before.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let (ttl, renew_margin) = (Duration::from_hours(24), Duration::from_hours(1));
        let (identity, clock) = (Identity::default(), Clock::default());
        Self { dir: dir.into(), allow_shared: false, identity, ttl, renew_margin, clock }
    }
}

/// The store in a folder. A clone shares its status.
#[derive(Debug, Clone)]
pub struct LocalSubnetManager(Arc<Store>);

#[derive(Debug)]
struct Store {
    folder: Folder,
    clock: FolderClock,
    options: LocalOptions,
    health: Health,
    /// What this node knows of itself.
    identity: Mutex<Identity>,
    /// This node's addresses on the underlay.
    local: Mutex<PerFamily<IpAddr>>,
    /// The config that was returned last.
    used_config: Mutex<Option<NetworkConfig>>,
    /// The cache of all reads of the folder, since most files never change.
    cache: Mutex<Cache>,
}

impl LocalSubnetManager {
    /// A store in this folder. It reads and writes nothing yet.
    pub fn new(options: LocalOptions) -> Self {
        let options = LocalOptions { ttl: grantable(options.ttl), ..options };
        let (root, ttl, allow_shared) = (options.dir.clone(), options.ttl, options.allow_shared);
        let folder = Folder { root, ttl, allow_shared };
        let clock = FolderClock::new(options.clock.clone());
        let (health, local, cache) = (Health::new("local"), Mutex::default(), Mutex::default());
        let identity = Mutex::new(options.identity.clone());
        let used_config = Mutex::default();
        Self(Arc::new(Store { folder, clock, options, health, identity, local, used_config, cache }))
    }

    /// Runs blocking work that only reads files, on a blocking thread. Dropping the future does not interrupt it.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, SubnetError> + Send + 'static,
    ) -> Result<T, SubnetError> {
        self.run("read the folder", move |store, _| work(store)).await
    }

    /// Runs blocking work that changes files, on a blocking thread. After the future was dropped it begins no further
    /// change.
    async fn changing<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store, &Caller) -> Result<T, SubnetError> + Send + 'static,
    ) -> Result<T, SubnetError> {
        self.run("change the folder", work).await
    }

    async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Store, &Caller) -> Result<T, SubnetError> + Send + 'static,
    ) -> Result<T, SubnetError> {
        let began = Instant::now();
        let (store, waiting) = (Arc::clone(&self.0), Arc::new(()));
        let caller = Caller(Arc::downgrade(&waiting));
        let done = tokio::task::spawn_blocking(move || work(&store, &caller)).await;
        let result = done.unwrap_or_else(|error| {
            Err(SubnetError::Unavailable { what: "the runtime shuts down".to_owned(), source: error.into() })
        });
        let is_answered = self.0.note(&result);
        self.0.health.count(what, began, is_answered);
        result
    }
}

/// The caller that waits for work on a blocking thread.
struct Caller(Weak<()>);

impl Caller {
    /// Whether the caller's future was dropped.
    fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}

#[async_trait]
impl SubnetManager for LocalSubnetManager {
    async fn network_config(&self) -> Result<NetworkConfig, SubnetError> {
        let config = self.blocking(Store::config).await?;
        *self.0.used_config.lock().unwrap_or_else(PoisonError::into_inner) = Some(config.clone());
        Ok(config)
    }

    /// A folder without a config is one that is not mounted, which is no news of the config.
    fn config_changes(&self) -> Option<ConfigStream> {
        let store = Arc::clone(&self.0);
        let used = store.used_config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let file = ConfigFile::new(self.0.folder.config_file(), move || store.config());
        Some(follow_config(file.may_be_away(), used))
    }

    fn identify(&self, identity: Identity) {
        *self.0.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    fn avoid(&self, local: &PerFamily<IpAddr>) {
        *self.0.local.lock().unwrap_or_else(PoisonError::into_inner) = *local;
    }

    async fn published_attrs(
        &self,
        public_ips: &PerFamily<IpAddr>,
    ) -> Result<Option<LeaseAttrs>, SubnetError> {
        let public_ips = *public_ips;
        self.blocking(move |store| store.published(&public_ips)).await
    }

    async fn acquire_lease(&self, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let attrs = attrs.clone();
        let lease = self.changing(move |store, caller| store.acquire(&attrs, caller)).await?;
        self.0.health.set_lost(None);
        Ok(lease)
    }

    async fn publish(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let (own, attrs) = (lease.clone(), attrs.clone());
        let published = self.changing(move |store, caller| store.publish(&own, &attrs, caller)).await;
        if let Err(lost @ SubnetError::LeaseLost { .. }) = &published {
            self.0.health.set_lost(Some(lost.to_string()));
        }
        published
    }

    async fn renew_lease(&self, lease: &Lease) -> Result<Infallible, SubnetError> {
        renew::keep_renewed(self, lease).await
    }

    async fn release_lease(&self, lease: &Lease) -> Result<(), SubnetError> {
        let own = lease.clone();
        self.changing(move |store, caller| store.release(&own, caller)).await?;
        self.0.health.set_left(None, Duration::ZERO);
        Ok(())
    }

    fn watch_leases(&self) -> LeaseStream {
        watch::stream(self.clone())
    }

    fn status(&self) -> tokio::sync::watch::Receiver<StoreStatus> {
        self.0.health.subscribe()
    }

    fn place(&self) -> String {
        format!("local:{}", self.0.folder.root.display())
    }

    fn release_command(&self, lease: LeaseKey) -> Option<String> {
        let file = self.0.folder.root.join("subnets").join(lease.to_string());
        Some(format!("rm -f {}", word(&file.to_string_lossy())))
    }
}

impl Store {
    /// What this node knows of itself now.
    fn identity(&self) -> Identity {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records in the status whether the store could be used, and returns it.
    fn note<T>(&self, result: &Result<T, SubnetError>) -> bool {
        if let Err(error @ (SubnetError::Unavailable { .. } | SubnetError::Refused { .. })) = result {
            self.health.fail(crate::error::chain(error));
            return false;
        }
        self.health.succeed();
        true
    }

    /// Takes the lock for a change, unless the caller's future was dropped: a dropped call must not change anything
    /// after a later call of the same caller.
    fn lock(&self, caller: &Caller) -> Result<File, SubnetError> {
        let lock = self.folder.lock(|| caller.is_gone());
        lock.map_err(failed("lock", &self.folder.lock_file()))
    }

    fn config(&self) -> Result<NetworkConfig, SubnetError> {
        let path = self.folder.config_file();
        let place = || path.display().to_string();
        let text = match self.folder.config() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SubnetError::NoConfig { place: place() });
            }
            read => read.map_err(failed("read", &path))?,
        };
        NetworkConfig::parse(&text, LeaseSource::Store)
            .map_err(|source| SubnetError::Config { place: place(), source })
    }

    fn scan(&self) -> Result<Scan, SubnetError> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now(&self.folder);
        let scan = self.folder.scan(&mut cache, now.time);
        let mut scan = scan.map_err(failed("read", &self.folder.subnets()))?;
        scan.clock_set = self.clock.last_set();
        self.health.set_clock(self.clock.problem(&scan.ahead));
        self.health.set_unreadable(&scan.bad);
        Ok(scan)
    }

    /// Looks at these names alone.
    fn look(&self, names: &BTreeSet<OsString>) -> Result<Vec<(String, Found)>, SubnetError> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now(&self.folder);
        self.folder.look(&mut cache, names, now.time).map_err(failed("read", &self.folder.subnets()))
    }

    fn published(&self, public_ips: &PerFamily<IpAddr>) -> Result<Option<LeaseAttrs>, SubnetError> {
        let subnets = self.folder.subnets();
        if !self.folder.has_subnets().map_err(failed("look for", &subnets))? {
            return Ok(None);
        }
        let scan = self.scan()?;
        // An expired record still shows what this node used, and peers may not have noticed that it expired.
        let entries = scan.live.values().chain(scan.expired.values());
        Ok(published(entries.filter_map(Entry::lease), public_ips, &self.identity()))
    }

    fn acquire(&self, attrs: &LeaseAttrs, caller: &Caller) -> Result<Lease, SubnetError> {
        let config = self.config()?;
        let subnets = self.folder.subnets();
        self.folder.create_subnets().map_err(failed("create", &subnets))?;
        let _lock = self.lock(caller)?;
        let scan = self.scan()?;
        let mut identity = self.identity();
        if identity.subnets.is_none() {
            let expired = scan.expired.values().filter_map(Entry::lease);
            let expired = expired.filter(|lease| is_same_node(&lease.attrs, attrs));
            identity.subnets = expired.max_by_key(|lease| lease.created).map(|lease| lease.key);
        }
        let local = *self.local.lock().unwrap_or_else(PoisonError::into_inner);
        let applicant = Applicant { attrs, identity: &identity, local: &local };
        let listing = scan.listing();
        let decision = decide(&config, &listing, applicant, &mut fastrand::Rng::new())?;
        let gone = scan.expired.keys().chain(&scan.leftovers);
        self.folder.remove(gone).map_err(failed("clean", &subnets))?;
        let lease = self.carry_out(decision, attrs)?;
        for old in former(&listing, lease.key, applicant) {
            let (subnet, underlay) = (old.lease.key, holder(&old.lease.attrs));
            if old.reserved {
                warn!(%subnet, "a reservation names this node beside its lease; delete one of them");
                continue;
            }
            self.folder.remove([&subnet.to_string()]).map_err(failed("delete from", &subnets))?;
            info!(%subnet, underlay, "former lease of this node deleted");
        }
        Ok(lease)
    }

    /// Carries out a decision, under the lock.
    fn carry_out(&self, decision: Decision, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let subnets = self.folder.subnets();
        let write = |key, reserved| {
            let created = self.folder.write(key, attrs, reserved, self.options.clock.file_time());
            let created = created.map_err(failed("write to", &subnets))?;
            info!(subnet = %key, "lease written");
            Ok(Lease { key, attrs: attrs.clone(), created })
        };
        match decision {
            Decision::Adopt(own) if own.lease.attrs == *attrs => {
                debug!(subnet = %own.lease.key, "lease adopted unchanged");
                if !own.reserved {
                    let touched = self.folder.touch(own.lease.key, self.options.clock.file_time());
                    touched.map_err(failed("renew in", &subnets))?;
                }
                Ok(own.lease)
            }
            Decision::Adopt(own) => {
                if !is_same_node(&own.lease.attrs, attrs) {
                    let (before, underlay) = (holder(&own.lease.attrs), holder(attrs));
                    info!(subnet = %own.lease.key, before, underlay, "lease kept; the address of this node changed");
                }
                write(own.lease.key, own.reserved)
            }
            Decision::Take(key) | Decision::Reclaim(key) => write(key, false),
            Decision::Replace { old, new } => {
                // The new record is written before the old one is deleted: after a crash in between the next start
                // adopts one of them.
                let lease = write(new, old.reserved)?;
                let old = old.lease.key.to_string();
                self.folder.remove([&old]).map_err(failed("delete from", &subnets))?;
                info!(subnet = old, "lease replaced");
                Ok(lease)
            }
        }
    }
}

impl Entry {
    fn lease(&self) -> Option<&Lease> {
        match self {
            Self::Record(record) => Some(&record.lease),
            Self::Bad { .. } => None,
        }
    }
}

/// Makes the error of a failed operation: temporary errors are an outage, others a refusal.
fn failed<'a>(tried: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> SubnetError + 'a {
    use io::ErrorKind::{IsADirectory, NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    move |error| {
        let what = format!("{tried} {}", path.display());
        let refused =
            matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | NotADirectory | IsADirectory);
        let source: Box<dyn Error + Send + Sync> = error.into();
        if refused {
            SubnetError::Refused { what, source }
        } else {
            SubnetError::Unavailable { what, source }
        }
    }
}
