//! Reads from the API server: a list of all nodes, and a watch, line by line.

use std::borrow::Cow;
use std::fmt::Write;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use flannel_core::error::chain;
use flannel_core::lease::brief;
use futures::AsyncBufRead;
use futures::AsyncBufReadExt;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::Store;
use super::client::{CallError, ENDLESS, MAX_OBJECT, get, get_as};
use super::node::{BadObject, Names, NodeObject, WireMeta, WireNode};
use super::outline::Outline;
use super::page::{Item, Splitter};
use super::view::View;

/// Nodes in a page of a list. A node has 3 to 20 KB.
const PAGE: usize = 500;
/// A longer line has a node that is too large; the event around the node has only a few bytes.
const MAX_LINE: usize = MAX_OBJECT + 256;
/// The most nodes that are listed. Kubernetes supports 5,000.
const MOST: usize = 200_000;
/// The strings to find in a line with a node that is too large.
const LINE: &[&[&str]] =
    &[&["type"], &["object", "metadata", "name"], &["object", "metadata", "resourceVersion"]];
/// The requested length of a watch, in seconds; up to the same time is added at random, so that nodes that lost one
/// server don't return all at once. As in client-go.
const WATCH: u64 = 300;

/// The decoded object of one node.
pub(super) type Object = Result<NodeObject, BadObject>;

/// Receives the nodes of a list one by one, since all of them together are large.
pub(super) type Sink<'a> = dyn FnMut(Object) + Send + 'a;

/// What a list returns besides the nodes themselves.
pub(super) struct Listed {
    /// The JSON of the own node, if it is in the list.
    pub(super) own: Option<String>,
    /// The revision from which a watch continues.
    pub(super) revision: String,
    /// How many nodes there are.
    count: usize,
}

/// One result of reading a watch.
pub(super) enum Heard {
    /// An event, and the revision it leads to.
    Event(Event, Option<String>),
    /// The server ended the watch as agreed.
    Ended,
    /// The watch is broken, with the reason.
    Broken(String),
}

/// Why a list failed.
pub(super) enum NoList {
    /// The server does not list by a watch, with the reason.
    Unsupported(String),
    /// It does not send metadata alone, with the reason.
    Unacceptable(String),
    /// It failed; the status has the reason.
    Failed,
}

/// A watch that was asked for.
pub(super) enum Opened {
    Feed(Box<Feed>),
    /// The server does not send metadata alone, with the reason.
    Unacceptable(String),
}

/// One event of a watch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// An object was created or changed; with its JSON if it is our own node.
    Put(Object, Option<String>),
    /// A node says what it said before.
    Same,
    /// A node was deleted.
    Deleted(String),
    /// A bookmark: only the progress of the watch.
    Bookmark {
        /// Whether all initial objects have arrived by now.
        ends_initial: bool,
    },
    /// The server no longer has the history from this position on.
    Expired,
    /// The server says that it can't go on.
    Failed(String),
    /// The line is not an event.
    Garbage(String),
}

#[derive(Deserialize)]
struct WireList<'a> {
    #[serde(borrow)]
    metadata: WireListMeta<'a>,
}

#[derive(Deserialize)]
struct WireListMeta<'a> {
    #[serde(rename = "resourceVersion", borrow)]
    revision: Cow<'a, str>,
    #[serde(rename = "continue", default)]
    next: String,
}

#[derive(Deserialize)]
struct WireEvent<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// An event about a node.
#[derive(Deserialize)]
struct WireNodeEvent<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: WireNode<'a>,
}

#[derive(Deserialize)]
struct WireObject<'a> {
    #[serde(borrow)]
    metadata: WireMeta<'a>,
}

#[derive(Deserialize)]
struct WireStatus {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

impl Store {
    /// Lists all nodes in pages. The request has a limit and no revision, since servers ignore the limit with revision
    /// 0 and send all nodes at once.
    pub(super) async fn list(&self, own: &str, view: View, add: &mut Sink<'_>) -> Result<Listed, NoList> {
        let mut listed = Listed { own: None, revision: String::new(), count: 0 };
        let mut next = String::new();
        loop {
            let mut query = form_urlencoded(&[("limit", &PAGE.to_string())]);
            if !next.is_empty() {
                query = format!("{query}&{}", form_urlencoded(&[("continue", &next)]));
            }
            let mut page = Splitter::default();
            let take = |bytes: &[u8]| {
                page.push(bytes, |item| {
                    listed.count_one()?;
                    let item = match item {
                        Item::Whole(item) => item,
                        Item::TooLarge(name) => {
                            add(Err(too_large(name)));
                            return Ok(());
                        }
                    };
                    let json = std::str::from_utf8(item).map_err(|error| error.to_string())?;
                    let object = NodeObject::decode(json, &self.names);
                    if is_named(&object, own) {
                        listed.own = Some(json.to_owned());
                    }
                    // A broken item without a name can't be attributed to a node.
                    if object.as_ref().is_err_and(|bad| bad.name.is_none()) {
                        serde_json::from_str::<IgnoredAny>(json).map_err(|error| error.to_string())?;
                    }
                    add(object);
                    Ok(())
                })
            };
            let request = get_as(&format!("/api/v1/nodes?{query}"), view.of_list());
            let read = self.clients.read("list nodes", request, self.options.timeouts.page, take);
            let refused = self.note("list nodes", unless_unacceptable(view, read)).await;
            if let Err(why) = refused.map_err(|_| NoList::Failed)? {
                return Err(NoList::Unacceptable(why));
            }
            let page: WireList<'_> = serde_json::from_slice(page.rest()).map_err(|error| {
                self.bad_answer("list nodes", &error);
                NoList::Failed
            })?;
            listed.revision = page.metadata.revision.into_owned();
            next = page.metadata.next;
            if next.is_empty() {
                return Ok(listed);
            }
        }
    }

    /// The present revision of the server.
    pub(super) async fn revision(&self) -> Result<String, CallError> {
        let (request, mut page) = (get("/api/v1/nodes?limit=1"), Splitter::default());
        let take = |bytes: &[u8]| page.push(bytes, |_| Ok(()));
        self.note(
            "list nodes",
            self.clients.read("list nodes", request, self.options.timeouts.request, take),
        )
        .await?;
        let page: WireList<'_> =
            serde_json::from_slice(page.rest()).map_err(|error| self.bad_answer("list nodes", &error))?;
        Ok(page.metadata.revision.into_owned())
    }

    /// Lists all nodes by a watch that begins with them, and returns the watch, which continues.
    pub(super) async fn list_by_watch(
        &self,
        own: &str,
        view: View,
        add: &mut Sink<'_>,
    ) -> Result<(Listed, Box<Feed>), NoList> {
        let mut feed = match self.open(None, view).await {
            Ok(Opened::Feed(feed)) => feed,
            Ok(Opened::Unacceptable(why)) => return Err(NoList::Unacceptable(why)),
            Err(error) if error.is_refused() => return Err(NoList::Unsupported(error.to_string())),
            Err(_) => return Err(NoList::Failed),
        };
        let is_same = |_: &WireNode<'_>| false;
        let mut listed = Listed { own: None, revision: String::new(), count: 0 };
        let mut is_empty = true;
        loop {
            let (event, revision) =
                match feed.next(self, own, self.options.timeouts.first_word, is_same).await {
                    Heard::Event(event, revision) => (event, revision),
                    Heard::Ended => return Err(NoList::Failed),
                    // A server without such watches never sends the bookmark at the end of the list.
                    Heard::Broken(why) if !is_empty => return Err(NoList::Unsupported(why)),
                    Heard::Broken(why) => {
                        self.clients.renew();
                        self.health.fail(format!("watch nodes at {}: {why}", self.clients.server()));
                        return Err(NoList::Failed);
                    }
                };
            match (event, revision) {
                (Event::Put(object, json), _) => {
                    listed.own = json.or(listed.own);
                    is_empty = false;
                    listed.count_one().map_err(NoList::Unsupported)?;
                    add(object);
                }
                (Event::Bookmark { ends_initial: true }, Some(revision)) => {
                    return Ok((Listed { revision, ..listed }, feed));
                }
                (Event::Failed(why) | Event::Garbage(why), _) => return Err(NoList::Unsupported(why)),
                (Event::Bookmark { .. } | Event::Expired | Event::Deleted(_) | Event::Same, _) => {
                    let why = "changes came before the end of the list";
                    return Err(NoList::Unsupported(why.to_owned()));
                }
            }
        }
    }

    /// Watches from a revision on; without one the watch begins with all objects, if the server supports that.
    pub(super) async fn open(&self, revision: Option<&str>, view: View) -> Result<Opened, CallError> {
        let seconds = WATCH + fastrand::u64(..WATCH);
        let (limit, seconds) = (Duration::from_secs(seconds), seconds.to_string());
        let mut query =
            vec![("watch", "true"), ("allowWatchBookmarks", "true"), ("timeoutSeconds", &*seconds)];
        match revision {
            Some(revision) => query.push(("resourceVersion", revision)),
            None => query.extend([("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan")]),
        }
        let request = get_as(&format!("/api/v1/nodes?{}", form_urlencoded(&query)), view.of_watch());
        let answer = self.clients.stream("watch nodes", request, self.options.timeouts.request);
        let reader = match self.note("watch nodes", unless_unacceptable(view, answer)).await? {
            Ok(reader) => Box::pin(reader),
            Err(why) => return Ok(Opened::Unacceptable(why)),
        };
        let opened = Instant::now();
        Ok(Opened::Feed(Feed { reader, line: Vec::new(), skipped: None, opened, limit }.into()))
    }
}

impl Listed {
    /// Counts a node.
    fn count_one(&mut self) -> Result<(), String> {
        self.count += 1;
        if self.count > MOST { Err(format!("more than {MOST} nodes")) } else { Ok(()) }
    }
}

/// The answer to a request for metadata alone, or why the server does not send that. It is no outage.
async fn unless_unacceptable<T>(
    view: View,
    answer: impl Future<Output = Result<T, CallError>>,
) -> Result<Result<T, String>, CallError> {
    match answer.await {
        Err(error) if view == View::Metadata && error.is_unacceptable() => Ok(Err(error.to_string())),
        answer => answer.map(Ok),
    }
}

/// A node of which only the name is known.
pub(super) fn too_large(name: Option<String>) -> BadObject {
    let reason = format!(
        "the node object has more than {MAX_OBJECT} bytes, which nobody reads; it has a few thousand"
    );
    BadObject { name: name.map(Into::into), reason }
}

fn is_named(object: &Object, own: &str) -> bool {
    match object {
        Ok(node) => &*node.name == own,
        Err(bad) => bad.name.as_deref() == Some(own),
    }
}

/// A query string. This escaping is enough for our own parameters.
fn form_urlencoded(pairs: &[(&str, &str)]) -> String {
    let encode = |text: &str| {
        let mut out = String::new();
        for byte in text.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
                _ => write!(out, "%{byte:02X}").expect("a string takes all"),
            }
        }
        out
    };
    let pairs = pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value)));
    pairs.collect::<Vec<_>>().join("&")
}

/// An open watch.
pub(super) struct Feed {
    reader: Pin<Box<dyn AsyncBufRead + Send>>,
    /// The part of a line that has arrived.
    line: Vec<u8>,
    /// The outline of a line that is too long, and its length.
    skipped: Option<(Outline, usize)>,
    /// When it was opened.
    opened: Instant,
    /// After which time the server should end it.
    limit: Duration,
}

impl Feed {
    /// How long it has been open.
    pub(super) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// Whether it has been open for the requested time.
    pub(super) fn is_over(&self) -> bool {
        self.age() >= self.limit
    }

    /// Waits for the next event, no longer than `silence`. `is_same` tells whether a node says what it said before.
    /// Dropping the future loses nothing.
    pub(super) async fn next(
        &mut self,
        store: &Store,
        own: &str,
        silence: Duration,
        is_same: impl Fn(&WireNode<'_>) -> bool,
    ) -> Heard {
        loop {
            match tokio::time::timeout(silence, self.read_line()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return Heard::Ended,
                Ok(Err(error)) => return Heard::Broken(chain(&error)),
                Err(_) => return Heard::Broken(format!("nothing came for {silence:?}")),
            }
            if let Some((outline, _)) = self.skipped.take() {
                let (event, revision) = of_outline(&outline);
                return Heard::Event(event, revision);
            }
            let line = std::mem::take(&mut self.line);
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let (event, revision) = decode(&line, &store.names, own, &is_same);
            // Reuse the buffer for the next line.
            self.line = line;
            self.line.clear();
            return Heard::Event(event, revision);
        }
    }

    /// Reads to the end of a line; false at the end of the stream.
    async fn read_line(&mut self) -> io::Result<bool> {
        loop {
            let some = self.reader.fill_buf().await?;
            if some.is_empty() {
                let is_between = self.line.is_empty() && self.skipped.is_none();
                return if is_between { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            let end = some.iter().position(|byte| *byte == b'\n');
            let len = end.map_or(some.len(), |end| end + 1);
            if self.skipped.is_none() && self.line.len() + len > MAX_LINE {
                let mut outline = Outline::of(LINE);
                outline.push(&std::mem::take(&mut self.line));
                self.skipped = Some((outline, MAX_LINE));
            }
            match &mut self.skipped {
                Some((outline, seen)) => {
                    outline.push(&some[..len]);
                    *seen += len;
                }
                None => self.line.extend_from_slice(&some[..len]),
            }
            self.reader.consume_unpin(len);
            if end.is_some() {
                return Ok(true);
            }
            if self.skipped.as_ref().is_some_and(|(_, seen)| *seen > ENDLESS) {
                return Err(io::Error::other(format!("a line of more than {ENDLESS} bytes")));
            }
        }
    }
}

/// The event and revision of a line of which only the outline is known.
fn of_outline(outline: &Outline) -> (Event, Option<String>) {
    let found: Vec<Option<String>> = outline.found().map(|found| found.map(str::to_owned)).collect();
    let [kind, name, revision] = <[_; 3]>::try_from(found).unwrap_or_default();
    let event = match (kind.as_deref(), name) {
        (Some("ADDED" | "MODIFIED"), Some(name)) => Event::Put(Err(too_large(Some(name))), None),
        (Some("DELETED"), Some(name)) => Event::Deleted(name),
        _ => Event::Garbage(format!(
            "no watch event: a line of more than {MAX_LINE} bytes, without type and name"
        )),
    };
    (event, revision)
}

/// Decodes one line of a watch: the event, and the revision after it.
pub(super) fn decode(
    line: &[u8],
    names: &Names,
    own: &str,
    is_same: impl Fn(&WireNode<'_>) -> bool,
) -> (Event, Option<String>) {
    let garbage = |error: &dyn std::fmt::Display| {
        (Event::Garbage(format!("no watch event: {}", brief(&error.to_string()))), None)
    };
    let text = match std::str::from_utf8(line) {
        Ok(text) => text,
        Err(error) => return garbage(&error),
    };
    // Nearly all events are heartbeats of other nodes, so these are decoded in one step.
    if let Ok(WireNodeEvent { kind, object }) = serde_json::from_str(text)
        && matches!(&*kind, "ADDED" | "MODIFIED")
        && object.metadata.name != own
    {
        let revision = object.metadata.resource_version.as_deref().map(str::to_owned);
        let event =
            if is_same(&object) { Event::Same } else { Event::Put(Ok(NodeObject::of(object, names)), None) };
        return (event, revision);
    }
    let event: WireEvent<'_> = match serde_json::from_str(text) {
        Ok(event) => event,
        Err(error) => return garbage(&error),
    };
    let json = event.object.get();
    if event.kind == "ERROR" {
        let status = serde_json::from_str(json).unwrap_or(WireStatus { code: 0, message: brief(json) });
        let WireStatus { code, message } = status;
        let expired = code == 410 || (code == 504 && message.contains("resource version"));
        return (
            if expired { Event::Expired } else { Event::Failed(format!("{code} {}", brief(&message))) },
            None,
        );
    }
    let meta = match serde_json::from_str::<WireObject<'_>>(json) {
        Ok(object) => object.metadata,
        Err(error) => return garbage(&error),
    };
    let revision = meta.resource_version.as_deref().map(str::to_owned);
    let event = match &*event.kind {
        "ADDED" | "MODIFIED" => {
            let object = NodeObject::decode(json, names);
            let own = is_named(&object, own).then(|| json.to_owned());
            Event::Put(object, own)
        }
        "DELETED" => Event::Deleted(meta.name.into_owned()),
        "BOOKMARK" => Event::Bookmark { ends_initial: meta.has("k8s.io/initial-events-end") },
        other => return garbage(&format!("type {other:?}")),
    };
    (event, revision)
}
