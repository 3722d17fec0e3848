//! The host-gw backend's part of the reconcile loop: the underlay link, and one route for each peer and family on it.

use std::net::IpAddr;

use async_trait::async_trait;
use flannel_core::addr::{Family, PerFamily, Subnet};
use flannel_core::backend::{Answers, HostProblem, Probing, Underlay};
use flannel_core::config::{BackendConfig, ConfigError};
use flannel_core::dataplane::{Object, ObjectKey};
use flannel_core::kernel::{Kernel, KernelError, KernelEvent, Kinds, Link, Refusal, Scope};
use flannel_core::lease::{Lease, LeaseAttrs};
use flannel_core::peers::{Claim, Peer, PeerError};
use flannel_core::reconcile::{AppliedConfig, Devices, Driver};
use flannel_core::status::{DeviceStatus, IPV6_MIN_MTU, Problem, Reason};
use flannel_core::underlay;

use crate::peer::peer;

/// The underlay link, and this node's addresses on it.
pub(crate) struct HostGwDriver {
    /// The underlay: its link, found by index, or by name if it was created again, and the published addresses.
    underlay: Underlay,
    /// This node's address of each enabled family.
    addresses: PerFamily<IpAddr>,
    /// Our own subnets; none until the lease is acquired.
    subnets: PerFamily<Subnet>,
    /// The link as last seen, up or not. Routes on it stay desired while it is missing.
    link: Option<Link>,
    /// Whether it is there.
    is_there: bool,
}

impl HostGwDriver {
    pub(crate) fn new(underlay: Underlay, addresses: PerFamily<IpAddr>) -> Self {
        Self { underlay, addresses, subnets: PerFamily::default(), link: None, is_there: false }
    }

    /// The link, if routes can be put on it.
    fn usable_link(&self) -> Option<&Link> {
        self.link.as_ref().filter(|link| self.is_there && link.up)
    }

    /// What is wrong with the link.
    fn problem(&self) -> Option<String> {
        let name = &self.underlay.name;
        match &self.link {
            Some(link) if self.is_there && link.up => None,
            Some(_) if self.is_there => Some(format!("underlay link {name} is down")),
            _ => Some(format!("underlay link {name} is gone")),
        }
    }

    /// Why IPv6 is out of service: the kernel removes it from a link with too small an MTU.
    fn without_ipv6(&self) -> Option<Problem> {
        self.addresses.v6?;
        let Link { name, mtu, .. } = self.usable_link()?;
        (mtu.0 < IPV6_MIN_MTU).then(|| Problem::mtu_without_ipv6(name, mtu.0, None))
    }
}

#[async_trait]
impl Driver for HostGwDriver {
    /// Nothing in a peer's subnet answers for sure, but its node does when it has to drop a packet.
    fn probing(&self) -> Option<Probing> {
        Some(Probing::new(Answers::Bridge).overhead(|_| 0))
    }

    /// The link belongs to the host, so it is not changed. While it is missing or down no route can exist, so none is
    /// tried; all stay desired.
    async fn ensure_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Devices, KernelError> {
        let before = self.usable_link().map(|link| link.index);
        let found = underlay::find(kernel, &self.underlay).await?;
        self.is_there = found.is_some();
        self.link = found.or(self.link.take());
        let usable = self.usable_link();
        let known = self.link.as_ref().map(|link| link.index);
        let mut devices = Devices::default();
        devices.links.extend(known);
        devices.away.extend(known.filter(|_| usable.is_none()));
        devices.changed = usable.map(|link| link.index) != before;
        devices.problems.extend(self.problem());
        devices.unserved.extend(self.without_ipv6());
        devices.overlay_mtu = usable.map(|link| link.mtu);
        devices.shown.extend(self.link.iter().map(|link| DeviceStatus::of(link, self.is_there)));
        Ok(devices)
    }

    fn set_lease(&mut self, lease: &Lease) {
        self.subnets = lease.key.subnets();
    }

    fn set_underlay(&mut self, underlay: &Underlay) -> Result<(), HostProblem> {
        let families: Vec<Family> = self.addresses.families().collect();
        self.addresses = crate::gateways(&families, underlay)?;
        self.underlay = underlay.clone();
        Ok(())
    }

    /// The backend has no keys, so changes have no effect.
    fn apply_config(&mut self, _: &BackendConfig, _: Vec<String>) -> Result<AppliedConfig, ConfigError> {
        Ok(AppliedConfig::default())
    }

    fn attrs(&self) -> LeaseAttrs {
        crate::attrs(&self.underlay)
    }

    fn own_objects(&self) -> Vec<Object> {
        Vec::new()
    }

    fn own_claims(&self) -> Vec<Claim> {
        let subnets = self.subnets.iter().map(|(_, subnet)| Claim::Subnet(*subnet));
        subnets.chain(self.addresses.iter().map(|(_, addr)| Claim::Underlay(*addr))).collect()
    }

    fn peer(&self, lease: &Lease) -> Result<Peer, PeerError> {
        peer(lease, self.link.as_ref().map(|link| link.index), &self.addresses)
    }

    fn scopes(&self) -> Vec<Scope> {
        let scope = |link: &Link| {
            let link = link.index;
            self.addresses.families().map(move |family| Scope { link, family, kinds: Kinds::ROUTES })
        };
        self.link.iter().filter(|_| self.is_there).flat_map(scope).collect()
    }

    /// The backend has no device; which routes on the host's links are ours is not its decision.
    fn owns(&self, _: &Object) -> bool {
        false
    }

    /// Addresses and routes without a gateway decide which peers are on-link.
    fn concerns(&self, event: &KernelEvent) -> bool {
        let index = self.link.as_ref().map(|link| link.index);
        match event {
            KernelEvent::Link(link) if Some(link.index) == index => {
                !self.is_there || self.link.as_ref() != Some(link)
            }
            KernelEvent::Link(link) => link.name == self.underlay.name,
            KernelEvent::LinkGone(link, _) => Some(*link) == index,
            KernelEvent::Put(Object::Address(address)) => Some(address.link) == index,
            KernelEvent::Gone(ObjectKey::Address(link, _)) => Some(*link) == index,
            KernelEvent::Put(Object::Route(route)) => {
                index.is_some()
                    && route.link == index
                    && route.via.is_none()
                    && self.addresses.get(route.dst.family()).is_some()
            }
            _ => false,
        }
    }

    fn explain(&self, refusal: &Refusal) -> Option<Reason> {
        let Object::Route(route) = refusal.op.object() else { return None };
        let (dst, via, name) = (route.dst, route.via?, &self.underlay.name);
        let unreachable = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EINVAL];
        unreachable.contains(&refusal.errno).then(|| {
            let family = Family::of(via);
            let cause = format!(
                "subnet {dst}: its node {via} is not on-link on {name} ({family}): host-gw needs all nodes on one \
                 layer 2 segment"
            );
            cause.into()
        })
    }
}
