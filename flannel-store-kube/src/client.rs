//! Calls to the API server, each with a time-out, and with errors that say what was tried and what to do.

use std::fmt;
use std::io;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use flannel_core::error::chain;
use flannel_core::lease::brief;
use flannel_core::secret::{ServerUrl, without_user_info};
use flannel_core::subnet::SubnetError;
use futures::TryStreamExt;
use http::header::{ACCEPT, CONTENT_TYPE, DATE, HeaderValue, USER_AGENT};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, Uri};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::Deserialize;

use super::explain::{explain, explain_kubeconfig};
use super::options::{KubeAccess, KubeTimeouts};

/// The largest kubeconfig, token or certificate that is used, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// The user agent.
const AGENT: &str = concat!("flannel-rs/", env!("CARGO_PKG_VERSION"));

/// The largest object that is read, in bytes. By default etcd accepts 1.5 MB.
pub(super) const MAX_OBJECT: usize = 4 << 20;
/// The size at which reading of an object stops, without waiting for its name, in bytes.
pub(super) const ENDLESS: usize = 64 << 20;
/// How much of an answer with an error is read, in bytes.
const MAX_ERROR: usize = 64 << 10;

/// A strategic merge patch, which merges conditions by their type.
pub(super) const STRATEGIC_MERGE: &str = "application/strategic-merge-patch+json";

/// The client. It is replaced after a failure, since files with credentials may have changed meanwhile.
pub(super) struct Clients {
    access: KubeAccess,
    timeouts: KubeTimeouts,
    current: Mutex<Option<Client>>,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("access", &self.access).finish_non_exhaustive()
    }
}

/// A call failed.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub(super) struct CallError {
    what: String,
    why: String,
    /// The HTTP status, if the server answered with an error.
    pub(super) status: Option<u16>,
    /// Whether the request succeeded, but the answer is longer than we read.
    pub(super) is_too_large: bool,
}

impl CallError {
    pub(super) fn new(what: &str, why: impl Into<String>) -> Self {
        Self { what: what.to_owned(), why: why.into(), status: None, is_too_large: false }
    }

    /// Whether the server can't be used at present, at least by us.
    pub(super) fn is_outage(&self) -> bool {
        let is_answer = matches!(self.status, Some(400 | 404 | 409 | 410 | 422)) || self.is_too_large;
        !(is_answer || self.is_expired() || self.is_refused())
    }

    /// Whether the requested object does not exist.
    pub(super) fn is_not_found(&self) -> bool {
        self.status == Some(404)
    }

    /// Whether the requested revision is gone (410), or is not reached yet, for which an API server answers with a
    /// timeout (504).
    pub(super) fn is_expired(&self) -> bool {
        self.status == Some(410) || (self.status == Some(504) && self.why.contains("resource version"))
    }

    /// Whether the server, or a proxy before it, rejects the form in which an answer is wanted.
    pub(super) fn is_unacceptable(&self) -> bool {
        matches!(self.status, Some(406 | 415))
    }

    /// Whether the server rejects the form of the request.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self.status, Some(400 | 422))
            || (self.status == Some(403) && self.why.contains("sendInitialEvents"))
    }
}

impl From<CallError> for SubnetError {
    fn from(error: CallError) -> Self {
        let what = error.what.clone();
        // No error is final: an operator may correct a role, a token or a certificate at any time.
        Self::Unavailable { what, source: error.why.into() }
    }
}

impl Clients {
    /// Checks what can be checked without a server.
    pub(super) fn new(access: KubeAccess, timeouts: KubeTimeouts) -> Result<Self, SubnetError> {
        let refused = |what: String, why: String| SubnetError::Refused { what, source: why.into() };
        match &access {
            KubeAccess::Kubeconfig { file, server } => {
                read_kubeconfig(file)
                    .map_err(|why| refused(format!("read kubeconfig {}", file.display()), why))?;
                server.iter().try_for_each(|url| parse_url(url).map(drop))
            }
            KubeAccess::Url(url) => parse_url(url).map(drop),
            KubeAccess::InCluster { server, .. } => in_cluster_url(server).map(drop),
        }
        .map_err(|why| refused("use the URL of the API server".to_owned(), why))?;
        Ok(Self { access, timeouts, current: Mutex::default() })
    }

    /// The host of the API server. `None` for a pod: its address is that of a service, which the host translates before
    /// routing.
    pub(super) fn host(&self) -> Option<String> {
        let of_url = |url: &ServerUrl| url.host().map(str::to_owned);
        match &self.access {
            KubeAccess::InCluster { .. } => None,
            KubeAccess::Url(url) | KubeAccess::Kubeconfig { server: Some(url), .. } => of_url(url),
            KubeAccess::Kubeconfig { file, server: None } => {
                of_url(&ServerUrl::from(server_of(&read_kubeconfig(file).ok()?)?))
            }
        }
    }

    /// Where the API server is, for messages.
    pub(super) fn server(&self) -> String {
        match &self.access {
            KubeAccess::InCluster { server, .. } => in_cluster_url(server)
                .map_or_else(|why| why, |url| ServerUrl::from(url.to_string()).to_string()),
            KubeAccess::Kubeconfig { server: Some(url), .. } | KubeAccess::Url(url) => url.to_string(),
            KubeAccess::Kubeconfig { file, .. } => format!("the server of {}", file.display()),
        }
    }

    /// Asks the server for its version, and returns the answer with the time that the server gave.
    pub(super) async fn version(&self, limit: Duration) -> Result<(String, Option<SystemTime>), CallError> {
        let what = &format!("ask for the version at {}", self.server());
        let answer = async {
            let answer = self.send(what, get("/version")).await?;
            let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
            let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
            Ok((whole(what, answer.into_body()).await?, date))
        };
        let answer = tokio::time::timeout(limit, answer).await;
        let answer =
            answer.unwrap_or_else(|_| Err(CallError::new(what, format!("no answer within {limit:?}"))));
        self.renew_after(answer)
    }

    /// A GET or PATCH of one object, or a POST of one that is not stored.
    pub(super) async fn call(
        &self,
        what: &str,
        request: Request<Vec<u8>>,
        limit: Duration,
    ) -> Result<String, CallError> {
        let what = &format!("{what} at {}", self.server());
        let answer = async { whole(what, self.send(what, request).await?.into_body()).await };
        let answer = tokio::time::timeout(limit, answer).await;
        let answer =
            answer.unwrap_or_else(|_| Err(CallError::new(what, format!("no answer within {limit:?}"))));
        self.renew_after(answer)
    }

    /// Opens a watch, whose lines arrive as the server writes them.
    pub(super) async fn stream(
        &self,
        what: &str,
        request: Request<Vec<u8>>,
        limit: Duration,
    ) -> Result<impl futures::io::AsyncBufRead + Send + use<>, CallError> {
        let what = &format!("{what} at {}", self.server());
        let answer = tokio::time::timeout(limit, self.send(what, request)).await;
        let answer =
            answer.unwrap_or_else(|_| Err(CallError::new(what, format!("no answer within {limit:?}"))));
        let body = self.renew_after(answer)?.into_body();
        Ok(body.into_data_stream().map_err(io::Error::other).into_async_read())
    }

    /// Reads a list, and passes its bytes to `take` as they arrive. An error of `take` says why they can't be used.
    pub(super) async fn read(
        &self,
        what: &str,
        request: Request<Vec<u8>>,
        limit: Duration,
        mut take: impl FnMut(&[u8]) -> Result<(), String> + Send,
    ) -> Result<(), CallError> {
        let what = &format!("{what} at {}", self.server());
        let read = async {
            let mut body = pin!(self.send(what, request).await?.into_body());
            while let Some(some) = next_of(what, &mut body).await? {
                take(some.as_ref()).map_err(|why| {
                    CallError::new(what, format!("the answer can't be read: {}", brief(&why)))
                })?;
            }
            Ok(())
        };
        let read = tokio::time::timeout(limit, read).await;
        let read = read.unwrap_or_else(|_| Err(CallError::new(what, format!("no answer within {limit:?}"))));
        self.renew_after(read)
    }

    /// Sends a request. The caller reads the body of the answer.
    async fn send(&self, what: &str, request: Request<Vec<u8>>) -> Result<Response<Body>, CallError> {
        let sent = self.client(what).await?.send(request.map(Body::from)).await;
        let answer = sent.map_err(|error| CallError::new(what, explain(&error)))?;
        let status = answer.status();
        if status.is_client_error() || status.is_server_error() {
            return Err(failed(what, status.as_u16(), &beginning(answer.into_body()).await));
        }
        Ok(answer)
    }

    /// Makes the next call read the files again.
    pub(super) fn renew(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn renew_after<T>(&self, answer: Result<T, CallError>) -> Result<T, CallError> {
        if answer.as_ref().is_err_and(|error| matches!(error.status, None | Some(401))) {
            self.renew();
        }
        answer
    }

    async fn client(&self, what: &str) -> Result<Client, CallError> {
        let current = || self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = current().clone() {
            return Ok(client);
        }
        let config = self.config().await.map_err(|why| CallError::new(what, why))?;
        let client = Client::try_from(config).map_err(|error| CallError::new(what, explain(&error)))?;
        *current() = Some(client.clone());
        Ok(client)
    }

    async fn config(&self) -> Result<Config, String> {
        let mut config = match &self.access {
            KubeAccess::InCluster { server, service_account } => {
                let mut config = Config::new(in_cluster_url(server)?);
                let token = service_account.join("token");
                let authority = service_account.join("ca.crt");
                for file in [&token, &authority] {
                    check_file(file)?;
                }
                config.auth_info.token_file = Some(token.display().to_string());
                config.root_cert_file = Some(authority);
                config
            }
            KubeAccess::Kubeconfig { file, server } => {
                let content = read_kubeconfig(file)?;
                let config = Config::from_custom_kubeconfig(content, &KubeConfigOptions::default()).await;
                let mut config =
                    config.map_err(|error| format!("{}: {}", file.display(), explain_kubeconfig(&error)))?;
                if let Some(url) = server {
                    config.cluster_url = parse_url(url)?;
                }
                config
            }
            KubeAccess::Url(url) => Config::new(parse_url(url)?),
        };
        log_in_by_url(&mut config);
        if config.root_cert_file.is_some() || config.cluster_url.scheme() == Some(&Scheme::HTTP) {
            // Otherwise the library loads the machine's certificates although they are not used, and a slim image has
            // none.
            config.root_cert.get_or_insert_default();
        }
        config.connect_timeout = Some(self.timeouts.connect);
        config.write_timeout = Some(self.timeouts.request);
        // Every call has its own time-out here, and its caller tries again.
        config.read_timeout = None;
        config.default_retry = false;
        config.headers.push((USER_AGENT, HeaderValue::from_static(AGENT)));
        Ok(config)
    }
}

/// A GET request.
pub(super) fn get(path: &str) -> Request<Vec<u8>> {
    request(Method::GET, path, Vec::new())
}

/// A GET request for an answer in a form.
pub(super) fn get_as(path: &str, accept: Option<&'static str>) -> Request<Vec<u8>> {
    let mut request = get(path);
    if let Some(accept) = accept {
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(accept));
    }
    request
}

/// A strategic merge patch with our field manager, as Go flannel's.
pub(super) fn patch(path: &str, body: &serde_json::Value) -> Request<Vec<u8>> {
    let mut request =
        request(Method::PATCH, &format!("{path}?fieldManager=flanneld"), body.to_string().into());
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(STRATEGIC_MERGE));
    request
}

/// A POST request with JSON.
pub(super) fn post(path: &str, body: &serde_json::Value) -> Request<Vec<u8>> {
    let mut request = request(Method::POST, path, body.to_string().into());
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request
}

fn request(method: Method, path: &str, body: Vec<u8>) -> Request<Vec<u8>> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().expect("paths are made of names that were checked");
    request
}

/// Refuses a path that is not a regular file of a sane size, before the client library opens it and perhaps waits for a
/// FIFO. Links are followed, since Kubernetes projects secrets and tokens as links.
fn check_file(file: &Path) -> Result<(), String> {
    let read = flannel_core::guarded::read_linked(file, MAX_FILE);
    read.map(drop).map_err(|error| format!("can't read {}: {error}", file.display()))
}

fn read_kubeconfig(file: &Path) -> Result<Kubeconfig, String> {
    check_file(file)?;
    Kubeconfig::read_from(file).map_err(|error| explain_kubeconfig(&error))
}

/// The server of the current context.
fn server_of(config: &Kubeconfig) -> Option<String> {
    let current = config.current_context.as_ref()?;
    let context = config.contexts.iter().find(|it| it.name == *current)?.context.as_ref()?;
    let cluster = config.clusters.iter().find(|it| it.name == context.cluster)?;
    cluster.cluster.as_ref()?.server.clone()
}

fn in_cluster_url((host, port): &(String, u16)) -> Result<Uri, String> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    parse_url(&ServerUrl::from(format!("https://{host}:{port}")))
}

/// A text that is not the URL of an API server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ApiUrlError(String);

/// Checks the URL of an API server, before anything is asked of it.
pub fn check_api_url(url: &ServerUrl) -> Result<(), ApiUrlError> {
    parse_url(url).map(drop).map_err(ApiUrlError)
}

pub(super) fn parse_url(url: &ServerUrl) -> Result<Uri, String> {
    let bad = |why: String| format!("{why}; give an URL such as https://10.0.0.1:6443");
    let uri: Uri = url
        .reveal()
        .trim_end_matches('/')
        .parse()
        .map_err(|error: http::uri::InvalidUri| bad(error.to_string()))?;
    let authority = uri.authority().map_or("", Authority::as_str);
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    // The part after the host is a port, or part of user info without an `@`.
    if uri.port_u16().is_none() && uri.host() != Some(place) {
        return Err(bad("no valid port".to_owned()));
    }
    match uri.scheme_str() {
        Some("http" | "https") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(uri),
        _ => Err(bad("no scheme and host".to_owned())),
    }
}

/// Moves user and password from the URL to the client's credentials, as Go's clients do. Those of a kubeconfig take
/// precedence.
fn log_in_by_url(config: &mut Config) {
    let mut parts = config.cluster_url.clone().into_parts();
    let authority = parts.authority.as_ref().map_or("", Authority::as_str);
    let Some((user, host)) = authority.rsplit_once('@') else { return };
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let auth = &mut config.auth_info;
    let is_given = auth.token.is_some() || auth.token_file.is_some() || auth.username.is_some();
    if !is_given && auth.exec.is_none() && auth.auth_provider.is_none() {
        (auth.username, auth.password) = (Some(unescaped(user)), Some(unescaped(password).into()));
    }
    parts.authority = Some(host.parse().expect("the end of an authority is one"));
    config.cluster_url = Uri::from_parts(parts).expect("it has what it had");
}

/// The user info of a URL with its escapes decoded (RFC 3986 section 2.1).
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let code = after.get(..2).filter(|_| *first == b'%').and_then(|code| std::str::from_utf8(code).ok());
        let byte = code.filter(|code| code.bytes().all(|it| it.is_ascii_hexdigit()));
        let byte = byte.and_then(|code| u8::from_str_radix(code, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The next bytes of an answer.
async fn next_of(
    what: &str,
    body: &mut Pin<&mut Body>,
) -> Result<Option<impl AsRef<[u8]> + use<>>, CallError> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| CallError::new(what, without_user_info(&chain(&error))))?;
        // Trailers are ignored.
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Reads the whole answer about one object.
async fn whole(what: &str, body: Body) -> Result<String, CallError> {
    let (mut body, mut all) = (pin!(body), Vec::new());
    while let Some(some) = next_of(what, &mut body).await? {
        all.extend_from_slice(some.as_ref());
        if all.len() > MAX_OBJECT {
            let why = format!("the answer has more than {MAX_OBJECT} bytes; an object has a few thousand");
            return Err(CallError { is_too_large: true, ..CallError::new(what, why) });
        }
    }
    String::from_utf8(all).map_err(|_| CallError::new(what, "the answer is no UTF-8"))
}

/// Reads the beginning of an error answer, which is enough.
async fn beginning(body: Body) -> String {
    let (mut body, mut all) = (pin!(body), Vec::new());
    while let Ok(Some(some)) = next_of("", &mut body).await {
        all.extend_from_slice(some.as_ref());
        if all.len() > MAX_ERROR {
            break;
        }
    }
    String::from_utf8_lossy(&all).trim().to_owned()
}

/// The error of an answer: a `Status` of the server, or the text of a proxy.
fn failed(what: &str, status: u16, text: &str) -> CallError {
    #[derive(Deserialize, Default)]
    struct Said {
        #[serde(default)]
        code: u16,
        #[serde(default)]
        message: String,
        #[serde(default)]
        reason: String,
    }
    let said: Said =
        serde_json::from_str(text).unwrap_or_else(|_| Said { message: text.to_owned(), ..Said::default() });
    let status = if said.code == 0 { status } else { said.code };
    let hint = match status {
        401 => "; the token or certificate is not good (any more)",
        403 => {
            "; the role needs pods: get, nodes: get, list, watch, nodes/status: patch (see dist/kubernetes)"
        }
        _ => "",
    };
    let message = if said.message.is_empty() { &said.reason } else { &said.message };
    let why = format!("{status} {}{hint}", brief(&without_user_info(message)));
    CallError { status: Some(status), ..CallError::new(what, why) }
}

#[cfg(test)]
mod tests;
