//! Which addresses and names things on the underlay have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// The address families the underlay has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Families {
    /// IPv4 alone.
    #[default]
    V4,
    /// IPv6 alone.
    V6,
    /// Both.
    Dual,
}

impl Families {
    /// Whether IPv4 is there.
    pub fn v4(self) -> bool {
        self != Self::V6
    }

    /// Whether IPv6 is there.
    pub fn v6(self) -> bool {
        self != Self::V4
    }

    /// The families that are there, IPv4 first: false for IPv4, true for IPv6.
    pub fn list(self) -> Vec<bool> {
        [self.v4().then_some(false), self.v6().then_some(true)].into_iter().flatten().collect()
    }

    /// The address of host number `host` on a segment, once a family.
    pub(crate) fn addresses(self, segment: u8, host: u8) -> Vec<IpNetwork> {
        let net = 77 + segment;
        let v4 = IpAddr::from(Ipv4Addr::new(192, 168, net, host));
        // Decimal digits read as hexadecimal, so that host 11 is .11 and ::11.
        let digits = |n: u8| u16::from(n / 100) << 8 | u16::from(n / 10 % 10) << 4 | u16::from(n % 10);
        let v6 = IpAddr::from(Ipv6Addr::new(0xfd00, digits(net), 0, 0, 0, 0, 0, digits(host)));
        let v4 = self.v4().then(|| IpNetwork::new(v4, 24).expect("24 is a length in IPv4"));
        let v6 = self.v6().then(|| IpNetwork::new(v6, 64).expect("64 is a length in IPv6"));
        v4.into_iter().chain(v6).collect()
    }
}

/// Where one NIC of a node goes.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    pub(crate) segment: u8,
    pub(crate) mtu: u32,
    pub(crate) addresses: Vec<IpNetwork>,
    pub(crate) gateways: Vec<IpAddr>,
}

/// The bridge of a segment.
pub(crate) fn bridge_name(segment: u8) -> String {
    format!("segment{segment}")
}

/// The `ip` command that puts or deletes an address; without the second that DAD would take.
pub(crate) fn address_line(verb: &str, address: IpNetwork, link: &str) -> String {
    let nodad = if address.is_ipv6() && verb != "del" { " nodad" } else { "" };
    format!("address {verb} {address} dev {link}{nodad}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_alike_in_both_families() {
        let text = |families: Families, segment, host| {
            let addresses = families.addresses(segment, host);
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(text(Families::Dual, 0, 11), "192.168.77.11/24 fd00:77::11/64");
        assert_eq!(text(Families::V4, 1, 254), "192.168.78.254/24");
        assert_eq!(text(Families::V6, 22, 254), "fd00:99::254/64");
    }
}
