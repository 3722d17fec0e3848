//! A set of kernel objects.
//!
//! An agent has two of these sets (desired and observed) with four objects for each peer. To save memory, the values do
//! not repeat what their keys have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Address, FdbEntry, Neighbour, NextHop, Object, ObjectKey, Route, Through};
use crate::addr::{Family, LinkIndex, MacAddr, Mtu, Subnet};
use crate::repack::repack;

/// A set of kernel objects, desired or observed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dataplane {
    addresses: BTreeSet<(LinkIndex, IpNetwork)>,
    neighbours: BTreeMap<(LinkIndex, IpAddr), MacAddr>,
    fdb: BTreeSet<FdbEntry>,
    next_hops: BTreeSet<(LinkIndex, IpAddr, Option<u32>)>,
    routes: BTreeMap<RouteKey, RouteBody>,
    /// The routes through a next-hop object whose gateway is not the route's base address. We never write such routes.
    odd_routes: BTreeSet<(NextHop, RouteKey)>,
    shared: BTreeSet<LinkIndex>,
}

type RouteKey = (Subnet, u32);

/// The fields of a route that are not in its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RouteBody {
    via: Option<IpAddr>,
    link: Option<LinkIndex>,
    onlink: bool,
    through: Through,
    protocol: u8,
    mtu: Option<Mtu>,
    plain: bool,
}

impl RouteBody {
    fn of(route: &Route) -> Self {
        let Route { dst: _, metric: _, via, link, onlink, through, protocol, mtu, plain } = *route;
        Self { via, link, onlink, through, protocol, mtu, plain }
    }

    fn with(self, (dst, metric): RouteKey) -> Route {
        let Self { via, link, onlink, through, protocol, mtu, plain } = self;
        Route { dst, metric, via, link, onlink, through, protocol, mtu, plain }
    }
}

impl Dataplane {
    /// Sets the links that others use, too. There only the protocol shows that a route is ours, so the protocol is part
    /// of the desired route, as for a route without a link. On our own devices it is not.
    pub fn share(&mut self, links: impl IntoIterator<Item = LinkIndex>) {
        self.shared = links.into_iter().collect();
    }

    /// Whether the observed object `have` satisfies the desired object with the same key in `self`.
    pub fn is_satisfied_by(&self, have: &Object) -> bool {
        self.get(&have.key()).is_some_and(|want| match want {
            Object::Route(Route { link: None, .. }) => *have == want,
            Object::Route(Route { link: Some(link), .. }) if self.shared.contains(&link) => *have == want,
            want => have.works_like(&want),
        })
    }

    /// The object under a key.
    pub fn get(&self, key: &ObjectKey) -> Option<Object> {
        match *key {
            ObjectKey::Address(link, addr) => {
                self.addresses.contains(&(link, addr)).then_some(Object::Address(Address { link, addr }))
            }
            ObjectKey::Neighbour(link, addr) => {
                let mac = *self.neighbours.get(&(link, addr))?;
                Some(Object::Neighbour(Neighbour { link, addr, mac }))
            }
            ObjectKey::Fdb(entry) => self.fdb.contains(&entry).then_some(Object::Fdb(entry)),
            ObjectKey::NextHop(link, gateway, spare) => (self.next_hops.contains(&(link, gateway, spare)))
                .then_some(Object::NextHop(NextHop { link, gateway, spare })),
            ObjectKey::Route(dst, metric) => {
                let key = (dst, metric);
                Some(Object::Route(self.routes.get(&key)?.with(key)))
            }
        }
    }

    /// Adds an object. If there was one with the same key, it is replaced and returned.
    pub fn insert(&mut self, object: Object) -> Option<Object> {
        match object {
            Object::Address(Address { link, addr }) => {
                (!self.addresses.insert((link, addr))).then_some(object)
            }
            Object::Neighbour(Neighbour { link, addr, mac }) => {
                let before = self.neighbours.insert((link, addr), mac)?;
                Some(Object::Neighbour(Neighbour { link, addr, mac: before }))
            }
            Object::Fdb(entry) => (!self.fdb.insert(entry)).then_some(object),
            Object::NextHop(NextHop { link, gateway, spare }) => {
                (!self.next_hops.insert((link, gateway, spare))).then_some(object)
            }
            Object::Route(route) => {
                let key = (route.dst, route.metric);
                let before = self.routes.insert(key, RouteBody::of(&route)).map(|body| body.with(key));
                if let Some(odd) = before.and_then(|before| odd(&before)) {
                    self.odd_routes.remove(&(odd, key));
                }
                self.odd_routes.extend(odd(&route).map(|next_hop| (next_hop, key)));
                before.map(Object::Route)
            }
        }
    }

    /// Removes the object under a key.
    pub fn remove(&mut self, key: &ObjectKey) -> Option<Object> {
        match *key {
            ObjectKey::Address(link, addr) => {
                self.addresses.remove(&(link, addr)).then_some(Object::Address(Address { link, addr }))
            }
            ObjectKey::Neighbour(link, addr) => {
                let mac = self.neighbours.remove(&(link, addr))?;
                Some(Object::Neighbour(Neighbour { link, addr, mac }))
            }
            ObjectKey::Fdb(entry) => self.fdb.remove(&entry).then_some(Object::Fdb(entry)),
            ObjectKey::NextHop(link, gateway, spare) => (self.next_hops.remove(&(link, gateway, spare)))
                .then_some(Object::NextHop(NextHop { link, gateway, spare })),
            ObjectKey::Route(dst, metric) => {
                let key = (dst, metric);
                let route = self.routes.remove(&key)?.with(key);
                if let Some(odd) = odd(&route) {
                    self.odd_routes.remove(&(odd, key));
                }
                Some(Object::Route(route))
            }
        }
    }

    /// Frees memory that many insertions in the order of the keys left unused.
    pub fn repack(&mut self) {
        let Self { addresses: _, neighbours, fdb, next_hops, routes, odd_routes: _, shared: _ } = self;
        repack(neighbours);
        repack(fdb);
        repack(next_hops);
        repack(routes);
    }

    /// The FDB entries of a MAC on a link.
    pub fn remotes_of(&self, link: LinkIndex, mac: MacAddr) -> impl Iterator<Item = FdbEntry> + '_ {
        let dst = Family::V4.unspecified();
        let first = FdbEntry { link, mac, dst, port: None, vni: None, via: None };
        self.fdb.range(first..).take_while(move |entry| (entry.link, entry.mac) == (link, mac)).copied()
    }

    /// The routes through a next-hop object. When the object is deleted, the kernel deletes these routes, for IPv4
    /// without a notification.
    pub fn routes_through(&self, next_hop: &ObjectKey) -> impl Iterator<Item = ObjectKey> + use<'_> {
        let next_hop = match *next_hop {
            ObjectKey::NextHop(link, gateway, spare) => Some(NextHop { link, gateway, spare }),
            _ => None,
        };
        let plain = next_hop.into_iter().flat_map(|next_hop| {
            let at_base = self.routes.range(first_at(next_hop.gateway)..=last_at(next_hop.gateway));
            let through = at_base.filter(move |(key, body)| through(&body.with(**key)) == Some(next_hop));
            through.map(|(key, _)| *key)
        });
        let odd = next_hop.into_iter().flat_map(|next_hop| {
            // No route has a key before this one.
            let first = first_at(Family::V4.unspecified());
            let from = self.odd_routes.range((next_hop, first)..);
            from.take_while(move |(of, _)| *of == next_hop).map(|(_, key)| *key)
        });
        plain.chain(odd).map(|(dst, metric)| ObjectKey::Route(dst, metric))
    }

    /// All objects in build-up order.
    pub fn iter(&self) -> impl Iterator<Item = Object> {
        let addresses = self.addresses.iter().map(|(link, addr)| Address { link: *link, addr: *addr });
        let neighbours = (self.neighbours.iter()).map(|((link, addr), mac)| Neighbour {
            link: *link,
            addr: *addr,
            mac: *mac,
        });
        let next_hops = (self.next_hops.iter()).map(|(link, gateway, spare)| NextHop {
            link: *link,
            gateway: *gateway,
            spare: *spare,
        });
        let routes = self.routes.iter().map(|(key, body)| body.with(*key));
        (addresses.map(Object::Address))
            .chain(neighbours.map(Object::Neighbour))
            .chain(self.fdb.iter().copied().map(Object::Fdb))
            .chain(next_hops.map(Object::NextHop))
            .chain(routes.map(Object::Route))
    }

    /// The keys of all objects, in build-up order.
    pub fn keys(&self) -> impl Iterator<Item = ObjectKey> {
        self.iter().map(|object| object.key())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        let Self { addresses, neighbours, fdb, next_hops, routes, odd_routes: _, shared: _ } = self;
        addresses.len() + neighbours.len() + fdb.len() + next_hops.len() + routes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The next-hop object of a route.
fn through(route: &Route) -> Option<NextHop> {
    match route.next_hop()? {
        ObjectKey::NextHop(link, gateway, spare) => Some(NextHop { link, gateway, spare }),
        _ => None,
    }
}

/// The next-hop object of a route, if its gateway is not the route's base address.
fn odd(route: &Route) -> Option<NextHop> {
    through(route).filter(|next_hop| next_hop.gateway != route.dst.base())
}

/// A key that sorts before all routes to subnets with this base, and after those with a smaller base.
fn first_at(base: IpAddr) -> RouteKey {
    let zeros = match base {
        IpAddr::V4(addr) => addr.to_bits().trailing_zeros(),
        IpAddr::V6(addr) => addr.to_bits().trailing_zeros(),
    };
    let prefix = u32::from(Family::of(base).bits()).saturating_sub(zeros) as u8;
    (Subnet::containing(base, prefix).expect("not longer than an address"), 0)
}

/// A key that sorts after all routes to subnets with this base.
fn last_at(base: IpAddr) -> RouteKey {
    (Subnet::containing(base, Family::of(base).bits()).expect("as long as an address"), u32::MAX)
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
