//! The kernel state of an overlay as a value, and the pure function that compares two of them.
//!
//! Desired and observed state have one type, so a restart, a missed event, a half-failed batch and somebody's `ip route
//! del` are the same case: compare the two, repair the difference.

pub mod command;
mod display;
mod named;
mod set;

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::addr::{Family, LinkIndex, MacAddr, Mtu, Subnet, Vni};

pub use named::NamedObject;
pub use set::Dataplane;

/// The protocol of all routes and next-hop objects that we create (`rtm_protocol`; 102 is unassigned in `rtnetlink.h`).
/// It marks routes on shared links as ours; on our own devices it only shows an operator who wrote them.
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

/// A permanent neighbour entry: the overlay address of a remote VTEP, and its inner MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// The link it belongs to.
    pub link: LinkIndex,
    /// The overlay address.
    pub addr: IpAddr,
    /// Its hardware address.
    pub mac: MacAddr,
}

/// A permanent FDB entry of a VXLAN device: an inner MAC, and the underlay address of its VTEP.
///
/// All fields belong to its key, since one MAC may have several remotes in the kernel. We write entries without `port`,
/// `vni` and `via` (those of the device apply); others are read so that they can be removed.
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

/// A next-hop object (`ip nexthop`, Linux 5.3): a gateway on a link (`RTNH_F_ONLINK`: reachable without a route to it),
/// with an id that routes refer to.
///
/// The id is not part of this value: only the connection to the kernel ([`crate::netlink`]) knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The link.
    pub link: LinkIndex,
    /// The gateway.
    pub gateway: IpAddr,
    /// The id of a spare object: a second one for the same link and gateway, or one with attributes that we never
    /// write. We never create spare objects; they are read so that they can be removed.
    pub spare: Option<u32>,
}

/// Where the kernel keeps the gateway and link of a route.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Through {
    /// In the route itself.
    #[default]
    Itself,
    /// In the next-hop object of the route's link and gateway.
    Object,
    /// In a spare next-hop object with this id; see [`NextHop::spare`].
    Spare(u32),
    /// Nowhere: the kernel drops the packets and sends no ICMP error (`RTN_BLACKHOLE`).
    Nowhere,
}

/// A unicast or blackhole route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Destination.
    pub dst: Subnet,
    /// Priority; see [`Route::default_metric`].
    pub metric: u32,
    /// The gateway.
    pub via: Option<IpAddr>,
    /// The outgoing link; `None` for a route with several next hops or through a foreign next-hop object, and for a
    /// blackhole, although the kernel names `lo` for IPv6.
    pub link: Option<LinkIndex>,
    /// Whether the kernel takes the gateway as reachable through the link, whatever other routes say (`RTNH_F_ONLINK`).
    pub onlink: bool,
    /// Where the kernel keeps gateway and link.
    pub through: Through,
    /// `rtm_protocol`: who wrote it. It has no effect on packets.
    pub protocol: u8,
    /// The MTU of packets that take this route, in bytes with their IP header, whatever path MTU discovery finds
    /// (`mtu lock` in `ip route`: `RTAX_MTU` and its bit in `RTAX_LOCK`); `None` for that of the link.
    ///
    /// The kernel keeps none above 65520. For IPv6 it must be 1280 or more (RFC 8201 section 4): no host makes its packets
    /// smaller, so those above a smaller MTU would be lost. A route with an MTU must not share its next-hop object with
    /// another route: the kernel would treat all IPv4 packets through that object alike.
    pub mtu: Option<Mtu>,
    /// Whether it has only attributes that we write, so no metrics but `mtu`, no preferred source, several next hops, or
    /// another type than unicast and blackhole.
    pub plain: bool,
}

impl Route {
    /// The metric of our blackhole routes, which puts them behind every other route to the same subnet. A bridge
    /// (`cni0`) that gets the subnet's address later has a route with metric 0, and the kernel puts that route *behind*
    /// existing ones with the same metric. So a blackhole with metric 0 would drop all traffic of the bridge's pods.
    pub const BLACKHOLE_METRIC: u32 = u32::MAX - 1;

    /// A route that drops packets to addresses for which there is no more specific route.
    pub fn blackhole(dst: Subnet) -> Self {
        Self {
            dst,
            metric: Self::BLACKHOLE_METRIC,
            via: None,
            link: None,
            onlink: false,
            through: Through::Nowhere,
            protocol: ROUTE_PROTOCOL,
            mtu: None,
            plain: true,
        }
    }

    /// The metric that the kernel gives to a route that is created without one: 0 for IPv4, 1024 for IPv6.
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
            mtu: None,
            plain: true,
        }
    }

    /// The route to a subnet through a device that knows itself where its packets go.
    pub fn by_device(dst: Subnet, link: LinkIndex) -> Self {
        Self { via: None, ..Self::by_node(dst, dst.base(), link) }
    }

    /// The key of the next-hop object that the route goes through, if it does.
    pub fn next_hop(&self) -> Option<ObjectKey> {
        let spare = match self.through {
            Through::Itself | Through::Nowhere => return None,
            Through::Object => None,
            Through::Spare(number) => Some(number),
        };
        Some(ObjectKey::NextHop(self.link?, self.via?, spare))
    }
}

/// One entry of the kernel's tables.
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

/// What identifies an [`Object`] in the kernel. Of two objects with one key, the later replaces the earlier.
///
/// The order of the variants is the build-up order; deletion runs backwards. So no packet takes a route whose neighbour
/// or FDB entry is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// Link and address.
    Address(LinkIndex, IpNetwork),
    /// Link and overlay address.
    Neighbour(LinkIndex, IpAddr),
    /// The whole entry.
    Fdb(FdbEntry),
    /// Link, gateway, and the id if it is a spare one.
    NextHop(LinkIndex, IpAddr, Option<u32>),
    /// Destination and metric.
    Route(Subnet, u32),
}

impl ObjectKey {
    /// The family of the pods whose packets need the object.
    pub fn family(&self) -> Family {
        Family::of(match self {
            Self::Address(_, addr) => addr.ip(),
            Self::Neighbour(_, addr) | Self::NextHop(_, addr, _) => *addr,
            Self::Fdb(entry) => entry.dst,
            Self::Route(dst, _) => dst.base(),
        })
    }
}

impl Object {
    /// The link that it is on; `None` for a route without one.
    pub fn link(&self) -> Option<LinkIndex> {
        match self {
            Self::Address(address) => Some(address.link),
            Self::Neighbour(neighbour) => Some(neighbour.link),
            Self::Fdb(entry) => Some(entry.link),
            Self::NextHop(next_hop) => Some(next_hop.link),
            Self::Route(route) => route.link,
        }
    }

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

    /// Its place in the build-up order: that of its key, but for a route to a single address on a link, which comes before the
    /// next-hop objects. One may have that address as its gateway, and the kernel refuses an IPv6 gateway to which the most
    /// specific route goes by another link (`ip6_route_check_nh_onlink`).
    pub(crate) fn stage(&self) -> (u8, ObjectKey) {
        let is_to_gateway = |route: &Route| {
            route.via.is_none() && route.link.is_some() && route.dst.prefix() == route.dst.family().bits()
        };
        let stage = match self {
            Self::NextHop(_) => 1,
            Self::Route(route) if !is_to_gateway(route) => 2,
            _ => 0,
        };
        (stage, self.key())
    }

    /// Whether packets are treated the same with `self` as with `want`: the protocol of a route makes no difference.
    pub fn works_like(&self, want: &Self) -> bool {
        match (self, want) {
            (Self::Route(have), Self::Route(want)) => Route { protocol: want.protocol, ..*have } == *want,
            (have, want) => have == want,
        }
    }
}

/// One change of the kernel's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Creates an object whose key was not observed. If there is a route with that key after all, the kernel refuses
    /// (`NLM_F_EXCL`), since that route is not ours to replace.
    Create(Object),
    /// Replaces an object of ours in place.
    Replace(Object),
    /// Deletes an object of ours. If it is gone already, that is a success.
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

/// Lists the fewest operations that lead from the observed state `have` to the desired state `want`.
///
/// It puts all objects in build-up order, then deletes in reverse order. So a peer whose attributes changed is replaced
/// in place, and no packet meets a half-built path. After a list that failed halfway, plan again from the observed
/// state.
pub fn plan(want: &Dataplane, have: &Dataplane) -> Vec<Op> {
    plan_keys(want, have, want.keys().chain(have.keys()))
}

/// Like [`plan`], but only for some keys: those that a lease or a kernel event changed.
pub fn plan_keys(want: &Dataplane, have: &Dataplane, keys: impl IntoIterator<Item = ObjectKey>) -> Vec<Op> {
    let (mut puts, mut deletes) = (Vec::new(), Vec::new());
    for key in keys {
        match (want.get(&key), have.get(&key)) {
            (Some(object), None) => puts.push(Op::Create(object)),
            (Some(object), Some(have)) if !want.is_satisfied_by(&have) => puts.push(Op::Replace(object)),
            (None, Some(have)) => deletes.push(Op::Delete(have)),
            _ => {}
        }
    }
    // The list is mostly in order already, so this is cheap. The caller may name a key twice.
    puts.sort_unstable_by_key(|op| op.object().stage());
    puts.dedup();
    deletes.sort_unstable_by_key(|op| std::cmp::Reverse(op.object().stage()));
    deletes.dedup();
    puts.append(&mut deletes);
    puts
}

#[cfg(test)]
mod tests;
