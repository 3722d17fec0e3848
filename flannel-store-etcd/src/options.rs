//! The options of the etcd store, and the checks that need no server.

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use flannel_core::clock::Clock;
use flannel_core::dataplane::command::word;
use flannel_core::secret::{Secret, ServerUrl};
use flannel_core::subnet::Identity;

/// How to reach and use an etcd store.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// The members, such as `https://10.0.0.1:2379`. Without a scheme it is https if TLS files are given, else http.
    pub endpoints: Vec<ServerUrl>,
    /// The prefix of `config` and `subnets/`. Upstream's default: `/coreos.com/network`.
    pub prefix: String,
    /// The files for TLS.
    pub tls: EtcdTls,
    /// The user's name, if the store needs a login.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// What this node knows of itself, to find its own lease again.
    pub identity: Identity,
    /// How long before its expiry a lease is renewed.
    pub renew_margin: Duration,
    /// The time for which a lease is granted. Go nodes grant 24 hours.
    /// Out of a range from a second to ten years the nearest counts.
    pub ttl: Duration,
    /// How long to wait for an answer, and how often to ask what nobody else asks.
    pub timeouts: EtcdTimeouts,
    /// The clocks by which leases are counted.
    pub clock: Clock,
}

impl EtcdOptions {
    /// The default prefix and times, without TLS and login.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<ServerUrl>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            prefix: "/coreos.com/network".to_owned(),
            tls: EtcdTls::default(),
            username: None,
            password: None,
            identity: Identity::default(),
            renew_margin: Duration::from_hours(1),
            ttl: Duration::from_hours(24),
            timeouts: EtcdTimeouts::default(),
            clock: Clock::default(),
        }
    }

    /// The shell command that deletes a key. Passwords are left to the environment of `etcdctl`.
    pub(super) fn delete_command(&self, key: &str) -> String {
        let mut words = vec!["etcdctl".to_owned()];
        if !self.endpoints.iter().any(ServerUrl::hides) {
            let endpoints: Vec<String> = self.endpoints.iter().map(ToString::to_string).collect();
            words.push(format!("--endpoints={}", endpoints.join(",")));
        }
        let EtcdTls { ca_file, cert_file, key_file } = &self.tls;
        for (flag, file) in [("cacert", ca_file), ("cert", cert_file), ("key", key_file)] {
            words.extend(file.iter().map(|file| format!("--{flag}={}", file.display())));
        }
        words.extend(self.username.iter().map(|name| format!("--user={name}")));
        words.extend(["del".to_owned(), key.to_owned()]);
        words.iter().map(|text| word(text)).collect::<Vec<_>>().join(" ")
    }
}

/// PEM files for TLS. The certificate of the server is checked against `ca_file`, else against the roots of
/// the system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EtcdTls {
    /// The authorities that may have signed the server's certificate.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate, for servers that ask for one; only together with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// The key of our own certificate.
    pub key_file: Option<PathBuf>,
}

impl EtcdTls {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How long to wait for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdTimeouts {
    /// For a connection.
    pub connect: Duration,
    /// For the answer to a request, at one endpoint.
    pub request: Duration,
    /// How often a quiet connection is probed. Servers close connections that are probed more often than
    /// their `--grpc-keepalive-min-time`, 5 s if not set.
    pub probe: Duration,
    /// For the answer to a probe.
    pub probe_answer: Duration,
    /// How often the watch of all leases is asked for its progress while it is quiet: so old is what the status calls confirmed, at
    /// most. The watches of the own lease and of the config are not asked, since they would say nothing more.
    pub confirm: Duration,
}

impl Default for EtcdTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            request: Duration::from_secs(5),
            probe: Duration::from_secs(6),
            probe_answer: Duration::from_secs(3),
            confirm: Duration::from_secs(30),
        }
    }
}

/// Why an endpoint can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("endpoint {endpoint:?} {problem}; write it like http://10.0.0.1:2379")]
pub struct EndpointError {
    /// The endpoint, which is shown without anything that may be a password.
    pub endpoint: ServerUrl,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// Checks an endpoint, before anything is asked of it.
pub fn check_endpoint(endpoint: &ServerUrl) -> Result<(), EndpointError> {
    endpoint_url(endpoint.reveal(), false).map(drop)
}

/// Checks an endpoint and gives it a scheme.
pub(super) fn endpoint_url(text: &str, tls: bool) -> Result<String, EndpointError> {
    let bad = |problem| Err(EndpointError { endpoint: text.into(), problem });
    if text.is_empty() {
        return bad("is empty");
    }
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
        None => (if tls { "https" } else { "http" }.to_owned(), text),
    };
    if scheme != "http" && scheme != "https" {
        return bad("has a scheme other than http and https");
    }
    if rest.contains('@') {
        return bad("has a user in it: give user and password by their own options");
    }
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return bad("has more than scheme, host and port");
    }
    let Some((host, port)) = authority.rsplit_once(':') else { return bad("has no port") };
    if !port.bytes().all(|byte| byte.is_ascii_digit()) || port.parse::<u16>().map_or(true, |port| port == 0) {
        return bad("has no valid port");
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let valid = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(is_name),
    };
    if !valid {
        return bad("has no valid host");
    }
    Ok(format!("{scheme}://{authority}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_checked() {
        for (text, url) in [
            ("http://10.0.0.1:2379", "http://10.0.0.1:2379"),
            ("HTTPS://etcd-1.example:2379/", "https://etcd-1.example:2379"),
            ("http://[fd00::1]:2379", "http://[fd00::1]:2379"),
            ("localhost:2379", "http://localhost:2379"),
        ] {
            assert_eq!(endpoint_url(text, false).as_deref(), Ok(url));
        }
        assert_eq!(endpoint_url("a:1", true).as_deref(), Ok("https://a:1"));
        for (text, problem) in [
            ("", "is empty"),
            ("unix://etcd.sock", "scheme"),
            ("unix:///run/etcd.sock", "scheme"),
            ("ftp://a:1", "scheme"),
            ("http://", "no port"),
            ("http://a", "no port"),
            ("http://:2379", "no valid host"),
            ("http://a b:1", "no valid host"),
            ("http://fd00::1:2379", "no valid host"),
            ("http://[fd00::zz]:1", "no valid host"),
            ("http://a:0", "no valid port"),
            ("http://a:66000", "no valid port"),
            ("http://a:+1", "no valid port"),
            ("http://a:", "no valid port"),
            ("http://a:1/path", "more than scheme, host and port"),
            ("http://a:1/?x=y", "more than scheme, host and port"),
            ("http://a:1#x", "more than scheme, host and port"),
        ] {
            let error = endpoint_url(text, false).unwrap_err().to_string();
            assert!(error.contains(problem), "{text:?}: {error}");
        }
        assert!(endpoint_url("", false).unwrap_err().to_string().starts_with("endpoint \"\" is empty"));
        let error = endpoint_url("http://root:hush@a:2379", false).unwrap_err().to_string();
        assert!(!error.contains("hush") && error.contains("a:2379"), "{error}");
    }

    #[test]
    fn a_key_is_deleted_where_it_is_and_secrets_are_not_told() {
        let key = "/x/subnets/10.5.1.0-24&fd00:1::-64";
        let mut options = EtcdOptions::new(["https://a:1"]);
        options.tls.ca_file = Some("/ca".into());
        let want = "etcdctl --endpoints=https://a:1 --cacert=/ca del '/x/subnets/10.5.1.0-24&fd00:1::-64'";
        assert_eq!(options.delete_command(key), want);
        options.tls.cert_file = Some("/my cert".into());
        options.tls.key_file = Some("/key".into());
        assert!(options.delete_command(key).contains("--cacert=/ca '--cert=/my cert' --key=/key del "));
        let mut options = EtcdOptions::new(["http://me:hunter2@a:1"]);
        options.username = Some("me".to_owned());
        options.password = Some("hunter2".into());
        let secret = options.delete_command(key);
        assert!(secret.starts_with("etcdctl --user=me del ") && !secret.contains("hunter2"), "{secret}");
    }

    #[test]
    fn credentials_stay_out_of_debug_output() {
        let mut options = EtcdOptions::new(["http://me:hush@a:1", "hush@b"]);
        options.password = Some("hush".into());
        let shown = format!("{options:?}");
        assert!(!shown.contains("hush") && shown.contains("http://a:1"), "{shown}");
    }
}
