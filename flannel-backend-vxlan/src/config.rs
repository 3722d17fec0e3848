//! The backend's keys in the network config. Upstream: `pkg/backend/vxlan/vxlan.go`, `BackendConfig`.

use flannel_core::addr::{Mtu, Vni};
use flannel_core::config::{BackendConfig, ConfigError};

/// The keys of `"Backend": {"Type": "vxlan", ..}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanConfig {
    /// `VNI`: the VXLAN segment. Default 1.
    pub vni: Vni,
    /// `Port`: UDP destination port. Absent or 0 means the Linux kernel's default, 8472.
    pub port: u16,
    /// `MTU`: the underlay MTU to count from, in bytes. Absent or 0 means that of the underlay link.
    pub underlay_mtu: Option<Mtu>,
    /// `Learning`: whether the devices learn FDB entries from traffic. Default false.
    pub learning: bool,
    /// `GBP`: whether group-based policy marks are carried. Default false.
    pub gbp: bool,
    /// `DirectRouting`: whether peers that are on-link are reached by plain routes, without VXLAN. Default false.
    pub direct_routing: bool,
}

/// The port that the Linux kernel takes if none is given (`vxlan_port` in `drivers/net/vxlan`).
const DEFAULT_PORT: u16 = 8472;

/// Keys that upstream reads on Windows only. They are checked, so that a mixed cluster's config is sound.
const WINDOWS_KEYS: [&str; 2] = ["Name", "MacPrefix"];

/// The keys that this backend reads, in lower case.
const KNOWN_KEYS: [&str; 9] =
    ["type", "vni", "port", "mtu", "learning", "gbp", "directrouting", "name", "macprefix"];

impl VxlanConfig {
    /// Reads and checks the keys.
    pub fn parse(backend: &BackendConfig) -> Result<Self, ConfigError> {
        let vni: i64 = backend.get("VNI")?.unwrap_or(1);
        let vni = u32::try_from(vni).ok().and_then(|vni| Vni::new(vni).ok());
        let vni = vni.ok_or_else(|| bad(backend, "VNI", &format!("must be from 0 to {}", Vni::MAX)))?;
        let port: i64 = backend.get("Port")?.unwrap_or(0);
        let port = u16::try_from(port).map_err(|_| bad(backend, "Port", "must be from 0 to 65535"))?;
        let mtu: i64 = backend.get("MTU")?.unwrap_or(0);
        let mtu = u32::try_from(mtu).ok().filter(|mtu| *mtu == 0 || (576..=65535).contains(mtu));
        let mtu =
            mtu.ok_or_else(|| bad(backend, "MTU", "must be 0 (that of the underlay) or from 576 to 65535"))?;
        if backend.get::<String>("MacPrefix")?.is_some_and(|prefix| !is_mac_prefix(&prefix)) {
            return Err(bad(backend, "MacPrefix", "must be two bytes in hex such as \"0E-2A\""));
        }
        backend.get::<String>("Name")?;
        Ok(Self {
            vni,
            port: if port == 0 { DEFAULT_PORT } else { port },
            underlay_mtu: Some(Mtu(mtu)).filter(|mtu| mtu.0 > 0),
            learning: backend.get("Learning")?.unwrap_or(false),
            gbp: backend.get("GBP")?.unwrap_or(false),
            direct_routing: backend.get("DirectRouting")?.unwrap_or(false),
        })
    }
}

/// Keys that are there but change nothing on Linux, for the log: those of Windows, and unknown ones.
pub(crate) fn idle_keys(backend: &BackendConfig) -> Vec<String> {
    let idle = |name: &String| {
        let windows = WINDOWS_KEYS.iter().any(|key| key.eq_ignore_ascii_case(name));
        windows || !KNOWN_KEYS.contains(&name.as_str())
    };
    backend.names().into_iter().filter(idle).collect()
}

fn bad(backend: &BackendConfig, name: &str, problem: &str) -> ConfigError {
    let value = backend.get::<serde_json::Value>(name).ok().flatten().map(|value| value.to_string());
    ConfigError::new(format!("Backend.{name}"), value, problem)
}

fn is_mac_prefix(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 5 && bytes[2] == b'-' && [0, 1, 3, 4].iter().all(|at| bytes[*at].is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use flannel_core::config::{LeaseSource, NetworkConfig};
    use proptest::prelude::*;

    use super::*;

    fn backend(keys: &str) -> BackendConfig {
        let text = format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"vxlan"{keys}}}}}"#);
        NetworkConfig::parse(&text, LeaseSource::Store).unwrap().backend
    }

    #[test]
    fn has_upstreams_defaults() {
        let config = VxlanConfig::parse(&backend("")).unwrap();
        assert_eq!((config.vni.get(), config.port, config.underlay_mtu), (1, 8472, None));
        assert!(!config.learning && !config.gbp && !config.direct_routing);
    }

    #[test]
    fn reads_all_keys_in_any_case() {
        let keys = r#","vni":42,"PORT":4789,"mtu":1400,"Learning":true,"gbp":true,"DirectRouting":true"#;
        let config = VxlanConfig::parse(&backend(keys)).unwrap();
        assert_eq!((config.vni.get(), config.port, config.underlay_mtu), (42, 4789, Some(Mtu(1400))));
        assert!(config.learning && config.gbp && config.direct_routing);
    }

    #[test]
    fn names_the_bad_key_and_value() {
        for (keys, key, value) in [
            (r#","VNI":16777216"#, "Backend.VNI", "16777216"),
            (r#","VNI":-1"#, "Backend.VNI", "-1"),
            (r#","VNI":"1""#, "Backend.VNI", "\"1\""),
            (r#","Port":65536"#, "Backend.Port", "65536"),
            (r#","MTU":100"#, "Backend.MTU", "100"),
            (r#","Learning":1"#, "Backend.Learning", "1"),
            (r#","DirectRouting":"yes""#, "Backend.DirectRouting", "\"yes\""),
            (r#","MacPrefix":"0E2A""#, "Backend.MacPrefix", "\"0E2A\""),
        ] {
            let error = VxlanConfig::parse(&backend(keys)).expect_err(keys);
            assert_eq!((error.key.as_str(), error.value.as_deref()), (key, Some(value)), "{error}");
        }
    }

    #[test]
    fn names_the_keys_without_effect() {
        let backend = backend(r#","MacPrefix":"0E-2A","name":"x","Colour":1,"VNI":2"#);
        assert!(VxlanConfig::parse(&backend).is_ok());
        assert_eq!(idle_keys(&backend), ["colour", "macprefix", "name"]);
    }

    proptest! {
        #[test]
        fn never_panics(value in "[0-9a-zA-Z\"\\[\\]{}.-]{0,12}", key in "VNI|Port|MTU|GBP|Name|MacPrefix") {
            let text = format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"vxlan","{key}":{value}}}}}"#);
            if let Ok(config) = NetworkConfig::parse(&text, LeaseSource::Store) {
                let _ = VxlanConfig::parse(&config.backend);
            }
        }
    }
}
