//! Which objects the kernel deletes when a link changes, and for which of them it sends notifications, as measured on a
//! real kernel (Linux 6.18).

use super::{State, link_of};
use crate::addr::{Family, LinkIndex};
use crate::dataplane::{Object, ObjectKey, Through};
use crate::kernel::{KernelEvent, Link};

/// Below this MTU the kernel removes IPv6 from a link (RFC 8200 section 5).
const MIN_IPV6_MTU: u32 = 1280;

impl State {
    /// Sets whether a device completes checksums.
    pub(super) fn set_checksum_offload(&mut self, name: &str, on: bool) {
        let Some(link) = self.links.values().find(|link| link.name == name).cloned() else { return };
        let is_news = if on {
            self.software_checksums.remove(&link.index)
        } else {
            self.software_checksums.insert(link.index)
        };
        if is_news {
            self.events.push_back(KernelEvent::Link(link));
        }
    }

    /// Deletes the objects on a link that do not survive its change.
    pub(super) fn changed(&mut self, before: &Link, after: &Link) {
        let link = after.index;
        if before.up && !after.up {
            // FDB entries and IPv4 addresses stay.
            self.drop_where(link, |object| match object {
                Object::Route(_) | Object::NextHop(_) | Object::Neighbour(_) => true,
                Object::Address(address) => address.addr.is_ipv6(),
                Object::Fdb(_) => false,
            });
        }
        if before.mac != after.mac {
            self.drop_where(link, |object| matches!(object, Object::Neighbour(_)));
        }
        if before.mtu.0 >= MIN_IPV6_MTU && after.mtu.0 < MIN_IPV6_MTU {
            self.drop_where(link, |object| match object {
                Object::Neighbour(neighbour) => neighbour.addr.is_ipv6(),
                Object::Address(address) => address.addr.is_ipv6(),
                Object::Route(route) => route.dst.family() == Family::V6,
                Object::Fdb(_) | Object::NextHop(_) => false,
            });
        }
    }

    /// With the last IPv4 address a link loses its IPv4 neighbours, and then its plain IPv4 routes.
    pub(super) fn lost(&mut self, object: &Object) {
        let Object::Address(gone) = object else { return };
        let has_another = self.objects.iter().any(|object| {
            matches!(object, Object::Address(address) if address.link == gone.link && address.addr.is_ipv4())
        });
        if gone.addr.is_ipv4() && !has_another {
            self.drop_where(
                gone.link,
                |object| matches!(object, Object::Neighbour(neighbour) if neighbour.addr.is_ipv4()),
            );
            self.without_ipv4.push(gone.link);
        }
    }

    /// Does what the kernel does after its notification that an address is gone. Until that is done, its lock blocks
    /// all changes and reading links, but not reading routes.
    pub(super) fn wait_for_changes(&mut self) {
        self.look_outside();
        for link in std::mem::take(&mut self.without_ipv4) {
            self.drop_where(link, |object| {
                matches!(object, Object::Route(route)
                    if route.dst.family() == Family::V4 && route.through == Through::Itself)
            });
        }
    }

    /// Deletes a link and everything on it, including VXLAN devices on top.
    pub(super) fn delete_link(&mut self, link: &Link) {
        let is_on_top =
            |other: &&Link| other.vxlan.as_ref().is_some_and(|vxlan| vxlan.lower == Some(link.index));
        for upper in self.links.values().filter(is_on_top).cloned().collect::<Vec<_>>() {
            self.delete_link(&upper);
        }
        self.drop_where(link.index, |_| true);
        for gone in self.addresses.extract_if(.., |own| own.link == link.index) {
            let address = crate::dataplane::Address { link: gone.link, addr: gone.addr };
            self.events.push_back(KernelEvent::Gone(Object::Address(address).key()));
        }
        self.links.remove(&link.index);
        self.events.push_back(KernelEvent::LinkGone(link.index, link.name.clone()));
    }

    /// Deletes the routes through a next-hop object, for IPv4 without a notification.
    pub(super) fn drop_routes_through(&mut self, next_hop: &ObjectKey) {
        let gone: Vec<ObjectKey> = self.objects.routes_through(next_hop).collect();
        for key in gone {
            self.objects.remove(&key);
            if matches!(key, ObjectKey::Route(dst, _) if dst.family() == Family::V6) {
                self.events.push_back(KernelEvent::Gone(key));
            }
        }
    }

    /// Deletes objects of a link with notifications, except for IPv4 routes and next-hop objects, for which the kernel
    /// sends none.
    fn drop_where(&mut self, link: LinkIndex, is_lost: impl Fn(&Object) -> bool) {
        let gone: Vec<Object> =
            (self.objects.iter()).filter(|object| link_of(object) == Some(link) && is_lost(object)).collect();
        for object in gone {
            self.objects.remove(&object.key());
            let silent = match object {
                Object::Route(route) => route.dst.family() == Family::V4,
                Object::NextHop(_) => true,
                _ => false,
            };
            if !silent {
                self.events.push_back(KernelEvent::Gone(object.key()));
            }
        }
    }
}
