//! The vxlan backend's part of the reconcile loop: its devices, and which objects on them are ours.

mod ensure;

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use flannel_core::addr::{Family, LinkIndex, MacAddr, PerFamily, Subnet};
use flannel_core::backend::{Answers, ChecksumSwitch, HostProblem, Probing, Underlay};
use flannel_core::config::{BackendConfig, ConfigError};
use flannel_core::dataplane::{Address, KERNEL_PROTOCOL, Object, Through};
use flannel_core::firewall::gate::{Desk, Gate, Tunnels};
use flannel_core::inspect::Differences;
use flannel_core::kernel::{Kernel, KernelError, KernelEvent, Kinds, Link, LinkOp, Refusal, Scope};
use flannel_core::lease::{Lease, LeaseAttrs};
use flannel_core::on_link::OnLink;
use flannel_core::peers::{Claim, Peer, PeerError};
use flannel_core::reconcile::{AppliedConfig, Devices, Driver};
use flannel_core::status::{DeviceStatus, Reason, ipv6_refused};
use flannel_core::underlay;
use tracing::info;

use crate::DrawMac;
use crate::config::VxlanConfig;
use crate::device::device_name;
use crate::next_hops::{self, Form, NextHopObjects};
use crate::overhead::encap_overhead;
use crate::peer::{Paths, peer, published_mac};
use crate::tunnel::{Checksums, VxlanTunnel};

/// How many MACs are drawn to find one that no other node has.
const MOST_DRAWN: usize = 64;

/// One family's side of the backend.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    /// The overlay network. Objects on the device that are inside it are ours.
    pub(crate) network: Subnet,
    /// The source address of outer packets.
    pub(crate) local: IpAddr,
    /// The address that peers send to.
    pub(crate) published: IpAddr,
    /// The VTEP's MAC.
    pub(crate) mac: MacAddr,
    /// Our own subnet; `None` until the lease is acquired.
    pub(crate) subnet: Option<Subnet>,
}

/// The devices of this node, and the objects that they need.
pub(crate) struct VxlanDriver {
    pub(crate) config: VxlanConfig,
    pub(crate) underlay: Underlay,
    pub(crate) sides: PerFamily<Side>,
    /// The devices and the underlay link as last seen. Objects on a missing one stay desired.
    links: PerFamily<Link>,
    lower: Option<Link>,
    /// Those of them that are missing.
    missing: BTreeSet<LinkIndex>,
    next_hop_objects: NextHopObjects,
    /// The form of routes; `None` until the devices are there.
    form: Option<Form>,
    /// The form that was logged; shared with the backend, so that a start that is tried again does not log it again.
    pub(crate) told_form: Arc<Mutex<Option<Form>>>,
    /// Draws MACs in place of those that other nodes had first.
    pub(crate) draw_mac: Arc<DrawMac>,
    /// Which addresses are on-link on the underlay; `None` without `DirectRouting`.
    on_link: Option<OnLink>,
    /// Whether this node runs other backends, too.
    is_shared: bool,
    /// The gate, until the loop has taken it.
    pub(crate) gate: Option<(Gate, Desk)>,
    /// Whether the devices complete checksums.
    pub(crate) checksums: Checksums,
    /// Whether each device does, as last seen, where that is held.
    shown_checksums: PerFamily<bool>,
}

impl VxlanDriver {
    pub(crate) fn new(
        config: VxlanConfig,
        underlay: Underlay,
        sides: PerFamily<Side>,
        next_hop_objects: NextHopObjects,
    ) -> Self {
        let (links, lower, form) = (PerFamily::default(), None, None);
        let on_link = config.direct_routing.then(OnLink::default);
        Self {
            config,
            underlay,
            sides,
            links,
            lower,
            missing: BTreeSet::new(),
            next_hop_objects,
            form,
            told_form: Arc::default(),
            draw_mac: Arc::new(MacAddr::random),
            on_link,
            is_shared: false,
            gate: None,
            checksums: Checksums::default(),
            shown_checksums: PerFamily::default(),
        }
    }

    fn networks(&self) -> PerFamily<Subnet> {
        PerFamily::from_fn(|family| self.sides.get(family).map(|side| side.network))
    }

    /// Reads which addresses are on-link, if that matters. Returns whether the answer changed.
    async fn look_on_link(&mut self, kernel: &mut dyn Kernel, lower: &Link) -> Result<bool, KernelError> {
        let Some(before) = &self.on_link else { return Ok(false) };
        let now = OnLink::read(kernel, lower.index, &self.networks()).await?;
        let changed = now != *before;
        self.on_link = Some(now);
        Ok(changed)
    }

    fn concerns_on_link(&self, event: &KernelEvent) -> bool {
        let (Some(on_link), Some(lower)) = (&self.on_link, &self.lower) else { return false };
        on_link.is_concerned(event, lower.index, &self.networks())
    }

    /// How packets travel, for the status.
    fn datapath(&self, form: &Form) -> String {
        match &self.on_link {
            Some(_) => format!("{form}; on-link peers directly through {}", self.underlay.name),
            None => form.to_string(),
        }
    }

    /// Tests once whether routes can go through next-hop objects.
    async fn settle_form(&mut self, kernel: &mut dyn Kernel) -> Result<(), KernelError> {
        if self.form.is_none() {
            let sides = self
                .sides
                .iter()
                .filter_map(|(family, side)| Some((self.links.get(family)?.index, side.network)));
            let form = next_hops::find_form(kernel, self.next_hop_objects, sides.collect()).await?;
            let mut told = self.told_form.lock().unwrap_or_else(PoisonError::into_inner);
            if told.as_ref() != Some(&form) {
                info!(datapath = %form, "route form chosen");
                *told = Some(form.clone());
            }
            drop(told);
            self.form = Some(form);
        }
        Ok(())
    }

    fn indexes(&self) -> PerFamily<LinkIndex> {
        PerFamily::from_fn(|family| self.links.get(family).map(|link| link.index))
    }

    fn family_of(&self, link: LinkIndex) -> Option<Family> {
        self.links.iter().find(|(_, ours)| ours.index == link).map(|(family, _)| family)
    }

    /// Updates which of the known links exist, and their attributes.
    async fn look_for_missing(&mut self, kernel: &mut dyn Kernel) -> Result<(), KernelError> {
        self.missing.clear();
        for known in [&mut self.links.v4, &mut self.links.v6, &mut self.lower].into_iter().flatten() {
            match kernel.link_at(known.index).await? {
                Some(link) => *known = link,
                None => _ = self.missing.insert(known.index),
            }
        }
        Ok(())
    }

    /// All known links with objects of ours.
    fn known(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().map(|(_, link)| link).chain(self.lower.iter().filter(|_| self.on_link.is_some()))
    }

    fn shown(&self, link: &Link) -> DeviceStatus {
        let family = self.family_of(link.index);
        let tx_checksum = family.and_then(|family| self.shown_checksums.get(family).copied());
        DeviceStatus::of(link, self.is_there(link)).tx_checksum(tx_checksum)
    }

    fn is_there(&self, link: &Link) -> bool {
        !self.missing.contains(&link.index)
    }
}

#[async_trait]
impl Driver for VxlanDriver {
    async fn ensure_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Devices, KernelError> {
        let mut devices = Devices::default();
        let lower = underlay::find(kernel, &self.underlay).await?;
        match &lower {
            Some(lower) => self.ensure_all(kernel, lower, &mut devices).await?,
            None => devices.problems.add(None, format!("underlay link {} is gone", self.underlay.name)),
        }
        self.lower = lower.clone().or(self.lower.take());
        if devices.problems.is_empty() && devices.unserved.is_empty() {
            self.missing.clear();
        } else {
            self.look_for_missing(kernel).await?;
        }
        if devices.problems.is_empty() && !self.links.is_empty() {
            self.settle_form(kernel).await?;
            devices.datapath = self.form.as_ref().map(|form| self.datapath(form));
        }
        if let Some(lower) = &lower {
            devices.peers_changed = self.look_on_link(kernel, lower).await?;
        }
        devices.links = self.known().map(|link| link.index).collect();
        self.hold_checksums(kernel, &mut devices).await?;
        devices.shown = self.known().map(|link| self.shown(link)).collect();
        devices.away =
            self.known().filter(|link| !self.is_there(link) || !link.up).map(|link| link.index).collect();
        Ok(devices)
    }

    async fn plan_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Vec<LinkOp>, KernelError> {
        match underlay::find(kernel, &self.underlay).await? {
            Some(lower) => self.plan_all(kernel, &lower).await,
            None => Ok(Vec::new()),
        }
    }

    async fn further_differences(&mut self, kernel: &mut dyn Kernel) -> Result<Differences, KernelError> {
        self.checksum_differences(kernel).await
    }

    fn set_lease(&mut self, lease: &Lease) {
        for family in Family::ALL {
            if let Some(side) = self.sides.get_mut(family) {
                side.subnet = lease.subnet(family);
            }
        }
    }

    /// The MACs stay, since peers know them; only the underlay addresses change.
    fn set_underlay(&mut self, underlay: &Underlay) -> Result<(), HostProblem> {
        let mut sides = self.sides.clone();
        for family in self.sides.families() {
            let (local, published) = underlay.addresses(family)?;
            if let Some(side) = sides.get_mut(family) {
                (side.local, side.published) = (local, published);
            }
        }
        (self.sides, self.underlay) = (sides, underlay.clone());
        Ok(())
    }

    /// The devices stay what they are, and so do the peers' MACs.
    fn apply_config(&mut self, next: &BackendConfig, _: Vec<String>) -> Result<AppliedConfig, ConfigError> {
        let next = VxlanConfig::parse(next)?;
        next.check_mtu(self.sides.families())?;
        let (now, taken) = self.config.towards(next);
        if now.direct_routing != self.config.direct_routing {
            self.on_link = now.direct_routing.then(OnLink::default);
        }
        self.config = now;
        Ok(taken)
    }

    /// The devices change in place, and everything on them stays or is put again.
    fn resign(&mut self, families: &[Family], others: &mut dyn Iterator<Item = &LeaseAttrs>) -> bool {
        let macs = |attrs: &LeaseAttrs| Family::ALL.map(|family| published_mac(&attrs.backend_data, family));
        let mut taken: HashSet<MacAddr> = others.flat_map(macs).flatten().collect();
        taken.extend(self.sides.iter().map(|(_, side)| side.mac));
        let mut changed = false;
        for family in families {
            let Some(side) = self.sides.get_mut(*family) else { continue };
            let mut drawn = (0..MOST_DRAWN).map(|_| (self.draw_mac)());
            if let Some(mac) = drawn.find(|mac| mac.is_unicast() && taken.insert(*mac)) {
                side.mac = mac;
                changed = true;
            }
        }
        changed
    }

    fn attrs(&self) -> LeaseAttrs {
        crate::attrs(&self.config, &self.underlay, &self.sides)
    }

    fn own_objects(&self) -> Vec<Object> {
        let address = |(family, link): (Family, &Link)| {
            let base = self.sides.get(family)?.subnet?.base();
            let host = Subnet::containing(base, family.bits())?;
            Some(Object::Address(Address { link: link.index, addr: host.into() }))
        };
        self.links.iter().filter_map(address).collect()
    }

    fn own_claims(&self) -> Vec<Claim> {
        let mut claims = Vec::new();
        for (family, side) in self.sides.iter() {
            claims.extend(side.subnet.map(Claim::Subnet));
            // Behind NAT the node has both addresses.
            claims.extend([Claim::Underlay(side.published), Claim::Underlay(side.local)]);
            let link = self.links.get(family);
            claims.extend(link.map(|link| Claim::Vtep(link.index, side.mac, side.published)));
        }
        claims
    }

    fn peer(&self, lease: &Lease) -> Result<Peer, PeerError> {
        let through = self.form.as_ref().map_or(Through::Itself, Form::through);
        let lower = self.lower.as_ref().map(|lower| lower.index);
        let direct = lower.zip(self.on_link.as_ref());
        peer(lease, &Paths { links: &self.indexes(), through, direct, is_shared: self.is_shared })
    }

    /// On-link peers are reached without a tunnel.
    fn set_shared(&mut self, is_shared: bool) {
        self.is_shared = is_shared;
    }

    fn path(&self, family: Family, peer: &Peer) -> Option<&'static str> {
        let lower = self.lower.as_ref().filter(|_| self.on_link.is_some())?.index;
        let is_direct = |object: &Object| matches!(object, Object::Route(route) if route.dst.family() == family && route.link == Some(lower));
        peer.objects.iter().any(is_direct).then_some("direct")
    }

    fn gate(&mut self) -> Option<(Gate, Desk)> {
        self.gate.take()
    }

    fn probing(&self) -> Option<Probing> {
        let (vni, port) = (self.config.vni, self.config.port);
        let macs = PerFamily::from_fn(|family| self.sides.get(family).map(|side| side.mac));
        let tunnel = VxlanTunnel { vni, port, macs };
        let probing = Probing::new(Answers::Base).tunnel(Arc::new(tunnel)).overhead(encap_overhead);
        Some(probing.checksums(self.checksums.switch.clone()))
    }

    /// Probes have proven that the devices do not complete checksums.
    async fn attention(&mut self) {
        match &self.checksums.switch {
            Some(switch) => ChecksumSwitch::turned(switch).await,
            None => std::future::pending().await,
        }
    }

    fn tunnels(&self) -> Option<Tunnels> {
        let subnets = PerFamily::from_fn(|family| self.sides.get(family)?.subnet);
        let devices = PerFamily::from_fn(|family| self.links.get(family).map(|link| link.name.clone()));
        let is_known = !devices.is_empty() && self.sides.families().all(|it| subnets.get(it).is_some());
        let (vni, port) = (self.config.vni, self.config.port);
        is_known.then_some(Tunnels { vni, port, devices, links: self.indexes(), subnets })
    }

    fn scopes(&self) -> Vec<Scope> {
        let scope = |(family, link): (Family, &Link)| Scope { link: link.index, family, kinds: Kinds::ALL };
        let lower = self.lower.as_ref().filter(|lower| self.on_link.is_some() && self.is_there(lower));
        let lower = lower.map(|lower| lower.index);
        let shared =
            |link| self.sides.families().map(move |family| Scope { link, family, kinds: Kinds::ROUTES });
        let links = self.links.iter().filter(|(_, link)| self.is_there(link));
        links.map(scope).chain(lower.into_iter().flat_map(shared)).collect()
    }

    /// On our own devices, objects in our network and FDB entries of unicast MACs are ours. The kernel's own routes,
    /// and everything else that somebody put there, stay.
    fn owns(&self, object: &Object) -> bool {
        let (link, addr) = match object {
            Object::Address(address) => (Some(address.link), address.addr.ip()),
            Object::Neighbour(neighbour) => (Some(neighbour.link), neighbour.addr),
            Object::NextHop(next_hop) => (Some(next_hop.link), next_hop.gateway),
            Object::Route(route) => {
                if route.protocol == KERNEL_PROTOCOL {
                    return false;
                }
                (route.link, route.dst.base())
            }
            Object::Fdb(entry) => return entry.mac.is_unicast() && self.family_of(entry.link).is_some(),
        };
        let Some(family) = link.and_then(|link| self.family_of(link)) else { return false };
        self.sides.get(family).is_some_and(|side| match object {
            Object::Route(route) => side.network.covers(route.dst),
            _ => side.network.contains(addr),
        })
    }

    fn explain(&self, refusal: &Refusal) -> Option<Reason> {
        let Object::Address(address) = refusal.op.object() else { return None };
        let link = self.links.v6.as_ref().filter(|link| link.index == address.link)?;
        ipv6_refused(&link.name, address.addr, refusal.errno)
    }

    fn concerns(&self, event: &KernelEvent) -> bool {
        match event {
            KernelEvent::Link(link) => {
                let mut known = self.links.iter().map(|(_, link)| link).chain(&self.lower);
                let named = |name: &str| {
                    name == self.underlay.name
                        || self.sides.families().any(|family| name == device_name(&self.config, family))
                };
                match known.find(|known| known.index == link.index) {
                    // A change of an offload changes nothing else.
                    Some(known) => {
                        let is_held =
                            self.checksums.why_off().is_some() && self.family_of(link.index).is_some();
                        known != link || !self.is_there(known) || is_held
                    }
                    None => named(&link.name),
                }
            }
            KernelEvent::LinkGone(index, _) => {
                self.links.iter().map(|(_, link)| link).chain(&self.lower).any(|link| link.index == *index)
            }
            _ => self.concerns_on_link(event),
        }
    }
}
