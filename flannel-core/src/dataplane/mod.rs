//! The kernel state of an overlay as a value, and the pure function that compares two of them.
//!
//! What is wanted and what was observed have one type, so a restart, a missed event, a half-failed
//! batch and somebody's `ip route del` are all the same case: compare, repair the difference.

pub mod command;
mod display;
mod kinds;
mod set;

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::addr::{Family, LinkIndex, MacAddr, Subnet, Vni};

pub use kinds::Kinds;
pub use set::Dataplane;

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
    /// Nowhere: packets are dropped without a word (`RTN_BLACKHOLE`).
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
    /// The outgoing link; `None` for a route without one of its own (multipath, by next-hop id), and for a
    /// blackhole, although the kernel names `lo` in IPv6.
    pub link: Option<LinkIndex>,
    /// Whether the gateway is taken as reachable through the link (`RTNH_F_ONLINK`).
    pub onlink: bool,
    /// Where gateway and link are kept.
    pub through: Through,
    /// `rtm_protocol`: who wrote it. No part of what the route does.
    pub protocol: u8,
    /// Whether it has nothing that we do not write (metrics, preferred source, several next hops, a type
    /// other than unicast and blackhole ..).
    pub plain: bool,
}

impl Route {
    /// The metric of our blackholes, behind every other route to the same subnet: a bridge (`cni0`) that gets
    /// the subnet's address later has a route with metric 0, which the kernel puts *behind* what it finds with
    /// that metric. A blackhole there would swallow all traffic of its pods.
    pub const BLACKHOLE_METRIC: u32 = u32::MAX - 1;

    /// A route that drops packets to addresses which no more specific route leads to.
    pub fn blackhole(dst: Subnet) -> Self {
        Self {
            dst,
            metric: Self::BLACKHOLE_METRIC,
            via: None,
            link: None,
            onlink: false,
            through: Through::Nowhere,
            protocol: ROUTE_PROTOCOL,
            plain: true,
        }
    }

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
            Through::Itself | Through::Nowhere => return None,
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

    /// Whether the kernel with `self` behaves as it would with `want`: who wrote a route makes no difference.
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
    plan_keys(want, have, want.keys().chain(have.keys()))
}

/// Like [`plan`], for some keys only: what one lease or one kernel event touched.
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
    // Mostly in order already, which makes this cheap. A key can be named twice.
    puts.sort_unstable_by_key(Op::key);
    puts.dedup();
    deletes.sort_unstable_by_key(|op| std::cmp::Reverse(op.key()));
    deletes.dedup();
    puts.append(&mut deletes);
    puts
}

#[cfg(test)]
mod tests;
