//! The lease watch: all nodes once, then their changes, of which only the metadata is sent. It reconnects, resumes where it was, and lists again if the
//! server no longer has the history, or if its revisions went backwards.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flannel_core::clock::Jumps;
use flannel_core::lease::{LeaseKey, LeaseUpdate, UnreadableRecord};
use flannel_core::subnet::LeaseStream;
use flannel_core::subnet::kit::Backoff;
use flannel_core::subnet::kit::Missing;
use futures::{StreamExt, stream};
use tokio::sync::watch as channel;
use tracing::{debug, info, warn};

use super::Store;
use super::asking::Asking;
use super::feed::{Event, Feed, Heard, Listed, NoList, Object, Opened};
use super::known::{Folded, Known, Listing};
use super::node::{WireNode, revision_number};
use super::view::View;

/// How long a lease is kept if its node is missing since the cluster was restored from a backup: as long as a lease in
/// etcd.
const KEEP: Duration = Duration::from_hours(24);
/// A watch that lived longer than this was a good one.
const GOOD: Duration = Duration::from_secs(10);
/// How many times in a row a watch may send garbage before all nodes are listed again.
const GARBAGE: u32 = 3;

/// How many nodes of a list may be asked for one by one. With more of them a list of whole objects costs less.
const MOST_ASKED: usize = 64;

/// The reason for a missing lease in a snapshot.
const MISSING: &str = "its node is missing since the cluster was restored from a backup; kept for a day";

pub(super) fn stream(store: Arc<Store>) -> LeaseStream {
    let watcher = Watcher {
        known: None,
        phase: Phase::List(View::Whole),
        asking: Asking::default(),
        newest: None,
        moved: store.moved.subscribe(),
        can_list_by_watch: true,
        view: View::Metadata,
        garbage: 0,
        missing: Missing::new(store.options.clock.clone()),
        jumps: store.options.clock.jumps(),
        store,
        backoff: Backoff::new(),
    };
    stream::unfold(watcher, |mut watcher| async move {
        let updates = watcher.next().await;
        Some((stream::iter(updates.into_iter().map(Ok)), watcher))
    })
    .flatten()
    .boxed()
}

/// What the watch does next. Except for `List`, the history is known up to a revision.
enum Phase {
    /// List all nodes, for a snapshot: whole ones, from which all subnets are known, or their metadata alone, if only few
    /// nodes can be new.
    List(View),
    /// After a break: ask whether the server still has the known history.
    Compare(String),
    /// Open the watch.
    Open(String),
    /// Follow the open watch.
    Follow(String, Box<Feed>),
}

struct Watcher {
    store: Arc<Store>,
    /// The nodes; `None` until config and own name are known.
    known: Option<Arc<Mutex<Known>>>,
    phase: Phase,
    /// The nodes whose subnets are not known yet.
    asking: Asking,
    /// The newest known revision as a number, which stays when all nodes are listed again.
    newest: Option<u64>,
    /// Notifies when our address has changed.
    moved: channel::Receiver<()>,
    /// Whether the server may support watches that begin with all objects.
    can_list_by_watch: bool,
    /// What is asked for of the nodes: metadata, unless the server is known not to send that alone.
    view: View,
    /// The number of garbage lines since the last event.
    garbage: u32,
    missing: Missing,
    jumps: Jumps,
    backoff: Backoff,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Without the watch the state of the own node is unknown.
        self.store.forget_own();
    }
}

impl Watcher {
    /// Waits for the next updates.
    async fn next(&mut self) -> Vec<LeaseUpdate> {
        let store = Arc::clone(&self.store);
        loop {
            let Ok(own) = store.node_name().await else {
                self.pause().await;
                continue;
            };
            let feed = match &mut self.phase {
                Phase::List(view) => {
                    let view = *view;
                    match self.list(&own, view).await {
                        Some(update) => return vec![update],
                        None => self.pause().await,
                    }
                    continue;
                }
                Phase::Compare(resume) => {
                    let resume = std::mem::take(resume);
                    self.compare(resume).await;
                    continue;
                }
                Phase::Open(resume) => {
                    let resume = std::mem::take(resume);
                    self.open(resume).await;
                    continue;
                }
                Phase::Follow(_, feed) => feed,
            };
            let missing = self.missing.time_left();
            let known = self.known.clone();
            let is_same = |wire: &WireNode<'_>| {
                known.as_ref().is_some_and(|known| lock(known).is_same(wire, &store.names))
            };
            let next = async {
                let next = feed.next(&store, &own, store.options.timeouts.silence, is_same);
                match missing {
                    Some(end) => tokio::time::timeout(end, next).await.ok(),
                    None => Some(next.await),
                }
            };
            let heard = tokio::select! {
                heard = next => heard,
                object = self.asking.next(&store) => {
                    let updates = self.on_answer(object);
                    if !updates.is_empty() {
                        return updates;
                    }
                    continue;
                }
                // The sender lives as long as the store.
                _ = self.moved.changed() => {
                    debug!("watching from another address");
                    self.leave(Phase::Open);
                    continue;
                }
                slept = self.jumps.suspended() => {
                    debug!(?slept, "watching anew after a suspend");
                    store.clients.renew();
                    self.leave(Phase::Compare);
                    continue;
                }
            };
            let updates = match heard {
                Some(Heard::Event(event, revision)) => self.on_event(event, revision, &own).await,
                Some(Heard::Ended) => {
                    // That is regular if the watch lasted for the requested time.
                    let is_over = matches!(&self.phase, Phase::Follow(_, feed) if feed.is_over());
                    let next = if is_over { Phase::Open } else { Phase::Compare };
                    self.close("the server ended it", next).await;
                    Vec::new()
                }
                Some(Heard::Broken(why)) => {
                    store.clients.renew();
                    store.health.fail(format!("watch nodes at {}: {why}", store.clients.server()));
                    self.close(&why, Phase::Compare).await;
                    Vec::new()
                }
                None => {
                    let ended = self.missing.expire();
                    self.tell();
                    ended.into_iter().map(LeaseUpdate::Removed).collect()
                }
            };
            if !updates.is_empty() {
                return updates;
            }
            // Many events without updates must not starve other tasks. To yield after each would wake another thread for it.
            tokio::task::coop::consume_budget().await;
        }
    }

    async fn pause(&mut self) {
        let pause = self.backoff.pause();
        tokio::time::sleep(pause).await;
    }

    /// Closes the watch, and continues with `next` from where it was. Returns how long it was open.
    fn leave(&mut self, next: fn(String) -> Phase) -> Duration {
        match std::mem::replace(&mut self.phase, Phase::List(View::Whole)) {
            Phase::Follow(resume, feed) => {
                self.phase = next(resume);
                feed.age()
            }
            other => {
                self.phase = other;
                Duration::ZERO
            }
        }
    }

    /// Closes the watch after its end. The next one follows at once if this one was good.
    async fn close(&mut self, why: &str, next: fn(String) -> Phase) {
        debug!(why, "watch of nodes ended");
        if self.leave(next) >= GOOD {
            self.backoff.reset();
        }
        self.pause().await;
    }

    async fn open(&mut self, resume: String) {
        match self.store.open(Some(&resume), self.view).await {
            Ok(Opened::Feed(feed)) => self.phase = Phase::Follow(resume, feed),
            Ok(Opened::Unacceptable(why)) => {
                self.want_whole(&why);
                self.phase = Phase::Open(resume);
            }
            Err(error) if error.is_expired() => {
                debug!(%error, "listing all nodes again");
                self.phase = Phase::List(self.view);
            }
            Err(_) => {
                self.phase = Phase::Open(resume);
                self.pause().await;
            }
        }
    }

    /// Asks whether the server still has the history that we know. After a restored backup a watch would be silent
    /// until the server's revisions reach ours.
    async fn compare(&mut self, resume: String) {
        match self.store.revision().await {
            // The same node may have got other subnets since.
            Ok(now) if revision_number(&now) < self.newest => self.phase = Phase::List(View::Whole),
            Ok(_) => self.phase = Phase::Open(resume),
            Err(_) => {
                self.phase = Phase::Compare(resume);
                self.pause().await;
            }
        }
    }

    /// The server does not send metadata alone, so from now on it is asked for whole objects.
    fn want_whole(&mut self, why: &str) {
        debug!(why, "this API server does not send the metadata of nodes alone");
        self.view = View::Whole;
    }

    /// Lists all nodes. `None` if it failed, or has to be tried otherwise; the status has the reason of a failure.
    async fn list(&mut self, own: &str, view: View) -> Option<LeaseUpdate> {
        let store = Arc::clone(&self.store);
        if self.known.is_none() {
            // Read once: a later change of the file does not change the families of a running agent.
            let config = store.config();
            let config =
                config.inspect_err(|error| store.health.fail(flannel_core::error::chain(error))).ok()?;
            let prefix = store.options.annotations.clone();
            let known = Arc::new(Mutex::new(Known::new(own, config.families().collect(), prefix)));
            *store.nodes.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&known);
            self.known = Some(known);
        }
        let known = Arc::clone(self.known.as_ref().expect("it was made above"));
        let (listed, mut listing, feed) = match self.read_list(&known, own, view).await {
            Ok(read) => read,
            Err(NoList::Unacceptable(why)) => {
                self.want_whole(&why);
                self.phase = Phase::List(View::Whole);
                return None;
            }
            Err(NoList::Failed | NoList::Unsupported(_)) => return None,
        };
        let number = revision_number(&listed.revision);
        let mut wants = std::mem::take(&mut listing.wants);
        if view == View::Metadata && (number < self.newest || wants.len() > MOST_ASKED) {
            debug!(unknown = wants.len(), "listing all nodes again, whole");
            self.phase = Phase::List(View::Whole);
            return None;
        }
        if !wants.is_empty() {
            let (objects, left) = store.ask_all(wants, number).await;
            listing.count -= objects.len();
            for object in objects {
                lock(&known).add(&mut listing, object);
            }
            wants = left;
        }
        let mut known = lock(&known);
        let before: Vec<LeaseKey> = known.keys().collect();
        let count = listing.count;
        let mut update = known.replace(listing);
        if number < self.newest {
            let now: BTreeSet<LeaseKey> = known.keys().collect();
            let gone = before.iter().filter(|key| !now.contains(key));
            let gone: Vec<String> = gone.map(ToString::to_string).collect();
            warn!(
                missing = gone.len(),
                "the API server's revisions went backwards, as after a restored backup"
            );
            self.missing.keep(gone.into_iter(), KEEP);
        }
        if self.missing.time_left().is_some() {
            known.keys().for_each(|key| drop(self.missing.found(&key.to_string())));
        }
        if let LeaseUpdate::Snapshot { unreadable, leases } = &mut update {
            debug!(nodes = count, leases = leases.len(), "nodes listed");
            // They count as unknown, not as deleted.
            for name in self.missing.names() {
                unreadable.insert(UnreadableRecord { key: name.clone(), reason: MISSING.to_owned() });
            }
        }
        drop(known);
        self.newest = number;
        self.asking = Asking::default();
        for node in wants {
            self.asking.want(node, number);
        }
        self.phase = match feed {
            // A list of whole objects goes on with whole objects.
            Some(feed) if view == self.view => Phase::Follow(listed.revision, feed),
            _ => Phase::Open(listed.revision),
        };
        self.backoff.reset();
        self.tell();
        // This comes last, so that an older node with our subnet is known before the own node is.
        store.saw_own(listed.own.as_deref());
        Some(update)
    }

    /// Reads a list, by a watch if the server supports that, else in pages.
    async fn read_list(
        &mut self,
        known: &Mutex<Known>,
        own: &str,
        view: View,
    ) -> Result<(Listed, Listing, Option<Box<Feed>>), NoList> {
        let store = Arc::clone(&self.store);
        if self.can_list_by_watch {
            let mut listing = lock(known).list();
            let mut add = |object| lock(known).add(&mut listing, object);
            match store.list_by_watch(own, view, &mut add).await {
                Ok((listed, feed)) => return Ok((listed, listing, Some(feed))),
                Err(NoList::Unsupported(why)) => {
                    debug!(why, "this API server lists in pages");
                    self.can_list_by_watch = false;
                }
                Err(failed) => return Err(failed),
            }
        }
        let mut listing = lock(known).list();
        let listed = store.list(own, view, &mut |object| lock(known).add(&mut listing, object)).await?;
        Ok((listed, listing, None))
    }

    /// Applies what a node says whose podCIDRs were asked for. Returns the updates.
    fn on_answer(&mut self, object: Object) -> Vec<LeaseUpdate> {
        let Some(known) = self.known.clone() else { return Vec::new() };
        let before = lock(&known).news();
        let updates = lock(&known).fold(object).updates;
        if lock(&known).news() == before { Vec::new() } else { self.announce(updates) }
    }

    /// Applies one event of the watch. Returns the updates.
    async fn on_event(&mut self, event: Event, revision: Option<String>, own: &str) -> Vec<LeaseUpdate> {
        let store = Arc::clone(&self.store);
        let known = Arc::clone(self.known.as_ref().expect("the watch goes on from a list"));
        let before = lock(&known).news();
        let updates = match event {
            Event::Put(object, json) => {
                if json.is_some() {
                    store.saw_own(json.as_deref());
                }
                self.fold(&known, object, revision.as_deref().and_then(revision_number))
            }
            Event::Deleted(name) => {
                if name == own {
                    store.saw_own(None);
                }
                self.asking.forget(&name);
                lock(&known).remove(&name)
            }
            Event::Same | Event::Bookmark { .. } => Vec::new(),
            Event::Expired => {
                store.health.succeed();
                info!("the API server has forgotten where the watch was; listing all nodes again");
                self.phase = Phase::List(self.view);
                return Vec::new();
            }
            Event::Failed(why) => {
                store.health.fail(format!("watch nodes at {}: {why}", store.clients.server()));
                self.close(&why, Phase::Compare).await;
                return Vec::new();
            }
            Event::Garbage(why) => {
                store.health.fail(format!("watch nodes at {}: {why}", store.clients.server()));
                self.garbage += 1;
                let is_hopeless = self.garbage > GARBAGE;
                self.close(&why, if is_hopeless { |_| Phase::List(View::Whole) } else { Phase::Compare })
                    .await;
                if is_hopeless {
                    self.garbage = 0;
                }
                return Vec::new();
            }
        };
        let is_news = lock(&known).news() != before;
        self.garbage = 0;
        store.health.succeed();
        if let Some(revision) = revision {
            self.newest = revision_number(&revision).or(self.newest);
            if let Phase::Follow(resume, _) = &mut self.phase {
                *resume = revision;
            }
        }
        if is_news { self.announce(updates) } else { Vec::new() }
    }

    /// Applies an object, and asks for its podCIDRs if they are not known.
    fn fold(&mut self, known: &Mutex<Known>, object: Object, revision: Option<u64>) -> Vec<LeaseUpdate> {
        let name = match &object {
            Ok(node) => Some(node.name.clone()),
            Err(bad) => bad.name.clone(),
        };
        let Folded { updates, wants } = lock(known).fold(object);
        match (wants, name) {
            (Some(node), _) => self.asking.want(node, revision),
            (None, Some(name)) => self.asking.forget(&name),
            (None, None) => {}
        }
        updates
    }

    /// Records what has changed. Returns all updates that follow from some.
    fn announce(&mut self, mut updates: Vec<LeaseUpdate>) -> Vec<LeaseUpdate> {
        let taken = updates.iter().filter_map(|update| match update {
            LeaseUpdate::Put(lease) => Some(lease.key.to_string()),
            _ => None,
        });
        let taken: Vec<String> = taken.flat_map(|name| self.missing.found(&name)).collect();
        updates.extend(taken.into_iter().map(LeaseUpdate::Removed));
        self.tell();
        updates
    }

    /// Records unreadable and missing nodes in the status.
    fn tell(&self) {
        let known = self.known.as_ref().map(|known| lock(known));
        let rival = known.as_ref().and_then(|known| known.rival());
        if let Some(known) = &known {
            self.store.health.set_unreadable(known.problems());
        }
        drop(known);
        self.store.rival.send_if_modified(|told| {
            let is_news = *told != rival;
            *told = rival;
            is_news
        });
        self.store.health.set_missing(self.missing.len(), self.missing.names());
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}
