//! The store, and what it answered.

use std::error::Error;
use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::config::NetworkConfig;
use flannel_core::error::chain;
use flannel_core::lease::{Lease, LeaseUpdate};
use flannel_core::subnet::{Examination, StoreStatus, SubnetError, SubnetManager};
use futures::StreamExt as _;

use crate::finding::is_denied;

/// How long the store has for each question.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long a store that refused to list leases has to do it after all.
const SECOND_TRY: Duration = Duration::from_secs(1);

/// A store that is asked, and never written to.
#[derive(Clone)]
pub struct StoreToAsk {
    access: Access,
    is_named: bool,
    /// Whether its servers are those that are tried where nobody names any.
    has_usual_servers: bool,
}

/// How a store can be asked.
#[derive(Clone)]
enum Access {
    Open(Arc<dyn SubnetManager>),
    /// It can't, whoever asks; why not.
    Unusable(String),
    /// This process lacks the right to a file that it needs.
    Denied(String),
}

impl fmt::Debug for StoreToAsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreToAsk").field("place", &self.place()).finish_non_exhaustive()
    }
}

impl StoreToAsk {
    fn new(access: Access, is_named: bool) -> Self {
        Self { access, is_named, has_usual_servers: false }
    }

    /// A store that the operator named: if it does not answer, that is a failure.
    pub fn named(store: Arc<dyn SubnetManager>) -> Self {
        Self::new(Access::Open(store), true)
    }

    /// A store that the operator named, and that can't even be asked: something that it needs to know is not said.
    pub fn unusable(why: impl Into<String>) -> Self {
        Self::new(Access::Unusable(why.into()), true)
    }

    /// The same by an error. If it comes from a file that this process may not read, nothing is wrong with the store.
    pub fn refused(error: &(dyn Error + 'static)) -> Self {
        let why = chain(error);
        Self::new(if is_denied(error) { Access::Denied(why) } else { Access::Unusable(why) }, true)
    }

    /// A store that nobody named, such as that of flags that were not given: if it does not answer, the host may have
    /// another one.
    pub fn guessed(store: Arc<dyn SubnetManager>) -> Self {
        Self { has_usual_servers: true, ..Self::new(Access::Open(store), false) }
    }

    /// The same store, of which nobody named the servers: of several that are tried one may not exist.
    #[must_use]
    pub fn with_usual_servers(self, has_usual_servers: bool) -> Self {
        Self { has_usual_servers, ..self }
    }

    fn place(&self) -> String {
        match &self.access {
            Access::Open(store) => store.place(),
            _ => "that the flags name".to_owned(),
        }
    }

    pub(super) async fn ask(&self) -> Answers {
        let mut answers = Answers {
            place: self.place(),
            is_named: self.is_named,
            has_usual_servers: self.has_usual_servers,
            hosts: Vec::new(),
            config: Config::Unread(String::new()),
            took: Duration::ZERO,
            leases: Err("the store can't be asked".to_owned()),
            examination: Examination::default(),
        };
        let store = match &self.access {
            Access::Open(store) => store,
            Access::Unusable(why) => return Answers { config: Config::Unusable(why.clone()), ..answers },
            Access::Denied(why) => return Answers { config: Config::Denied(why.clone()), ..answers },
        };
        answers.hosts = store.hosts();
        let config = async {
            let start = Instant::now();
            let config = match tokio::time::timeout(PATIENCE, store.network_config()).await {
                Ok(Ok(config)) => Config::Read(Box::new(config)),
                Ok(Err(error)) if is_answer(&error) => Config::Bad(chain(&error)),
                Ok(Err(error)) if is_denied(&error) => Config::Denied(chain(&error)),
                Ok(Err(error)) => Config::Unread(chain(&error)),
                Err(_) => Config::Unread(late("read the network config")),
            };
            (config, start.elapsed())
        };
        let examine = async { tokio::time::timeout(PATIENCE, store.examine()).await.unwrap_or_default() };
        ((answers.config, answers.took), answers.examination) = tokio::join!(config, examine);
        // A store that does not answer one question needs no other.
        answers.leases = match &answers.config {
            Config::Unread(why) | Config::Denied(why) => Err(why.clone()),
            _ => snapshot(store).await,
        };
        answers
    }
}

fn late(what: &str) -> String {
    format!("{what}: no answer within {} s", PATIENCE.as_secs())
}

/// All leases, as the store lists them. A stream of leases tries again for ever and yields no error, so the reason of a
/// failure comes from the store's status.
async fn snapshot(store: &Arc<dyn SubnetManager>) -> Result<Listing, String> {
    let mut watch = store.watch_leases();
    let listed = async {
        while let Some(update) = watch.next().await {
            if let LeaseUpdate::Snapshot { leases, unreadable } = update.map_err(|error| chain(&error))? {
                let unreadable = unreadable.named().map(|record| record.to_string()).collect();
                return Ok(Listing { leases, unreadable });
            }
        }
        Err("the list of leases ended before it began".to_owned())
    };
    let mut status = store.status();
    let failed = async {
        let nothing_yet = StoreStatus::unknown().problem;
        loop {
            let failed = status.wait_for(|status| !status.connected && status.problem != nothing_yet).await;
            let Ok(problem) = failed.map(|status| status.problem.clone()) else { return pending().await };
            // A second attempt may succeed.
            tokio::time::sleep(SECOND_TRY).await;
            if !status.borrow().connected {
                return Err(problem);
            }
        }
    };
    let answered = async {
        tokio::select! { listed = listed => listed, failed = failed => failed }
    };
    tokio::time::timeout(PATIENCE, answered).await.unwrap_or_else(|_| Err(late("list the leases")))
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
    /// The store can't be asked, whoever asks.
    Unusable(String),
    /// This process lacks a right to ask it.
    Denied(String),
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
    pub(crate) has_usual_servers: bool,
    /// The hosts of its servers.
    pub(crate) hosts: Vec<String>,
    pub(crate) config: Config,
    /// How long it took to read the network config, with the time to connect.
    pub(crate) took: Duration,
    pub(crate) leases: Result<Listing, String>,
    pub(crate) examination: Examination,
}

/// Why a store says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outage {
    /// It does not answer.
    Silent(String),
    /// It can't be asked, whoever asks.
    Unusable(String),
    /// This process lacks a right to ask it.
    Denied(String),
}

impl Answers {
    /// Why the store can't be used; `None` if it answered. A config that comes from a file says nothing of the servers.
    pub(crate) fn outage(&self) -> Option<Outage> {
        let servers = &self.examination.servers;
        match &self.config {
            Config::Unread(why) => Some(Outage::Silent(why.clone())),
            Config::Unusable(why) => Some(Outage::Unusable(why.clone())),
            Config::Denied(why) => Some(Outage::Denied(why.clone())),
            _ if self.leases.is_ok() || servers.is_empty() => None,
            _ => {
                let failed: Option<Vec<&str>> =
                    servers.iter().map(|server| server.answer.as_ref().err().map(String::as_str)).collect();
                failed.map(|all| Outage::Silent(all.join("; ")))
            }
        }
    }
}
