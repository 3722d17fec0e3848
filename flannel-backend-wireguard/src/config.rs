//! The backend's keys in the network config. Pure. Upstream: `pkg/backend/wireguard/wireguard.go`.

use flannel_core::addr::{Family, Mtu};
use flannel_core::config::{BackendConfig, ConfigError, NetworkConfig};
use flannel_core::reconcile::AppliedConfig;
use flannel_core::status::IPV6_MIN_MTU;

use crate::key::PresharedKey;

/// The keys that this backend reads.
pub(crate) const KEYS: [&str; 6] =
    ["PSK", "ListenPort", "ListenPortV6", "MTU", "PersistentKeepaliveInterval", "Mode"];

/// Bytes that WireGuard adds: outer IPv6 header 40, UDP 8, WireGuard 32. Over IPv4 it is 20 less; Go flannel takes the
/// same for both, so that all pods of a cluster have one MTU.
pub(crate) const OVERHEAD: u32 = 80;

/// The keys of `"Backend": {"Type": "wireguard", ..}`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WireguardConfig {
    /// `PSK`: a key that all nodes share besides their own ones. Default none.
    pub psk: Option<PresharedKey>,
    /// `ListenPort`: the UDP port of `flannel-wg`. Default 51820.
    pub listen_port: u16,
    /// `ListenPortV6`: the UDP port of `flannel-wg-v6`, which only the mode `separate` has. Default 51821.
    pub listen_port_v6: u16,
    /// `MTU`: the underlay MTU to count from, in bytes. Absent or 0 means that of the underlay link.
    pub underlay_mtu: Option<Mtu>,
    /// `PersistentKeepaliveInterval`: seconds between packets that keep mappings of NATs open, 0 (the default) for
    /// none.
    pub keepalive: u16,
    /// `Mode`: which devices there are, and by which family peers are reached. Default `separate`.
    pub mode: Mode,
}

/// Which devices there are, and by which family of the underlay peers are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// A device for each family of pods, whose packets travel in that family.
    #[default]
    Separate,
    /// One device for all pods; each peer is reached by the family that suits it.
    Auto,
    /// One device for all pods; all peers are reached by IPv4.
    Ipv4,
    /// One device for all pods; all peers are reached by IPv6.
    Ipv6,
}

impl Mode {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "" | "separate" => Self::Separate,
            "auto" => Self::Auto,
            "ipv4" => Self::Ipv4,
            "ipv6" => Self::Ipv6,
            _ => return None,
        })
    }

    /// The family by which all peers must be reached, if it is one.
    fn only(self) -> Option<Family> {
        match self {
            Self::Separate | Self::Auto => None,
            Self::Ipv4 => Some(Family::V4),
            Self::Ipv6 => Some(Family::V6),
        }
    }
}

impl WireguardConfig {
    /// Reads and checks the keys.
    pub fn parse(backend: &BackendConfig) -> Result<Self, ConfigError> {
        // Its value is a secret, so no error shows it.
        let psk = match backend.get::<String>("PSK") {
            Ok(psk) => psk.filter(|psk| !psk.is_empty()),
            Err(_) => return Err(ConfigError::new("Backend.PSK", None, "must be text")),
        };
        let psk = psk.map(|psk| psk.parse::<PresharedKey>()).transpose().map_err(|error| {
            ConfigError::new("Backend.PSK", None, format!("it {error}; `wg genpsk` makes one"))
        })?;
        let port = |name: &str, default: u16| {
            let port: i64 = backend.get(name)?.filter(|port| *port != 0).unwrap_or_else(|| default.into());
            u16::try_from(port).map_err(|_| bad(name, &port, "must be from 1 to 65535"))
        };
        let (listen_port, listen_port_v6) = (port("ListenPort", 51820)?, port("ListenPortV6", 51821)?);
        let mtu: i64 = backend.get("MTU")?.unwrap_or(0);
        let mtu = u32::try_from(mtu)
            .ok()
            .filter(|mtu| *mtu == 0 || (576..=65535).contains(mtu))
            .ok_or_else(|| bad("MTU", &mtu, "must be 0 (that of the underlay) or from 576 to 65535"))?;
        let keepalive: i64 = backend.get("PersistentKeepaliveInterval")?.unwrap_or(0);
        let keepalive = u16::try_from(keepalive).map_err(|_| {
            bad("PersistentKeepaliveInterval", &keepalive, "must be from 0 (off) to 65535 seconds")
        })?;
        let mode: String = backend.get("Mode")?.unwrap_or_default();
        let mode = Mode::parse(&mode)
            .ok_or_else(|| bad("Mode", &format!("{mode:?}"), "must be separate, auto, ipv4 or ipv6"))?;
        let underlay_mtu = Some(Mtu(mtu)).filter(|mtu| mtu.0 > 0);
        Ok(Self { psk, listen_port, listen_port_v6, underlay_mtu, keepalive, mode })
    }

    /// Reads and checks the keys, and whether they go with the networks.
    pub(crate) fn of(config: &NetworkConfig) -> Result<Self, ConfigError> {
        let wireguard = Self::parse(&config.backend)?;
        wireguard.check(&config.families().collect::<Vec<_>>())?;
        Ok(wireguard)
    }

    /// Refuses what does not fit the families of the pods: equal ports of two devices, a mode whose family nodes have
    /// no address of, and an MTU that leaves pods too small an MTU.
    pub(crate) fn check(&self, families: &[Family]) -> Result<(), ConfigError> {
        let has = |family| families.contains(&family);
        if self.mode == Mode::Separate
            && has(Family::V4)
            && has(Family::V6)
            && self.listen_port == self.listen_port_v6
        {
            let problem = "is ListenPort, too; two devices need two ports (or set Mode)";
            return Err(bad("ListenPortV6", &self.listen_port_v6, problem));
        }
        if let Some(only) = self.mode.only().filter(|only| !has(*only)) {
            let problem = format!("{only} is not enabled, so nodes publish no address of it");
            return Err(ConfigError::new("Backend.Mode", None, problem));
        }
        let least = IPV6_MIN_MTU + OVERHEAD;
        match self.underlay_mtu {
            Some(mtu) if mtu.0 < least && has(Family::V6) => {
                Err(bad("MTU", &mtu, format!("must be at least {least} where pods have IPv6")))
            }
            _ => Ok(()),
        }
    }

    /// The port of the device that carries a family, which is what this node publishes for it.
    pub(crate) fn port(&self, family: Family) -> u16 {
        match (self.mode, family) {
            (Mode::Separate, Family::V6) => self.listen_port_v6,
            _ => self.listen_port,
        }
    }

    /// The port of the second device that a family has while a node changes its key: two above the first's, or the next
    /// that is none of the first devices'.
    pub(crate) fn second_port(&self, family: Family) -> u16 {
        let first = self.port(family);
        let is_free = |port: &u16| ![self.listen_port, self.listen_port_v6].contains(port);
        // At the upper end they are below.
        let (mut above, mut below) = (2..8, 2..8);
        let above =
            above.find_map(|n| first.checked_add(n).filter(is_free).filter(|_| first <= u16::MAX - 8));
        above.or_else(|| below.find_map(|n| Some(first - n).filter(is_free))).unwrap_or_default()
    }

    /// The bytes that WireGuard really adds to a full-size packet of a family; `None` where that depends on the peer.
    pub(crate) fn added(&self, family: Family) -> Option<u32> {
        let outer = match self.mode {
            Mode::Separate => family,
            Mode::Ipv4 => Family::V4,
            Mode::Ipv6 => Family::V6,
            Mode::Auto => return None,
        };
        Some(if outer == Family::V4 { OVERHEAD - 20 } else { OVERHEAD })
    }

    /// The MTU of pods on an underlay with this MTU; `None` if that leaves nothing.
    pub(crate) fn overlay_mtu(&self, underlay: Mtu) -> Option<Mtu> {
        self.underlay_mtu.map_or(underlay, |given| given.min(underlay)).less(OVERHEAD)
    }

    /// The config that results from applying to this one all changes of `next` that need no restart, and the keys that
    /// differ. Only another mode takes one, since it takes other devices.
    pub(crate) fn towards(&self, next: Self) -> (Self, AppliedConfig) {
        let named = |keys: &[(bool, &str)]| {
            keys.iter().filter(|(differs, _)| *differs).map(|(_, key)| format!("Backend.{key}")).collect()
        };
        let live = named(&[
            (self.psk != next.psk, "PSK"),
            (self.listen_port != next.listen_port, "ListenPort"),
            (self.listen_port_v6 != next.listen_port_v6, "ListenPortV6"),
            (self.underlay_mtu != next.underlay_mtu, "MTU"),
            (self.keepalive != next.keepalive, "PersistentKeepaliveInterval"),
        ]);
        let restart = named(&[(self.mode != next.mode, "Mode")]);
        (Self { mode: self.mode, ..next }, AppliedConfig::new(live, restart))
    }
}

fn bad(name: &str, value: &impl ToString, problem: impl Into<String>) -> ConfigError {
    ConfigError::new(format!("Backend.{name}"), Some(value.to_string()), problem)
}

#[cfg(test)]
mod tests {
    use flannel_core::config::{LeaseSource, NetworkConfig};
    use proptest::prelude::*;

    use super::*;

    const PSK: &str = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";
    const BOTH: [Family; 2] = [Family::V4, Family::V6];

    fn parse(keys: &str) -> Result<WireguardConfig, ConfigError> {
        let text = format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"wireguard"{keys}}}}}"#);
        WireguardConfig::parse(&NetworkConfig::parse(&text, LeaseSource::Store).unwrap().backend)
    }

    #[test]
    fn has_upstreams_defaults() {
        let want = WireguardConfig {
            psk: None,
            listen_port: 51820,
            listen_port_v6: 51821,
            underlay_mtu: None,
            keepalive: 0,
            mode: Mode::Separate,
        };
        assert_eq!(parse(""), Ok(want.clone()));
        assert_eq!(parse(r#","PSK":"","ListenPort":0,"MTU":0,"Mode":"""#), Ok(want));
    }

    #[test]
    fn reads_all_keys_in_any_case() {
        let keys = format!(
            r#","psk":"{PSK}","LISTENPORT":4000,"listenPortV6":4001,"mtu":1400,"PersistentKeepaliveInterval":25,"mode":"auto""#
        );
        let config = parse(&keys).unwrap();
        assert_eq!(config.psk, Some(PSK.parse().unwrap()));
        assert_eq!((config.listen_port, config.listen_port_v6, config.keepalive), (4000, 4001, 25));
        assert_eq!((config.underlay_mtu, config.mode), (Some(Mtu(1400)), Mode::Auto));
        for (mode, want) in [("ipv4", Mode::Ipv4), ("ipv6", Mode::Ipv6), ("separate", Mode::Separate)] {
            assert_eq!(parse(&format!(r#","Mode":"{mode}""#)).unwrap().mode, want);
        }
    }

    #[test]
    fn names_the_bad_key_and_value_but_no_secret() {
        for (keys, key, value) in [
            (r#","ListenPort":65536"#, "Backend.ListenPort", Some("65536")),
            (r#","ListenPortV6":-1"#, "Backend.ListenPortV6", Some("-1")),
            (r#","MTU":100"#, "Backend.MTU", Some("100")),
            (r#","PersistentKeepaliveInterval":-5"#, "Backend.PersistentKeepaliveInterval", Some("-5")),
            (r#","Mode":"both""#, "Backend.Mode", Some("\"both\"")),
            (r#","PSK":"secret""#, "Backend.PSK", None),
            (r#","PSK":4711"#, "Backend.PSK", None),
        ] {
            let error = parse(keys).expect_err(keys);
            assert_eq!((error.key.as_str(), error.value.as_deref()), (key, value), "{error}");
            assert!(!error.to_string().contains("secret") && !error.to_string().contains("4711"), "{error}");
        }
    }

    #[test]
    fn second_devices_have_ports_beside_those_of_the_first() {
        for (keys, v4, v6) in [
            ("", 51822, 51823),
            (r#","Mode":"auto""#, 51822, 51822),
            (r#","ListenPort":4000,"ListenPortV6":4002"#, 4003, 4004),
            (r#","ListenPort":65535,"ListenPortV6":65530"#, 65533, 65528),
            (r#","ListenPort":65534,"ListenPortV6":65532"#, 65531, 65530),
            (r#","ListenPort":1,"ListenPortV6":3"#, 4, 5),
        ] {
            let config = parse(keys).unwrap();
            assert_eq!((config.second_port(Family::V4), config.second_port(Family::V6)), (v4, v6), "{keys}");
        }
    }

    #[test]
    fn what_does_not_fit_the_families_is_refused() {
        for (keys, families, key) in [
            (r#","ListenPort":51821"#, &BOTH[..], Some("Backend.ListenPortV6")),
            (r#","ListenPort":51821"#, &BOTH[..1], None),
            (r#","ListenPort":51821,"Mode":"auto""#, &BOTH[..], None),
            (r#","Mode":"ipv6""#, &BOTH[..1], Some("Backend.Mode")),
            (r#","Mode":"ipv4""#, &BOTH[1..], Some("Backend.Mode")),
            (r#","Mode":"ipv6""#, &BOTH[..], None),
            (r#","MTU":1359"#, &BOTH[..], Some("Backend.MTU")),
            (r#","MTU":1359"#, &BOTH[..1], None),
            (r#","MTU":1360"#, &BOTH[..], None),
        ] {
            let error = parse(keys).unwrap().check(families).err();
            assert_eq!(error.as_ref().map(|error| error.key.as_str()), key, "{keys}");
        }
    }

    #[test]
    fn a_single_device_has_one_port_for_both_families() {
        let separate = parse("").unwrap();
        assert_eq!(BOTH.map(|family| separate.port(family)), [51820, 51821]);
        let single = parse(r#","Mode":"ipv6""#).unwrap();
        assert_eq!(BOTH.map(|family| single.port(family)), [51820, 51820]);
    }

    #[test]
    fn the_mtu_is_80_less() {
        let config = parse("").unwrap();
        assert_eq!(config.overlay_mtu(Mtu(1500)), Some(Mtu(1420)));
        assert_eq!(config.overlay_mtu(Mtu(60)), None);
        let smaller = parse(r#","MTU":1400"#).unwrap();
        assert_eq!(smaller.overlay_mtu(Mtu(1500)), Some(Mtu(1320)));
        assert_eq!(smaller.overlay_mtu(Mtu(1300)), Some(Mtu(1220)), "never above the underlay's");
    }

    #[test]
    fn takes_the_live_keys_and_names_the_others() {
        let psk = format!(r#","PSK":"{PSK}""#);
        for (from, to, live, restart) in [
            ("", r#","ListenPort":51820,"Mode":"separate","Colour":1"#, "", ""),
            ("", psk.as_str(), "PSK", ""),
            ("", r#","ListenPort":1,"ListenPortV6":2,"MTU":1400"#, "ListenPort ListenPortV6 MTU", ""),
            ("", r#","PersistentKeepaliveInterval":9,"Mode":"auto""#, "PersistentKeepaliveInterval", "Mode"),
        ] {
            let [from, to] = [from, to].map(|keys| parse(keys).unwrap());
            let (now, taken) = from.towards(to);
            let named = |keys: Vec<String>| keys.join(" ").replace("Backend.", "");
            assert_eq!((named(taken.live).as_str(), named(taken.restart).as_str()), (live, restart));
            assert_eq!(now.mode, from.mode);
        }
    }

    proptest! {
        #[test]
        fn never_panics(value in "[0-9a-zA-Z\"\\[\\]{}.=-]{0,46}", key in "PSK|ListenPort|MTU|Mode") {
            let text = format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"wireguard","{key}":{value}}}}}"#);
            if let Ok(config) = NetworkConfig::parse(&text, LeaseSource::Store) {
                let _ = WireguardConfig::parse(&config.backend);
            }
        }
    }
}
