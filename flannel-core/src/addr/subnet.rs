//! Subnets: an address prefix without host bits, and the arithmetic that leasing needs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Family;

/// A prefix whose host bits are zero. Ordered by family, then base, then length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    base: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// The subnet of `prefix` bits that contains `addr`; `None` if the family has fewer bits.
    pub fn containing(addr: IpAddr, prefix: u8) -> Option<Self> {
        let family = Family::of(addr);
        (prefix <= family.bits())
            .then(|| Self { base: from_bits(family, to_bits(addr) & mask(family, prefix)), prefix })
    }

    /// The subnet with exactly this base; `None` if the base has host bits or the prefix is too long.
    pub fn exact(base: IpAddr, prefix: u8) -> Option<Self> {
        Self::containing(base, prefix).filter(|subnet| subnet.base == base)
    }

    /// The first address, which VXLAN devices and routes use as the VTEP's overlay address.
    pub fn base(self) -> IpAddr {
        self.base
    }

    /// The prefix length in bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The address family.
    pub fn family(self) -> Family {
        Family::of(self.base)
    }

    /// The last address.
    pub fn last(self) -> IpAddr {
        from_bits(self.family(), to_bits(self.base) | !mask(self.family(), self.prefix) & full(self.family()))
    }

    /// Base + 1: the address of the pods' bridge, as in `FLANNEL_SUBNET`.
    /// In a subnet of one address it is that address.
    pub fn gateway(self) -> IpAddr {
        let next = to_bits(self.base) | 1;
        if self.prefix == self.family().bits() { self.base } else { from_bits(self.family(), next) }
    }

    /// Whether `addr` lies in this subnet.
    pub fn contains(self, addr: IpAddr) -> bool {
        Self::containing(addr, self.prefix) == Some(self)
    }

    /// Whether every address of `other` lies in this subnet.
    pub fn covers(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.base)
    }

    /// Whether the two share an address. Subnets of different families never do.
    pub fn overlaps(self, other: Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The subnet of the same length `steps` further on; `None` past the end of the address space.
    pub fn nth_next(self, steps: u128) -> Option<Self> {
        let family = self.family();
        let shift = u32::from(family.bits() - self.prefix);
        let delta = if shift == 128 { (steps == 0).then_some(0) } else { steps.checked_mul(1 << shift) }?;
        let base = to_bits(self.base).checked_add(delta).filter(|base| *base <= full(family))?;
        Some(Self { base: from_bits(family, base), prefix: self.prefix })
    }

    /// How many steps of one subnet lead from this one to `last`; `None` if `last` lies before it,
    /// or differs in family or length.
    pub fn steps_to(self, last: Self) -> Option<u128> {
        if self.family() != last.family() || self.prefix != last.prefix {
            return None;
        }
        let distance = to_bits(last.base).checked_sub(to_bits(self.base))?;
        let shift = u32::from(self.family().bits() - self.prefix);
        Some(if shift == 128 { 0 } else { distance >> shift })
    }

    /// This subnet with the address `addr` in it, as an interface has it.
    pub fn with_host(self, addr: IpAddr) -> IpNetwork {
        IpNetwork::new(addr, self.prefix).expect("the prefix was checked for this family")
    }
}

fn full(family: Family) -> u128 {
    u128::MAX >> (128 - u32::from(family.bits()))
}

/// The network mask, right-aligned in 128 bits.
fn mask(family: Family, prefix: u8) -> u128 {
    let host = u32::from(family.bits() - prefix);
    full(family) & u128::MAX.checked_shl(host).unwrap_or(0)
}

/// An address as a number, right-aligned.
pub(crate) fn to_bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u128::from(addr.to_bits()),
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

fn from_bits(family: Family, bits: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(bits as u32).into(),
        Family::V6 => Ipv6Addr::from_bits(bits).into(),
    }
}

impl From<Subnet> for IpNetwork {
    fn from(subnet: Subnet) -> Self {
        subnet.with_host(subnet.base)
    }
}

impl From<IpNetwork> for Subnet {
    /// Drops the host bits.
    fn from(network: IpNetwork) -> Self {
        Self::containing(network.ip(), network.prefix()).expect("ipnetwork checks the prefix")
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not an address prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a CIDR such as 10.244.0.0/16 or fd00:10:244::/56")]
pub struct SubnetParseError(pub String);

impl FromStr for Subnet {
    type Err = SubnetParseError;

    /// Reads `address/length` as Go's `net.ParseCIDR` does and drops the host bits. A bare address, a
    /// netmask instead of a length, signs and leading zeros are refused.
    fn from_str(text: &str) -> Result<Self, SubnetParseError> {
        parse(text).ok_or_else(|| SubnetParseError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Subnet> {
    let (addr, prefix) = text.split_once('/')?;
    Subnet::containing(addr.parse().ok()?, parse_prefix(prefix)?)
}

/// Reads a prefix length: digits only.
pub(crate) fn parse_prefix(text: &str) -> Option<u8> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

impl Serialize for Subnet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn parses_like_go() {
        assert_eq!(subnet("10.5.3.4/16").to_string(), "10.5.0.0/16");
        assert_eq!(subnet("fc00::1/48").to_string(), "fc00::/48");
        assert_eq!(subnet("0.0.0.0/0").last(), IpAddr::from([255; 4]));
        assert_eq!(subnet("::/0").last(), IpAddr::from([255; 16]));
        for text in [
            "10.1.1.1",
            "10.0.0.0/255.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "::/129",
            "10.0.0/8",
            "",
        ] {
            assert!(text.parse::<Subnet>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn knows_its_neighbours() {
        let ours = subnet("10.3.0.0/16");
        assert!(ours.covers(subnet("10.3.4.0/24")) && !subnet("10.3.4.0/24").covers(ours));
        assert!(subnet("10.3.4.0/24").overlaps(ours) && !ours.overlaps(subnet("10.4.0.0/16")));
        assert!(!subnet("0.0.0.0/0").overlaps(subnet("::/0")), "families never overlap");
        assert_eq!(subnet("10.3.1.0/24").nth_next(2), Some(subnet("10.3.3.0/24")));
        assert_eq!(subnet("255.255.255.0/24").nth_next(1), None);
        assert_eq!(subnet("0.0.0.0/0").nth_next(1), None);
        assert_eq!(subnet("::/0").nth_next(1), None);
        assert_eq!(subnet("10.3.1.0/24").steps_to(subnet("10.3.255.0/24")), Some(254));
        assert_eq!(subnet("10.3.1.0/24").steps_to(subnet("10.3.0.0/24")), None);
        assert_eq!(subnet("10.3.1.0/24").gateway(), IpAddr::from([10, 3, 1, 1]));
        assert_eq!(subnet("fc00::/64").gateway().to_string(), "fc00::1");
        assert_eq!(subnet("10.3.1.7/32").gateway(), IpAddr::from([10, 3, 1, 7]));
    }

    proptest! {
        #[test]
        fn round_trips_and_agrees_with_ipnetwork(addr: IpAddr, prefix in 0..=128_u8, other: IpAddr) {
            let Some(subnet) = Subnet::containing(addr, prefix) else { return Ok(()) };
            prop_assert_eq!(subnet.to_string().parse(), Ok(subnet));
            let oracle = IpNetwork::new(addr, prefix).unwrap();
            prop_assert_eq!(subnet.base(), oracle.network());
            prop_assert_eq!(subnet.contains(other), oracle.contains(other));
            prop_assert!(subnet.contains(subnet.last()) && subnet.contains(subnet.gateway()));
        }

        #[test]
        fn stepping_is_the_inverse_of_counting(addr: IpAddr, prefix in 1..=128_u8, steps in 0..1000_u128) {
            let Some(first) = Subnet::containing(addr, prefix) else { return Ok(()) };
            if let Some(last) = first.nth_next(steps) {
                prop_assert_eq!(first.steps_to(last), Some(steps));
                prop_assert_eq!(first.overlaps(last), steps == 0);
            }
        }

        #[test]
        fn never_panics(text in ".*") {
            let _ = text.parse::<Subnet>();
        }
    }
}
