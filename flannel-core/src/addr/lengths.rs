//! Which prefix lengths a set of subnets has.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Family, Subnet};

/// The prefix lengths of a set of subnets, and how many subnets have each.
///
/// With it, the subnets that contain an address are found in a sorted set by one look-up for each length. A network has
/// one or two lengths, a host's routes have a few.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PrefixLengths(BTreeMap<(Family, u8), usize>);

impl PrefixLengths {
    /// Counts a subnet that is added to the set.
    pub(crate) fn add(&mut self, subnet: Subnet) {
        *self.0.entry((subnet.family(), subnet.prefix())).or_default() += 1;
    }

    /// Counts a subnet that is removed from the set.
    pub(crate) fn remove(&mut self, subnet: Subnet) {
        let length = (subnet.family(), subnet.prefix());
        if let Some(count) = self.0.get_mut(&length) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&length);
            }
        }
    }

    /// The subnets that contain `addr` and can be in the set, with prefixes up to `longest`, the most specific first.
    pub(crate) fn around(&self, addr: IpAddr, longest: u8) -> impl Iterator<Item = Subnet> + '_ {
        let family = Family::of(addr);
        let lengths = self.0.range((family, 0)..=(family, longest)).rev();
        lengths.filter_map(move |((_, length), _)| Subnet::containing(addr, *length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lengths_that_are_there_are_asked_for() {
        let mut lengths = PrefixLengths::default();
        let subnets = ["10.5.1.0/24", "10.5.2.0/24", "10.5.0.0/16", "0.0.0.0/0", "fd00::/48"];
        for subnet in subnets {
            lengths.add(subnet.parse().unwrap());
        }
        let around = |lengths: &PrefixLengths, addr: &str, longest| {
            let found = lengths.around(addr.parse().unwrap(), longest);
            found.map(|subnet| subnet.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(around(&lengths, "10.5.1.9", 32), ["10.5.1.0/24", "10.5.0.0/16", "0.0.0.0/0"]);
        assert_eq!(around(&lengths, "10.5.1.9", 23), ["10.5.0.0/16", "0.0.0.0/0"]);
        assert_eq!(around(&lengths, "fd00::1", 128), ["fd00::/48"]);
        lengths.remove("10.5.1.0/24".parse().unwrap());
        lengths.remove("0.0.0.0/0".parse().unwrap());
        lengths.remove("192.0.2.0/28".parse().unwrap());
        assert_eq!(
            around(&lengths, "10.5.1.9", 32),
            ["10.5.1.0/24", "10.5.0.0/16"],
            "another has that length"
        );
    }
}
