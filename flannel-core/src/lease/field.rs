//! The parts of a lease that only one node can have.

use std::fmt;

use super::LeaseAttrs;
use crate::addr::Family;

/// A part of a lease that only one node can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// The subnet of a family: part of the key.
    Subnet(Family),
    /// The underlay address of a family: `PublicIP`, `PublicIPv6`.
    PublicIp(Family),
    /// What the backend published for a family: `BackendData`, `BackendV6Data`.
    BackendData(Family),
}

impl fmt::Display for Field {
    /// As the record's value names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Subnet(_) => "subnet",
            Self::PublicIp(family) => LeaseAttrs::address_field(*family),
            Self::BackendData(Family::V4) => "BackendData",
            Self::BackendData(Family::V6) => "BackendV6Data",
        })
    }
}
