//! The ipip backend's part of the reconcile loop: its device, and one route for each peer.

mod ensure;

use std::net::IpAddr;

use async_trait::async_trait;
use flannel_core::addr::{Family, LinkIndex, PerFamily, Subnet};
use flannel_core::backend::{Answers, HostProblem, Probing, Underlay};
use flannel_core::config::{BackendConfig, ConfigError};
use flannel_core::dataplane::{Address, KERNEL_PROTOCOL, Object};
use flannel_core::kernel::{Kernel, KernelError, KernelEvent, Kinds, Link, LinkOp, Scope};
use flannel_core::lease::{Lease, LeaseAttrs};
use flannel_core::on_link::OnLink;
use flannel_core::peers::{Claim, Peer, PeerError};
use flannel_core::reconcile::{AppliedConfig, Devices, Driver};
use flannel_core::status::DeviceStatus;
use flannel_core::underlay;

use crate::config::IpipConfig;
use crate::device::{NAME, OVERHEAD};
use crate::peer::{KIND, Paths, peer};

/// What can be on the device.
const ON_DEVICE: Kinds = Kinds { addresses: true, ..Kinds::ROUTES };

/// A link that packets to peers take.
#[derive(Debug, Clone)]
struct Way {
    /// The link as last seen. Objects on it stay desired while it is missing.
    link: Link,
    is_there: bool,
}

impl Way {
    fn is_usable(&self) -> bool {
        self.is_there && self.link.up
    }

    fn index(&self) -> LinkIndex {
        self.link.index
    }

    /// The link as it is now: what was found, else the last one, which is gone.
    fn now(found: Option<Link>, before: Option<Self>) -> Option<Self> {
        let gone = before.map(|before| Self { is_there: false, ..before });
        found.map(|link| Self { link, is_there: true }).or(gone)
    }
}

/// The device of this node, and the underlay below it.
pub(crate) struct IpipDriver {
    config: IpipConfig,
    network: Subnet,
    underlay: Underlay,
    /// The source address of outer packets.
    local: IpAddr,
    /// Our own subnet; `None` until the lease is acquired.
    subnet: Option<Subnet>,
    device: Option<Way>,
    lower: Option<Way>,
    /// Which addresses are on-link on the underlay; `None` without `DirectRouting`.
    on_link: Option<OnLink>,
}

impl IpipDriver {
    pub(crate) fn new(config: IpipConfig, network: Subnet, underlay: Underlay) -> Result<Self, HostProblem> {
        let local = local(&underlay)?;
        let on_link = config.direct_routing.then(OnLink::default);
        Ok(Self { config, network, underlay, local, subnet: None, device: None, lower: None, on_link })
    }

    fn networks(&self) -> PerFamily<Subnet> {
        PerFamily { v4: Some(self.network), v6: None }
    }

    fn paths(&self) -> Paths<'_> {
        let lower = self.lower.as_ref().map(Way::index);
        Paths { device: self.device.as_ref().map(Way::index), direct: lower.zip(self.on_link.as_ref()) }
    }

    /// Reads which addresses are on-link, if that matters. Returns whether the answer changed. While the underlay is
    /// missing the last answer counts.
    async fn look_on_link(&mut self, kernel: &mut dyn Kernel) -> Result<bool, KernelError> {
        let Some(lower) = self.lower.as_ref().filter(|lower| lower.is_there) else { return Ok(false) };
        let Some(before) = &self.on_link else { return Ok(false) };
        let now = OnLink::read(kernel, lower.index(), &self.networks()).await?;
        let changed = now != *before;
        self.on_link = Some(now);
        Ok(changed)
    }

    /// The links with objects of ours.
    fn ways(&self) -> impl Iterator<Item = &Way> {
        self.device.iter().chain(self.lower.iter().filter(|_| self.on_link.is_some()))
    }

    fn is_device(&self, link: LinkIndex) -> bool {
        self.device.as_ref().is_some_and(|device| device.index() == link)
    }
}

/// The source address of outer packets.
fn local(underlay: &Underlay) -> Result<IpAddr, HostProblem> {
    Ok(underlay.addresses(Family::V4)?.0)
}

#[async_trait]
impl Driver for IpipDriver {
    /// Each node has the base address of its subnet on its device. IPIP has no port, so packets can't be wrapped by hand.
    fn probing(&self) -> Option<Probing> {
        Some(Probing::new(Answers::Base).overhead(|_| OVERHEAD))
    }

    async fn ensure_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Devices, KernelError> {
        let mut devices = Devices::default();
        let lower = underlay::find(kernel, &self.underlay).await?;
        let mut problems = Vec::new();
        if let Some(lower) = &lower {
            self.ensure(kernel, lower, &mut devices, &mut problems).await?;
        } else {
            problems.push(format!("underlay link {} is gone", self.underlay.name));
            self.look_at_device(kernel).await?;
        }
        self.lower = Way::now(lower, self.lower.take());
        devices.peers_changed = self.look_on_link(kernel).await?;
        if self.on_link.is_some() {
            let name = &self.underlay.name;
            devices.datapath = Some(format!("{KIND}; on-link peers directly through {name}"));
        }
        devices.problems.extend(problems);
        devices.links = self.ways().map(Way::index).collect();
        devices.away = self.ways().filter(|way| !way.is_usable()).map(Way::index).collect();
        devices.shown = self.ways().map(|way| DeviceStatus::of(&way.link, way.is_there)).collect();
        Ok(devices)
    }

    async fn plan_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Vec<LinkOp>, KernelError> {
        match underlay::find(kernel, &self.underlay).await? {
            Some(lower) => self.plan(kernel, &lower).await,
            None => Ok(Vec::new()),
        }
    }

    fn set_lease(&mut self, lease: &Lease) {
        self.subnet = lease.subnet(Family::V4);
    }

    /// The device changes its source address in place, and everything on it stays.
    fn set_underlay(&mut self, underlay: &Underlay) -> Result<(), HostProblem> {
        self.local = local(underlay)?;
        self.underlay = underlay.clone();
        Ok(())
    }

    fn apply_config(&mut self, next: &BackendConfig, _: Vec<String>) -> Result<AppliedConfig, ConfigError> {
        let next = IpipConfig::parse(next)?;
        let applied = self.config.changes(next);
        if next != self.config {
            self.on_link = next.direct_routing.then(OnLink::default);
        }
        self.config = next;
        Ok(applied)
    }

    fn attrs(&self) -> LeaseAttrs {
        LeaseAttrs {
            // An address of a family that is not enabled is published too if the operator gave one, as upstream does.
            public_ips: self.underlay.published,
            backend_type: KIND.to_owned(),
            ..LeaseAttrs::default()
        }
    }

    fn own_objects(&self) -> Vec<Object> {
        let (Some(device), Some(subnet)) = (&self.device, self.subnet) else { return Vec::new() };
        let host = Subnet::containing(subnet.base(), Family::V4.bits()).expect("a full-length prefix fits");
        vec![Object::Address(Address { link: device.index(), addr: host.into() })]
    }

    fn own_claims(&self) -> Vec<Claim> {
        let published = self.underlay.published.v4.unwrap_or(self.local);
        // Behind NAT the node has both addresses.
        let underlay = [published, self.local].map(Claim::Underlay);
        self.subnet.map(Claim::Subnet).into_iter().chain(underlay).collect()
    }

    fn peer(&self, lease: &Lease) -> Result<Peer, PeerError> {
        peer(lease, &self.paths())
    }

    /// On-link peers are reached without a tunnel.
    fn path(&self, _: Family, peer: &Peer) -> Option<&'static str> {
        let lower = self.lower.as_ref().filter(|_| self.on_link.is_some())?.index();
        let is_direct = |object: &Object| matches!(object, Object::Route(route) if route.link == Some(lower));
        peer.objects.iter().any(is_direct).then_some("direct")
    }

    fn scopes(&self) -> Vec<Scope> {
        let there = self.ways().filter(|way| way.is_there).map(Way::index);
        let kinds = |link| if self.is_device(link) { ON_DEVICE } else { Kinds::ROUTES };
        there.map(|link| Scope { link, family: Family::V4, kinds: kinds(link) }).collect()
    }

    /// On our own device, addresses and routes in our network are ours. The kernel's own routes, and everything else that
    /// somebody put there, stay.
    fn owns(&self, object: &Object) -> bool {
        match object {
            Object::Address(address) => {
                self.is_device(address.link) && self.network.contains(address.addr.ip())
            }
            Object::Route(route) => {
                route.protocol != KERNEL_PROTOCOL
                    && route.link.is_some_and(|link| self.is_device(link))
                    && self.network.covers(route.dst)
            }
            Object::Neighbour(_) | Object::Fdb(_) | Object::NextHop(_) => false,
        }
    }

    /// A notification about our own device may be about an attribute of its kind, which it does not have.
    fn concerns(&self, event: &KernelEvent) -> bool {
        let is_known = |index| self.device.iter().chain(&self.lower).any(|way| way.index() == index);
        match event {
            KernelEvent::Link(link) if self.is_device(link.index) => true,
            KernelEvent::Link(link) => match self.lower.as_ref().filter(|it| it.index() == link.index) {
                Some(lower) => lower.link != *link || !lower.is_there,
                None => link.name == self.underlay.name || link.name == NAME,
            },
            KernelEvent::LinkGone(index, _) => is_known(*index),
            _ => match (&self.on_link, &self.lower) {
                (Some(on_link), Some(lower)) => on_link.is_concerned(event, lower.index(), &self.networks()),
                _ => false,
            },
        }
    }
}
