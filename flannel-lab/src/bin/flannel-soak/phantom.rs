//! Nodes that exist in the store alone.

use std::net::{IpAddr, Ipv4Addr};

use flannel_lab::cluster::Families;
use ipnetwork::IpNetwork;

use crate::model::{Backend, Lease, Side};

/// The numbers that subnets of phantoms can have. The config keeps real nodes above, from 200 on.
pub(crate) const SUBNETS: std::ops::RangeInclusive<u8> = 1..=180;
/// The hosts on the underlay that phantoms claim to be. Real nodes are 11 and up, renumbered ones below 90.
pub(crate) const HOSTS: std::ops::RangeInclusive<u8> = 100..=240;

/// A lease without a node behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Phantom {
    /// Which subnet it has.
    pub(crate) subnet: u8,
    /// Which host it claims to be.
    pub(crate) host: u8,
    /// What its MACs are made of; no two have the same.
    pub(crate) mac: u16,
}

impl Phantom {
    /// Its lease.
    pub(crate) fn lease(self, backend: Backend, families: Families) -> Lease {
        let used = [families.v4().then_some(false), families.v6().then_some(true)];
        let side = |v6: bool| {
            let [high, low] = self.mac.to_be_bytes();
            let family = if v6 { 6 } else { 4 };
            let mac = || match backend {
                Backend::Vxlan => Some(format!("02:f1:a0:{family:02x}:{high:02x}:{low:02x}")),
                // 32 bytes in base64, the same in both families.
                Backend::Wireguard => Some(format!("phantom{:A<36}=", format!("{:04x}", self.mac))),
                Backend::HostGw | Backend::Udp | Backend::Ipip => None,
            };
            Side { subnet: subnet(self.subnet, v6), underlay: host(self.host, v6), mac: mac() }
        };
        Lease(used.into_iter().flatten().map(side).collect())
    }
}

/// Subnet `number` of the overlay network.
pub(crate) fn subnet(number: u8, v6: bool) -> IpNetwork {
    let text = if v6 { format!("fd00:42:0:{number:x}::/64") } else { format!("10.42.{number}.0/24") };
    text.parse().expect("it is a subnet")
}

/// Host `number` of the underlay's first segment, as the lab numbers them.
pub(crate) fn host(number: u8, v6: bool) -> IpAddr {
    if v6 {
        // Decimal digits read as hexadecimal.
        format!("fd00:77::{number}").parse().expect("it is an address")
    } else {
        Ipv4Addr::new(192, 168, 77, number).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phantom_has_a_lease_in_each_family() {
        let phantom = Phantom { subnet: 18, host: 100, mac: 258 };
        let lease = phantom.lease(Backend::Vxlan, Families::Dual);
        assert_eq!(lease.key(), "10.42.18.0-24&fd00:42:0:12::-64");
        assert_eq!(lease.0[1].underlay.to_string(), "fd00:77::100");
        assert_eq!(lease.0[0].mac.as_deref(), Some("02:f1:a0:04:01:02"));
        let lease = phantom.lease(Backend::Wireguard, Families::Dual);
        let [v4, v6] = &lease.0[..] else { panic!("{lease:?}") };
        assert!(v4.mac == v6.mac && v4.mac.as_ref().is_some_and(|key| key.len() == 44), "{lease:?}");
        assert_eq!(phantom.lease(Backend::HostGw, Families::V6).key(), "0.0.0.0-0&fd00:42:0:12::-64");
    }
}
