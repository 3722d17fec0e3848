//! The backend's keys in the network config. Upstream: `pkg/backend/vxlan/vxlan.go`, `BackendConfig`.

use flannel_core::addr::{Family, Mtu, Vni};
use flannel_core::config::{BackendConfig, ConfigError, NetworkConfig};
use flannel_core::reconcile::AppliedConfig;
use flannel_core::status::IPV6_MIN_MTU;

use crate::overhead::encap_overhead;

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

/// The port that the Linux kernel uses if none is given (`vxlan_port` in `drivers/net/vxlan`).
const DEFAULT_PORT: u16 = 8472;

/// The keys that have an effect. `Name` and `MacPrefix`, which upstream reads on Windows only, are checked for mixed
/// clusters, but have none.
pub(crate) const KEYS: [&str; 6] = ["VNI", "Port", "MTU", "Learning", "GBP", "DirectRouting"];

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

    /// Reads and checks the keys, and whether they go with the networks.
    pub(crate) fn of(config: &NetworkConfig) -> Result<Self, ConfigError> {
        let vxlan = Self::parse(&config.backend)?;
        vxlan.check_mtu(config.families())?;
        Ok(vxlan)
    }

    /// Refuses an MTU that leaves pods of a family too small an MTU.
    pub(crate) fn check_mtu(&self, mut families: impl Iterator<Item = Family>) -> Result<(), ConfigError> {
        let least = IPV6_MIN_MTU + encap_overhead(Family::V6);
        match self.underlay_mtu {
            Some(mtu) if mtu.0 < least && families.any(|family| family == Family::V6) => {
                let problem = format!("must be at least {least} where pods have IPv6");
                Err(ConfigError::new("Backend.MTU", Some(mtu.to_string()), problem))
            }
            _ => Ok(()),
        }
    }

    /// The config that results from applying to this one all changes of `next` that need no restart, and the keys that
    /// differ.
    pub(crate) fn towards(self, next: Self) -> (Self, AppliedConfig) {
        let named = |keys: &[(bool, &str)]| {
            let changed = keys.iter().filter(|(differs, _)| *differs);
            changed.map(|(_, key)| format!("Backend.{key}")).collect()
        };
        let live = named(&[
            (self.underlay_mtu != next.underlay_mtu, "MTU"),
            (self.learning != next.learning, "Learning"),
            (self.direct_routing != next.direct_routing, "DirectRouting"),
        ]);
        let restart = named(&[
            (self.vni != next.vni, "VNI"),
            (self.port != next.port, "Port"),
            (self.gbp != next.gbp, "GBP"),
        ]);
        let Self { vni, port, gbp, .. } = self;
        (Self { vni, port, gbp, ..next }, AppliedConfig::new(live, restart))
    }
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
    fn an_mtu_below_what_ipv6_takes_is_refused_where_there_is_ipv6() {
        let both = [Family::V4, Family::V6];
        for (mtu, families, is_fine) in
            [(576, &both[..1], true), (1349, &both[..], false), (1350, &both, true), (0, &both, true)]
        {
            let config = VxlanConfig::parse(&backend(&format!(r#","MTU":{mtu}"#))).unwrap();
            let error = config.check_mtu(families.iter().copied()).err();
            assert_eq!(error.is_none(), is_fine, "{mtu} {error:?}");
            assert!(
                error.is_none_or(|error| error
                    .to_string()
                    .contains("Backend.MTU = 1349: must be at least 1350"))
            );
        }
    }

    #[test]
    fn takes_the_live_keys_and_names_the_others() {
        for (from, to, live, restart) in [
            ("", r#","VNI":1,"Port":8472,"MTU":0,"GBP":null,"Name":"x","Colour":1"#, "", ""),
            ("", r#","MTU":1400,"learning":true,"DirectRouting":true"#, "MTU Learning DirectRouting", ""),
            (r#","MTU":1400"#, "", "MTU", ""),
            ("", r#","VNI":2,"Port":4789,"GBP":true"#, "", "VNI Port GBP"),
            (r#","Learning":true"#, r#","VNI":2"#, "Learning", "VNI"),
        ] {
            let [from, to] = [from, to].map(|keys| VxlanConfig::parse(&backend(keys)).unwrap());
            let (now, taken) = from.towards(to);
            let named = |keys: Vec<String>| keys.join(" ").replace("Backend.", "");
            assert_eq!((named(taken.live).as_str(), named(taken.restart).as_str()), (live, restart));
            assert_eq!((now.vni, now.port, now.gbp), (from.vni, from.port, from.gbp));
            assert_eq!(now.towards(to).1.live, Vec::<String>::new());
        }
    }

    #[test]
    fn names_the_keys_without_effect() {
        let backend = backend(r#","MacPrefix":"0E-2A","name":"x","Colour":1,"VNI":2"#);
        assert!(VxlanConfig::parse(&backend).is_ok());
        assert_eq!(backend.names_besides(&KEYS), ["colour", "macprefix", "name"]);
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
