//! Ethernet hardware addresses in the text forms of Go's `net.ParseMAC`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A 48-bit Ethernet address. Prints as lower-case hex with colons, as Go flannel writes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// A MAC drawn at random: unicast and locally administered (IEEE 802, bits 0 and 1 of the first byte).
    pub fn random() -> Self {
        let [_, _, mac @ ..] = fastrand::u64(..).to_be_bytes();
        Self(mac).into_local_unicast()
    }

    /// Sets the "locally administered" bit and clears the "group" bit.
    fn into_local_unicast(mut self) -> Self {
        self.0[0] = (self.0[0] & 0xfe) | 0x02;
        self
    }

    /// Whether a station can have this address: not zero and not a group.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if at == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not a 48-bit Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address such as 0a:5b:10:33:7e:01")]
pub struct MacError(pub String);

impl FromStr for MacAddr {
    type Err = MacError;

    /// Accepts `aa:bb:cc:dd:ee:ff`, `aa-bb-cc-dd-ee-ff` and `aabb.ccdd.eeff`, in either case.
    fn from_str(text: &str) -> Result<Self, MacError> {
        parse(text).map(Self).ok_or_else(|| MacError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<[u8; 6]> {
    let bytes = text.as_bytes();
    let (separator, digits) = match (bytes.len(), bytes.get(2), bytes.get(4)) {
        (17, Some(&s @ (b':' | b'-')), _) => (s, 2),
        (14, _, Some(b'.')) => (b'.', 4),
        _ => return None,
    };
    let mut hex = Vec::with_capacity(12);
    for (at, &byte) in bytes.iter().enumerate() {
        if at % (digits + 1) == digits {
            if byte != separator {
                return None;
            }
        } else {
            hex.push(u8::try_from(char::from(byte).to_digit(16)?).ok()?);
        }
    }
    let mut mac = [0; 6];
    for (byte, pair) in mac.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(mac)
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accepts_what_go_accepts() {
        for text in ["0a:5b:10:33:7e:01", "0A:5B:10:33:7E:01", "0a-5b-10-33-7e-01", "0a5b.1033.7e01"] {
            assert_eq!(text.parse(), Ok(MacAddr([0x0a, 0x5b, 0x10, 0x33, 0x7e, 0x01])), "{text}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "0a:5b:10:33:7e",
            "0a:5b:10:33:7e:0g",
            "0a:5b:10:33-7e-01",
            "0a:5b:10:33:7e:01:02",
            "0a5b10337e01",
            "0a5b.1033:7e01",
            "00:00:5e:00:53:01:00:00",
            "+a:5b:10:33:7e:01",
            "éa:5b:10:33:7e:0",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn random_macs_are_a_stations_own_and_differ() {
        let drawn: std::collections::BTreeSet<MacAddr> = (0..1000).map(|_| MacAddr::random()).collect();
        assert_eq!(drawn.len(), 1000);
        assert!(drawn.iter().all(|mac| mac.is_unicast() && mac.0[0] & 2 == 2));
    }

    proptest! {
        #[test]
        fn round_trips(mac: [u8; 6]) {
            let mac = MacAddr(mac);
            prop_assert_eq!(mac.to_string().parse(), Ok(mac));
        }

        #[test]
        fn never_panics(text in ".*") {
            let _ = text.parse::<MacAddr>();
        }
    }
}
