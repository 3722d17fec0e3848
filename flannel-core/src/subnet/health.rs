//! The status of a store, shared by all its tasks.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;
use tracing::{info, warn};

use super::StoreStatus;
use crate::lease::BadRecord;

/// Publishes the status, and logs one line when the store breaks and one when it is back.
#[derive(Debug)]
pub(super) struct Health {
    store: &'static str,
    status: watch::Sender<StoreStatus>,
    /// Whether the log says that the store is down.
    reported: AtomicBool,
}

impl Health {
    pub(super) fn new(store: &'static str) -> Self {
        Self { store, status: watch::Sender::new(StoreStatus::unknown()), reported: AtomicBool::new(false) }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<StoreStatus> {
        self.status.subscribe()
    }

    /// The store answered. Only a change is announced; the time of confirmation always moves.
    pub(super) fn succeed(&self) {
        self.status.send_if_modified(StoreStatus::succeed);
        if self.reported.swap(false, Ordering::Relaxed) {
            info!(store = self.store, "store is back");
        }
    }

    /// The store did not answer, or with an error.
    pub(super) fn fail(&self, problem: String) {
        if !self.reported.swap(true, Ordering::Relaxed) {
            warn!(store = self.store, error = problem, "store unavailable");
        }
        self.status.send_if_modified(|status| status.fail(problem));
    }

    /// What can't be read, as the store lists it now.
    pub(super) fn set_undecodable(&self, records: Vec<BadRecord>) {
        self.status.send_if_modified(|status| {
            let news = status.undecodable != records;
            if news {
                for record in records.iter().filter(|record| !status.undecodable.contains(record)) {
                    warn!(store = self.store, key = record.key, error = record.reason, "record skipped");
                }
                status.undecodable = records;
            }
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
