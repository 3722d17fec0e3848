//! The status of a store, shared by all its tasks.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::StoreStatus;
use crate::lease::BadRecord;

/// A store that breaks more often than this is in the log once in this time.
const QUIET: Duration = Duration::from_secs(30);

/// Publishes the status, and logs one line when the store breaks and one when it is back.
#[derive(Debug)]
pub(super) struct Health {
    store: &'static str,
    status: watch::Sender<StoreStatus>,
    log: Mutex<Log>,
}

/// What the log says.
#[derive(Debug, Default)]
struct Log {
    is_down: bool,
    /// When it last said that the store broke.
    broke: Option<Instant>,
}

impl Health {
    pub(super) fn new(store: &'static str) -> Self {
        Self { store, status: watch::Sender::new(StoreStatus::unknown()), log: Mutex::default() }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<StoreStatus> {
        self.status.subscribe()
    }

    /// The store answered. Only a change is announced; the time of confirmation always moves.
    pub(super) fn succeed(&self) {
        self.status.send_if_modified(StoreStatus::succeed);
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut log.is_down) {
            info!(store = self.store, "store is back");
        }
    }

    /// The store did not answer, or with an error.
    pub(super) fn fail(&self, problem: String) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if !log.is_down && log.broke.is_none_or(|broke| broke.elapsed() > QUIET) {
            warn!(store = self.store, error = problem, "store unavailable");
            *log = Log { is_down: true, broke: Some(Instant::now()) };
        } else {
            debug!(store = self.store, error = problem, "store unavailable");
        }
        drop(log);
        self.status.send_if_modified(|status| status.fail(problem));
    }

    /// What can't be read, as the store lists it now.
    pub(super) fn set_undecodable(&self, records: Vec<BadRecord>) {
        self.status.send_if_modified(|status| {
            let news = status.undecodable != records;
            if news {
                let told: HashSet<&BadRecord> = status.undecodable.iter().collect();
                for record in records.iter().filter(|record| !told.contains(record)) {
                    warn!(store = self.store, error = %record, "record skipped");
                }
                status.undecodable = records;
            }
            news
        });
    }

    /// What is wrong with the clocks that leases are counted by.
    pub(super) fn set_clock(&self, problem: Option<String>) {
        self.status.send_if_modified(|status| {
            let is_new = status.clock.is_none();
            if let Some(problem) = problem.as_ref().filter(|_| is_new) {
                warn!(store = self.store, problem, "clocks are not in step");
            }
            let news = status.clock != problem;
            status.clock = problem;
            news
        });
    }

    /// The own lease is in the hands of another, or (`None`) ours.
    pub(super) fn set_lost(&self, holder: Option<String>) {
        self.status.send_if_modified(|status| {
            let news = status.lease_lost != holder;
            status.lease_lost = holder;
            news
        });
    }
}

/// What only a store on the network needs.
#[cfg(any(feature = "etcd", feature = "kube"))]
impl Health {
    pub(super) fn is_connected(&self) -> bool {
        self.status.borrow().connected
    }

    /// What is missing since the store was set up anew or restored, and is kept.
    pub(super) fn set_missing(&self, names: Vec<String>) {
        self.status.send_if_modified(|status| {
            let news = status.missing != names;
            if names.len() > status.missing.len() {
                let examples = names.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
                warn!(
                    store = self.store,
                    leases = names.len(),
                    examples,
                    "the store was set up anew or restored; leases are missing and kept"
                );
            } else if news && names.is_empty() {
                info!(store = self.store, "no lease is missing any more");
            }
            status.missing = names;
            news
        });
    }

    /// Why the own lease can't be kept though the store answers; `None` if it can.
    pub(super) fn set_unkept(&self, problem: Option<String>) {
        self.status.send_if_modified(|status| {
            let news = status.lease_unkept != problem;
            if let Some(problem) = problem.as_ref().filter(|_| news) {
                warn!(store = self.store, error = problem, "the own lease can't be kept");
            }
            status.lease_unkept = problem;
            news
        });
    }
}
