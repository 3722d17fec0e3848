//! Requests: who asks, for what, and what a fault makes of it.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, request};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use serde_json::json;

use super::faults::Faults;
use super::list;
use super::listener::Client;
use super::seen::{Request, decode};
use super::server::Server;
use super::status::Failure;
use super::view::{View, negotiate};
use super::watch::watch;
use super::write::{Part, apply};

/// A patch can't be larger than etcd's largest value, more or less.
const LARGEST_BODY: usize = 3 << 20;

/// What an endless answer consists of.
static PIECE: [u8; 64 << 10] = [b'x'; 64 << 10];

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
                server.take_faults()
            };
            tokio::time::sleep(faults.0.delay).await;
            if faults.0.endless {
                return endless(&server, faults.1);
            }
            let answer = match faults.1 {
                Some(code) => Err(Failure::of_code(code)),
                None => respond(&server, client, &request, &parts.headers, &faults.0),
            };
            let mut response = answer.unwrap_or_else(IntoResponse::into_response);
            let no_cache = HeaderValue::from_static("no-cache, private");
            response.headers_mut().insert(CACHE_CONTROL, no_cache);
            response
        }
        Err(failure) => failure.into_response(),
    }
}

/// What the server says to a request that no fault spoils.
fn respond(
    server: &Arc<Server>,
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
    if !server.is_known(client, request) {
        return Err(Failure::unauthorized());
    }
    let view = negotiate(headers, request, server.metadata_only)?;
    match (request.method.as_str(), &path[..]) {
        ("GET", ["version"]) => Ok(json_body(version())),
        ("GET", ["api", "v1", "nodes"]) => {
            list::check(request, server.watch_list)?;
            if request.is_watch() {
                return watch(server, request, view);
            }
            Ok(json_body(list::list(&server.store(), request, view)?))
        }
        ("GET", ["api", "v1", "nodes", name] | ["api", "v1", "nodes", name, "status"]) => {
            let store = server.store();
            list::check_reached(&store, request)?;
            let node = store.nodes().get(*name).ok_or_else(|| Failure::not_found("nodes", name))?;
            Ok(json_body(node.object(view)))
        }
        ("PATCH", ["api", "v1", "nodes", name]) => patch(server, name, Part::Main, request, faults),
        ("PATCH", ["api", "v1", "nodes", name, "status"]) => {
            patch(server, name, Part::Status, request, faults)
        }
        ("GET", ["api", "v1", "namespaces", namespace, "pods", name]) => {
            let store = server.store();
            let pod = store.pod(namespace, name).ok_or_else(|| Failure::not_found("pods", name))?;
            Ok(json_body(pod.to_string()))
        }
        ("POST", ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"]) => {
            review(request, faults)
        }
        (_, ["api", "v1", "nodes", ..] | ["api", "v1", "namespaces", _, "pods", _]) => {
            Err(Failure::method_not_allowed())
        }
        _ => Err(Failure::no_such_resource()),
    }
}

fn patch(
    server: &Server,
    name: &str,
    part: Part,
    request: &Request,
    faults: &Faults,
) -> Result<Response, Failure> {
    if let Some(code) = faults.refuse_patches {
        return Err(Failure::of_code(code));
    }
    let format = request.content_type.as_deref().unwrap_or_default();
    let dry_run = request.parameter("dryRun").is_some();
    let node = server.change(|store| apply(store, name, part, format, request.body.as_bytes(), dry_run))?;
    Ok(json_body(node.object(View::Whole)))
}

/// Says whether the client may do something, which is everything but what a fault denies.
fn review(request: &Request, faults: &Faults) -> Result<Response, Failure> {
    let mut review: serde_json::Value =
        serde_json::from_str(&request.body).map_err(|error| Failure::bad_request(error.to_string()))?;
    let attributes = &review["spec"]["resourceAttributes"];
    let part = |name: &str| attributes[name].as_str().unwrap_or_default();
    let slash = if part("subresource").is_empty() { "" } else { "/" };
    let right = format!("{} {}{slash}{}", part("verb"), part("resource"), part("subresource"));
    let is_denied = faults.deny.contains(&right);
    review["status"] = json!({ "allowed": !is_denied });
    let mut response = json_body(review.to_string());
    *response.status_mut() = StatusCode::CREATED;
    Ok(response)
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

fn json_body(body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn version() -> String {
    json!({ "major": "1", "minor": "33", "gitVersion": "v1.33.0", "platform": "linux/amd64" }).to_string()
}
