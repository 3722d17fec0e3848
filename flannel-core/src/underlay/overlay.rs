//! Recognises devices of the overlay itself, which must never be the underlay: otherwise encapsulated packets would be
//! encapsulated again. Pure.
//!
//! A device with a name of ours, or one that an earlier run made, belongs to the overlay. So does a tunnel, bridge or
//! veth with an address of the overlay network, such as `cni0`. But the nodes' own network may be inside the overlay
//! network by mistake. Then the NIC, which may be a bridge or (in a container) a veth, has such an address, too. It is
//! recognised by what only an uplink has: a hardware port, an address with a subnet that is not of this node's pods, or
//! the only default route with a gateway.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{HostLinks, is_link_local};
use crate::addr::{LinkIndex, PerFamily, Subnet};
use crate::kernel::{Exit, Link, LinkAddress};

/// What is known of the overlay before it exists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overlay {
    /// Its networks, including those of an earlier run.
    pub networks: Vec<Subnet>,
    /// The subnets of this node's pods, as far as they are known.
    pub own: Vec<Subnet>,
    /// The names of the devices that earlier runs made.
    pub devices: Vec<String>,
}

/// Kinds of tunnels. None of them is a NIC.
const TUNNELS: [&str; 13] = [
    "vxlan",
    "geneve",
    "tun",
    "wireguard",
    "ipip",
    "sit",
    "gre",
    "gretap",
    "ip6gre",
    "ip6gretap",
    "ip6tnl",
    "vti",
    "dummy",
];
const BRIDGE: &str = "bridge";
const VETH: &str = "veth";

impl Overlay {
    /// The overlay with these networks, without devices yet.
    pub fn new(networks: PerFamily<Subnet>) -> Self {
        Self { networks: networks.iter().map(|(_, network)| *network).collect(), ..Self::default() }
    }

    /// Adds what is known of the overlay by now.
    pub(crate) fn learn(
        &mut self,
        networks: impl IntoIterator<Item = Subnet>,
        own: impl IntoIterator<Item = Subnet>,
        devices: impl IntoIterator<Item = String>,
    ) {
        self.networks.extend(networks);
        self.own.extend(own);
        self.devices.extend(devices);
    }

    /// Whether an address is in the overlay network.
    pub(super) fn contains(&self, addr: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(addr))
    }

    /// The links that belong to the overlay, each with the proof.
    pub(super) fn made(&self, host: &HostLinks) -> BTreeMap<LinkIndex, String> {
        let mut made = BTreeMap::new();
        let mut suspects = BTreeMap::new();
        for link in &host.links {
            if self.is_device(link) {
                made.insert(
                    link.index,
                    "it is a device of flannel, which leads to pods and not to nodes".to_owned(),
                );
                continue;
            }
            let Some((addr, network)) = self.evidence(host, link) else { continue };
            let why = format!(
                "it has {addr} of the pod network {network}, so it leads to pods and not to nodes; name the interface \
                 to the other nodes"
            );
            if is_tunnel(link) {
                made.insert(link.index, why)
            } else {
                suspects.insert(link.index, why)
            };
        }
        let only = only_way_out(host, |link| made.contains_key(&link) || suspects.contains_key(&link));
        suspects.retain(|link, _| !only.contains(link));
        made.append(&mut suspects);
        made
    }

    /// Whether a link is a device of flannel, by its name and kind.
    fn is_device(&self, link: &Link) -> bool {
        let kind = link.kind.as_deref().unwrap_or_default();
        let is_numbered = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
        let name = link.name.as_str();
        is_tunnel(link)
            && (self.devices.iter().any(|device| device == name)
                || name.starts_with("flannel.")
                || name.starts_with("flannel-v6.")
                || (kind == "wireguard" && name.starts_with("flannel-wg"))
                || (kind == "tun" && name.strip_prefix("flannel").is_some_and(is_numbered)))
    }

    /// The address because of which a link looks like the overlay's, with the overlay network that contains it.
    fn evidence(&self, host: &HostLinks, link: &Link) -> Option<(IpAddr, Subnet)> {
        let of_pods = |addr: &LinkAddress| {
            is_host_address(addr) || self.own.iter().any(|subnet| subnet.contains(addr.addr.ip()))
        };
        let of_link = host.addresses.iter().filter(|addr| addr.link == link.index);
        let mut telling = of_link.filter(|addr| match link.kind.as_deref() {
            Some(BRIDGE) => !has_hardware(host, link),
            // The other end of a pod's has a gateway's address of its own or in the pods' subnet.
            Some(VETH) => of_pods(addr),
            _ => is_tunnel(link),
        });
        telling.find_map(|addr| {
            let addr = addr.addr.ip();
            let network = self.networks.iter().find(|network| network.contains(addr))?;
            Some((addr, *network))
        })
    }
}

fn is_tunnel(link: &Link) -> bool {
    link.kind.as_deref().is_some_and(|kind| TUNNELS.contains(&kind))
}

/// Whether a bridge has a port that leads out of the host, so neither a pod's veth nor a tunnel.
fn has_hardware(host: &HostLinks, bridge: &Link) -> bool {
    let ports = host.links.iter().filter(|port| port.master == Some(bridge.index));
    ports.into_iter().any(|port| !is_tunnel(port) && port.kind.as_deref() != Some(VETH))
}

/// Whether an address has the prefix length `/32` or `/128`.
pub(super) fn is_host_address(addr: &LinkAddress) -> bool {
    addr.addr.prefix() == if addr.addr.is_ipv4() { 32 } else { 128 }
}

/// The links that are the host's only way out, if all candidates are suspected to be the overlay's. These are the links
/// with a default route; a route without a gateway, as DHCP clients put on any link, does not count. Without default
/// routes they are the veths, if no other link has an address.
fn only_way_out(host: &HostLinks, is_suspect: impl Fn(LinkIndex) -> bool) -> Vec<LinkIndex> {
    let routes = host.defaults.iter().flat_map(|(_, routes)| routes).filter(|route| route.via.is_some());
    let exits: Vec<LinkIndex> = routes
        .flat_map(|route| match route.exit {
            Exit::Nowhere => [None, None],
            Exit::By(link) => [Some(link), None],
            Exit::Several(one, other) => [Some(one), Some(other)],
        })
        .flatten()
        .collect();
    if !exits.is_empty() {
        return if exits.iter().all(|link| is_suspect(*link)) { exits } else { Vec::new() };
    }
    let is_nic = |link: &&Link| {
        let kind = link.kind.as_deref();
        !link.loopback && !is_suspect(link.index) && !is_tunnel(link) && kind != Some(BRIDGE)
    };
    let has_address = |link: &Link| {
        host.addresses.iter().any(|addr| addr.link == link.index && !is_link_local(addr.addr.ip()))
    };
    if host.links.iter().filter(is_nic).any(has_address) {
        return Vec::new();
    }
    let veths = host.links.iter().filter(|link| link.kind.as_deref() == Some(VETH));
    veths.map(|link| link.index).collect()
}

#[cfg(test)]
mod tests;
