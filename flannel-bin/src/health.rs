//! The health server: `/healthz` for liveness, `/readyz` for readiness, `/metrics` for Prometheus.
//!
//! Anybody who can reach the port, including pods, may send requests. So their cost is bounded: the number of
//! connections (`budget`), and the time and size of each. Reasons name endpoints and leases, which only clients on this
//! host get. Metrics are numbers without names of peers, addresses or texts, unless the operator asks for values for each
//! peer, and so for everybody.

mod budget;
mod scrape;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::agent::Readiness;
use flannel_metrics::Format;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use self::budget::{Budget, Origin};
pub(crate) use self::scrape::Scrapes;

/// How long open requests may take when the agent stops.
const FAREWELL: Duration = Duration::from_secs(3);

/// How long a connection may take, from its first byte to the last one of the answer.
const REQUEST: Duration = Duration::from_secs(5);

/// The largest head of a request in bytes; a body is not read.
const HEADER: usize = 8 << 10;

/// The pause after the system had no descriptor or memory for a connection.
const SHORTAGE: Duration = Duration::from_millis(100);

/// What the health server answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Whether pods can be started on this node.
    pub(crate) is_ready: bool,
    /// Why pods can't be started, or other problems if they can.
    pub(crate) lines: Vec<String>,
}

impl From<Readiness> for Answer {
    fn from(readiness: Readiness) -> Self {
        let is_ready = readiness.is_ready();
        let told = if is_ready { readiness.notes } else { readiness.reasons };
        Self { is_ready, lines: told.into_iter().map(|condition| condition.text).collect() }
    }
}

/// Where answers come from.
pub(crate) struct Sources {
    /// Gets the present answer to `/readyz` from the agent.
    pub(crate) look: Box<dyn Fn() -> Answer + Send + Sync>,
    /// The answers to `/metrics`.
    pub(crate) scrapes: Scrapes,
}

/// How long child processes of a killed agent may keep the address in use.
const REMAINS: Duration = Duration::from_secs(1);

/// Binds the address. An empty one means all addresses of this host, as in Go.
///
/// The kernel closes the files of a killed process in an order of its own, so the port can still be in use for a moment
/// after the agent's lock is free.
pub(crate) async fn bind(address: &str, port: u16) -> Result<TcpListener, String> {
    let host = if address.is_empty() { "::" } else { address };
    let begin = Instant::now();
    loop {
        match TcpListener::bind((host, port)).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && begin.elapsed() < REMAINS => {
                tokio::time::sleep(REMAINS / 100).await;
            }
            bound => {
                return bound.map_err(|error| {
                    format!("health server can't listen on {host} port {port} (--healthz-ip, --healthz-port): {error}")
                });
            }
        }
    }
}

/// Serves until `stop` fires.
pub(crate) async fn serve(listener: TcpListener, sources: Arc<Sources>, stop: CancellationToken) {
    let mut budget = Budget::default();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => {
                let origin = Origin::of(peer);
                budget.spawn(origin, answer(stream, origin, Arc::clone(&sources)));
                // A request that has arrived is answered before the next connection can replace it.
                tokio::task::yield_now().await;
            }
            Err(error) if is_shortage(&error) => {
                debug!(%error, "health connections closed");
                // Their descriptors are for the agent's own work.
                budget.close_all();
                tokio::time::sleep(SHORTAGE).await;
            }
            // What happened to the connection before it was accepted.
            Err(error) => debug!(%error, "health connection not accepted"),
        }
    }
    drop(listener);
    // Slow connections are closed with the runtime.
    let _ = tokio::time::timeout(FAREWELL, budget.all_ended()).await;
}

/// Whether the process or the system has no descriptors or memory left for a connection, which then stays in the queue.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Answers the one request of a connection.
async fn answer(stream: TcpStream, origin: Origin, sources: Arc<Sources>) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = respond(request.uri().path(), request.headers(), origin, &sources);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .max_header_size(HEADER)
        .max_buf_size(2 * HEADER)
        // A client may close its sending side before it reads the answer.
        .half_close(true)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(REQUEST, connection).await {
        Ok(Ok(())) => {}
        failed => debug!(?failed, "health request not served"),
    }
}

fn respond(path: &str, headers: &HeaderMap, origin: Origin, sources: &Sources) -> Response<Full<Bytes>> {
    let mut kind = "text/plain; charset=utf-8";
    let (status, body) = match path {
        "/healthz" => (StatusCode::OK, Bytes::from("flanneld is running")),
        "/readyz" => {
            let (status, body) = readyz(&(sources.look)(), origin);
            (status, body.into())
        }
        "/metrics" => {
            let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
            let format = Format::accepted(accept.unwrap_or_default());
            kind = format.content_type();
            (StatusCode::OK, sources.scrapes.answer(format, Instant::now()))
        }
        _ => (StatusCode::NOT_FOUND, Bytes::new()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The most further lines of an answer, since others can cause any number of problems.
const LINES: usize = 50;

/// The answer to `/readyz`. Its first line is upstream's, for which probes may search; the other lines are only for
/// clients on this host.
fn readyz(answer: &Answer, origin: Origin) -> (StatusCode, String) {
    let (status, first) = if answer.is_ready {
        (StatusCode::OK, "flanneld is ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet")
    };
    let rest = &answer.lines;
    if origin == Origin::Elsewhere || rest.is_empty() {
        return (status, first.to_owned());
    }
    let shown = rest[..rest.len().min(LINES)].join("\n");
    let more = if rest.len() > LINES { &format!("\nand {} more", rest.len() - LINES) } else { "" };
    (status, format!("{first}\n{shown}{more}\n"))
}

#[cfg(test)]
mod tests;
