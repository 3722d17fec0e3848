//! What differs between two configurations. Names only: values may be secrets.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use super::{BackendConfig, NetworkConfig, is_own_key, range};
use crate::addr::Family;
use crate::gojson::GoObject;

impl NetworkConfig {
    /// The keys that mean something else in `other`, in the order of the documents, then those of the backend as
    /// [`BackendConfig::changed_keys`] names them. A key of a family that only one of the two configurations enables,
    /// and a default that follows another key, do not count as changed.
    pub fn changed_keys(&self, other: &Self) -> Vec<String> {
        let mut changed = Vec::new();
        let enable = PER_FAMILY.into_iter().filter(|(family, _)| {
            self.networks.get(*family).is_some() != other.networks.get(*family).is_some()
        });
        changed.extend(enable.map(|(_, name)| name));
        for family in Family::ALL {
            if let (Some(a), Some(b)) = (self.networks.get(family), other.networks.get(family)) {
                changed.extend(range::changed_keys(a, b, family));
            }
        }
        if self.nftables != other.nftables {
            changed.push("EnableNFTables");
        }
        let backend = self.backend.changed_keys(&other.backend);
        changed.into_iter().map(str::to_owned).chain(backend).collect()
    }
}

const PER_FAMILY: [(Family, &str); 2] = [(Family::V4, "EnableIPv4"), (Family::V6, "EnableIPv6")];

impl BackendConfig {
    /// The keys whose JSON means something else in `other`, such as `Backend.VNI`, spelled as in `other` or else as
    /// here. Two backends of different kinds can't be compared by key, so the answer is then `Backend.Type` instead of
    /// their keys. Only a backend knows its defaults, so a key that was added or removed counts as changed.
    ///
    /// The keys of [`Mixing`](super::Mixing) come first, as documents spell them.
    pub fn changed_keys(&self, other: &Self) -> Vec<String> {
        self.mixing.changed_keys(&other.mixing).chain(self.own_changed_keys(other)).collect()
    }

    /// The same without the keys of [`Mixing`](super::Mixing).
    pub(crate) fn own_changed_keys(&self, other: &Self) -> Vec<String> {
        if self.kind != other.kind {
            return vec!["Backend.Type".to_owned()];
        }
        if self.json == other.json {
            return Vec::new();
        }
        let [a, b] = [self, other].map(|config| GoObject::parse(&config.json).unwrap_or_default());
        let mut names: Vec<&str> = a.names().chain(b.names()).filter(|name| is_own_key(name)).collect();
        names.sort_unstable();
        names.dedup();
        let changed = names.into_iter().filter(|name| !mean_the_same(a.raw(name), b.raw(name)));
        let spelled = |name| other.spelling(name).or_else(|| self.spelling(name));
        changed.map(|name| format!("Backend.{}", spelled(name).unwrap_or_else(|| name.to_owned()))).collect()
    }

    /// How this configuration spells a key.
    fn spelling(&self, lower: &str) -> Option<String> {
        let names: BTreeMap<String, &RawValue> = serde_json::from_str(&self.json).ok()?;
        names.into_keys().find(|name| name.eq_ignore_ascii_case(lower))
    }
}

/// Two are equal if their JSON means the same.
impl PartialEq for BackendConfig {
    fn eq(&self, other: &Self) -> bool {
        self.changed_keys(other).is_empty()
    }
}

/// `null` leaves the default, as an absent key does.
fn mean_the_same(a: Option<&str>, b: Option<&str>) -> bool {
    let value = |text: &str| serde_json::from_str::<Value>(text).ok();
    let [a, b] = [a, b].map(|raw| raw.filter(|text| *text != "null"));
    a == b || a.zip(b).is_some_and(|(a, b)| value(a).is_some_and(|a| Some(a) == value(b)))
}
