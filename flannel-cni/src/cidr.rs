//! Subnets, as text and as masks.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A subnet: its first address and the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    first: IpAddr,
    len: u8,
}

impl Cidr {
    /// The subnet of that length around an address; `None` if an address hasn't that many bits.
    pub fn around(address: IpAddr, len: u8) -> Option<Self> {
        let first = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32_u32.checked_sub(len.into())?).unwrap_or(0);
                IpAddr::from((v4.to_bits() & mask).to_be_bytes())
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128_u32.checked_sub(len.into())?).unwrap_or(0);
                IpAddr::from((v6.to_bits() & mask).to_be_bytes())
            }
        };
        Some(Self { first, len })
    }

    /// Its first address, the subnet's own.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Its length in bits.
    pub fn prefix(&self) -> u8 {
        self.len
    }

    /// Whether it is one of IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// The address that host-local gives the gateway: the one after the first.
    pub fn gateway(&self) -> IpAddr {
        match self.first {
            IpAddr::V4(v4) => IpAddr::from(v4.to_bits().wrapping_add(1).to_be_bytes()),
            IpAddr::V6(v6) => IpAddr::from(v6.to_bits().wrapping_add(1).to_be_bytes()),
        }
    }

    /// Whether one of them lies in the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        let len = self.len.min(other.len);
        self.is_ipv4() == other.is_ipv4() && Self::around(self.first, len) == Self::around(other.first, len)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.len)
    }
}

impl FromStr for Cidr {
    type Err = String;

    /// Reads `10.1.17.1/24`; the bits after the prefix are dropped.
    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (address, len) = text.split_once('/')?;
            let len = Some(len).filter(|len| len.bytes().all(|byte| byte.is_ascii_digit()))?;
            Self::around(address.parse().ok()?, len.parse().ok()?)
        };
        parse().ok_or_else(|| format!("{text:?} is no subnet, such as 10.1.17.0/24"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_masked_and_written() {
        for (text, masked, gateway) in [
            ("10.1.17.1/24", "10.1.17.0/24", "10.1.17.1"),
            ("255.255.255.255/0", "0.0.0.0/0", "0.0.0.1"),
            ("10.1.17.9/32", "10.1.17.9/32", "10.1.17.10"),
            ("fd00:42:0:3::1/64", "fd00:42:0:3::/64", "fd00:42:0:3::1"),
            ("ffff::1/0", "::/0", "::1"),
            ("fd00::7/128", "fd00::7/128", "fd00::8"),
        ] {
            let cidr: Cidr = text.parse().unwrap();
            assert_eq!(
                (cidr.to_string(), cidr.gateway().to_string()),
                (masked.to_owned(), gateway.to_owned())
            );
        }
        for odd in [
            "",
            "10.1.17.1",
            "10.1.17.1/",
            "10.1.17.1/33",
            "10.1.17.1/+2",
            "10.1.17/24",
            "::/129",
            "a/8",
            "010.0.0.0/8",
        ] {
            assert!(odd.parse::<Cidr>().is_err(), "{odd}");
        }
    }

    #[test]
    fn overlap_is_mutual_and_within_a_family() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        for (a, b, overlap) in [
            ("10.1.0.0/16", "10.1.17.0/24", true),
            ("10.1.16.0/24", "10.1.17.0/24", false),
            ("0.0.0.0/0", "::/0", false),
            ("fd00::/48", "fd00:0:0:1::/64", true),
        ] {
            assert_eq!(
                (cidr(a).overlaps(&cidr(b)), cidr(b).overlaps(&cidr(a))),
                (overlap, overlap),
                "{a} {b}"
            );
        }
    }
}
