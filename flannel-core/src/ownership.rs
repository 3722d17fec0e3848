//! Decides whether this agent owns a route on a link that others use, too, and what this node's previous backend left
//! behind. Pure.
//!
//! On its own devices the backend decides. On all other links only two things prove that the agent owns a route: its
//! protocol, and what this node stored last ([`crate::state_file`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::addr::{Family, LinkIndex, Subnet};
use crate::dataplane::{ROUTE_PROTOCOL, Route, Through};
use crate::kernel::{Kinds, Link, Scope};
use crate::lease::AgedLease;
use crate::state_file::{Device, State};

/// `RTPROT_BOOT`, the protocol of routes that Go flannel writes, and of those that `ip route` does.
pub const BOOT_PROTOCOL: u8 = 3;

/// `RTPROT_KERNEL`: routes that the kernel made for an address.
const KERNEL_PROTOCOL: u8 = 2;

/// Which routes this agent owns on links that don't belong to its backend.
#[derive(Debug, Clone, Default)]
pub struct Ownership {
    /// The present overlay networks, and those stored last.
    networks: Vec<Subnet>,
    /// The nodes of subnets, as stored last.
    nodes: BTreeMap<Subnet, IpAddr>,
    /// The devices that were stored last and don't belong to the present backend.
    stale: Vec<Device>,
    /// Their links, as far as they were found.
    stale_links: Vec<Link>,
    /// The devices of the present backend.
    present: Vec<Device>,
    /// Whether anything was stored.
    recalls: bool,
    /// The subnets of this node, if it keeps blackhole routes for them.
    blackholes: Vec<Subnet>,
}

impl Ownership {
    /// The ownership for the state `present` (its nodes don't matter), if `previous` was stored last.
    pub fn new(present: &State, previous: Option<&State>) -> Self {
        let states = [Some(present), previous];
        let networks = states.iter().flatten().flat_map(|state| state.networks.iter());
        let mut networks: Vec<Subnet> = networks.map(|(_, network)| *network).collect();
        networks.sort_unstable();
        networks.dedup();
        let node = |lease: &Arc<AgedLease>| {
            let ips = &lease.attrs.public_ips;
            let side = |(family, subnet): (Family, &Subnet)| Some((*subnet, *ips.get(family)?));
            lease.key.subnets().iter().filter_map(side).collect::<Vec<_>>()
        };
        let devices = previous.iter().flat_map(|state| &state.devices);
        // Where others put the routes to peers, they look like Go's.
        let proving = previous.filter(|previous| !present.routes_of_others && !previous.routes_of_others);
        Self {
            networks,
            nodes: proving.iter().flat_map(|state| state.leases.values()).flat_map(node).collect(),
            stale: devices.filter(|device| !present.devices.contains(device)).cloned().collect(),
            stale_links: Vec::new(),
            present: present.devices.clone(),
            recalls: previous.is_some(),
            blackholes: Vec::new(),
        }
    }

    /// Other backends are there: their devices are present, and those that no backend has any more are stale.
    pub fn now_present(&mut self, devices: &[Device]) {
        let gone =
            self.present.iter().filter(|device| !devices.contains(device) && !self.stale.contains(device));
        let gone: Vec<Device> = gone.cloned().collect();
        self.stale.extend(gone);
        self.stale.retain(|device| !devices.contains(device));
        self.stale_links.retain(|link| !devices.iter().any(|device| device.is(link)));
        self.present = devices.to_vec();
    }

    /// Adds the blackhole routes for this node's own subnets. The agent then owns those that a Go agent wrote, too.
    pub fn keep_blackholes(&mut self, own: impl IntoIterator<Item = Subnet>) {
        self.blackholes.extend(own);
    }

    /// The families of our networks.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        let has = |family: &Family| self.networks.iter().any(|network| network.family() == *family);
        Family::ALL.into_iter().filter(has)
    }

    /// The protocols that the agent's routes can have on any link: 102 and, if nodes were stored or blackholes are
    /// kept, that of Go's routes.
    pub fn protocols(&self) -> impl Iterator<Item = u8> + use<> {
        let of_go = (!self.nodes.is_empty() || !self.blackholes.is_empty()).then_some(BOOT_PROTOCOL);
        [ROUTE_PROTOCOL].into_iter().chain(of_go)
    }

    /// The scopes, besides the backend's own, where the agent can own unmarked routes: stale devices.
    pub fn scopes(&self) -> Vec<Scope> {
        let scope = |link: &Link| {
            let link = link.index;
            self.families()
                .map(move |family| Scope { link, family, kinds: Kinds::ROUTES })
                .collect::<Vec<_>>()
        };
        self.stale_links.iter().flat_map(scope).collect()
    }

    /// Whether the agent owns a route, so that it may replace and delete it:
    /// - it has our protocol and leads to a subnet of our networks, by whatever link;
    /// - or it goes through a device that this node made before;
    /// - or it has the form that Go writes, and leads to a subnet by the node that had it when we last stored it;
    /// - or it is a blackhole route in the form that Go writes, for a subnet for which we keep one.
    pub fn owns(&self, route: &Route) -> bool {
        if !self.networks.iter().any(|network| network.covers(route.dst)) {
            return false;
        }
        match route.protocol {
            ROUTE_PROTOCOL => true,
            KERNEL_PROTOCOL => false,
            _ if self.is_stale(route.link) => true,
            _ if route.through == Through::Nowhere => {
                self.blackholes.contains(&route.dst) && is_default_of(BOOT_PROTOCOL, route)
            }
            _ => is_like_go(route) && self.nodes.get(&route.dst).copied() == route.via,
        }
    }

    fn is_stale(&self, link: Option<LinkIndex>) -> bool {
        self.stale_links.iter().any(|stale| Some(stale.index) == link)
    }

    /// Whether there may be devices that this node made before, so that all links must be read.
    pub fn has_stale_devices(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Finds the stale devices among all links, by name, kind and VNI. A device that is not there needs nothing more. Returns
    /// whether the result differs from the last one.
    pub fn locate(&mut self, links: &[Link]) -> bool {
        let of = |device: &Device| links.iter().find(|link| device.is(link));
        self.stale.retain(|device| of(device).is_some());
        let found: Vec<Link> = self.stale.iter().filter_map(of).cloned().collect();
        let indexes = |links: &[Link]| links.iter().map(|link| link.index).collect::<Vec<_>>();
        let moved = indexes(&found) != indexes(&self.stale_links);
        self.stale_links = found;
        moved
    }

    /// The stale devices that were found. They are removed once nothing needs them.
    pub fn stale_links(&self) -> Vec<Link> {
        self.stale_links.clone()
    }

    /// Forgets the link of a stale device that was removed, or can't be removed now. [`Self::locate`] finds it again.
    pub fn forget(&mut self, link: LinkIndex, removed: bool) {
        if let Some(at) = self.stale_links.iter().position(|stale| stale.index == link) {
            let link = self.stale_links.remove(at);
            if removed {
                self.stale.retain(|device| !device.is(&link));
            }
        }
    }

    /// VXLAN devices with names like the backend's, if no earlier run stored anything that proves whose they are. They
    /// stay.
    pub fn suspects<'a>(&'a self, links: &'a [Link]) -> impl Iterator<Item = &'a Link> {
        let named = |link: &Link| {
            let vni = link.vxlan.as_ref().map(|vxlan| vxlan.vni.to_string());
            let number = link.name.strip_prefix("flannel.").or(link.name.strip_prefix("flannel-v6."));
            number.is_some() && number == vni.as_deref()
        };
        let ours = |link: &Link| self.present.iter().any(|device| device.name == link.name);
        links.iter().filter(move |link| !self.recalls && named(link) && !ours(link))
    }
}

/// Whether Go flannel may have written a route: by gateway, without a metric.
fn is_like_go(route: &Route) -> bool {
    is_default_of(BOOT_PROTOCOL, route) && route.via.is_some()
}

/// Whether a route has this protocol, and neither a metric nor an MTU of its own.
fn is_default_of(protocol: u8, route: &Route) -> bool {
    let metric = Route::default_metric(route.dst.family());
    route.protocol == protocol && route.plain && route.mtu.is_none() && route.metric == metric
}

/// Whether a route equals the desired one except for its protocol and MTU, as a Go node leaves it. Such a route is adopted: it
/// is ours, and is replaced by one with our protocol.
pub fn is_adoptable(have: &Route, want: &Route) -> bool {
    is_like_go(have) && Route { protocol: want.protocol, mtu: want.mtu, ..*have } == *want
}

#[cfg(test)]
mod tests;
