//! The keys of the store. No other keys are ever written: Go nodes read everything that begins with `<prefix>/subnets`
//! and fail on what they can't decode.

use std::net::IpAddr;

use flannel_core::addr::Subnet;
use flannel_core::lease::LeaseKey;

/// The most ranges of keys for the neighbourhood of a subnet; a transaction has 128 comparisons.
const MOST_RANGES: u8 = 16;

/// The keys below a prefix.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    /// `<prefix>/config`.
    pub(super) config: String,
    /// `<prefix>/subnets/`, where the keys of leases begin.
    pub(super) first: String,
    /// `<prefix>/subnets0`: the end of the keys of leases, since `0` follows `/`.
    pub(super) end: String,
}

impl Keys {
    /// Joins with single slashes, as Go's `path.Join` does.
    pub(super) fn new(prefix: &str) -> Self {
        let mut parts: Vec<&str> = Vec::new();
        for part in prefix.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let join = |last: &str| {
            let root = if prefix.starts_with('/') { "/" } else { "" };
            let path: Vec<&str> = parts.iter().copied().chain([last]).collect();
            format!("{root}{}", path.join("/"))
        };
        Self { config: join("config"), first: join("subnets/"), end: join("subnets0") }
    }

    pub(super) fn lease(&self, key: LeaseKey) -> String {
        format!("{}{key}", self.first)
    }

    /// Ranges of keys with all records inside an IPv4 subnet, in any spelling and with any IPv6 subnet. A record that
    /// is wider than the subnet may be outside of them.
    ///
    /// A key begins with its address as text, so a range has whole octets: a /20 takes sixteen ranges.
    pub(super) fn near(&self, subnet: Subnet) -> Vec<(String, String)> {
        let (IpAddr::V4(base), IpAddr::V4(last)) = (subnet.base(), subnet.last()) else {
            return vec![(self.first.clone(), self.end.clone())];
        };
        let (base, last) = (base.octets(), last.octets());
        let same = base.iter().zip(&last).take(3).take_while(|(a, b)| a == b).count();
        let octets = base[..same].iter().map(|octet| format!("{octet}."));
        let text = octets.fold(self.first.clone(), |text, octet| text + &octet);
        let texts: Vec<String> = if same < 3 && last[same] - base[same] < MOST_RANGES {
            (base[same]..=last[same]).map(|octet| format!("{text}{octet}.")).collect()
        } else {
            vec![text]
        };
        // The end of the range of a prefix: the prefix with its last byte plus one.
        let end = |text: &str| {
            let (rest, last) = text.split_at(text.len() - 1);
            format!("{rest}{}", char::from(last.as_bytes()[0] + 1))
        };
        texts.into_iter().map(|text| (text.clone(), end(&text))).collect()
    }

    /// The part after `subnets/`, for the log and the parser.
    pub(super) fn name(&self, key: &[u8]) -> String {
        let rest = key.strip_prefix(self.first.as_bytes()).unwrap_or(key);
        String::from_utf8_lossy(rest).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_a_subnet_begins_like_it() {
        let near = |subnet: &str| {
            let found = Keys::new("/n").near(subnet.parse().unwrap());
            found.into_iter().map(|(first, end)| format!("{first} {end}")).collect::<Vec<_>>()
        };
        for subnet in ["10.5.52.0/24", "10.5.52.64/26", "10.5.52.252/31"] {
            assert_eq!(near(subnet), ["/n/subnets/10.5.52. /n/subnets/10.5.52/"]);
        }
        assert_eq!(
            near("10.5.2.0/23"),
            ["/n/subnets/10.5.2. /n/subnets/10.5.2/", "/n/subnets/10.5.3. /n/subnets/10.5.3/"]
        );
        assert_eq!((near("10.5.16.0/20").len(), near("10.0.0.0/12").len()), (16, 16));
        assert_eq!(near("10.5.32.0/19"), ["/n/subnets/10.5. /n/subnets/10.5/"]);
        assert_eq!(near("10.0.0.0/8"), ["/n/subnets/10. /n/subnets/10/"]);
        assert_eq!(near("fd00::/64"), ["/n/subnets/ /n/subnets0"]);
        // A wide one that has no octet of its own is all there is.
        assert_eq!(near("0.0.0.0/1"), ["/n/subnets/ /n/subnets0"]);
    }

    #[test]
    fn joins_like_go() {
        for (prefix, config) in [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("/coreos.com//network/", "/coreos.com/network/config"),
            ("coreos.com/network", "coreos.com/network/config"),
            ("/", "/config"),
            ("", "config"),
            ("/a/./b/../c", "/a/c/config"),
            ("/a(b", "/a(b/config"),
        ] {
            assert_eq!(Keys::new(prefix).config, config);
        }
        let keys = Keys::new("/n");
        assert_eq!(keys.lease("10.5.52.0-24".parse().unwrap()), "/n/subnets/10.5.52.0-24");
        assert_eq!(keys.name(b"/n/subnets/10.5.52.0-24"), "10.5.52.0-24");
        assert!(keys.first < keys.end && !keys.end.starts_with(&keys.first));
    }
}
