//! An object as people and programs outside of the loop see it: with the name of its device instead of a number.

use std::fmt;

use serde::{Serialize, Serializer};

use super::{FdbEntry, ObjectKey};
use crate::addr::MacAddr;

/// The key of an object with the name of its device.
///
/// It is serialized as an object with `kind`, `destination` and `device`, for an FDB entry also `mac`, and for a route
/// `metric`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamedObject {
    /// The key.
    pub key: ObjectKey,
    /// The name of the device on which it is, or by which the route leads; `None` if it has none (a blackhole route), or
    /// if the device is not known.
    pub device: Option<String>,
}

impl NamedObject {
    /// An object with this key on a device with this name.
    pub fn new(key: ObjectKey, device: Option<String>) -> Self {
        Self { key, device }
    }
}

impl fmt::Display for NamedObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.key, &self.device) {
            (ObjectKey::Route(..), _) | (_, None) => self.key.fmt(f),
            (key, Some(device)) => key.write(f, device),
        }
    }
}

#[derive(Serialize)]
struct View<'a> {
    kind: &'static str,
    destination: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<MacAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metric: Option<u32>,
    device: Option<&'a str>,
}

impl Serialize for NamedObject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (kind, destination, mac, metric) = match &self.key {
            ObjectKey::Address(_, addr) => ("address", addr.to_string(), None, None),
            ObjectKey::Neighbour(_, addr) => ("neighbour", addr.to_string(), None, None),
            ObjectKey::Fdb(FdbEntry { mac, dst, .. }) => ("fdb", dst.to_string(), Some(*mac), None),
            ObjectKey::NextHop(_, gateway, _) => ("next-hop", gateway.to_string(), None, None),
            ObjectKey::Route(dst, metric) => ("route", dst.to_string(), None, Some(*metric)),
        };
        let device = self.device.as_deref();
        View { kind, destination, mac, metric, device }.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::LinkIndex;

    #[test]
    fn it_names_its_device_in_both_forms() {
        let link = LinkIndex(7);
        let (addr, mac) = ("192.0.2.2".parse().unwrap(), "02:00:00:00:00:09".parse().unwrap());
        let fdb = FdbEntry { link, mac, dst: addr, port: None, vni: None, via: None };
        for (key, text, json) in [
            (
                ObjectKey::Address(link, "10.5.2.0/32".parse().unwrap()),
                "address 10.5.2.0/32 on link flannel.1",
                r#"{"kind":"address","destination":"10.5.2.0/32","device":"flannel.1"}"#,
            ),
            (
                ObjectKey::Neighbour(link, addr),
                "neighbour 192.0.2.2 on link flannel.1",
                r#"{"kind":"neighbour","destination":"192.0.2.2","device":"flannel.1"}"#,
            ),
            (
                ObjectKey::Fdb(fdb),
                "FDB entry 02:00:00:00:00:09 to 192.0.2.2 on link flannel.1",
                r#"{"kind":"fdb","destination":"192.0.2.2","mac":"02:00:00:00:00:09","device":"flannel.1"}"#,
            ),
            (
                ObjectKey::NextHop(link, addr, None),
                "next-hop object 192.0.2.2 on link flannel.1",
                r#"{"kind":"next-hop","destination":"192.0.2.2","device":"flannel.1"}"#,
            ),
            (
                ObjectKey::Route("fd00::/64".parse().unwrap(), 1024),
                "route fd00::/64",
                r#"{"kind":"route","destination":"fd00::/64","metric":1024,"device":"flannel.1"}"#,
            ),
        ] {
            let object = NamedObject::new(key, Some("flannel.1".to_owned()));
            assert_eq!(object.to_string(), text);
            assert_eq!(serde_json::to_string(&object).unwrap(), json);
            assert_eq!(NamedObject::new(key, None).to_string(), key.to_string());
        }
    }
}
