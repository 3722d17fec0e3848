//! An object in the kernel.

use std::fmt;

use serde::Deserialize;

/// An object in the kernel, as events and status name it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Object {
    /// `address`, `neighbour`, `fdb`, `next-hop` or `route`.
    pub kind: String,
    /// The address, subnet or gateway that it is for.
    pub destination: String,
    /// The MAC of an FDB entry.
    pub mac: Option<String>,
    /// The device on which it is, or by which it leads.
    pub device: Option<String>,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, destination, mac, device } = self;
        match kind.as_str() {
            "fdb" => write!(f, "FDB entry {} to {destination}", mac.as_deref().unwrap_or("?"))?,
            "next-hop" => write!(f, "next-hop object {destination}")?,
            kind => write!(f, "{kind} {destination}")?,
        }
        device.as_ref().map_or(Ok(()), |device| write!(f, " on {device}"))
    }
}
