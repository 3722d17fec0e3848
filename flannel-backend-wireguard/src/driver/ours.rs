//! What of the kernel is this node's own: the addresses of the devices, the blackholes below all routes, and what is on the devices.

use flannel_core::addr::{Family, LinkIndex, Subnet};
use flannel_core::dataplane::{Address, KERNEL_PROTOCOL, Object, Route};
use flannel_core::peers::Claim;

use super::WireguardDriver;
use crate::tunnel::Tunnel;

impl WireguardDriver {
    pub(super) fn tunnel_at(&self, link: LinkIndex) -> Option<&Tunnel> {
        self.tunnels.iter().find(|tunnel| tunnel.link.as_ref().is_some_and(|it| it.index == link))
    }

    pub(super) fn in_overlay(&self, subnet: Subnet) -> bool {
        self.sides.get(subnet.family()).is_some_and(|side| side.network.covers(subnet))
    }

    /// The addresses of the devices. Below all routes to peers is a blackhole for each network: what has no way through a
    /// tunnel, because the peer is not known, has no key, or the device is gone, must not leave by a default route.
    pub(super) fn objects_of_node(&self) -> Vec<Object> {
        let (first, second) = (self.links(), self.second_links());
        let mut objects = Vec::new();
        for (family, side) in self.sides.iter() {
            objects.push(Object::Route(Route::blackhole(side.network)));
            let Some(subnet) = side.subnet else { continue };
            let host = Subnet::containing(subnet.base(), family.bits()).expect("a full-length prefix fits");
            // What this node sends by itself has the address of the device by which it leaves.
            for link in [first.get(family), second.get(family)].into_iter().flatten() {
                objects.push(Object::Address(Address { link: *link, addr: host.into() }));
            }
        }
        objects
    }

    /// What only one node can have, and this one has.
    pub(super) fn claims_of_node(&self) -> Vec<Claim> {
        let (links, key) = (self.links(), self.key.public());
        let (second, second_key) = (self.second_links(), self.second_key().public());
        let mut claims = Vec::new();
        for (family, side) in self.sides.iter() {
            claims.extend(side.subnet.map(Claim::Subnet));
            // Behind NAT the node has both addresses.
            claims.extend([Claim::Underlay(side.published), Claim::Underlay(side.local)]);
            let port = self.config.port(family);
            claims.extend(links.get(family).map(|link| Claim::Key(*link, key.0, side.published, port)));
            let port = self.config.second_port(family);
            claims
                .extend(second.get(family).map(|link| Claim::Key(*link, second_key.0, side.published, port)));
        }
        claims
    }

    /// On our own devices, objects in our network are ours, such as Go flannel's route for the whole network. The
    /// kernel's own routes, and everything else that somebody put there, stay.
    pub(super) fn is_ours(&self, object: &Object) -> bool {
        let is_on_ours = |link: LinkIndex| self.tunnel_at(link).is_some();
        match object {
            Object::Address(address) => {
                let side = self.sides.get(Family::of(address.addr.ip()));
                is_on_ours(address.link) && side.is_some_and(|side| side.network.contains(address.addr.ip()))
            }
            Object::Route(route) => {
                route.link.is_some_and(is_on_ours)
                    && route.protocol != KERNEL_PROTOCOL
                    && self.in_overlay(route.dst)
            }
            Object::Neighbour(_) | Object::Fdb(_) | Object::NextHop(_) => false,
        }
    }
}
