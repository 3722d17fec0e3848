//! The backend's keys in the network config: there are none. Upstream: `pkg/backend/hostgw/hostgw.go`.

use flannel_core::config::BackendConfig;

/// Keys that are there but have no meaning, for the log.
pub(crate) fn idle_keys(backend: &BackendConfig) -> Vec<String> {
    backend.names().into_iter().filter(|name| name != "type").collect()
}

#[cfg(test)]
mod tests {
    use flannel_core::config::{LeaseSource, NetworkConfig};

    use super::*;

    #[test]
    fn names_every_key_but_the_type() {
        let text = r#"{"Network":"10.3.0.0/16","Backend":{"TYPE":"host-gw","VNI":1,"Colour":"red"}}"#;
        let config = NetworkConfig::parse(text, LeaseSource::Store).unwrap();
        let mut keys = idle_keys(&config.backend);
        keys.sort();
        assert_eq!(keys, ["colour", "vni"]);
    }
}
