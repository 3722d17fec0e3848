//! The backend's keys in the network config. Pure. Upstream: `pkg/backend/ipip/ipip.go`.

use flannel_core::addr::{Family, Subnet};
use flannel_core::config::{BackendConfig, ConfigError, NetworkConfig};
use flannel_core::reconcile::AppliedConfig;

/// The keys of `"Backend": {"Type": "ipip", ..}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IpipConfig {
    /// `DirectRouting`: whether peers that are on-link are reached by plain routes, without a tunnel. Default false.
    pub direct_routing: bool,
}

/// The keys that have an effect.
pub(crate) const KEYS: [&str; 1] = ["DirectRouting"];

impl IpipConfig {
    /// Reads and checks the keys.
    pub fn parse(backend: &BackendConfig) -> Result<Self, ConfigError> {
        Ok(Self { direct_routing: backend.get("DirectRouting")?.unwrap_or(false) })
    }

    /// The network of pods and the keys of a config that this backend can use.
    pub(crate) fn of(config: &NetworkConfig) -> Result<(Subnet, Self), ConfigError> {
        Ok((Self::network(config)?, Self::parse(&config.backend)?))
    }

    /// The network of pods. One with IPv6 is refused: IPIP carries IPv4 only (RFC 2003): pods would get IPv6 addresses by which they reach
    /// no other node. Go flannel crashes on the first such lease, or reaches no peer.
    pub(crate) fn network(config: &NetworkConfig) -> Result<Subnet, ConfigError> {
        if let (Some(v4), None) = (config.networks.get(Family::V4), config.networks.get(Family::V6)) {
            return Ok(v4.network);
        }
        let problem = "ipip carries IPv4 only: set EnableIPv6 to false (and EnableIPv4 to true), or take a backend with \
                       IPv6, such as vxlan";
        Err(ConfigError::new("EnableIPv6", Some("true".to_owned()), problem))
    }

    /// Compares it with the config that takes its place. Every key takes effect without a restart.
    pub(crate) fn changes(self, next: Self) -> AppliedConfig {
        let live = (self.direct_routing != next.direct_routing).then(|| "Backend.DirectRouting".to_owned());
        AppliedConfig::new(live.into_iter().collect(), Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::config::LeaseSource;

    use super::*;

    fn config(keys: &str, networks: &str) -> NetworkConfig {
        let text = format!(r#"{{{networks},"Backend":{{"Type":"ipip"{keys}}}}}"#);
        NetworkConfig::parse(&text, LeaseSource::Store).unwrap()
    }

    fn parse(keys: &str) -> Result<IpipConfig, ConfigError> {
        IpipConfig::parse(&config(keys, r#""Network":"10.5.0.0/16""#).backend)
    }

    #[test]
    fn it_has_upstreams_defaults_and_names_what_is_wrong() {
        assert_eq!(parse(""), Ok(IpipConfig { direct_routing: false }));
        assert_eq!(parse(r#","directrouting":true"#), Ok(IpipConfig { direct_routing: true }));
        let error = parse(r#","DirectRouting":"yes""#).unwrap_err();
        assert_eq!((error.key.as_str(), error.value.as_deref()), ("Backend.DirectRouting", Some("\"yes\"")));
    }

    #[test]
    fn ipv6_is_refused_beside_ipv4_and_alone() {
        let v6 = r#""EnableIPv6":true,"IPv6Network":"fd00:5::/48""#;
        for (networks, is_fine) in [
            (r#""Network":"10.5.0.0/16""#.to_owned(), true),
            (format!(r#""Network":"10.5.0.0/16",{v6}"#), false),
            (format!(r#""EnableIPv4":false,{v6}"#), false),
        ] {
            let checked = IpipConfig::network(&config("", &networks));
            assert_eq!(checked.is_ok(), is_fine, "{networks}");
            assert!(checked.err().is_none_or(|error| error.to_string().contains("vxlan")), "the way out");
        }
    }

    #[test]
    fn direct_routing_is_live() {
        let [off, on] = [false, true].map(|direct_routing| IpipConfig { direct_routing });
        assert_eq!(off.changes(on), AppliedConfig::new(vec!["Backend.DirectRouting".to_owned()], vec![]));
        assert_eq!(on.changes(on), AppliedConfig::default());
    }
}
