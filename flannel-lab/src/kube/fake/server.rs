//! What the server has: objects, faults, tokens and what was asked.

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::KubeApiOptions;
use super::faults::Faults;
use super::listener::Client;
use super::seen::{Counts, Request};
use super::store::Store;
use super::view::MetadataOnly;

/// What the server's threads share with those of the tests.
#[derive(Debug)]
pub(super) struct Server {
    store: Mutex<Store>,
    faults: Mutex<Faults>,
    tokens: Mutex<Option<Vec<String>>>,
    seen: Mutex<(Vec<Request>, Counts)>,
    /// The revision; wakes watches.
    pub(super) changes: watch::Sender<u64>,
    /// Watches of an earlier life end.
    pub(super) life: AtomicU64,
    pub(super) open_watches: AtomicUsize,
    /// How many bytes of endless answers were taken from us.
    pub(super) endless: AtomicU64,
    pub(super) watch_list: bool,
    pub(super) metadata_only: MetadataOnly,
    pub(super) bookmark_interval: Duration,
}

impl Server {
    pub(super) fn new(options: &KubeApiOptions) -> Self {
        Self {
            store: Mutex::new(Store::new(options.history)),
            faults: Mutex::default(),
            tokens: Mutex::new(options.tokens.clone()),
            seen: Mutex::default(),
            changes: watch::Sender::new(0),
            life: AtomicU64::new(0),
            open_watches: AtomicUsize::new(0),
            endless: AtomicU64::new(0),
            watch_list: options.watch_list,
            metadata_only: options.metadata_only,
            bookmark_interval: options.bookmark_interval.max(Duration::from_millis(1)),
        }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    /// Changes the store and wakes watches.
    pub(super) fn change<T>(&self, act: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        let done = act(&mut store);
        self.changes.send_replace(store.revision());
        done
    }

    pub(super) fn faults(&self) -> Faults {
        lock(&self.faults).clone()
    }

    pub(super) fn set_faults(&self, faults: Faults) {
        *lock(&self.faults) = faults;
    }

    pub(super) fn set_tokens(&self, tokens: Option<Vec<String>>) {
        *lock(&self.tokens) = tokens;
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, (Vec<Request>, Counts)> {
        lock(&self.seen)
    }

    /// Whether a request comes with a certificate or a token that is accepted.
    pub(super) fn is_known(&self, client: Client, request: &Request) -> bool {
        let tokens = lock(&self.tokens);
        let Some(tokens) = tokens.as_ref() else { return true };
        client.has_certificate || request.token.as_ref().is_some_and(|token| tokens.contains(token))
    }

    /// The faults of one answer, and the status that it gets instead of its own.
    pub(super) fn take_faults(&self) -> (Faults, Option<u16>) {
        lock(&self.faults).take()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
