//! The network configuration ("net-conf"): JSON in the store, a checked value here.
//! Upstream: `pkg/subnet/config.go`.

mod changes;
mod mixing;
mod range;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::de::DeserializeOwned;

pub use mixing::Mixing;
pub use range::SubnetRange;

use crate::addr::{Family, PerFamily, Subnet};
use crate::gojson::GoObject;
use crate::secret::json_error;

/// Where subnets come from, which decides what the configuration must say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseSource {
    /// The store hands them out (etcd, local): `SubnetLen`, `SubnetMin` and `SubnetMax` count.
    Store,
    /// Something else assigns them (Kubernetes' node CIDRs): those keys are ignored.
    Assigned,
}

/// A checked network configuration. [`NetworkConfig::parse`] makes one, which has a network at least.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkConfig {
    /// The overlay network of each enabled family.
    pub networks: PerFamily<PodNetwork>,
    /// Whether firewall rules are nftables' (true) or iptables' (false), from `EnableNFTables`; `None` if the key is
    /// absent.
    pub nftables: Option<bool>,
    /// The backend and its own keys.
    pub backend: BackendConfig,
}

/// The overlay network of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PodNetwork {
    /// All pods' addresses (`Network`, `IPv6Network`).
    pub network: Subnet,
    /// The subnets that the store hands out; `None` where it does not.
    pub range: Option<SubnetRange>,
}

/// The `Backend` object: its `Type`, and the keys that only the backend understands. Two are equal if their
/// JSON means the same.
#[derive(Clone, Eq)]
#[non_exhaustive]
pub struct BackendConfig {
    /// The backend's kind in lower case. An absent or empty `Backend` means `udp`, as upstream's code has it.
    pub kind: String,
    /// Which other backends may be in use beside it. Those among them have no such keys of their own.
    // In a box, since configs are parts of many values, and few have these keys.
    pub mixing: Box<Mixing>,
    json: String,
    /// Where it stands in the network config: `Backend`, or a place in it such as `Backend.Accept[0]`.
    place: String,
}

impl BackendConfig {
    /// A backend of a kind without further keys.
    pub fn of_kind(kind: &str) -> Self {
        let kind = kind.to_lowercase();
        let json = serde_json::json!({ "Type": kind }).to_string();
        Self { kind, mixing: Box::default(), json, place: "Backend".to_owned() }
    }

    /// Reads an object that names a backend, without the keys of [`Mixing`]. Returns the members of the object, too.
    fn parse(raw: &str, place: &str) -> Result<(Self, GoObject), ConfigError> {
        let members = GoObject::parse(raw).map_err(|_| {
            // A short name was probably meant as the type. Anything longer may contain secrets.
            let is_name = raw.len() < 20
                && raw.bytes().all(|it| it.is_ascii_alphanumeric() || matches!(it, b'"' | b'-'));
            ConfigError::new(
                place,
                is_name.then(|| short(raw)),
                "must be an object such as {\"Type\": \"vxlan\"}",
            )
        })?;
        let kind: Option<String> = member(&members, &format!("{place}."), "Type")?;
        let kind = kind.filter(|kind| !kind.is_empty()).ok_or_else(|| {
            let problem = "is missing: name the backend, such as {\"Type\": \"vxlan\"}";
            ConfigError::new(format!("{place}.Type"), None, problem)
        })?;
        let config = Self { json: raw.to_owned(), place: place.to_owned(), ..Self::of_kind(&kind) };
        Ok((config, members))
    }

    /// Reads what [`Self::json`] returned.
    pub(crate) fn stored(json: &str) -> Result<Self, ConfigError> {
        let (mut config, members) = Self::parse(json, "Backend")?;
        *config.mixing = Mixing::parse(&members, &config.kind)?;
        Ok(config)
    }

    /// The object as it was written. It may have secrets.
    pub(crate) fn json(&self) -> &str {
        &self.json
    }

    /// The names of the keys in lower case, so that a backend can name those it does not know.
    pub fn names(&self) -> Vec<String> {
        let object = GoObject::parse(&self.json).unwrap_or_default();
        object.names().map(str::to_owned).collect()
    }

    /// Where it stands in the network config.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// The keys other than `Type`, those of [`Mixing`], and those of `known`, in lower case. They have no effect, which
    /// the backend logs.
    pub fn names_besides(&self, known: &[&str]) -> Vec<String> {
        let is_known = |name: &str| known.iter().any(|known| known.eq_ignore_ascii_case(name));
        self.names().into_iter().filter(|name| is_own_key(name) && !is_known(name)).collect()
    }

    /// The value of a key of the backend; `None` if it is absent or null.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ConfigError> {
        let object = GoObject::parse(&self.json).unwrap_or_default();
        member(&object, "Backend.", name)
    }
}

impl fmt::Debug for BackendConfig {
    /// Names the keys only: values may be secrets (a wireguard PSK, say).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendConfig")
            .field("kind", &self.kind)
            .field("keys", &self.names())
            .finish_non_exhaustive()
    }
}

/// A configuration that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("network config: {key}{}: {problem}", value.as_ref().map(|value| format!(" = {value}")).unwrap_or_default())]
#[non_exhaustive]
pub struct ConfigError {
    /// The key in question; `JSON` if the text is not JSON.
    pub key: String,
    /// Its value as it was written; `None` if it is absent or secret.
    pub value: Option<String>,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl ConfigError {
    /// An error about one key.
    pub fn new(key: impl Into<String>, value: Option<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), value, problem: problem.into() }
    }

    /// The same error with the place of its key in the network config. A backend names its keys as those of `Backend`
    /// itself, where one of [`Mixing::accept`] stands elsewhere.
    #[must_use]
    pub fn placed(self, backend: &BackendConfig) -> Self {
        let key = self.key.strip_prefix("Backend.").map(|name| format!("{}.{name}", backend.place));
        Self { key: key.unwrap_or(self.key), ..self }
    }
}

impl NetworkConfig {
    /// The most bytes that a configuration may have. Real ones have a few hundred.
    pub const MAX_BYTES: usize = 64 << 10;

    /// The error for a configuration of more than [`Self::MAX_BYTES`].
    pub fn too_long() -> ConfigError {
        ConfigError::new(
            "JSON",
            None,
            format!("more than {} bytes; real ones have a few hundred", Self::MAX_BYTES),
        )
    }

    /// Reads and checks a configuration.
    pub fn parse(text: &str, source: LeaseSource) -> Result<Self, ConfigError> {
        if text.len() > Self::MAX_BYTES {
            return Err(Self::too_long());
        }
        let json = |error: serde_json::Error| {
            ConfigError::new("JSON", None, format!("no JSON object: {}", json_error(&error)))
        };
        let object = GoObject::parse(text).map_err(json)?;
        let enabled = PerFamily {
            v4: Some(member(&object, "", "EnableIPv4")?.unwrap_or(true)),
            v6: Some(member(&object, "", "EnableIPv6")?.unwrap_or(false)),
        };
        let networks = PerFamily::try_from_fn(|family| {
            let parsed = range::parse_network(&object, family, source);
            if enabled.get(family) == Some(&true) { parsed.map(Some) } else { Ok(None) }
        })?;
        if networks.is_empty() {
            let problem = "both EnableIPv4 and EnableIPv6 are false; enable at least one";
            return Err(ConfigError::new("EnableIPv4", Some("false".into()), problem));
        }
        Ok(Self {
            networks,
            nftables: member(&object, "", "EnableNFTables")?,
            backend: parse_backend(&object)?,
        })
    }

    /// A text that [`Self::parse`] reads as this configuration, with all defaults written out. It contains the
    /// backend's secrets, if there are any.
    pub fn to_json(&self) -> String {
        let mut all = serde_json::Map::new();
        all.insert("EnableIPv4".to_owned(), self.networks.v4.is_some().into());
        all.insert("EnableIPv6".to_owned(), self.networks.v6.is_some().into());
        if let Some(nftables) = self.nftables {
            all.insert("EnableNFTables".to_owned(), nftables.into());
        }
        for (family, network) in self.networks.iter() {
            range::write_network(network, family, &mut all);
        }
        let mut text = serde_json::to_string(&all).expect("strings and numbers always encode");
        // The backend's object is copied as it was written, since its numbers may be larger than any type here.
        text.truncate(text.len() - 1);
        format!("{text},\"Backend\":{}}}", self.backend.json)
    }

    /// The key that names the network of a family.
    pub fn network_key(family: Family) -> &'static str {
        range::network_key(family)
    }

    /// Whether an address of this network's pods can be in `subnet`.
    pub fn covers(&self, subnet: Subnet) -> bool {
        self.networks.get(subnet.family()).is_some_and(|network| network.network.covers(subnet))
    }

    /// The enabled families, IPv4 first.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        self.networks.families()
    }
}

fn parse_backend(object: &GoObject) -> Result<BackendConfig, ConfigError> {
    let Some(raw) = object.raw("Backend") else {
        return Ok(BackendConfig::of_kind("udp"));
    };
    let (mut backend, members) = BackendConfig::parse(raw, "Backend")?;
    *backend.mixing = Mixing::parse(&members, &backend.kind)?;
    Ok(backend)
}

/// Whether a key in a backend's object, in lower case, is for the backend itself to understand.
fn is_own_key(name: &str) -> bool {
    name != "type" && !Mixing::is_key(name)
}

/// Decodes one member; the error names it with its path and value.
fn member<T: DeserializeOwned>(object: &GoObject, path: &str, name: &str) -> Result<Option<T>, ConfigError> {
    object.get(name).map_err(|error| {
        let value = object.raw(name).map(short);
        // Values under these names are secrets; any other value helps the operator.
        let secret = ["psk", "accesskeysecret", "accesskeyid"].contains(&name.to_ascii_lowercase().as_str());
        // serde's "at line 1 column 5" counts from the start of the value, which only misleads.
        let problem = error.to_string();
        let problem = problem.split(" at line ").next().unwrap_or_default().to_owned();
        let problem = if secret { "must be another kind of value".to_owned() } else { problem };
        ConfigError::new(format!("{path}{name}"), value.filter(|_| !secret), problem)
    })
}

/// A value cut to what fits a log line.
fn short(raw: &str) -> String {
    let text: String = raw.chars().take(60).collect();
    if text.len() < raw.len() { format!("{text}..") } else { text }
}
