//! An HTTP server for the status of an agent: `/healthz` for liveness, `/readyz` for readiness, and pages that the
//! embedding program adds, such as `/metrics`.
//!
//! Anybody who can reach the port, including pods, may send requests. So their cost is bounded: the number of
//! connections (`budget`), and the time and size of each. Reasons name endpoints and leases, which only clients on this
//! host get; a page of the program is for everybody.

mod budget;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::agent::{AgentStatus, Readiness};
use flannel_core::error::Expected;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use self::budget::{Budget, Origin};
use crate::shortage;

/// How long open requests may take when the server stops.
const FAREWELL: Duration = Duration::from_secs(3);

/// How long a connection may take, from its first byte to the last one of the answer.
const REQUEST: Duration = Duration::from_secs(5);

/// The largest head of a request in bytes; a body is not read.
const HEADER: usize = 8 << 10;

/// How long child processes of a killed agent may keep the address in use.
const REMAINS: Duration = Duration::from_secs(1);

/// The name that Go's flannel has in its answers, for which probes may search.
const PROGRAM: &str = "flanneld";

/// What a page of the embedding program says.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Page {
    /// The value of the header `Content-Type`.
    pub content_type: &'static str,
    /// The body. It may be given again to many clients at once, so it is shared.
    pub body: Arc<[u8]>,
}

impl Page {
    /// A page of this type.
    pub fn new(content_type: &'static str, body: impl Into<Arc<[u8]>>) -> Self {
        Self { content_type, body: body.into() }
    }
}

/// Makes a page for a client with this header `Accept`.
type Author = dyn Fn(&str) -> Page + Send + Sync;

/// The address can't be listened on.
#[derive(Debug, thiserror::Error)]
#[error("health server can't listen on {host} port {port}")]
#[non_exhaustive]
pub struct ListenError {
    /// The address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The kernel's answer.
    pub source: io::Error,
}

/// Answers HTTP requests about an agent.
///
/// | path | answer |
/// |---|---|
/// | `/healthz` | 200 while the process runs |
/// | `/readyz` | 200 if pods can be started on this node ([`AgentStatus::readiness`]), else 503; clients on this host learn why, or about other problems |
/// | a [page](Self::page) of the program | 200 and what the program says |
///
/// ```no_run
/// use flannel_control::http::{HttpServer, Page};
/// use flannel_core::agent::Agent;
/// use tokio_util::sync::CancellationToken;
///
/// async fn serve(agent: &Agent, stop: CancellationToken) -> Result<(), flannel_control::http::ListenError> {
///     let server = HttpServer::bind("127.0.0.1", 8471).await?;
///     let server = server.page("/version", |_| Page::new("text/plain; charset=utf-8", *b"1.0\n"));
///     server.serve(agent.status(), stop).await;
///     Ok(())
/// }
/// ```
pub struct HttpServer {
    listener: TcpListener,
    answers: Answers,
}

impl fmt::Debug for HttpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpServer").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl HttpServer {
    /// Listens on an address of the calling thread's network namespace. An empty address means all addresses, as in Go,
    /// and port 0 one that the kernel chooses. Clients that connect before [`Self::serve`] wait.
    ///
    /// The kernel closes the files of a killed process in an order of its own, so the port can still be in use for a
    /// moment after the agent's lock is free: this tries again for a second.
    pub async fn bind(address: &str, port: u16) -> Result<Self, ListenError> {
        let host = if address.is_empty() { "::" } else { address };
        let begin = Instant::now();
        loop {
            match TcpListener::bind((host, port)).await {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && begin.elapsed() < REMAINS => {
                    tokio::time::sleep(REMAINS / 100).await;
                }
                Err(source) => return Err(ListenError { host: host.to_owned(), port, source }),
                Ok(listener) => return Ok(listener.into()),
            }
        }
    }

    /// The address and port on which it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The name of the program in answers; `flanneld` by default.
    #[must_use]
    pub fn program(mut self, name: impl Into<String>) -> Self {
        self.answers.program = name.into();
        self
    }

    /// Adds a page, such as one for `/metrics`. The function gets the client's header `Accept`, empty without one, and
    /// must not block for long. Everybody who can reach the port may ask for it, as often as they like, so it should
    /// neither show secrets nor cost much. The paths of this crate can't be replaced.
    #[must_use]
    pub fn page(
        mut self,
        path: impl Into<String>,
        author: impl Fn(&str) -> Page + Send + Sync + 'static,
    ) -> Self {
        self.answers.pages.insert(path.into(), Box::new(author));
        self
    }

    /// Serves until `stop` fires. Then open requests have three seconds to end.
    pub async fn serve(self, status: watch::Receiver<Arc<AgentStatus>>, stop: CancellationToken) {
        let Self { listener, answers } = self;
        let desk = Arc::new(Desk { answers, status });
        let mut budget = Budget::default();
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, peer)) => {
                    let origin = Origin::of(peer);
                    budget.spawn(origin, answer(stream, origin, Arc::clone(&desk)));
                    // A request that has arrived is answered before the next connection can replace it.
                    tokio::task::yield_now().await;
                }
                Err(error) if shortage::is_one(&error) => {
                    debug!(%error, "health connections closed");
                    // Their descriptors are for the agent's own work.
                    budget.close_all();
                    tokio::time::sleep(shortage::REST).await;
                }
                // What happened to the connection before it was accepted.
                Err(error) => debug!(%error, "health connection not accepted"),
            }
        }
        drop(listener);
        // Those that are slower are closed with this future.
        let _ = tokio::time::timeout(FAREWELL, budget.all_ended()).await;
    }
}

/// A server for a socket that listens already, such as one of a supervisor or of another network namespace.
impl From<TcpListener> for HttpServer {
    fn from(listener: TcpListener) -> Self {
        Self { listener, answers: Answers { program: PROGRAM.to_owned(), pages: BTreeMap::new() } }
    }
}

/// Checks an address to listen on before it is bound: an IP address of this host, or nothing for all of them. As in Go,
/// `localhost` is IPv4's.
pub fn listen_address(text: &str) -> Result<String, Expected> {
    // An IPv6 address can have an interface behind it.
    let addr = text.split_once('%').map_or(text, |(addr, zone)| if zone.is_empty() { text } else { addr });
    match addr.parse::<IpAddr>() {
        _ if text == "localhost" => Ok("127.0.0.1".to_owned()),
        _ if text.is_empty() => Ok(String::new()),
        Ok(ip) if !ip.is_multicast() && (addr == text || ip.is_ipv6()) => Ok(text.to_owned()),
        _ => Err(Expected(
            "an IP address of this host, such as 127.0.0.1; leave it out to listen on all of them",
        )),
    }
}

/// Answers the one request of a connection.
async fn answer(stream: TcpStream, origin: Origin, desk: Arc<Desk>) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = desk.respond(request.uri().path(), request.headers(), origin);
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

/// What is answered, whatever the agent does.
struct Answers {
    program: String,
    pages: BTreeMap<String, Box<Author>>,
}

/// What answers are made from.
struct Desk {
    answers: Answers,
    status: watch::Receiver<Arc<AgentStatus>>,
}

impl Desk {
    fn respond(&self, path: &str, headers: &HeaderMap, origin: Origin) -> Response<Full<Bytes>> {
        let Answers { program, pages } = &self.answers;
        let mut kind = "text/plain; charset=utf-8";
        let (status, body) = match path {
            "/healthz" => (StatusCode::OK, format!("{program} is running").into()),
            "/readyz" => {
                let (status, body) = {
                    let status = self.status.borrow();
                    readyz(program, &status.readiness(), status.was_ready(), origin)
                };
                (status, body.into())
            }
            path => match pages.get(path) {
                Some(author) => {
                    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
                    let page = author(accept.unwrap_or_default());
                    kind = page.content_type;
                    (StatusCode::OK, Bytes::from_owner(page.body))
                }
                None => (StatusCode::NOT_FOUND, Bytes::new()),
            },
        };
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }
}

/// The most further lines of an answer, since others can cause any number of problems.
const LINES: usize = 50;

/// The answer to `/readyz`. Its first line is that of Go's flannel up to the start of pods, for which probes may search; the other
/// lines are only for clients on this host.
fn readyz(program: &str, readiness: &Readiness, was_ready: bool, origin: Origin) -> (StatusCode, String) {
    let (status, first, rest) = if readiness.is_ready() {
        (StatusCode::OK, format!("{program} is ready"), &readiness.notes)
    } else {
        let when = if was_ready { "any more" } else { "yet" };
        (StatusCode::SERVICE_UNAVAILABLE, format!("{program} is not ready {when}"), &readiness.reasons)
    };
    if origin == Origin::Elsewhere || rest.is_empty() {
        return (status, first);
    }
    let shown: Vec<&str> = rest.iter().take(LINES).map(|condition| condition.text.as_str()).collect();
    let shown = shown.join("\n");
    let more = if rest.len() > LINES { &format!("\nand {} more", rest.len() - LINES) } else { "" };
    (status, format!("{first}\n{shown}{more}\n"))
}

#[cfg(test)]
mod tests;
