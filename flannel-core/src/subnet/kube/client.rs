//! Calls of the API server: each with a time-out, and an error that says what was tried and what to do.

use std::fmt;
use std::path::Path;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::AsyncBufReadExt;
use http::header::{CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::uri::Scheme;
use http::{Method, Request, Uri};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::options::{KubeAccess, KubeTimeouts};
use crate::subnet::{SubnetError, chain};

/// The largest kubeconfig, token or certificate that is used, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// How we call ourselves.
const AGENT: &str = concat!("flannel-rs/", env!("CARGO_PKG_VERSION"));

/// A strategic merge patch, which merges conditions by their type.
pub(super) const STRATEGIC_MERGE: &str = "application/strategic-merge-patch+json";

/// The client, made anew after a failure: files with credentials may have changed meanwhile.
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
    /// The status of HTTP, if the server answered.
    pub(super) status: Option<u16>,
}

impl CallError {
    pub(super) fn new(what: &str, why: impl Into<String>) -> Self {
        Self { what: what.to_owned(), why: why.into(), status: None }
    }

    /// Whether the server can't be used at present, for us at least.
    pub(super) fn is_outage(&self) -> bool {
        !matches!(self.status, Some(400 | 404 | 409 | 410 | 422)) && !self.is_expired() && !self.is_refused()
    }

    /// Whether what is asked for is not there.
    pub(super) fn is_not_found(&self) -> bool {
        self.status == Some(404)
    }

    /// Whether the position in the history that was asked for is gone (410), or has not come yet, which an API
    /// server says by a timeout (504) where another in front would only say that it is unavailable.
    pub(super) fn is_expired(&self) -> bool {
        self.status == Some(410) || (self.status == Some(504) && self.why.contains("resource version"))
    }

    /// Whether the server does not take the question as it was put.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self.status, Some(400 | 422))
            || (self.status == Some(403) && self.why.contains("sendInitialEvents"))
    }
}

impl From<CallError> for SubnetError {
    fn from(error: CallError) -> Self {
        let what = error.what.clone();
        // Nothing of it is for good: a role, a token, a certificate can be mended any moment.
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

    /// Where the API server is, for messages.
    pub(super) fn server(&self) -> String {
        match &self.access {
            KubeAccess::InCluster { server, .. } => {
                in_cluster_url(server).map_or_else(|why| why, |url| shown(&url))
            }
            KubeAccess::Kubeconfig { server: Some(url), .. } | KubeAccess::Url(url) => {
                parse_url(url).map_or_else(|why| why, |url| shown(&url))
            }
            KubeAccess::Kubeconfig { file, .. } => format!("the server of {}", file.display()),
        }
    }

    /// A GET, PATCH or list whose answer comes whole.
    pub(super) async fn call(
        &self,
        what: &str,
        request: Request<Vec<u8>>,
        limit: Duration,
    ) -> Result<String, CallError> {
        let what = &format!("{what} at {}", self.server());
        let answer =
            async { self.client(what).await?.request_text(request).await.map_err(|it| failed(what, &it)) };
        let answer = tokio::time::timeout(limit, answer).await;
        let answer =
            answer.unwrap_or_else(|_| Err(CallError::new(what, format!("no answer within {limit:?}"))));
        self.renew_after(answer)
    }

    /// A watch: its lines come as they are written.
    pub(super) async fn stream(
        &self,
        what: &str,
        request: Request<Vec<u8>>,
        limit: Duration,
    ) -> Result<impl futures::io::AsyncBufRead + Send + use<>, CallError> {
        let what = &format!("{what} at {}", self.server());
        let answer =
            async { self.client(what).await?.request_stream(request).await.map_err(|it| failed(what, &it)) };
        let answer = tokio::time::timeout(limit, answer).await;
        let answer =
            answer.unwrap_or_else(|_| Err(CallError::new(what, format!("no answer within {limit:?}"))));
        self.renew_after(answer)
    }

    /// A list, whose bytes are taken as they come. An error of `take` says why they can't be used.
    pub(super) async fn read(
        &self,
        what: &str,
        request: Request<Vec<u8>>,
        limit: Duration,
        mut take: impl FnMut(&[u8]) -> Result<(), String> + Send,
    ) -> Result<(), CallError> {
        let what = &format!("{what} at {}", self.server());
        let read = async {
            let answer = self.client(what).await?.request_stream(request).await;
            let mut reader = pin!(answer.map_err(|error| failed(what, &error))?);
            loop {
                let some = reader.fill_buf().await.map_err(|error| CallError::new(what, chain(&error)))?;
                if some.is_empty() {
                    return Ok(());
                }
                let len = some.len();
                take(some).map_err(|why| CallError::new(what, format!("the answer can't be read: {why}")))?;
                reader.consume_unpin(len);
            }
        };
        let read = tokio::time::timeout(limit, read).await;
        let read = read.unwrap_or_else(|_| Err(CallError::new(what, format!("no answer within {limit:?}"))));
        self.renew_after(read)
    }

    /// The next call reads the files again.
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
        let client = Client::try_from(config).map_err(|error| CallError::new(what, chain(&error)))?;
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
                let mut config = config.map_err(|error| format!("{}: {}", file.display(), chain(&error)))?;
                if let Some(url) = server {
                    config.cluster_url = parse_url(url)?;
                }
                config
            }
            KubeAccess::Url(url) => Config::new(parse_url(url)?),
        };
        if config.root_cert_file.is_some() || config.cluster_url.scheme() == Some(&Scheme::HTTP) {
            // Else the machine's certificates are loaded, though not used, and a slim image has none.
            config.root_cert.get_or_insert_default();
        }
        config.connect_timeout = Some(self.timeouts.connect);
        config.write_timeout = Some(self.timeouts.request);
        // Every call here has its own time-out, and is tried again by who needs it.
        config.read_timeout = None;
        config.default_retry = false;
        config.headers.push((USER_AGENT, HeaderValue::from_static(AGENT)));
        Ok(config)
    }
}

/// A request of the API.
pub(super) fn get(path: &str) -> Request<Vec<u8>> {
    request(Method::GET, path, Vec::new())
}

/// A patch as a strategic merge, which says by whom it is, as Go flannel's does.
pub(super) fn patch(path: &str, body: &serde_json::Value) -> Request<Vec<u8>> {
    let mut request =
        request(Method::PATCH, &format!("{path}?fieldManager=flanneld"), body.to_string().into());
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(STRATEGIC_MERGE));
    request
}

fn request(method: Method, path: &str, body: Vec<u8>) -> Request<Vec<u8>> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().expect("paths are made of names that were checked");
    request
}

/// Refuses what is no file of a sane size, before the client's library opens it and waits for a FIFO, say. Links are
/// followed: Kubernetes projects secrets and tokens as such.
fn check_file(file: &Path) -> Result<(), String> {
    let read = crate::guarded::read_linked(file, MAX_FILE);
    read.map(drop).map_err(|error| format!("can't read {}: {error}", file.display()))
}

fn read_kubeconfig(file: &Path) -> Result<Kubeconfig, String> {
    check_file(file)?;
    Kubeconfig::read_from(file).map_err(|error| chain(&error))
}

fn in_cluster_url((host, port): &(String, u16)) -> Result<Uri, String> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    parse_url(&format!("https://{host}:{port}"))
}

pub(super) fn parse_url(url: &str) -> Result<Uri, String> {
    let bad = |why: String| format!("{why}; give an URL such as https://10.0.0.1:6443");
    let uri: Uri =
        url.trim_end_matches('/').parse().map_err(|error: http::uri::InvalidUri| bad(error.to_string()))?;
    match uri.scheme_str() {
        Some("http" | "https") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(uri),
        _ => Err(bad("no scheme and host".to_owned())),
    }
}

/// An URL without a password that it may have.
fn shown(url: &Uri) -> String {
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{}://{host}{}", url.scheme_str().unwrap_or_default(), url.path().trim_end_matches('/'))
}

fn failed(what: &str, error: &kube::Error) -> CallError {
    let kube::Error::Api(status) = error else { return CallError::new(what, chain(error)) };
    let hint = match status.code {
        401 => "; the token or certificate is not good (any more)",
        403 => {
            "; the role needs pods: get, nodes: get, list, watch, nodes/status: patch (see dist/kubernetes)"
        }
        _ => "",
    };
    let message = if status.message.is_empty() { &status.reason } else { &status.message };
    let why = format!("{} {}{hint}", status.code, crate::lease::brief(message));
    CallError { what: what.to_owned(), why, status: Some(status.code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_urls_and_hides_passwords() {
        for (url, text) in [
            ("https://10.0.0.1:6443", "https://10.0.0.1:6443"),
            ("http://[fd00::1]:8080/", "http://[fd00::1]:8080"),
            ("https://user:secret@host/path/", "https://host/path"),
        ] {
            assert_eq!(shown(&parse_url(url).unwrap()), text);
        }
        for url in ["", "10.0.0.1:6443", "ftp://host", "https://", "host"] {
            assert!(parse_url(url).unwrap_err().contains("give an URL"), "{url}");
        }
        let url = |host: &str| in_cluster_url(&(host.to_owned(), 443)).map(|url| shown(&url));
        assert_eq!(url("10.96.0.1").unwrap(), "https://10.96.0.1:443");
        assert_eq!(url("fd00::1").unwrap(), "https://[fd00::1]:443");
    }

    #[tokio::test]
    async fn needs_no_certificates_of_the_machine_if_it_has_a_clusters_or_uses_no_tls() {
        let secrets = tempfile::tempdir().unwrap();
        for file in ["token", "ca.crt"] {
            std::fs::write(secrets.path().join(file), "").unwrap();
        }
        let in_cluster = KubeAccess::InCluster {
            server: ("10.96.0.1".into(), 443),
            service_account: secrets.path().to_owned(),
        };
        for (access, its_own) in [
            (in_cluster, true),
            (KubeAccess::Url("http://127.0.0.1:8080".into()), true),
            (KubeAccess::Url("https://127.0.0.1:6443".into()), false),
        ] {
            let config = Clients::new(access, KubeTimeouts::default()).unwrap().config().await.unwrap();
            assert_eq!(config.root_cert.is_some(), its_own, "{}", config.cluster_url);
        }
    }

    #[test]
    fn knows_what_an_answer_means() {
        let error = |status, why: &str| CallError { what: "list nodes".into(), why: why.into(), status };
        assert!(error(Some(410), "").is_expired());
        assert!(error(Some(504), "504 Timeout: Too large resource version: 9, current: 3").is_expired());
        assert!(!error(Some(504), "gateway").is_expired());
        assert!(error(Some(422), "").is_refused() && error(Some(400), "").is_refused());
        assert!(!error(Some(403), "no role").is_refused());
        assert!(SubnetError::from(error(None, "refused")).is_transient());
    }
}
