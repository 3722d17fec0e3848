//! What both backends know of a node: its underlay, its lease, and those of others. There is no device and no route of ours.

use flannel_core::addr::{Family, PerFamily, Subnet};
use flannel_core::backend::{HostProblem, Underlay};
use flannel_core::config::NetworkConfig;
use flannel_core::kernel::{Kernel, KernelError, KernelEvent, Link};
use flannel_core::lease::{Lease, LeaseKey};
use flannel_core::peers::{Claim, Peer, PeerError};
use flannel_core::reconcile::Devices;
use flannel_core::status::{DeviceStatus, IPV6_MIN_MTU, Problem};
use flannel_core::underlay;

/// This node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) networks: PerFamily<Subnet>,
    pub(crate) underlay: Underlay,
    /// Our own lease; `None` until it is acquired.
    pub(crate) own: Option<LeaseKey>,
    /// The underlay's link as last seen.
    link: Option<Link>,
    is_there: bool,
}

impl Node {
    pub(crate) fn new(config: &NetworkConfig, underlay: &Underlay) -> Result<Self, HostProblem> {
        let networks = config.networks.map(|_, network| network.network);
        let node = Self { networks, underlay: underlay.clone(), own: None, link: None, is_there: false };
        node.check(underlay)?;
        Ok(node)
    }

    /// Refuses an underlay that lacks an address of an enabled family.
    fn check(&self, underlay: &Underlay) -> Result<(), HostProblem> {
        self.networks.families().try_for_each(|family| underlay.addresses(family).map(drop))?;
        Ok(())
    }

    pub(crate) fn set_underlay(&mut self, underlay: &Underlay) -> Result<(), HostProblem> {
        self.check(underlay)?;
        self.underlay = underlay.clone();
        Ok(())
    }

    /// Looks at the underlay's link, which belongs to the host and is not changed.
    pub(crate) async fn look(&mut self, kernel: &mut dyn Kernel) -> Result<Devices, KernelError> {
        let found = underlay::find(kernel, &self.underlay).await?;
        self.is_there = found.is_some();
        self.link = found.or(self.link.take());
        let mut devices = Devices::default();
        devices.shown.extend(self.link.iter().map(|link| DeviceStatus::of(link, self.is_there)));
        let name = &self.underlay.name;
        match self.link.as_ref().filter(|_| self.is_there) {
            None => devices.problems.add(None, format!("underlay link {name} is gone")),
            Some(link) if !link.up => devices.problems.add(None, format!("underlay link {name} is down")),
            Some(link) => {
                devices.overlay_mtu = Some(link.mtu);
                let is_small = self.networks.v6.is_some() && link.mtu.0 < IPV6_MIN_MTU;
                devices
                    .unserved
                    .extend(is_small.then(|| Problem::mtu_without_ipv6(&link.name, link.mtu.0, None)));
            }
        }
        Ok(devices)
    }

    pub(crate) fn concerns(&self, event: &KernelEvent) -> bool {
        let index = self.link.as_ref().map(|link| link.index);
        match event {
            KernelEvent::Link(link) if Some(link.index) == index => {
                !self.is_there || self.link.as_ref() != Some(link)
            }
            KernelEvent::Link(link) => link.name == self.underlay.name,
            KernelEvent::LinkGone(link, _) => Some(*link) == index,
            _ => false,
        }
    }

    pub(crate) fn claims(&self) -> Vec<Claim> {
        let subnets =
            self.own.iter().flat_map(|own| own.subnets().iter().map(|(_, it)| *it).collect::<Vec<_>>());
        let both = [&self.underlay.published, &self.underlay.local];
        let addresses = both.into_iter().flat_map(|addresses| {
            self.networks.families().filter_map(|family| addresses.get(family).copied()).collect::<Vec<_>>()
        });
        subnets.map(Claim::Subnet).chain(addresses.map(Claim::Underlay)).collect()
    }

    /// The claims of another node's lease. It needs no objects.
    pub(crate) fn peer(&self, lease: &Lease) -> Result<Peer, PeerError> {
        let mut peer = Peer::default();
        let mut is_common = false;
        for (family, subnet) in lease.key.subnets().iter() {
            peer.claims.push(Claim::Subnet(*subnet));
            if self.networks.get(family).is_none() {
                continue;
            }
            is_common = true;
            // A node with IPv4 alone may have been given an IPv6 subnet, too; Go's have.
            if family == Family::V6 && lease.attrs.public_ips.get(family).is_none() {
                continue;
            }
            let unreadable = |why| PeerError::Unreadable(format!("{family}: {why}"));
            peer.claims.push(Claim::Underlay(lease.attrs.underlay(family).map_err(unreadable)?));
        }
        if is_common { Ok(peer) } else { Err(PeerError::no_common_family()) }
    }
}
