//! The kernel state of an overlay as a value, and the pure function that compares two of them.
//!
//! What is wanted and what was observed have one type, so a restart, a missed event, a half-failed
//! batch and somebody's `ip route del` are all the same case: compare, repair the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::addr::{Family, LinkIndex, MacAddr, Subnet, Vni};

/// The route protocol of everything we create (`rtm_protocol`; 102 is unassigned in `rtnetlink.h`).
/// It marks routes on shared links as ours; on our own devices it only tells an operator who wrote them.
pub const ROUTE_PROTOCOL: u8 = 102;

/// `RTPROT_KERNEL`: routes that the kernel made for an address. They are never ours.
pub const KERNEL_PROTOCOL: u8 = 2;

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The link that has it.
    pub link: LinkIndex,
    /// The address with its prefix length.
    pub addr: IpNetwork,
}

/// A permanent neighbour entry: overlay address of a remote VTEP -> its inner MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// The link it belongs to.
    pub link: LinkIndex,
    /// The overlay address.
    pub addr: IpAddr,
    /// Its hardware address.
    pub mac: MacAddr,
}

/// A permanent FDB entry of a VXLAN device: inner MAC -> underlay address.
///
/// All of it is identity, since one MAC may have several remotes in the kernel. We write entries with
/// `port`, `vni` and `via` absent (the device's own); others are seen so that they can be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbEntry {
    /// The VXLAN device.
    pub link: LinkIndex,
    /// The inner destination MAC.
    pub mac: MacAddr,
    /// The underlay address of the remote VTEP.
    pub dst: IpAddr,
    /// A UDP port other than the device's.
    pub port: Option<u16>,
    /// A VNI other than the device's.
    pub vni: Option<Vni>,
    /// An outgoing link other than the device's.
    pub via: Option<LinkIndex>,
}

/// A next-hop object (`ip nexthop`, Linux 5.3): a gateway that is taken as reachable through a link
/// (`RTNH_F_ONLINK`), under a number that routes name.
///
/// Which number it has is no part of it: only the connection to the kernel knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The link.
    pub link: LinkIndex,
    /// The gateway.
    pub gateway: IpAddr,
    /// The number of one that is not the object of its link and gateway, but a second one, or one that is not
    /// as we write them. We never put such; they are seen so that they can be removed.
    pub spare: Option<u32>,
}

/// Where a route has its gateway and link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Through {
    /// In itself.
    #[default]
    Itself,
    /// In the next-hop object of that link and gateway.
    Object,
    /// In a spare one; see [`NextHop::spare`].
    Spare(u32),
}

/// A unicast route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Destination.
    pub dst: Subnet,
    /// Priority; see [`Route::default_metric`].
    pub metric: u32,
    /// The gateway.
    pub via: Option<IpAddr>,
    /// The outgoing link; `None` for a route without one of its own (multipath, blackhole, by next-hop id).
    pub link: Option<LinkIndex>,
    /// Whether the gateway is taken as reachable through the link (`RTNH_F_ONLINK`).
    pub onlink: bool,
    /// Where gateway and link are kept.
    pub through: Through,
    /// `rtm_protocol`: who wrote it. No part of what the route does.
    pub protocol: u8,
    /// Whether it has nothing that we do not write (metrics, preferred source, several next hops, a type
    /// other than unicast ..).
    pub plain: bool,
}

impl Route {
    /// The metric that the kernel gives to a route put without one: 0 for IPv4, 1024 for IPv6.
    pub fn default_metric(family: Family) -> u32 {
        match family {
            Family::V4 => 0,
            Family::V6 => 1024,
        }
    }

    /// The route to a subnet whose node is itself the gateway, on a link that others use, too.
    pub fn by_node(dst: Subnet, node: IpAddr, link: LinkIndex) -> Self {
        Self {
            dst,
            metric: Self::default_metric(dst.family()),
            via: Some(node),
            link: Some(link),
            onlink: false,
            through: Through::Itself,
            protocol: ROUTE_PROTOCOL,
            plain: true,
        }
    }

    /// The key of the next-hop object that it goes through.
    pub fn next_hop(&self) -> Option<ObjectKey> {
        let spare = match self.through {
            Through::Itself => return None,
            Through::Object => None,
            Through::Spare(number) => Some(number),
        };
        Some(ObjectKey::NextHop(self.link?, self.via?, spare))
    }
}

/// One entry of the kernel's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// An address of a link.
    Address(Address),
    /// A permanent neighbour entry.
    Neighbour(Neighbour),
    /// A permanent FDB entry.
    Fdb(FdbEntry),
    /// A next-hop object.
    NextHop(NextHop),
    /// A route.
    Route(Route),
}

/// What the kernel indexes an [`Object`] by. Two objects with one key replace each other.
///
/// The order of the variants is the order of building up; taking down runs backwards. So no packet meets
/// a route whose neighbour or FDB entry is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// Link and address.
    Address(LinkIndex, IpNetwork),
    /// Link and overlay address.
    Neighbour(LinkIndex, IpAddr),
    /// The whole entry.
    Fdb(FdbEntry),
    /// Link, gateway, and the number of a spare one.
    NextHop(LinkIndex, IpAddr, Option<u32>),
    /// Destination and metric.
    Route(Subnet, u32),
}

impl Object {
    /// The key of this object.
    pub fn key(&self) -> ObjectKey {
        match *self {
            Self::Address(Address { link, addr }) => ObjectKey::Address(link, addr),
            Self::Neighbour(Neighbour { link, addr, .. }) => ObjectKey::Neighbour(link, addr),
            Self::Fdb(entry) => ObjectKey::Fdb(entry),
            Self::NextHop(NextHop { link, gateway, spare }) => ObjectKey::NextHop(link, gateway, spare),
            Self::Route(Route { dst, metric, .. }) => ObjectKey::Route(dst, metric),
        }
    }

    /// Whether the kernel with `self` behaves as it would with `want`: who wrote a route makes no difference.
    pub fn works_like(&self, want: &Self) -> bool {
        match (self, want) {
            (Self::Route(have), Self::Route(want)) => Route { protocol: want.protocol, ..*have } == *want,
            (have, want) => have == want,
        }
    }
}

/// A set of kernel objects, wanted or observed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dataplane {
    objects: BTreeMap<ObjectKey, Object>,
    /// Next-hop objects with the routes that go through them. One flat set, as most have one route.
    routes: BTreeSet<(ObjectKey, ObjectKey)>,
    shared: BTreeSet<LinkIndex>,
}

impl Dataplane {
    /// Says which links others use, too. There the protocol alone tells whose a route is, so it is part of
    /// what is wanted; on our own devices it is not.
    pub fn share(&mut self, links: impl IntoIterator<Item = LinkIndex>) {
        self.shared = links.into_iter().collect();
    }

    /// Whether the kernel with `have` is as it should be, where the object under that key in `self` is
    /// wanted.
    pub fn is_satisfied_by(&self, have: &Object) -> bool {
        self.get(&have.key()).is_some_and(|want| match want {
            Object::Route(Route { link: Some(link), .. }) if self.shared.contains(link) => have == want,
            _ => have.works_like(want),
        })
    }

    /// The object under a key.
    pub fn get(&self, key: &ObjectKey) -> Option<&Object> {
        self.objects.get(key)
    }

    /// Adds an object; one with the same key is replaced and returned.
    pub fn insert(&mut self, object: Object) -> Option<Object> {
        let key = object.key();
        let before = self.remove(&key);
        if let Object::Route(route) = object
            && let Some(next_hop) = route.next_hop()
        {
            self.routes.insert((next_hop, key));
        }
        self.objects.insert(key, object);
        before
    }

    /// Removes the object under a key.
    pub fn remove(&mut self, key: &ObjectKey) -> Option<Object> {
        let object = self.objects.remove(key)?;
        if let Object::Route(route) = object
            && let Some(next_hop) = route.next_hop()
        {
            self.routes.remove(&(next_hop, *key));
        }
        Some(object)
    }

    /// The routes that go through a next-hop object. The kernel deletes them with it, those of IPv4 in silence.
    pub fn routes_through(&self, next_hop: &ObjectKey) -> impl Iterator<Item = ObjectKey> + use<'_> {
        let next_hop = *next_hop;
        // No route has a key before this one.
        let first = ObjectKey::NextHop(LinkIndex(0), Family::V4.unspecified(), None);
        let from = self.routes.range((next_hop, first)..);
        from.take_while(move |(of, _)| *of == next_hop).map(|(_, route)| *route)
    }

    /// All objects in build-up order.
    pub fn iter(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}

impl FromIterator<Object> for Dataplane {
    fn from_iter<I: IntoIterator<Item = Object>>(objects: I) -> Self {
        let mut dataplane = Self::default();
        dataplane.extend(objects);
        dataplane
    }
}

impl Extend<Object> for Dataplane {
    fn extend<I: IntoIterator<Item = Object>>(&mut self, objects: I) {
        for object in objects {
            self.insert(object);
        }
    }
}

/// One change of the kernel's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Adds an object whose key was not seen. A route that turns out to be there already is refused by
    /// the kernel (`NLM_F_EXCL`), since it is not ours to replace.
    Create(Object),
    /// Replaces an object of ours in place.
    Replace(Object),
    /// Removes an object of ours. Its absence counts as done.
    Delete(Object),
}

impl Op {
    /// The object that is put or removed.
    pub fn object(&self) -> &Object {
        match self {
            Self::Create(object) | Self::Replace(object) | Self::Delete(object) => object,
        }
    }

    /// Its key.
    pub fn key(&self) -> ObjectKey {
        self.object().key()
    }
}

/// Lists the fewest operations that turn `have` into `want`.
///
/// Everything is put before anything is deleted, in build-up order and its reverse, so a peer whose
/// attributes changed is replaced in place and no packet meets a half-built path. A list that failed
/// halfway is simply planned again.
pub fn plan(want: &Dataplane, have: &Dataplane) -> Vec<Op> {
    plan_keys(want, have, want.objects.keys().chain(have.objects.keys()).copied())
}

/// Like [`plan`], for some keys only: what one lease or one kernel event touched.
pub fn plan_keys(want: &Dataplane, have: &Dataplane, keys: impl IntoIterator<Item = ObjectKey>) -> Vec<Op> {
    let (mut puts, mut deletes) = (BTreeMap::new(), BTreeMap::new());
    for key in keys {
        match (want.get(&key), have.get(&key)) {
            (Some(object), None) => _ = puts.insert(key, Op::Create(*object)),
            (Some(object), Some(have)) if !want.is_satisfied_by(have) => {
                puts.insert(key, Op::Replace(*object));
            }
            (None, Some(have)) => _ = deletes.insert(key, Op::Delete(*have)),
            _ => {}
        }
    }
    puts.into_values().chain(deletes.into_values().rev()).collect()
}

#[cfg(test)]
mod tests;
