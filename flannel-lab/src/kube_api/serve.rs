//! Requests: who asks, for what, and what a fault makes of it.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, request};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use serde_json::json;
use tokio::sync::watch;

use super::faults::Faults;
use super::list;
use super::listener::Client;
use super::seen::{Counts, Request, decode};
use super::status::Failure;
use super::store::Store;
use super::watch::watch;
use super::write::{Part, apply};

/// A patch can't be larger than etcd's largest value, more or less.
const LARGEST_BODY: usize = 3 << 20;

/// What an endless answer consists of.
static PIECE: [u8; 64 << 10] = [b'x'; 64 << 10];

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
    pub(super) bookmark_interval: Duration,
}

impl Server {
    pub(super) fn new(
        history: usize,
        tokens: Option<Vec<String>>,
        watch_list: bool,
        bookmark_interval: Duration,
    ) -> Self {
        Self {
            store: Mutex::new(Store::new(history)),
            faults: Mutex::default(),
            tokens: Mutex::new(tokens),
            seen: Mutex::default(),
            changes: watch::Sender::new(0),
            life: AtomicU64::new(0),
            open_watches: AtomicUsize::new(0),
            endless: AtomicU64::new(0),
            watch_list,
            bookmark_interval: bookmark_interval.max(Duration::from_millis(1)),
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

    fn is_known(&self, client: Client, request: &Request) -> bool {
        let tokens = lock(&self.tokens);
        let Some(tokens) = tokens.as_ref() else { return true };
        client.has_certificate || request.token.as_ref().is_some_and(|token| tokens.contains(token))
    }

    fn respond(
        self: &Arc<Self>,
        client: Client,
        request: &Request,
        headers: &HeaderMap,
        faults: &Faults,
    ) -> Result<Response, Failure> {
        let path = request.path.trim_matches('/');
        let path: Vec<String> = path.split('/').map(decode).collect();
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        // Probes need no login.
        if matches!(path[..], ["readyz" | "livez" | "healthz"]) {
            return Ok("ok".into_response());
        }
        if !self.is_known(client, request) {
            return Err(Failure::unauthorized());
        }
        takes_json(headers)?;
        match (request.method.as_str(), &path[..]) {
            ("GET", ["version"]) => Ok(json_body(version())),
            ("GET", ["api", "v1", "nodes"]) => {
                list::check(request, self.watch_list)?;
                if request.is_watch() {
                    return watch(self, request);
                }
                Ok(json_body(list::list(&self.store(), request)?))
            }
            ("GET", ["api", "v1", "nodes", name] | ["api", "v1", "nodes", name, "status"]) => {
                let store = self.store();
                let node = store.nodes().get(*name).ok_or_else(|| Failure::not_found("nodes", name))?;
                Ok(json_body(node.object()))
            }
            ("PATCH", ["api", "v1", "nodes", name]) => self.patch(name, Part::Main, request, faults),
            ("PATCH", ["api", "v1", "nodes", name, "status"]) => {
                self.patch(name, Part::Status, request, faults)
            }
            ("GET", ["api", "v1", "namespaces", namespace, "pods", name]) => {
                let store = self.store();
                let pod = store.pod(namespace, name).ok_or_else(|| Failure::not_found("pods", name))?;
                Ok(json_body(pod.to_string()))
            }
            (_, ["api", "v1", "nodes", ..] | ["api", "v1", "namespaces", _, "pods", _]) => {
                Err(Failure::method_not_allowed())
            }
            _ => Err(Failure::no_such_resource()),
        }
    }

    fn patch(&self, name: &str, part: Part, request: &Request, faults: &Faults) -> Result<Response, Failure> {
        if let Some(code) = faults.refuse_patches {
            return Err(Failure::of_code(code));
        }
        let format = request.content_type.as_deref().unwrap_or_default();
        let dry_run = request.parameter("dryRun").is_some();
        let node = self.change(|store| apply(store, name, part, format, request.body.as_bytes(), dry_run))?;
        Ok(json_body(node.object()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one handler: every path leads here.
pub(super) async fn answer(
    State(server): State<Arc<Server>>,
    ConnectInfo(client): ConnectInfo<Client>,
    request: axum::extract::Request,
) -> Response {
    let (parts, body) = request.into_parts();
    match read(&parts, body).await {
        Ok(request) => {
            let faults = {
                let mut seen = server.seen();
                seen.1.note(&request);
                seen.0.push(request.clone());
                lock(&server.faults).take()
            };
            tokio::time::sleep(faults.0.delay).await;
            if faults.0.endless {
                return endless(&server, faults.1);
            }
            let answer = match faults.1 {
                Some(code) => Err(Failure::of_code(code)),
                None => server.respond(client, &request, &parts.headers, &faults.0),
            };
            let mut response = answer.unwrap_or_else(IntoResponse::into_response);
            let no_cache = HeaderValue::from_static("no-cache, private");
            response.headers_mut().insert(CACHE_CONTROL, no_cache);
            response
        }
        Err(failure) => failure.into_response(),
    }
}

/// An answer that begins like an object and never ends.
fn endless(server: &Arc<Server>, status: Option<u16>) -> Response {
    let server = server.clone();
    let piece = move || {
        server.endless.fetch_add(PIECE.len() as u64, Ordering::SeqCst);
        Ok::<_, Infallible>(Bytes::from_static(&PIECE))
    };
    let start = stream::iter([Ok(Bytes::from_static(br#"{"metadata":{"name":""#))]);
    let mut response = json_body(Body::from_stream(start.chain(stream::repeat_with(piece))));
    *response.status_mut() = status.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or_default();
    response
}

async fn read(parts: &request::Parts, body: Body) -> Result<Request, Failure> {
    let has_body = [Method::PATCH, Method::POST, Method::PUT, Method::DELETE].contains(&parts.method);
    let largest = if has_body { LARGEST_BODY } else { 0 };
    let body = axum::body::to_bytes(body, largest).await;
    let body = body.map_err(|error| Failure::bad_request(error.to_string()))?;
    Ok(Request::new(parts, &body))
}

/// Whether the client can read what we write, by its `Accept`.
fn takes_json(headers: &HeaderMap) -> Result<(), Failure> {
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    if accepted.peek().is_none() {
        return Ok(());
    }
    // Tables and the like are other objects in the same format.
    let is_json = |kind: &str| {
        let mut words = kind.split(';').map(str::trim);
        let format = words.next().unwrap_or_default();
        ["application/json", "application/*", "*/*"].contains(&format)
            && !words.any(|word| word.starts_with("as="))
    };
    let is_taken = accepted.any(|kinds| kinds.split(',').any(|kind| is_json(kind.trim())));
    if is_taken { Ok(()) } else { Err(Failure::not_acceptable()) }
}

fn json_body(body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn version() -> String {
    json!({ "major": "1", "minor": "33", "gitVersion": "v1.33.0", "platform": "linux/amd64" }).to_string()
}
