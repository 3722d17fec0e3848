//! The value of a lease: JSON with the bytes that Go flannel writes.

mod reception;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

pub use reception::Reception;

use crate::addr::{Family, PerFamily};
use crate::gojson::GoObject;

/// What a node publishes about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeaseAttrs {
    /// The underlay addresses at which peers reach the node.
    pub public_ips: PerFamily<IpAddr>,
    /// The kind of the backend; empty for those that publish none (udp, alloc).
    pub backend_type: String,
    /// What the backend publishes for each family.
    pub backend_data: PerFamily<BackendData>,
    /// By which other backends the node can receive, the preferred first: at most [`Reception::MOST`], each of another
    /// kind. Go flannel knows nothing of them.
    pub receives: Vec<Reception>,
}

/// JSON that only a backend understands.
#[derive(Clone, PartialEq, Eq)]
pub struct BackendData(Box<str>);

impl BackendData {
    /// Encodes a backend's own type.
    pub fn encode<T: Serialize>(data: &T) -> Result<Self, serde_json::Error> {
        serde_json::to_string(data).map(|text| Self(text.into()))
    }

    /// Takes JSON text as it is; `None` for `null`, which stands for no data.
    pub fn parse(text: &str) -> Result<Option<Self>, serde_json::Error> {
        let raw: &RawValue = serde_json::from_str(text)?;
        Ok((raw.get() != "null").then(|| Self(raw.get().into())))
    }

    /// Decodes a backend's own type.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.0)
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Serialize for BackendData {
    /// As the JSON that it is.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).expect("backend data was JSON when it was made");
        raw.serialize(serializer)
    }
}

impl fmt::Debug for BackendData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a value is not that of a lease.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttrsError {
    /// It is longer than any lease.
    #[error("the value has {0} bytes; that of a lease has a few hundred")]
    TooLong(usize),
    /// It is not a JSON object.
    #[error("the value is not a JSON object")]
    Json(#[source] serde_json::Error),
    /// One of its members can't be used.
    #[error("{name} of the value can't be used")]
    Member {
        /// The member's name.
        name: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// An address at which no node can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{addr} is {kind} address, which no node has")]
#[non_exhaustive]
pub struct UnusableAddress {
    /// The address.
    pub addr: IpAddr,
    /// What kind of address it is, with an article.
    pub kind: &'static str,
}

impl UnusableAddress {
    /// Refuses an address to which packets for a node can't be sent.
    pub fn check(addr: IpAddr) -> Result<IpAddr, Self> {
        unusable(addr).map_or(Ok(addr), |kind| Err(Self { addr, kind }))
    }
}

/// Why a lease has no underlay address of a family to which packets can be sent, and what an operator does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeAddressError {
    /// There is none.
    #[error("{field} is missing; {}", LeaseAttrs::MEND)]
    Missing {
        /// The member of the value that should have it.
        field: &'static str,
    },
    /// No node can have it.
    #[error("{field} {address}; {}", LeaseAttrs::MEND)]
    Unusable {
        /// The member of the value that has it.
        field: &'static str,
        /// The address.
        address: UnusableAddress,
    },
}

/// The value as serde writes it. The fields and their order are upstream's; what upstream does not have comes last.
#[derive(Serialize)]
struct Wire<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: IpAddr,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<&'a IpAddr>,
    #[serde(rename = "BackendType", skip_serializing_if = "str::is_empty")]
    backend_type: &'a str,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    backend_data: Option<&'a BackendData>,
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    backend_v6_data: Option<&'a BackendData>,
    #[serde(rename = "Receives", skip_serializing_if = "<[Reception]>::is_empty")]
    receives: &'a [Reception],
}

impl LeaseAttrs {
    /// The most bytes that a value may have. Real ones have a few hundred.
    pub const MAX_BYTES: usize = 64 << 10;

    /// What an operator does about a record that can't be used.
    pub const MEND: &str = "restart the agent of its node, which writes it anew, or put it right by hand";

    /// The member of the value that holds the underlay address of a family.
    pub fn address_field(family: Family) -> &'static str {
        match family {
            Family::V4 => "PublicIP",
            Family::V6 => "PublicIPv6",
        }
    }

    /// The underlay address of a family, if packets can be sent to it; else what is wrong.
    pub fn underlay(&self, family: Family) -> Result<IpAddr, NodeAddressError> {
        let field = Self::address_field(family);
        let addr = *self.public_ips.get(family).ok_or(NodeAddressError::Missing { field })?;
        UnusableAddress::check(addr).map_err(|address| NodeAddressError::Unusable { field, address })
    }

    /// The value as Go flannel writes it: compact, in its order, `0.0.0.0` for no IPv4.
    pub fn to_json(&self) -> String {
        let wire = Wire {
            public_ip: self.public_ips.v4.unwrap_or(Family::V4.unspecified()),
            public_ipv6: self.public_ips.v6.as_ref(),
            backend_type: &self.backend_type,
            backend_data: self.backend_data.v4.as_ref(),
            backend_v6_data: self.backend_data.v6.as_ref(),
            receives: &self.receives,
        };
        serde_json::to_string(&wire).expect("strings and raw JSON always encode")
    }

    /// Reads a value in any order of members, with any case of their names.
    pub fn from_json(text: &str) -> Result<Self, AttrsError> {
        if text.len() > Self::MAX_BYTES {
            return Err(AttrsError::TooLong(text.len()));
        }
        let object = GoObject::parse(text).map_err(AttrsError::Json)?;
        let v4: Option<Ipv4Addr> = member(&object, "PublicIP")?;
        let v6: Option<Ipv6Addr> = member(&object, "PublicIPv6")?;
        let data = |name| {
            let raw = object.raw(name).filter(|raw| *raw != "null");
            raw.map(|raw| BackendData(raw.into()))
        };
        Ok(Self {
            public_ips: PerFamily {
                v4: v4.filter(|addr| !addr.is_unspecified()).map(IpAddr::V4),
                v6: v6.filter(|addr| !addr.is_unspecified()).map(IpAddr::V6),
            },
            backend_type: member(&object, "BackendType")?.unwrap_or_default(),
            backend_data: PerFamily { v4: data("BackendData"), v6: data("BackendV6Data") },
            receives: object
                .raw("Receives")
                .and_then(|text| Reception::parse_list(text).ok())
                .unwrap_or_default(),
        })
    }

    /// The attributes that a lease of the backend `kind` would have of this node: its own if its type is
    /// `published_type`, else those of its `receives`; `None` if the node does not say that it receives by that backend.
    ///
    /// `published_type` is what the backend writes as its type, which is empty for udp and alloc.
    pub fn as_kind(&self, kind: &str, published_type: &str) -> Option<Self> {
        let backend_data = if self.backend_type == published_type {
            &self.backend_data
        } else {
            &self.receives.iter().find(|reception| reception.kind == kind)?.backend_data
        };
        Some(Self {
            public_ips: self.public_ips,
            backend_type: published_type.to_owned(),
            backend_data: backend_data.clone(),
            receives: Vec::new(),
        })
    }
}

/// The kind of an address that can't be one node's.
fn unusable(addr: IpAddr) -> Option<&'static str> {
    match addr {
        _ if addr.is_unspecified() => Some("the unspecified"),
        _ if addr.is_multicast() => Some("a multicast"),
        _ if addr.is_loopback() => Some("a loopback"),
        IpAddr::V4(addr) if addr.is_broadcast() => Some("the broadcast"),
        // "This network" (RFC 1122 section 3.2.1.3), and class E, to which kernels send nothing.
        IpAddr::V4(addr) if addr.octets()[0] == 0 || addr.octets()[0] >= 240 => Some("a reserved"),
        IpAddr::V6(addr) if addr.to_ipv4_mapped().is_some() => Some("an IPv4-mapped"),
        _ => None,
    }
}

fn member<T: for<'de> Deserialize<'de>>(
    object: &GoObject,
    name: &'static str,
) -> Result<Option<T>, AttrsError> {
    object.get(name).map_err(|source| AttrsError::Member { name, source })
}
