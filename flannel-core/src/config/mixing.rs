//! The keys of `Backend` by which nodes with several backends share one network. Go flannel ignores them.

use core::time::Duration;

use serde_json::value::RawValue;

use super::{BackendConfig, ConfigError, member, short};
use crate::gojson::GoObject;
use crate::lease::Reception;

/// Which other backends this node may run, and how a change of the backend goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mixing {
    /// The backends that this node may run beside its own, each with its own keys (`Accept`). None has the kind of the
    /// own one.
    pub accept: Vec<BackendConfig>,
    /// After which time a change of `Backend.Type` goes on although some nodes have not said that they can receive by the
    /// new one (`SwitchAfter`).
    pub switch_after: Duration,
    /// The backends by which peers are reached while the way by their own is proven blocked, the preferred first
    /// (`Fallback`). None has the kind of the own one.
    pub fallback: Vec<BackendConfig>,
    /// Whether the operator said that traffic may go from an encrypted backend to an unencrypted one
    /// (`LeaveEncryption`).
    pub leave_encryption: bool,
}

/// The keys, as documents spell them.
const KEYS: [&str; 4] = ["Accept", "SwitchAfter", "Fallback", "LeaveEncryption"];
const ACCEPT: &str = KEYS[0];
const SWITCH_AFTER: &str = KEYS[1];
const FALLBACK: &str = KEYS[2];
const LEAVE_ENCRYPTION: &str = KEYS[3];

/// The default of `SwitchAfter`, and the most, in seconds.
const USUAL_SWITCH: u64 = 60;
const LONGEST_SWITCH: u64 = 24 * 60 * 60;

impl Default for Mixing {
    fn default() -> Self {
        Self {
            accept: Vec::new(),
            switch_after: Duration::from_secs(USUAL_SWITCH),
            fallback: Vec::new(),
            leave_encryption: false,
        }
    }
}

impl Mixing {
    /// Reads the keys from the members of `Backend`, whose own kind is `own`.
    pub(super) fn parse(backend: &GoObject, own: &str) -> Result<Self, ConfigError> {
        let (accept, fallback) = (list(backend, ACCEPT, own)?, list(backend, FALLBACK, own)?);
        let differs = |way: &&BackendConfig| accept.iter().any(|it| it.kind == way.kind && it != *way);
        if let Some(way) = fallback.iter().find(differs) {
            let problem = "has other keys than the same backend has in Accept";
            return Err(ConfigError::new(way.place.clone(), Some(way.kind.clone()), problem));
        }
        Ok(Self {
            accept,
            switch_after: switch_after(backend)?,
            fallback,
            leave_encryption: member(backend, "Backend.", LEAVE_ENCRYPTION)?.unwrap_or(false),
        })
    }

    /// The backends beside the own one, each with its keys.
    pub(crate) fn further(&self) -> impl Iterator<Item = &BackendConfig> {
        self.accept.iter().chain(&self.fallback)
    }

    /// The kinds of the backends of [`Self::fallback`].
    pub(crate) fn detours(&self) -> Vec<String> {
        self.fallback.iter().map(|way| way.kind.clone()).collect()
    }

    /// The names of the keys that mean something else in `other`, such as `Backend.Accept`.
    pub(super) fn changed_keys(&self, other: &Self) -> impl Iterator<Item = String> {
        let differs = [
            self.accept != other.accept,
            self.switch_after != other.switch_after,
            self.fallback != other.fallback,
            self.leave_encryption != other.leave_encryption,
        ];
        let changed = KEYS.into_iter().zip(differs).filter(|(_, differs)| *differs);
        changed.map(|(key, _)| format!("Backend.{key}"))
    }

    /// Whether a key of `Backend` is one of these, in any case, and so none that the backend itself understands.
    pub(crate) fn is_key(name: &str) -> bool {
        KEYS.iter().any(|key| key.eq_ignore_ascii_case(name))
    }
}

/// Reads a list of backends beside `own`: names, or objects as `Backend` is one. No error shows more of them than a
/// name, since there may be secrets in them.
fn list(backend: &GoObject, name: &str, own: &str) -> Result<Vec<BackendConfig>, ConfigError> {
    let wrong = |problem: String| ConfigError::new(format!("Backend.{name}"), None, problem);
    let elements: Option<Vec<Box<RawValue>>> = backend.get(name).map_err(|_| {
        wrong("must be a list of backends, such as [\"host-gw\", {\"Type\": \"vxlan\"}]".to_owned())
    })?;
    let elements = elements.unwrap_or_default();
    if elements.len() > Reception::MOST {
        return Err(wrong(format!("has {} backends; {} are the most", elements.len(), Reception::MOST)));
    }
    let mut all: Vec<BackendConfig> = Vec::new();
    for (at, element) in elements.iter().enumerate() {
        let place = format!("Backend.{name}[{at}]");
        let backend = one(element.get(), &place)?;
        if all.iter().any(|other| other.kind == backend.kind) {
            return Err(ConfigError::new(
                format!("{place}.Type"),
                Some(backend.kind),
                "is in the list twice",
            ));
        }
        all.push(backend);
    }
    // The keys of the own backend are those of `Backend`.
    all.retain(|other| other.kind != own);
    Ok(all)
}

fn one(element: &str, place: &str) -> Result<BackendConfig, ConfigError> {
    let named = serde_json::from_str::<String>(element).ok().filter(|name| !name.is_empty());
    if let Some(name) = named {
        return Ok(BackendConfig { place: place.to_owned(), ..BackendConfig::of_kind(&name) });
    }
    let (backend, members) = BackendConfig::parse(element, place)?;
    match KEYS.into_iter().find(|key| members.raw(key).is_some()) {
        Some(key) => {
            Err(ConfigError::new(format!("{place}.{key}"), None, "has its place in Backend itself only"))
        }
        None => Ok(backend),
    }
}

fn switch_after(backend: &GoObject) -> Result<Duration, ConfigError> {
    let bad = || {
        let problem = format!("must be from 1 to {LONGEST_SWITCH} seconds");
        ConfigError::new(format!("Backend.{SWITCH_AFTER}"), backend.raw(SWITCH_AFTER).map(short), problem)
    };
    let seconds: Option<u64> = backend.get(SWITCH_AFTER).map_err(|_| bad())?;
    let seconds = seconds.unwrap_or(USUAL_SWITCH);
    if (1..=LONGEST_SWITCH).contains(&seconds) { Ok(Duration::from_secs(seconds)) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LeaseSource, NetworkConfig};

    fn parse(keys: &str) -> Result<BackendConfig, ConfigError> {
        let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"vxlan","VNI":7{keys}}}}}"#);
        NetworkConfig::parse(&text, LeaseSource::Store).map(|config| config.backend)
    }

    #[test]
    fn each_backend_of_the_list_has_its_own_keys() {
        let backend = parse(
            r#","accept":["Host-GW",{"TYPE":"wireguard","PSK":"hush"},{"Type":"vxlan","VNI":8}],"SwitchAfter":5,"leaveencryption":true"#,
        )
        .unwrap();
        let mixing = &backend.mixing;
        let kinds: Vec<&str> = mixing.accept.iter().map(|backend| backend.kind.as_str()).collect();
        assert_eq!(kinds, ["host-gw", "wireguard"], "the own kind is not beside itself");
        assert_eq!(mixing.accept[1].get("PSK"), Ok(Some("hush".to_owned())));
        assert_eq!(mixing.accept[1].names_besides(&["PSK"]), Vec::<String>::new());
        assert_eq!((mixing.switch_after, mixing.leave_encryption), (Duration::from_secs(5), true));
        assert_eq!(backend.names_besides(&[]), ["vni"], "the backend itself does not know these keys");
        assert!(!format!("{backend:?} {mixing:?}").contains("hush"));
        for keys in ["", r#","Accept":null,"SwitchAfter":null"#, r#","Accept":[],"SwitchAfter":60"#] {
            assert_eq!(*parse(keys).unwrap().mixing, Mixing::default(), "{keys}");
        }
    }

    #[test]
    fn errors_name_the_place_and_no_secret() {
        let nine = r#"["a","b","c","d","e","f","g","h","i"]"#;
        for (keys, key, value, word) in [
            (r#","Accept":"hush""#, "Accept", None, "must be a list"),
            (r#","Accept":{"PSK":"hush"}"#, "Accept", None, "must be a list"),
            (&format!(r#","Accept":{nine}"#), "Accept", None, "has 9 backends; 8 are the most"),
            (r#","Accept":["udp",7]"#, "Accept[1]", Some("7"), "must be an object"),
            (r#","Accept":[""]"#, "Accept[0]", Some("\"\""), "must be an object"),
            (r#","Accept":[["PSK: hush hush hush"]]"#, "Accept[0]", None, "must be an object"),
            (r#","Accept":["udp",{"PSK":"hush"}]"#, "Accept[1].Type", None, "name the backend"),
            (r#","Accept":[{"Type":7,"PSK":"hush"}]"#, "Accept[0].Type", Some("7"), "invalid type"),
            (r#","Accept":["udp",{"Type":"UDP"}]"#, "Accept[1].Type", Some("udp"), "twice"),
            (r#","Accept":[{"Type":"udp","ACCEPT":[]}]"#, "Accept[0].Accept", None, "Backend itself"),
            (
                r#","Accept":[{"Type":"udp","SwitchAfter":1}]"#,
                "Accept[0].SwitchAfter",
                None,
                "Backend itself",
            ),
            (r#","SwitchAfter":0"#, "SwitchAfter", Some("0"), "from 1 to 86400 seconds"),
            (r#","SwitchAfter":-1"#, "SwitchAfter", Some("-1"), "from 1 to 86400 seconds"),
            (r#","SwitchAfter":86401"#, "SwitchAfter", Some("86401"), "from 1 to 86400 seconds"),
            (r#","SwitchAfter":"1m""#, "SwitchAfter", Some("\"1m\""), "from 1 to 86400 seconds"),
            (r#","Fallback":["udp",{"PSK":"hush"}]"#, "Fallback[1].Type", None, "name the backend"),
            (r#","LeaveEncryption":1"#, "LeaveEncryption", Some("1"), "expected a boolean"),
        ] {
            let error = parse(keys).expect_err(keys);
            assert_eq!((error.key, error.value.as_deref()), (format!("Backend.{key}"), value), "{keys}");
            assert!(error.problem.contains(word) && !error.problem.contains("hush"), "{}", error.problem);
        }
        // What a backend says of its own keys is about one of the list.
        let backend = parse(r#","Accept":["udp",{"Type":"wireguard","PSK":7}]"#).unwrap();
        let wireguard = &backend.mixing.accept[1];
        let error = wireguard.get::<String>("PSK").unwrap_err().placed(wireguard);
        assert_eq!(error.to_string(), "network config: Backend.Accept[1].PSK: must be another kind of value");
        assert_eq!(error.clone().placed(&backend), error, "it is placed already");
    }

    #[test]
    fn a_change_is_named_apart_from_those_of_the_backend() {
        let accept = |list: &str| format!(r#","Accept":{list}"#);
        let udp = accept(r#"["udp"]"#);
        for (from, to, want) in [
            ("", r#","Accept":[],"SwitchAfter":60,"LeaveEncryption":false"#, ""),
            (&udp, &accept(r#"[{"Type":"UDP","Port":null}, "vxlan"]"#), ""),
            (&udp, &accept(r#"[{"Type":"udp","Port":1}]"#), "Backend.Accept"),
            (&accept(r#"["udp","ipip"]"#), &accept(r#"["ipip","udp"]"#), "Backend.Accept"),
            (&udp, &udp.replace("Accept", "Fallback"), "Backend.Accept Backend.Fallback"),
            (
                "",
                r#","switchafter":61,"leaveencryption":true,"GBP":true"#,
                "Backend.SwitchAfter Backend.LeaveEncryption Backend.GBP",
            ),
        ] {
            let (from, to) = (parse(from).unwrap(), parse(to).unwrap());
            assert_eq!(from.changed_keys(&to).join(" "), want, "{from:?} {to:?}");
            assert_eq!(from == to, want.is_empty());
        }
        let other = BackendConfig::of_kind("host-gw");
        assert_eq!(parse(&udp).unwrap().changed_keys(&other), ["Backend.Accept", "Backend.Type"]);
    }
}
