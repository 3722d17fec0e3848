//! Calls that survive a dead member: one client for each endpoint, tried in turn. A load-balancing client would send
//! every other request to the dead one.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error, TlsOptions};
use flannel_core::error::chain;
use flannel_core::secret::{Secret, ServerUrl};
use flannel_core::subnet::SubnetError;
use tokio::sync::{Mutex, watch};
use tonic::Status;
use tracing::{info, warn};

use super::error::{CallError, Called, describe, is_timeout, is_transient, is_without_auth};
use super::options::{EtcdOptions, EtcdTimeouts, EtcdTls, endpoint_url};
use super::tls::{self, Stamp};

/// The endpoints, and which of them answered last.
pub(super) struct Clients {
    endpoints: Vec<Endpoint>,
    current: AtomicUsize,
    timeouts: EtcdTimeouts,
    login: Option<(String, Secret)>,
    /// Counts how many times all connections were dropped.
    renewals: watch::Sender<u64>,
}

struct Endpoint {
    url: String,
    /// The files for TLS, if it is used.
    tls: Option<EtcdTls>,
    /// A hint for errors that may come from a missing client certificate.
    hint: &'static str,
    client: Mutex<Option<Connected>>,
}

/// A client. It reconnects by itself, but always with the certificates with which it was made.
struct Connected {
    client: Client,
    /// The files that were read last.
    files: Option<Stamp>,
}

/// Why there is no client.
enum NotConnected {
    /// The files for TLS can't be read.
    Files(SubnetError),
    /// The TLS files don't match, or the login failed.
    Call(Error),
}

impl fmt::Display for NotConnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(error) => f.write_str(&chain(error)),
            Self::Call(error) => f.write_str(&describe(error)),
        }
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.endpoints.iter().map(|endpoint| &endpoint.url)).finish()
    }
}

impl Clients {
    /// Checks endpoints and reads certificates; does not connect yet.
    pub(super) fn new(options: &EtcdOptions) -> Result<Self, SubnetError> {
        let refused =
            |source| SubnetError::Refused { what: "etcd endpoints can't be used".to_owned(), source };
        if options.endpoints.is_empty() {
            return Err(refused("there is none".into()));
        }
        let has_files = !options.tls.is_empty();
        if has_files {
            tls::load(&options.tls)?;
        }
        let hint = if options.tls.cert_file.is_none() {
            " (does the server ask for a client certificate? None is set)"
        } else {
            " (does the server accept our client certificate?)"
        };
        let endpoint = |(index, given): (usize, &ServerUrl)| {
            let url = endpoint_url(given.reveal().trim(), has_files)
                .map_err(|error| refused(format!("number {}: {error}", index + 1).into()))?;
            let is_https = url.starts_with("https:");
            let tls = is_https.then(|| options.tls.clone());
            let hint = if is_https { hint } else { "" };
            Ok(Endpoint { url, tls, hint, client: Mutex::new(None) })
        };
        Ok(Self {
            endpoints: options
                .endpoints
                .iter()
                .enumerate()
                .map(endpoint)
                .collect::<Result<_, SubnetError>>()?,
            current: AtomicUsize::new(0),
            timeouts: options.timeouts.clone(),
            renewals: watch::Sender::new(0),
            login: options.username.clone().map(|name| (name, options.password.clone().unwrap_or_default())),
        })
    }

    /// Runs `call` at the endpoint that answered last. If that does not answer, tries all others; if it is the only
    /// one, tries it again, since it may only have closed an idle connection. The call must be safe to repeat.
    pub(super) async fn call<T, F>(&self, what: &'static str, call: impl Fn(Client) -> F) -> Called<T>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (start, count) = (self.current.load(Ordering::Relaxed), self.endpoints.len());
        let limit = self.limit();
        let mut reasons: Vec<String> = Vec::new();
        for index in (0..count.max(2)).map(|step| (start + step) % count) {
            let endpoint = &self.endpoints[index];
            let answer = tokio::time::timeout(limit, async { call(self.client(index).await?).await }).await;
            let late = answer.is_err();
            let error = match answer {
                Ok(Ok(value)) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok((index, value));
                }
                Ok(Err(error)) => error,
                Err(_) => Status::deadline_exceeded(format!("no answer within {limit:?}")).into(),
            };
            if !is_transient(&error) {
                return Err(CallError::Answer { what, url: endpoint.url.clone(), error });
            }
            let reason = format!("{}: {}{}", endpoint.url, describe(&error), hint(endpoint, &error));
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
            if count == 1 && (late || is_timeout(&error)) {
                break;
            }
        }
        Err(CallError::Unavailable { what, reasons: reasons.join("; ") })
    }

    /// Drops all connections: they use an address that this host no longer has, which only the keep-alive probes would
    /// notice. The next call makes a new one.
    pub(super) async fn renew(&self) {
        for endpoint in &self.endpoints {
            *endpoint.client.lock().await = None;
        }
        self.renewals.send_modify(|count| *count += 1);
    }

    /// Notifies when all connections are dropped, for streams, which would stay on theirs.
    pub(super) fn renewals(&self) -> watch::Receiver<u64> {
        self.renewals.subscribe()
    }

    /// Prefers the next endpoint, because a stream of this one broke.
    pub(super) fn leave(&self, index: usize) {
        let next = (index + 1) % self.endpoints.len();
        let _ = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The number of endpoints.
    pub(super) fn count(&self) -> usize {
        self.endpoints.len()
    }

    /// How long a call may take, with the time to connect.
    pub(super) fn limit(&self) -> Duration {
        self.timeouts.connect + self.timeouts.request
    }

    /// The address of an endpoint, for messages.
    pub(super) fn url(&self, index: usize) -> &str {
        &self.endpoints[index].url
    }

    /// The client of an endpoint; a new one if the files for TLS changed, so that the next connection uses them. Open
    /// streams stay on their connections.
    pub(super) async fn client(&self, index: usize) -> Result<Client, Error> {
        let endpoint = &self.endpoints[index];
        let mut slot = endpoint.client.lock().await;
        let files = endpoint.tls.as_ref().map(tls::stamp);
        if let Some(known) = slot.as_mut().filter(|known| known.files != files) {
            match self.connect(endpoint).await {
                Ok(client) => {
                    info!(endpoint = endpoint.url, "TLS files changed and are used from now on");
                    *known = Connected { client, files };
                }
                // The server answered or did not answer; the files are not the cause.
                Err(NotConnected::Call(error @ Error::GRpcStatus(_))) => return Err(error),
                // Perhaps only a part of the files is written yet; the rest will change them once more.
                Err(error) => {
                    warn!(endpoint = endpoint.url, %error, "TLS files changed, but can't be used; the old ones stay");
                    known.files = files;
                }
            }
        }
        if let Some(known) = &*slot {
            return Ok(known.client.clone());
        }
        let client = self.connect(endpoint).await.map_err(|error| match error {
            NotConnected::Call(error) => error,
            NotConnected::Files(error) => Status::unavailable(chain(&error)).into(),
        })?;
        *slot = Some(Connected { client: client.clone(), files });
        Ok(client)
    }

    /// With a login it requests a token, otherwise it does not connect yet.
    async fn connect(&self, endpoint: &Endpoint) -> Result<Client, NotConnected> {
        let tls = endpoint.tls.as_ref().map(tls::load).transpose().map_err(NotConnected::Files)?;
        let connect = |login| Client::connect([&endpoint.url], Some(self.options(tls.as_ref(), login)));
        match connect(true).await {
            Err(Error::GRpcStatus(status)) if is_without_auth(&status) => connect(false).await,
            other => other,
        }
        .map_err(NotConnected::Call)
    }

    fn options(&self, tls: Option<&TlsOptions>, login: bool) -> ConnectOptions {
        let times = &self.timeouts;
        let mut options = ConnectOptions::new()
            .with_connect_timeout(times.connect)
            .with_timeout(times.request)
            .with_keep_alive(times.probe, times.probe_answer)
            // Otherwise a connection that died while it was idle would stay in use. Servers don't expect such probes
            // and close idle connections after about 20 s; the next call opens one.
            .with_keep_alive_while_idle(true)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(tls) = tls {
            options = options.with_tls(tls.clone());
        }
        match &self.login {
            Some((name, password)) if login => options.with_user(name, password.reveal()),
            _ => options,
        }
    }
}

/// The hint about a missing client certificate, if the error may mean that: the server's TLS alert may be lost when it
/// closes the connection.
fn hint(endpoint: &Endpoint, error: &Error) -> &'static str {
    let text = describe(error);
    let closed = ["canceled", "fatal alert", "broken pipe", "reset", "closed"];
    if closed.iter().any(|word| text.contains(word)) { endpoint.hint } else { "" }
}
