//! The key of a lease: its subnets as text.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::addr::{Family, PerFamily, Subnet, parse_prefix};

/// The subnets of a lease: at least one family.
///
/// Text form: `<v4>-<len>`, dual stack `<v4>-<len>&<v6>-<len>`. Go flannel has no form for IPv6 alone. The form here is
/// the one that its code would write and its parser reads, with an empty IPv4 part: `0.0.0.0-0&<v6>-<len>`.
///
/// Ordered by IPv4 subnet, then by IPv6 subnet; a missing subnet comes first.
// An agent has ten copies of each of ten thousand keys, so they are small: a length of 0 stands for no subnet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseKey {
    v4: (Ipv4Addr, u8),
    v6: (Ipv6Addr, u8),
}

impl LeaseKey {
    /// Checks that there is a subnet, that each has its family, and that it is no single address (which
    /// the text form can't say).
    pub fn new(subnets: PerFamily<Subnet>) -> Option<Self> {
        let fits = subnets.iter().all(|(family, subnet)| {
            subnet.family() == family && subnet.prefix() > 0 && subnet.prefix() < family.bits()
        });
        let v4 = match subnets.v4.map(|subnet| (subnet.base(), subnet.prefix())) {
            Some((IpAddr::V4(base), prefix)) => (base, prefix),
            _ => (Ipv4Addr::UNSPECIFIED, 0),
        };
        let v6 = match subnets.v6.map(|subnet| (subnet.base(), subnet.prefix())) {
            Some((IpAddr::V6(base), prefix)) => (base, prefix),
            _ => (Ipv6Addr::UNSPECIFIED, 0),
        };
        (fits && !subnets.is_empty()).then_some(Self { v4, v6 })
    }

    /// The subnet of one family.
    pub fn subnet(&self, family: Family) -> Option<Subnet> {
        let (base, prefix) = match family {
            Family::V4 => (IpAddr::V4(self.v4.0), self.v4.1),
            Family::V6 => (IpAddr::V6(self.v6.0), self.v6.1),
        };
        Subnet::containing(base, prefix).filter(|subnet| subnet.prefix() > 0)
    }

    /// The subnets, IPv4 first.
    pub fn subnets(&self) -> PerFamily<Subnet> {
        PerFamily::from_fn(|family| self.subnet(family))
    }
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (base, prefix) = self.v4;
        write!(f, "{base}-{prefix}")?;
        let (base, prefix) = self.v6;
        if prefix > 0 { write!(f, "&{base}-{prefix}") } else { Ok(()) }
    }
}

impl fmt::Debug for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for LeaseKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a key below `subnets/` is not that of a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseKeyError {
    /// It does not have the form of a lease key.
    #[error("the key has not the form 10.5.52.0-24 or 10.5.52.0-24&fd00:5:52::-64")]
    Form(String),
    /// It can be read as a lease's key but is not the text that Go flannel writes for it, so two keys would be one
    /// lease.
    #[error("the key should be written {canonical:?}")]
    NotCanonical {
        /// The key.
        found: String,
        /// How the same subnets are written.
        canonical: String,
    },
}

impl FromStr for LeaseKey {
    type Err = LeaseKeyError;

    /// Reads the last part of a key, after `subnets/`.
    fn from_str(text: &str) -> Result<Self, LeaseKeyError> {
        let form = || LeaseKeyError::Form(text.to_owned());
        let (v4, v6) = match text.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (text, None),
        };
        let v4 = part(v4, Family::V4).ok_or_else(form)?;
        let v6 = v6.map(|v6| part(v6, Family::V6).ok_or_else(form)).transpose()?;
        // An empty IPv4 part is only a placeholder beside an IPv6 one.
        let v4 = Some(v4).filter(|v4| v4.prefix() > 0);
        let key = Self::new(PerFamily { v4, v6 }).ok_or_else(form)?;
        let canonical = key.to_string();
        if canonical == text {
            Ok(key)
        } else {
            Err(LeaseKeyError::NotCanonical { found: text.to_owned(), canonical })
        }
    }
}

fn part(text: &str, family: Family) -> Option<Subnet> {
    let (base, prefix) = text.rsplit_once('-')?;
    let base: IpAddr = base.parse().ok()?;
    (Family::of(base) == family).then(|| Subnet::containing(base, parse_prefix(prefix)?))?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_and_prints_all_forms() {
        for text in ["10.5.52.0-24", "10.5.52.0-24&fd00:5:52::-64", "0.0.0.0-0&fd00:5:52::-64", "128.0.0.0-1"]
        {
            assert_eq!(text.parse::<LeaseKey>().unwrap().to_string(), text);
        }
        let key: LeaseKey = "0.0.0.0-0&fd00::-64".parse().unwrap();
        assert_eq!(key.subnet(Family::V4), None);
    }

    #[test]
    fn refuses_what_upstream_tests_refuse_and_more() {
        for text in [
            "",
            "10",
            "10.12.13.0",
            "10.12.13-24",
            "10.12.13.300-24",
            "10.12.13.0-24hi",
            "&2001::-56",
            "10.12.13.0-24&:12:13:-56",
            "10.12.13.0-24&20011::-56",
            "10.12.13.0-24&2001-56",
            "10.12.13.0-24&2001::",
            "10.12.13.0-24&2001::-56hi",
            "x10.5.1.0-24",
            "10.5.1.0-32",
            "10.5.1.0-+4",
            "10.12.13.0-24&2001::-128",
            "0.0.0.0-0",
            "10.12.13.0-24&10.1.0.0-24",
            "fd00::-64",
            "config",
        ] {
            assert!(matches!(text.parse::<LeaseKey>(), Err(LeaseKeyError::Form(_))), "{text:?}");
        }
    }

    #[test]
    fn refuses_a_second_spelling_of_the_same_subnets() {
        for (text, canonical) in [
            ("10.5.1.7-24", "10.5.1.0-24"),
            ("10.5.1.0-024", "10.5.1.0-24"),
            ("10.5.1.0-24&FD00::-64", "10.5.1.0-24&fd00::-64"),
            ("10.5.1.0-24&fd00:0::-64", "10.5.1.0-24&fd00::-64"),
        ] {
            let error = text.parse::<LeaseKey>().unwrap_err();
            assert_eq!(
                error,
                LeaseKeyError::NotCanonical { found: text.into(), canonical: canonical.into() }
            );
        }
    }

    /// Subnets that are often equal in part.
    fn few_subnets() -> impl Strategy<Value = PerFamily<Subnet>> {
        let one = || proptest::option::of((0..3_u8, 6..9_u8));
        (one(), one()).prop_map(|(v4, v6)| PerFamily {
            v4: v4.and_then(|(byte, prefix)| Subnet::containing([byte, 0, 0, 0].into(), prefix)),
            v6: v6.and_then(|(byte, prefix)| {
                Subnet::containing([u16::from(byte) << 8, 0, 0, 0, 0, 0, 0, 0].into(), prefix)
            }),
        })
    }

    proptest! {
        #[test]
        fn round_trips(v4: Option<(std::net::Ipv4Addr, u8)>, v6: Option<(std::net::Ipv6Addr, u8)>) {
            let subnets = PerFamily {
                v4: v4.and_then(|(addr, prefix)| Subnet::containing(addr.into(), prefix % 33)),
                v6: v6.and_then(|(addr, prefix)| Subnet::containing(addr.into(), prefix % 129)),
            };
            if let Some(key) = LeaseKey::new(subnets) {
                prop_assert_eq!(key.to_string().parse(), Ok(key));
                prop_assert_eq!(key.subnets(), subnets);
            }
        }

        #[test]
        fn is_ordered_like_its_subnets(a in few_subnets(), b in few_subnets()) {
            if let (Some(first), Some(second)) = (LeaseKey::new(a), LeaseKey::new(b)) {
                prop_assert_eq!(first.cmp(&second), a.cmp(&b));
            }
        }

        #[test]
        fn never_panics(text in "[0-9a-f.:&-]{0,40}|.*") {
            let _ = text.parse::<LeaseKey>();
        }
    }
}
