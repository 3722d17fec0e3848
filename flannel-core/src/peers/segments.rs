//! The subnets of the underlay's link, and which of their addresses no node can have.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::addr::{Family, Subnet};

/// The subnets of this node's underlay link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segments {
    subnets: Vec<Subnet>,
    own: Vec<IpAddr>,
}

impl Segments {
    /// The subnets of a link with these addresses.
    pub fn new(addresses: impl IntoIterator<Item = IpNetwork>) -> Self {
        let mut segments = Self::default();
        for addr in addresses {
            segments.own.push(addr.ip());
            segments.subnets.extend(Subnet::containing(addr.ip(), addr.prefix()));
        }
        segments.subnets.sort_unstable();
        segments.subnets.dedup();
        segments.own.sort_unstable();
        segments
    }

    /// Whether no subnet is known.
    pub fn is_empty(&self) -> bool {
        self.subnets.is_empty()
    }

    /// What the address is, if no node can be reached at it. The kernel sends packets for a broadcast address to all
    /// hosts of the segment, and takes the first address of an IPv6 subnet (RFC 4291 section 2.6.1) for its own. The
    /// first address of an IPv4 subnet is the old broadcast address, and kernels before 5.14 still treat it as such. An
    /// address that this node itself has is allowed.
    pub(super) fn nobodys(&self, addr: IpAddr) -> Option<String> {
        let around = self.subnets.iter().filter(|subnet| subnet.contains(addr));
        // A subnet of two addresses has neither (RFC 3021, RFC 6164).
        let mut around = around.filter(|subnet| subnet.prefix() + 1 < subnet.family().bits());
        let kind = |subnet: &Subnet| match subnet.family() {
            _ if addr == subnet.base() => Some("network"),
            Family::V4 if addr == subnet.last() => Some("broadcast"),
            _ => None,
        };
        let (kind, subnet) = around.find_map(|subnet| Some((kind(subnet)?, subnet)))?;
        (!self.own.contains(&addr)).then(|| format!("the {kind} address of the underlay {subnet}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_address_of_a_segment_are_nobodys() {
        let segments = |addresses: &[&str]| Segments::new(addresses.iter().map(|addr| addr.parse().unwrap()));
        let usual = &["192.168.77.11/24", "fd00:77::11/64"][..];
        for (own, addr, wanted) in [
            (usual, "192.168.77.255", Some("the broadcast address of the underlay 192.168.77.0/24")),
            (usual, "192.168.77.0", Some("the network address of the underlay 192.168.77.0/24")),
            (usual, "192.168.77.254", None),
            (usual, "192.168.77.1", None),
            (usual, "192.168.78.255", None),
            (usual, "fd00:77::", Some("the network address of the underlay fd00:77::/64")),
            (usual, "fd00:77::ffff:ffff:ffff:ffff", None),
            (usual, "fd00:78::", None),
            // In a larger subnet they are hosts as others.
            (&["192.168.77.11/22"], "192.168.77.255", None),
            (&["192.168.77.11/22"], "192.168.78.0", None),
            (
                &["192.168.77.11/22"],
                "192.168.79.255",
                Some("the broadcast address of the underlay 192.168.76.0/22"),
            ),
            // Point to point, and a cloud's /32: all of them are hosts.
            (&["192.168.77.10/31"], "192.168.77.11", None),
            (&["192.168.77.11/32"], "192.168.77.11", None),
            (&["fd00:77::/127"], "fd00:77::1", None),
            (
                &["192.168.77.10/30"],
                "192.168.77.8",
                Some("the network address of the underlay 192.168.77.8/30"),
            ),
            // The link's second subnet counts, and what the host itself has does work.
            (
                &["192.168.77.11/24", "198.51.100.1/26"],
                "198.51.100.63",
                Some("the broadcast address of the underlay 198.51.100.0/26"),
            ),
            (&["192.168.77.0/24"], "192.168.77.0", None),
            (&[], "192.168.77.255", None),
        ] {
            assert_eq!(
                segments(own).nobodys(addr.parse().unwrap()).as_deref(),
                wanted,
                "{addr} beside {own:?}"
            );
        }
    }
}
