//! The watch: a snapshot, then the changes after it. A broken stream is resumed where it ended, at the next endpoint,
//! if the store still has the history that we know; otherwise there is a new snapshot. It never ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Error, Event, WatchOptions, WatchResponse, WatchStream};
use flannel_core::clock::Jumps;
use flannel_core::lease::{LeaseUpdate, UnreadableRecord, UnreadableRecords};
use flannel_core::subnet::LeaseStream;
use flannel_core::subnet::allocate::occupied;
use flannel_core::subnet::kit::Backoff;
use flannel_core::subnet::kit::Missing;
use flannel_core::subnet::kit::repack;
use futures::{StreamExt, stream};

use super::Store;
use super::error::{CallError, describe, is_too_large};
use super::records::{History, Known, Listed, MAX_MESSAGE, Position};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

/// A response of at least this many bytes may be a fragment that ends in the middle of a revision.
const FRAGMENT: usize = 512 << 10;
/// How many events of a response are processed at once: one revision can delete all keys.
const AT_ONCE: usize = 512;

/// The reason for a missing lease in a snapshot.
const MISSING: &str =
    "missing since the store was set up anew or restored; kept until its lease would have run out";

/// Why a stream can't be used any more.
pub(super) enum Broken {
    /// It ended; it can be resumed.
    Ended,
    /// The revision at which it should begin was compacted.
    Compacted,
    /// It has an event that is longer than we read.
    TooLarge,
}

/// One watch of one endpoint.
pub(super) struct Feed {
    stream: WatchStream,
    endpoint: usize,
    renewals: watch::Receiver<u64>,
    /// After which silence it is asked for its progress, so that we know how old our knowledge is.
    confirm: Duration,
}

impl Feed {
    /// Watches a key, or a range up to `end`, from a revision on.
    pub(super) async fn open(
        store: &Store,
        key: &str,
        end: Option<&str>,
        revision: i64,
    ) -> Result<Self, CallError> {
        let mut options =
            WatchOptions::new().with_start_revision(revision).with_progress_notify().with_fragment();
        if let Some(end) = end {
            options = options.with_range(end);
        }
        let watch = |client: etcd_client::Client| {
            let mut client = client.watch_client().max_decoding_message_size(MAX_MESSAGE);
            let (key, options) = (key.to_owned(), options.clone());
            async move { client.watch(key, Some(options)).await }
        };
        let renewals = store.clients.renewals();
        // An open stream does not count as an answer: the server may still refuse the watch.
        let began = Instant::now();
        let opened = store.clients.call("watch leases", watch).await;
        let problem = opened.as_ref().err().and_then(CallError::problem);
        store.health.count("watch leases", began, problem.is_none());
        match opened {
            Ok((endpoint, stream)) => {
                // One key is watched for its changes alone.
                let confirm = end.map_or(Duration::MAX, |_| store.options.timeouts.confirm);
                Ok(Self { stream, endpoint, renewals, confirm })
            }
            Err(error) => {
                if let Some(problem) = problem {
                    store.health.fail(problem);
                }
                Err(error)
            }
        }
    }

    /// Waits for the next response. Meanwhile it sometimes asks the server for the watch's progress. The connection's
    /// keep-alive notices a server that hangs.
    pub(super) async fn next(&mut self, store: &Store) -> Result<WatchResponse, Broken> {
        let problem = loop {
            let message = tokio::select! {
                message = tokio::time::timeout(self.confirm, self.stream.message()) => message,
                // The server is not the cause.
                Ok(()) = self.renewals.changed() => return Err(Broken::Ended),
            };
            match message {
                Ok(Ok(Some(response))) => {
                    if response.compact_revision() > 0 {
                        return Err(Broken::Compacted);
                    }
                    if !response.canceled() {
                        store.health.succeed();
                        return Ok(response);
                    }
                    break format!("the server cancelled it: {}", response.cancel_reason());
                }
                Ok(Ok(None)) => break "the server ended it".to_owned(),
                Ok(Err(Error::GRpcStatus(status))) if is_too_large(&status) => {
                    debug!(error = status.message(), "the watch has a record that is too large");
                    return Err(Broken::TooLarge);
                }
                Ok(Err(error)) => break describe(&error),
                Err(_) => {
                    // Only the answer counts, not whether the request could be sent.
                    let ask = self.stream.request_progress();
                    let _ = tokio::time::timeout(Duration::from_secs(1), ask).await;
                }
            }
        };
        store.clients.leave(self.endpoint);
        store.health.fail(format!("watch leases at {}: {problem}", store.clients.url(self.endpoint)));
        Err(Broken::Ended)
    }
}

/// The lease watch. All events of one response come together, in order.
pub(super) fn stream(store: Arc<Store>) -> LeaseStream {
    let watcher = Watcher {
        phase: Phase::List { is_other: false },
        resume: 0,
        is_partial: false,
        known: BTreeMap::new(),
        missing: Missing::new(store.options.clock.clone()),
        jumps: store.options.clock.jumps(),
        store,
        bad: UnreadableRecords::default(),
        waiting: None,
        backoff: Backoff::new(),
    };
    stream::unfold(watcher, |mut watcher| async move {
        let updates = watcher.next().await;
        Some((stream::iter(updates.into_iter().map(Ok)), watcher))
    })
    .flatten()
    .boxed()
}

/// What the watch does next.
enum Phase {
    /// List all leases, for a snapshot.
    List {
        /// Whether the store has another history than the known one: it was replaced, or restored from a backup.
        is_other: bool,
    },
    /// After a break: ask whether the store still has the known history.
    Compare,
    /// Open the watch, from the last known position.
    Open(Position),
    /// Follow the open watch.
    Follow(Position, Box<Feed>),
}

struct Watcher {
    store: Arc<Store>,
    phase: Phase,
    /// The first revision that was not delivered completely.
    resume: i64,
    /// Whether `known` has a part of the revision at `resume`, too.
    is_partial: bool,
    /// The records before `resume`.
    known: BTreeMap<Box<str>, Known>,
    missing: Missing,
    jumps: Jumps,
    /// The unreadable records.
    bad: UnreadableRecords,
    /// The rest of a response with more events than are processed at once.
    waiting: Option<Waiting>,
    backoff: Backoff,
}

/// A response, and the first event that was not processed yet.
struct Waiting {
    response: WatchResponse,
    from: usize,
}

impl Watcher {
    /// Waits for the next updates.
    async fn next(&mut self) -> Vec<LeaseUpdate> {
        let store = Arc::clone(&self.store);
        loop {
            if self.waiting.is_some() {
                tokio::task::yield_now().await;
            }
            if let Some(Waiting { response, from }) = self.waiting.take() {
                return self.deliver_some(response, from);
            }
            let (last, feed) = match &mut self.phase {
                Phase::List { is_other } => {
                    let is_other = *is_other;
                    let kept = if self.resume == 0 { store.kept.take() } else { None };
                    let listed = match kept {
                        Some(listed) => Ok(listed),
                        None => store.list().await,
                    };
                    match listed {
                        Ok(listed) => return vec![self.snapshot(listed, is_other)],
                        // The status says why.
                        Err(_) => tokio::time::sleep(self.backoff.pause()).await,
                    }
                    continue;
                }
                Phase::Compare => {
                    self.compare().await;
                    continue;
                }
                Phase::Open(last) => {
                    let (last, keys) = (*last, &store.keys);
                    match Feed::open(&store, &keys.first, Some(&keys.end), self.resume).await {
                        Ok(feed) => self.phase = Phase::Follow(last, Box::new(feed)),
                        Err(_) => tokio::time::sleep(self.backoff.pause()).await,
                    }
                    continue;
                }
                Phase::Follow(last, feed) => (*last, feed),
            };
            let end = self.missing.time_left();
            let next = async {
                match end {
                    Some(end) => tokio::time::timeout(end, feed.next(&store)).await.ok(),
                    None => Some(feed.next(&store).await),
                }
            };
            let response = tokio::select! {
                response = next => response,
                slept = self.jumps.suspended() => {
                    debug!(?slept, "comparing all leases after a suspend");
                    store.clients.renew().await;
                    self.phase = Phase::Compare;
                    continue;
                }
            };
            let Some(response) = response else {
                let ended = self.missing.expire();
                self.tell_missing();
                return ended.into_iter().map(LeaseUpdate::Removed).collect();
            };
            match response {
                Ok(response) => {
                    self.follow(last, &response);
                    let updates = self.deliver_some(response, 0);
                    if !updates.is_empty() {
                        return updates;
                    }
                }
                Err(broken) => {
                    self.phase = match broken {
                        Broken::Ended => Phase::Compare,
                        // A list names the record that the watch can't carry, and the next watch begins after it.
                        Broken::Compacted | Broken::TooLarge => Phase::List { is_other: false },
                    };
                    if !matches!(broken, Broken::Compacted) {
                        tokio::time::sleep(self.backoff.pause()).await;
                    }
                }
            }
        }
    }

    /// Asks whether the store still has the known history.
    async fn compare(&mut self) {
        if self.is_partial {
            // There is nothing to compare with.
            self.phase = Phase::List { is_other: false };
            return;
        }
        match self.store.compare(self.resume - 1, &self.known).await {
            Ok(History::Same(at)) => self.phase = Phase::Open(at),
            Ok(History::Other) => self.phase = Phase::List { is_other: true },
            Ok(History::Compacted) => self.phase = Phase::List { is_other: false },
            Err(_) => tokio::time::sleep(self.backoff.pause()).await,
        }
    }

    fn snapshot(&mut self, listed: Listed, is_other: bool) -> LeaseUpdate {
        (self.phase, self.resume) = (Phase::Open(listed.at), listed.at.revision + 1);
        let Listed { stored, mut unreadable, known, .. } = listed;
        let before = std::mem::replace(&mut self.known, known);
        if is_other {
            let gone = before.into_keys().filter(|name| !self.known.contains_key(name));
            // Keys that are no lease's are dropped.
            let gone = gone.filter(|name| occupied(name).is_some());
            self.missing.keep(gone.map(String::from), self.store.options.ttl);
        }
        repack(&mut self.known);
        self.is_partial = false;
        if !self.missing.is_empty() {
            for name in self.known.keys() {
                self.missing.found(name);
            }
        }
        self.tell_missing();
        self.bad = unreadable.clone();
        // They count as unknown, not as deleted.
        for name in self.missing.names() {
            unreadable.insert(UnreadableRecord { key: name.clone(), reason: MISSING.to_owned() });
        }
        let leases = stored.into_iter().map(|stored| stored.lease).collect();
        LeaseUpdate::Snapshot { leases, unreadable }
    }

    fn tell_missing(&self) {
        self.store.health.set_missing(self.missing.len(), self.missing.names());
    }

    /// Records the position of the watch after this response.
    fn follow(&mut self, last: Position, response: &WatchResponse) {
        let at = Position::of(response.header());
        if response.created() {
            if last.leads_to(at) {
                self.backoff.reset();
            } else {
                // The store has another history, or this member lags.
                self.phase = Phase::Compare;
            }
            return;
        }
        // An answer to our progress request (watch id -1) can overtake events; a notification of the server itself
        // can't.
        if response.events().is_empty() && response.watch_id() >= 0 {
            self.resume = self.resume.max(at.revision + 1);
        }
        if let Phase::Follow(last, _) = &mut self.phase
            && last.leads_to(at)
        {
            *last = at;
        }
        let modified = |event: &Event| event.kv().map(etcd_client::KeyValue::mod_revision);
        if let Some(newest) = response.events().iter().filter_map(modified).max() {
            let sizes = response.events().iter().filter_map(Event::kv);
            let size: usize = sizes.map(|found| found.key().len() + found.value().len()).sum();
            self.is_partial = size >= FRAGMENT;
            self.resume = self.resume.max(if self.is_partial { newest } else { newest + 1 });
        }
    }

    /// Processes some events of a response, from index `from` on, and keeps the rest for later.
    fn deliver_some(&mut self, response: WatchResponse, from: usize) -> Vec<LeaseUpdate> {
        if response.created() {
            return Vec::new();
        }
        let events = response.events();
        let end = events.len().min(from + AT_ONCE);
        let updates = events[from..end].iter().flat_map(|event| self.update(event)).collect();
        if end > from {
            self.store.health.set_unreadable(&self.bad);
        }
        if end < events.len() {
            self.waiting = Some(Waiting { response, from: end });
        }
        updates
    }

    fn update(&mut self, event: &Event) -> Vec<LeaseUpdate> {
        let Some(found) = event.kv() else { return Vec::new() };
        let name = self.store.keys.name(found.key());
        // A deletion has only a key. Asking the client library for the type would panic on an unknown one.
        if found.version() == 0 {
            self.known.remove(name.as_str());
            self.bad.remove(&name);
            return vec![LeaseUpdate::Removed(name)];
        }
        self.known.insert(name.as_str().into(), Known::of(found));
        let mut updates = Vec::new();
        if !self.missing.is_empty() {
            updates.extend(self.missing.found(&name).into_iter().map(LeaseUpdate::Removed));
            self.tell_missing();
        }
        updates.push(match self.store.decode(found) {
            Ok(stored) => {
                self.bad.remove(&name);
                LeaseUpdate::Put(stored.lease)
            }
            Err(bad) => {
                if self.bad.insert(bad.record.clone()) {
                    self.store.health.name_skipped(&bad.record);
                }
                LeaseUpdate::Unreadable(bad.record)
            }
        });
        updates
    }
}
