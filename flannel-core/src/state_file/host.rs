//! Decides whether a state file was stored on this host: a machine with a copied disk must not take the lease of the
//! original. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::State;
use crate::addr::{LinkIndex, MacAddr, PerFamily, Subnet};
use crate::kernel::{Link, LinkAddress};

/// How many MACs are stored at most. Hosts have a few.
const MOST: usize = 64;
/// Kinds of links whose MACs are made by software and say nothing about the machine.
const MADE_HERE: [&str; 12] = [
    "vxlan",
    "bridge",
    "dummy",
    "tun",
    "geneve",
    "gre",
    "ipip",
    "sit",
    "wireguard",
    "ifb",
    "openvswitch",
    "vrf",
];

/// What distinguishes this host from others, read from its kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostIdentity {
    /// The MACs of its own links, ascending.
    pub macs: Vec<MacAddr>,
    /// The addresses of these links, without those of the overlay.
    pub ips: Vec<IpAddr>,
}

/// Whether a state was stored on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredOn {
    /// Yes: a MAC in the state is that of a link here.
    ThisHost,
    /// No: none of the stored MACs is here. The disk was copied, or all NICs were replaced.
    AnotherHost,
    /// Unknown: an older agent wrote it, or the host had no NICs.
    Unknown,
}

impl HostIdentity {
    /// Computes it from all links and addresses. Hardware counts; a virtual link counts only if it has an address
    /// outside of the overlay, as a container's `eth0` does and a pod's veth does not.
    pub fn of(links: &[Link], addresses: &[LinkAddress], overlay: &PerFamily<Subnet>) -> Self {
        let is_overlay = |addr: IpAddr| overlay.iter().any(|(_, network)| network.contains(addr));
        let global = |addr: &&LinkAddress| addr.global && !is_overlay(addr.addr.ip());
        let with_address: BTreeSet<LinkIndex> =
            addresses.iter().filter(global).map(|addr| addr.link).collect();
        let is_own = |link: &&Link| match link.kind.as_deref() {
            _ if link.loopback => false,
            None => true,
            Some(kind) => with_address.contains(&link.index) && !MADE_HERE.contains(&kind),
        };
        let own: Vec<&Link> = links.iter().filter(is_own).collect();
        let macs: BTreeSet<MacAddr> =
            own.iter().filter_map(|link| link.mac).filter(|mac| mac.is_unicast()).collect();
        // A NIC in a bridge has its addresses on the bridge.
        let has_ips = |index: LinkIndex| {
            let link = links.iter().find(|link| link.index == index);
            link.is_some_and(|link| {
                !link.loopback && link.kind.as_deref().is_none_or(|kind| kind == "bridge" || is_own(&link))
            })
        };
        let ips = addresses.iter().filter(global).filter(|addr| has_ips(addr.link));
        Self {
            macs: macs.into_iter().take(MOST).collect(),
            ips: ips.map(|addr| addr.addr.ip()).take(MOST).collect(),
        }
    }
}

impl State {
    /// Whether it was stored on a host that has one of these MACs.
    pub fn stored_on(&self, macs: &[MacAddr]) -> StoredOn {
        if self.host_macs.is_empty() {
            StoredOn::Unknown
        } else if self.host_macs.iter().any(|mac| macs.contains(mac)) {
            StoredOn::ThisHost
        } else {
            StoredOn::AnotherHost
        }
    }

    /// Adds addresses that this node has published, the newest last.
    pub fn remember_ips(&mut self, ips: impl IntoIterator<Item = IpAddr>) {
        /// Older addresses than these are forgotten: there will hardly be a record with one.
        const FORMER: usize = 16;
        for ip in ips {
            self.former_ips.retain(|known| *known != ip);
            self.former_ips.push(ip);
        }
        let surplus = self.former_ips.len().saturating_sub(FORMER);
        self.former_ips.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Mtu;

    fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
        Link {
            index: LinkIndex(index),
            name: name.into(),
            kind: kind.map(str::to_owned),
            mac: Some(MacAddr([2, 0, 0, 0, 0, index as u8])),
            mtu: Mtu(1500),
            up: true,
            carrier: true,
            loopback: name == "lo",
            vxlan: None,
            altnames: Vec::new(),
            master: None,
        }
    }

    fn address(index: u32, text: &str, global: bool) -> LinkAddress {
        LinkAddress {
            link: LinkIndex(index),
            addr: text.parse().unwrap(),
            global,
            deprecated: false,
            permanent: true,
            temporary: false,
            tentative: false,
        }
    }

    #[test]
    fn what_the_overlay_and_pods_have_does_not_tell_a_host() {
        let links = [
            link(1, "lo", None),
            link(2, "eth0", None),
            link(3, "eth1", None),
            link(4, "flannel.1", Some("vxlan")),
            link(5, "cni0", Some("bridge")),
            link(6, "veth1", Some("veth")),
            link(7, "eth2", Some("veth")),
            link(8, "docker0", Some("bridge")),
        ];
        let addresses = [
            address(2, "192.0.2.1/24", true),
            address(4, "10.5.1.0/32", true),
            address(5, "10.5.1.1/24", true),
            address(6, "10.5.1.1/32", true),
            address(6, "fe80::6/64", false),
            address(7, "198.51.100.7/24", true),
            address(8, "172.17.0.1/16", true),
        ];
        let overlay = PerFamily { v4: "10.5.0.0/16".parse().ok(), v6: None };
        let host = HostIdentity::of(&links, &addresses, &overlay);
        let last: Vec<u8> = host.macs.iter().map(|mac| mac.0[5]).collect();
        assert_eq!(last, [2, 3, 7]);
        let ips: Vec<String> = host.ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["192.0.2.1", "198.51.100.7", "172.17.0.1"]);
    }

    #[test]
    fn one_nic_in_common_is_enough_and_none_is_another_machine() {
        let macs =
            |bytes: &[u8]| bytes.iter().map(|byte| MacAddr([2, 0, 0, 0, 0, *byte])).collect::<Vec<_>>();
        let state = |bytes: &[u8]| State { host_macs: macs(bytes), ..State::default() };
        for (stored, here, want) in [
            (&[][..], &[1][..], StoredOn::Unknown),
            (&[1, 2], &[2, 3], StoredOn::ThisHost),
            (&[1, 2], &[3], StoredOn::AnotherHost),
            (&[1], &[], StoredOn::AnotherHost),
        ] {
            assert_eq!(state(stored).stored_on(&macs(here)), want, "{stored:?} {here:?}");
        }
    }

    #[test]
    fn a_few_former_addresses_are_remembered_once_each() {
        let mut state = State::default();
        let ip = |byte: u8| IpAddr::from([192, 0, 2, byte]);
        state.remember_ips((1..=40).map(ip));
        state.remember_ips([ip(30), ip(41)]);
        assert_eq!(state.former_ips.len(), 16);
        assert_eq!(state.former_ips[14..], [ip(30), ip(41)]);
    }
}
