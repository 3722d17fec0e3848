//! Where the store is, as far as the flags say it.

use std::net::IpAddr;
use std::time::Duration;

use flannel_core::secret::ServerUrl;

use crate::cli::{Options, StoreChoice};

/// How long a name may take to resolve. One that does not is not looked at.
const PATIENCE: Duration = Duration::from_secs(2);

/// The hosts of the store's endpoints, as names or addresses. None of a pod's API server: its address is a service's,
/// which the host translates before it looks for a route.
pub(crate) fn hosts(options: &Options) -> Vec<String> {
    let urls: Vec<&str> = match &options.store {
        StoreChoice::Etcd => options.etcd.endpoints.iter().map(ServerUrl::reveal).collect(),
        StoreChoice::Kube(flags) => flags.api_url.iter().map(ServerUrl::reveal).collect(),
        StoreChoice::Local(_) => Vec::new(),
    };
    urls.into_iter().filter_map(host).map(str::to_owned).collect()
}

/// The host of a URL, without credentials, port and brackets.
fn host(url: &str) -> Option<&str> {
    let rest = url.trim().split_once("://").map_or(url.trim(), |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host_and_port = authority.rsplit('@').next().unwrap_or_default();
    let host = match host_and_port.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host_and_port.rsplit_once(':').map_or(host_and_port, |(host, _)| host),
    };
    Some(host).filter(|host| !host.is_empty())
}

/// The addresses of a host.
pub(crate) async fn resolve(host: &str) -> Vec<IpAddr> {
    if let Ok(addr) = host.parse() {
        return vec![addr];
    }
    match tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host, 0))).await {
        Ok(Ok(found)) => found.map(|socket| socket.ip()).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_what_is_connected_to() {
        for (url, wanted) in [
            ("http://192.0.2.1:2379", Some("192.0.2.1")),
            ("https://etcd.example.org:2379", Some("etcd.example.org")),
            ("http://me:se@cret@192.0.2.1:2379/path@x", Some("192.0.2.1")),
            ("http://[2001:db8::1]:2379", Some("2001:db8::1")),
            ("https://me:secret@[2001:db8::1]/", Some("2001:db8::1")),
            ("192.0.2.1:2379", Some("192.0.2.1")),
            (" http://192.0.2.1 ", Some("192.0.2.1")),
            ("http://", None),
            ("", None),
        ] {
            assert_eq!(host(url), wanted, "{url}");
        }
    }

    #[tokio::test]
    async fn addresses_need_no_resolver() {
        assert_eq!(resolve("2001:db8::1").await, ["2001:db8::1".parse::<IpAddr>().unwrap()]);
    }
}
