//! Watches: the changes after a revision, one JSON object a line, until somebody ends it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use futures::stream;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, interval_at, sleep_until};

use super::encoded::Encoded;
use super::list::Selection;
use super::seen::Request;
use super::server::Server;
use super::status::Failure;
use super::view::View;

/// How many changes are taken from the store at once.
const BATCH: usize = 100;

/// A server ends a watch by itself after half an hour to an hour (`--min-request-timeout`).
const LONGEST: Duration = Duration::from_secs(1800);

/// The last bookmark comes so long before the end.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// A line that is not JSON.
const GARBAGE: &[u8] = b"{\"type\":\"MODIFIED\",\"object\":{\"kind\":\"No\n";

/// One watch that is open.
struct Watcher {
    server: Arc<Server>,
    selection: Selection,
    view: View,
    /// What the client knows: changes after this revision go to it.
    known: u64,
    bookmarks: bool,
    /// Lines that go out first.
    first: VecDeque<First>,
    changes: watch::Receiver<u64>,
    /// The number of the server's life in which it began.
    life: u64,
    ticks: tokio::time::Interval,
    end: Instant,
    last_bookmark: Option<Instant>,
    _open: Open,
}

enum First {
    Node(Arc<Encoded>),
    Line(Bytes),
}

/// Counts a watch for as long as it is open.
struct Open(Arc<Server>);

impl Open {
    fn new(server: &Arc<Server>) -> Self {
        server.open_watches.fetch_add(1, Ordering::SeqCst);
        Self(server.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open_watches.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Answers a request for a watch.
pub(super) fn watch(server: &Arc<Server>, request: &Request, view: View) -> Result<Response, Failure> {
    let selection = Selection::of(request)?;
    let timeout = request.parameter("timeoutSeconds").map(str::parse::<u64>).transpose();
    let timeout = timeout.map_err(|error| Failure::bad_request(format!("timeoutSeconds: {error}")))?;
    let timeout = timeout.filter(|seconds| *seconds > 0).map_or_else(longest, Duration::from_secs);
    let bookmarks = request.flag("allowWatchBookmarks").unwrap_or_default();
    let initial = request.flag("sendInitialEvents");
    let (faults, now) = (server.faults(), Instant::now());

    let changes = server.changes.subscribe();
    let store = server.store();
    let current = store.revision();
    let wanted = selection.revision;
    let mut first = VecDeque::new();
    // Without a revision a watch begins with all there is, and so it does with any that will do.
    let known = match (initial, wanted) {
        (Some(true), Some(wanted)) if wanted > current => return Err(Failure::too_large(wanted, current)),
        (Some(true), _) | (None, None | Some(0)) => {
            let nodes = store.nodes().iter().filter(|(name, _)| selection.takes(name));
            first.extend(nodes.map(|(_, node)| First::Node(node.clone())));
            if initial.is_some() && bookmarks {
                first.push_back(First::Line(bookmark(current, true, view)));
            }
            current
        }
        (_, None | Some(0)) => current,
        (_, Some(wanted)) if wanted < store.oldest() => {
            let failure = Failure::too_old(wanted, store.oldest());
            if faults.http_410 {
                return Err(failure);
            }
            let error = format!("{}\n", json!({ "type": "ERROR", "object": failure.object() }));
            return Ok(response(Body::from_stream(stream::iter([Ok::<_, Infallible>(error)]))));
        }
        // A revision that is yet to come, as after a restored backup: nothing is said until it is there.
        (_, Some(wanted)) => wanted,
    };
    let life = server.life.load(Ordering::SeqCst);
    drop(store);

    let interval = server.bookmark_interval;
    let last_bookmark = (timeout > 2 * LAST_BOOKMARK).then(|| now + timeout - LAST_BOOKMARK);
    let watcher = Watcher {
        server: server.clone(),
        selection,
        view,
        known,
        bookmarks,
        first,
        changes,
        life,
        ticks: interval_at(now + interval, interval),
        end: now + timeout,
        last_bookmark,
        _open: Open::new(server),
    };
    let lines = stream::unfold((watcher, VecDeque::new()), |(mut watcher, mut lines)| async move {
        if lines.is_empty() {
            lines = watcher.more().await?;
        }
        let next: Bytes = lines.pop_front()?;
        Some((Ok::<_, Infallible>(next), (watcher, lines)))
    });
    Ok(response(Body::from_stream(lines)))
}

impl Watcher {
    /// The next lines; `None` at the end.
    async fn more(&mut self) -> Option<VecDeque<Bytes>> {
        if let Some(first) = self.first.pop_front() {
            let line = match first {
                First::Node(node) => node.added(self.view),
                First::Line(line) => line,
            };
            return Some([line].into());
        }
        loop {
            // Seen before the store is read, so that no change falls between the two.
            self.changes.borrow_and_update();
            if self.server.life.load(Ordering::SeqCst) != self.life {
                return None;
            }
            // A client that is so slow that its next changes are forgotten is cut off.
            let lines = self.changes_since()?;
            if !lines.is_empty() {
                return Some(lines);
            }
            let last_bookmark = self.last_bookmark;
            let is_bookmark = tokio::select! {
                changed = self.changes.changed() => {
                    changed.ok()?;
                    false
                }
                _ = self.ticks.tick() => true,
                () = until(last_bookmark) => {
                    self.last_bookmark = None;
                    true
                }
                () = sleep_until(self.end) => return None,
            };
            if is_bookmark && self.bookmarks && !self.server.faults().no_bookmarks {
                let current = self.server.store().revision();
                if current >= self.known {
                    // All before it were sent: there were none a moment ago, and others would have come first.
                    let lines = self.changes_since()?;
                    if !lines.is_empty() {
                        return Some(lines);
                    }
                    self.known = current;
                    return Some([bookmark(current, false, self.view)].into());
                }
            }
        }
    }

    /// The changes that the client doesn't know, as many as fit.
    fn changes_since(&mut self) -> Option<VecDeque<Bytes>> {
        let garbage = self.server.faults().garbage;
        let mut lines = VecDeque::new();
        // A batch without changes for this client is no reason to wait: more may follow.
        while lines.is_empty() {
            let events = self.server.store().since(self.known, BATCH)?;
            let Some(last) = events.last() else { break };
            self.known = last.revision;
            for event in events.iter().filter(|event| self.selection.takes(&event.name)) {
                if garbage {
                    lines.push_back(Bytes::from_static(GARBAGE));
                }
                lines.push_back(event.after.line(self.view));
            }
        }
        Some(lines)
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn longest() -> Duration {
    LONGEST + Duration::from_secs(fastrand::u64(0..LONGEST.as_secs()))
}

fn response(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An event without a change: the client knows all up to this revision. It carries an object, as empty as Go writes it.
fn bookmark(revision: u64, ends_initial_events: bool, view: View) -> Bytes {
    let mut metadata = json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
    if ends_initial_events {
        metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
    }
    if view == View::Metadata {
        let object =
            json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata });
        return format!("{}\n", json!({ "type": "BOOKMARK", "object": object })).into();
    }
    let info = ["architecture", "bootID", "containerRuntimeVersion", "kernelVersion", "kubeProxyVersion"];
    let info =
        info.into_iter().chain(["kubeletVersion", "machineID", "operatingSystem", "osImage", "systemUUID"]);
    let info: serde_json::Map<_, _> = info.map(|key| (key.to_owned(), json!(""))).collect();
    let status = json!({ "daemonEndpoints": { "kubeletEndpoint": { "Port": 0 } }, "nodeInfo": info });
    let object =
        json!({ "kind": "Node", "apiVersion": "v1", "metadata": metadata, "spec": {}, "status": status });
    format!("{}\n", json!({ "type": "BOOKMARK", "object": object })).into()
}
