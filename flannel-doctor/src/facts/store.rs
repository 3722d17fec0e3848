//! The store, and what it answered.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::config::NetworkConfig;
use flannel_core::error::chain;
use flannel_core::lease::{Lease, LeaseUpdate};
use flannel_core::subnet::{Examination, SubnetError, SubnetManager};
use futures::StreamExt as _;

/// How long the store has for each question.
const PATIENCE: Duration = Duration::from_secs(8);

/// A store that is asked, and never written to.
#[derive(Clone)]
pub struct StoreToAsk {
    store: Result<Arc<dyn SubnetManager>, String>,
    is_named: bool,
}

impl fmt::Debug for StoreToAsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreToAsk").field("place", &self.place()).finish_non_exhaustive()
    }
}

impl StoreToAsk {
    /// A store that the operator named: if it does not answer, that is a failure.
    pub fn named(store: Arc<dyn SubnetManager>) -> Self {
        Self { store: Ok(store), is_named: true }
    }

    /// A store that the operator named, and that can't even be asked: by a file that can't be read, say.
    pub fn unusable(why: impl Into<String>) -> Self {
        Self { store: Err(why.into()), is_named: true }
    }

    /// A store that nobody named, such as that of flags that were not given: if it does not answer, the host may have
    /// another one.
    pub fn guessed(store: Arc<dyn SubnetManager>) -> Self {
        Self { store: Ok(store), is_named: false }
    }

    fn place(&self) -> String {
        self.store.as_ref().map_or_else(|_| "that the flags name".to_owned(), |store| store.place())
    }

    pub(super) async fn ask(&self) -> Answers {
        let (place, is_named) = (self.place(), self.is_named);
        let store = match &self.store {
            Ok(store) => store,
            Err(why) => {
                let config = Config::Unread(why.clone());
                let (took, leases) = (Duration::ZERO, Err(why.clone()));
                return Answers {
                    place,
                    is_named,
                    config,
                    took,
                    leases,
                    examination: Examination::default(),
                };
            }
        };
        let late = |what: &str| format!("{what}: no answer within {} s", PATIENCE.as_secs());
        let config = async {
            let start = Instant::now();
            let config = match tokio::time::timeout(PATIENCE, store.network_config()).await {
                Ok(Ok(config)) => Config::Read(Box::new(config)),
                Ok(Err(error)) if is_answer(&error) => Config::Bad(chain(&error)),
                Ok(Err(error)) => Config::Unread(chain(&error)),
                Err(_) => Config::Unread(late("read the network config")),
            };
            (config, start.elapsed())
        };
        let examine = async { tokio::time::timeout(PATIENCE, store.examine()).await.unwrap_or_default() };
        let ((config, took), examination) = tokio::join!(config, examine);
        // A store that does not answer one question needs no other.
        let leases = match &config {
            Config::Unread(why) => Err(why.clone()),
            _ => tokio::time::timeout(PATIENCE, snapshot(store))
                .await
                .unwrap_or_else(|_| Err(late("list the leases"))),
        };
        Answers { place, is_named, config, took, leases, examination }
    }
}

/// All leases, as the store lists them.
async fn snapshot(store: &Arc<dyn SubnetManager>) -> Result<Listing, String> {
    let mut watch = store.watch_leases();
    while let Some(update) = watch.next().await {
        if let LeaseUpdate::Snapshot { leases, unreadable } = update.map_err(|error| chain(&error))? {
            let unreadable = unreadable.named().map(|record| record.to_string()).collect();
            return Ok(Listing { leases, unreadable });
        }
    }
    Err("the list of leases ended before it began".to_owned())
}

/// Whether the store answered, if only that it has nothing good.
fn is_answer(error: &SubnetError) -> bool {
    matches!(
        error,
        SubnetError::NoConfig { .. } | SubnetError::Config { .. } | SubnetError::NotAssigned { .. }
    )
}

/// What the store said about the network config.
#[derive(Debug, Clone)]
pub(crate) enum Config {
    /// It is good.
    Read(Box<NetworkConfig>),
    /// There is none, or none that can be used.
    Bad(String),
    /// The store did not answer.
    Unread(String),
}

/// All leases of a store.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listing {
    pub(crate) leases: Vec<Lease>,
    /// The unreadable records.
    pub(crate) unreadable: Vec<String>,
}

/// The answers of a store.
#[derive(Debug, Clone)]
pub(crate) struct Answers {
    pub(crate) place: String,
    pub(crate) is_named: bool,
    pub(crate) config: Config,
    /// How long it took to read the network config, with the time to connect.
    pub(crate) took: Duration,
    pub(crate) leases: Result<Listing, String>,
    pub(crate) examination: Examination,
}

impl Answers {
    /// Why the store can't be used; `None` if it answered.
    pub(crate) fn outage(&self) -> Option<&str> {
        match &self.config {
            Config::Unread(why) => Some(why),
            _ => None,
        }
    }
}
