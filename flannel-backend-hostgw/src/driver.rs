//! What host-gw adds to the reconcile loop: the underlay link, and one route per peer and family on it.

use std::net::IpAddr;

use async_trait::async_trait;
use flannel_core::addr::{Family, PerFamily, Subnet};
use flannel_core::backend::{HostProblem, Underlay};
use flannel_core::config::{BackendConfig, ConfigError};
use flannel_core::dataplane::{Object, ObjectKey};
use flannel_core::kernel::{Kernel, KernelError, KernelEvent, Kinds, Link, Refusal, Scope};
use flannel_core::lease::{Lease, LeaseAttrs};
use flannel_core::peers::{Claim, Peer, PeerError};
use flannel_core::reconcile::{AppliedConfig, Devices, Driver};
use flannel_core::status::{DeviceStatus, IPV6_MIN_MTU, Problem, Reason};
use flannel_core::underlay;

use crate::peer::peer;

/// The underlay link and what this node is on it.
pub(crate) struct HostGwDriver {
    /// The link, known by its number, and by its name where it was made anew. And what is published.
    underlay: Underlay,
    /// This node's address of each enabled family.
    addresses: PerFamily<IpAddr>,
    /// Our own subnets; none until the lease is there.
    subnets: PerFamily<Subnet>,
    /// The link as it was last seen, up or not. What peers ask for stays on it while it is away.
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

    /// The kernel takes IPv6 off a link whose MTU is too small.
    fn without_ipv6(&self) -> Option<Problem> {
        self.addresses.v6?;
        let Link { name, mtu, .. } = self.usable_link()?;
        (mtu.0 < IPV6_MIN_MTU).then(|| Problem::mtu_without_ipv6(name, mtu.0, None))
    }
}

#[async_trait]
impl Driver for HostGwDriver {
    /// The link belongs to the host, so nothing is done to it. Without it, or while it is down, no route can
    /// exist, and no peer is tried; all stay desired.
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
        devices.problem = self.problem();
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

    /// There are no keys, so whatever changed means nothing.
    fn take_config(&mut self, _: &BackendConfig, _: Vec<String>) -> Result<AppliedConfig, ConfigError> {
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

    /// There is no device of ours; what is ours on the host's links is not for a backend to say.
    fn owns(&self, _: &Object) -> bool {
        false
    }

    /// Addresses and routes without a gateway decide who is on-link.
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
