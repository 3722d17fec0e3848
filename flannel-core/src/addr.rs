//! Addresses and numbers of an overlay network, each as a type that can only hold a valid value.
//!
//! They parse and print the text forms that Go flannel uses, and do no I/O.

mod lengths;
mod mac;
mod subnet;

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// An address with the prefix length of its network, as an interface has it.
pub use ipnetwork::IpNetwork;
pub(crate) use lengths::PrefixLengths;
pub use mac::{MacAddr, MacError};
pub(crate) use subnet::parse_prefix;
pub use subnet::{Subnet, SubnetParseError};

/// An address family. Code is written once and run for each family that is enabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Bits in an address: 32 or 128.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The all-zero address, which the records of Go flannel use for "none".
    pub fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::from([0; 4]),
            Self::V6 => IpAddr::from([0; 16]),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One optional value for each address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PerFamily<T> {
    /// The IPv4 value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v4: Option<T>,
    /// The IPv6 value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v6: Option<T>,
}

impl<T> Default for PerFamily<T> {
    fn default() -> Self {
        Self { v4: None, v6: None }
    }
}

impl<T> PerFamily<T> {
    /// Builds both values from a function of the family.
    pub fn from_fn(mut f: impl FnMut(Family) -> Option<T>) -> Self {
        Self { v4: f(Family::V4), v6: f(Family::V6) }
    }

    /// Like [`Self::from_fn`], for a function that can fail.
    pub fn try_from_fn<E>(mut f: impl FnMut(Family) -> Result<Option<T>, E>) -> Result<Self, E> {
        Ok(Self { v4: f(Family::V4)?, v6: f(Family::V6)? })
    }

    /// The value of one family.
    pub fn get(&self, family: Family) -> Option<&T> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// The value of one family, to change it.
    pub fn get_mut(&mut self, family: Family) -> &mut Option<T> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// The present values, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        Family::ALL.into_iter().filter_map(|family| Some((family, self.get(family)?)))
    }

    /// The families that have a value, IPv4 first.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        self.iter().map(|(family, _)| family)
    }

    /// Converts each present value.
    pub fn map<U>(self, mut f: impl FnMut(Family, T) -> U) -> PerFamily<U> {
        PerFamily { v4: self.v4.map(|v| f(Family::V4, v)), v6: self.v6.map(|v| f(Family::V6, v)) }
    }

    /// Whether no family has a value.
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

/// A VXLAN network identifier: 24 bits (RFC 7348 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// The largest VNI, 16777215.
    pub const MAX: u32 = 0x00ff_ffff;

    /// Checks the range.
    pub fn new(vni: u32) -> Result<Self, VniError> {
        if vni > Self::MAX { Err(VniError(vni)) } else { Ok(Self(vni)) }
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = VniError;
    fn try_from(vni: u32) -> Result<Self, VniError> {
        Self::new(vni)
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A VNI that does not fit in 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("VNI {0} is larger than {max}", max = Vni::MAX)]
pub struct VniError(pub u32);

/// A maximum transmission unit in bytes. The field or method says of which link or side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mtu(pub u32);

impl Mtu {
    /// The room left for a packet after `overhead` bytes of encapsulation; `None` if nothing is left.
    pub fn less(self, overhead: u32) -> Option<Self> {
        self.0.checked_sub(overhead).filter(|left| *left > 0).map(Self)
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The index of a link (`ifindex`) in one network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LinkIndex(pub u32);

impl fmt::Display for LinkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn per_family_runs_ipv4_first() {
        let both = PerFamily { v4: Some(4), v6: Some(6) };
        assert_eq!(both.iter().map(|(_, v)| *v).collect::<Vec<_>>(), [4, 6]);
        assert_eq!(both.map(|family, v| (family, v)).v6, Some((Family::V6, 6)));
        assert!(PerFamily::<u8>::default().is_empty());
    }

    #[test]
    fn vni_is_24_bits() {
        assert_eq!(Vni::new(0x00ff_ffff).map(Vni::get), Ok(0x00ff_ffff));
        assert_eq!(Vni::new(0x0100_0000), Err(VniError(0x0100_0000)));
    }

    #[test]
    fn mtu_never_underflows() {
        assert_eq!(Mtu(1500).less(50), Some(Mtu(1450)));
        assert_eq!(Mtu(50).less(50), None);
        assert_eq!(Mtu(10).less(50), None);
    }
}
