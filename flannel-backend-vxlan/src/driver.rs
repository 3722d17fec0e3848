//! What VXLAN adds to the reconcile loop: its devices, and what is ours on them.

use std::collections::BTreeSet;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use flannel_core::addr::{Family, LinkIndex, MacAddr, Mtu, PerFamily, Subnet};
use flannel_core::backend::{HostProblem, Underlay};
use flannel_core::config::{BackendConfig, ConfigError};
use flannel_core::dataplane::{Address, KERNEL_PROTOCOL, Object, ObjectKey, Route, Through};
use flannel_core::events::NetworkEvent;
use flannel_core::firewall::gate::{Desk, Gate, Tunnels};
use flannel_core::kernel::{Kernel, KernelError, KernelEvent, Kinds, Link, LinkOp, Refusal, Scope};
use flannel_core::lease::{Lease, LeaseAttrs};
use flannel_core::on_link::OnLink;
use flannel_core::peers::{Claim, Peer, PeerError};
use flannel_core::reconcile::{AppliedConfig, Devices, Driver};
use flannel_core::status::{DeviceStatus, IPV6_MIN_MTU, Problem, Reason, ipv6_refused};
use flannel_core::underlay;
use tracing::info;

use crate::DrawMac;
use crate::config::VxlanConfig;
use crate::device::{DeviceSpec, LinkPlan, device_name, overlay_mtu, plan_link};
use crate::next_hops::{self, Form, NextHopObjects};
use crate::overhead::encap_overhead;
use crate::peer::{Paths, peer, published_mac};

/// How many MACs are drawn to find one that nobody has.
const MOST_DRAWN: usize = 64;

/// One family's side of the backend.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    /// The overlay network: what is ours on the device lies in it.
    pub(crate) network: Subnet,
    /// The source address of outer packets.
    pub(crate) local: IpAddr,
    /// The address that peers send to.
    pub(crate) published: IpAddr,
    /// The VTEP's MAC.
    pub(crate) mac: MacAddr,
    /// Our own subnet; `None` until the lease is there.
    pub(crate) subnet: Option<Subnet>,
}

/// The devices of this node and what belongs on them.
pub(crate) struct VxlanDriver {
    pub(crate) config: VxlanConfig,
    pub(crate) underlay: Underlay,
    pub(crate) sides: PerFamily<Side>,
    /// The devices and the underlay link as they were last seen. What belongs on one stays desired while it is
    /// away.
    links: PerFamily<Link>,
    lower: Option<Link>,
    /// Those of them that are not there.
    missing: BTreeSet<LinkIndex>,
    next_hop_objects: NextHopObjects,
    /// What was found about them; `None` until the devices are there.
    form: Option<Form>,
    /// What the log says about them; kept by the backend, so that a start that is tried again does not say it again.
    pub(crate) told_form: Arc<Mutex<Option<Form>>>,
    /// Draws MACs in place of ones that other nodes have by right.
    pub(crate) draw_mac: Arc<DrawMac>,
    /// Who is on-link on the underlay; `None` without `DirectRouting`.
    on_link: Option<OnLink>,
    /// Keeps strangers out, until the loop takes it.
    pub(crate) gate: Option<(Gate, Desk)>,
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
            gate: None,
        }
    }

    fn in_overlay(&self, subnet: Subnet) -> bool {
        self.sides.iter().any(|(_, side)| side.network.covers(subnet))
    }

    /// Looks who is on-link, if that matters. Returns whether it is another answer than before.
    async fn look_on_link(&mut self, kernel: &mut dyn Kernel, lower: &Link) -> Result<bool, KernelError> {
        let Some(before) = &self.on_link else { return Ok(false) };
        let mut routes = Vec::new();
        for family in self.sides.families() {
            let objects = kernel.objects(Scope { link: lower.index, family, kinds: Kinds::ROUTES }).await?;
            // The routes to pods say nothing of nodes, and are many.
            routes.extend(objects.into_iter().filter_map(|object| match object {
                Object::Route(route) if !self.in_overlay(route.dst) => Some(route),
                _ => None,
            }));
        }
        let now = OnLink::new(&routes);
        let changed = now != *before;
        self.on_link = Some(now);
        Ok(changed)
    }

    /// Whether an announcement may change who is on-link. An address takes routes along, some in silence.
    fn concerns_on_link(&self, event: &KernelEvent) -> bool {
        let (Some(on_link), Some(lower)) = (&self.on_link, &self.lower) else { return false };
        match event {
            KernelEvent::Put(Object::Route(route)) if route.link == Some(lower.index) => {
                !self.in_overlay(route.dst) && on_link.is_changed_by(route)
            }
            KernelEvent::Put(Object::Route(Route { dst, metric, .. }))
            | KernelEvent::Gone(ObjectKey::Route(dst, metric)) => on_link.rests_on(*dst, *metric),
            KernelEvent::Put(Object::Address(address)) => address.link == lower.index,
            KernelEvent::Gone(ObjectKey::Address(link, _)) => *link == lower.index,
            _ => false,
        }
    }

    /// How packets travel, for the status.
    fn datapath(&self, form: &Form) -> String {
        match &self.on_link {
            Some(_) => format!("{form}; on-link peers directly through {}", self.underlay.name),
            None => form.to_string(),
        }
    }

    /// Finds out, once, whether routes can go through next-hop objects.
    async fn settle_form(&mut self, kernel: &mut dyn Kernel) -> Result<(), KernelError> {
        if self.form.is_none() {
            let sides = self
                .sides
                .iter()
                .filter_map(|(family, side)| Some((self.links.get(family)?.index, side.network)));
            let form = next_hops::find_form(kernel, self.next_hop_objects, sides.collect()).await?;
            let mut told = self.told_form.lock().unwrap_or_else(PoisonError::into_inner);
            if told.as_ref() != Some(&form) {
                info!(datapath = %form, "route form settled");
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

    /// Why IPv6 is out of service.
    fn without_ipv6(&self, family: Family, lower: &Link) -> Option<Problem> {
        let left = overlay_mtu(&self.config, family, lower.mtu).unwrap_or(Mtu(0));
        let tunnel = ("VXLAN", encap_overhead(family));
        (family == Family::V6 && left.0 < IPV6_MIN_MTU)
            .then(|| Problem::mtu_without_ipv6(&lower.name, lower.mtu.0, Some(tunnel)))
    }

    /// Makes one family's device exist and be right.
    async fn ensure(
        &self,
        kernel: &mut dyn Kernel,
        family: Family,
        lower: &Link,
        events: &mut Vec<NetworkEvent>,
    ) -> Result<Outcome, KernelError> {
        let side = self.sides.get(family).expect("only enabled families are asked for");
        let Some(mtu) = overlay_mtu(&self.config, family, lower.mtu) else {
            let why = format!("MTU {} of {} leaves no room for VXLAN", lower.mtu, lower.name);
            return Ok(Outcome::Unusable(why));
        };
        let have = self.find_device(kernel, family, &device_name(&self.config, family)).await?;
        let served = self.without_ipv6(family, lower).is_none();
        // A smaller MTU would take IPv6 off the device, and so what still passes.
        let mtu = have.as_ref().filter(|_| !served).map_or(mtu, |have| have.mtu);
        let want = DeviceSpec::new(&self.config, family, side.mac, mtu, side.local, lower.index);
        // Under another name it is held all the same.
        let renamed = have.as_ref().filter(|link| link.name != want.name).map(|link| {
            let (is, was) = (&link.name, &want.name);
            format!("device {was} is called {is} now; name it back (ip link set {is} name {was}) before the next start")
        });
        let name = have.as_ref().map_or_else(|| want.name.clone(), |link| link.name.clone());
        let plan = plan_link(&want, have.as_ref());
        if !served && !matches!(plan, LinkPlan::Keep | LinkPlan::Change(_)) {
            return Ok(Outcome::OutOfService);
        }
        let ops = match &plan {
            LinkPlan::Keep => Vec::new(),
            LinkPlan::Foreign { why } => return Ok(Outcome::Unusable(why.clone())),
            LinkPlan::Change(ops) => ops.clone(),
            LinkPlan::Recreate { index, .. } => vec![LinkOp::Delete(*index), create(&want)],
            LinkPlan::Create => vec![create(&want)],
        };
        for op in &ops {
            if let Err(error) = kernel.change_link(op).await {
                let problem = explain(kernel, &want, &error).await?;
                let there = kernel.link(&name).await?;
                let there = there.filter(|link| link.up && matches!(plan, LinkPlan::Change(_)));
                // Not as it should be, but what hangs on it carries packets.
                return Ok(match there {
                    Some(link) => Outcome::Usable(Ensured {
                        changed: have.as_ref() != Some(&link),
                        mtu: link.mtu,
                        link,
                        problem: Some(problem),
                    }),
                    None => Outcome::Unusable(problem),
                });
            }
        }
        events.extend(event(&plan, &name, &want));
        let name = if matches!(plan, LinkPlan::Recreate { .. }) { want.name.clone() } else { name };
        let Some(mut link) = kernel.link(&name).await? else {
            return Ok(Outcome::Unusable(format!("device {name} went away again")));
        };
        if matches!(plan, LinkPlan::Create | LinkPlan::Recreate { .. }) {
            quiet_router_advertisements(kernel, &want.name).await;
            if link.mac != Some(want.mac) {
                // A MAC policy of the host (systemd's, say) got in between: ours is the published one.
                let found = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
                let detail = format!("MAC {found} set back to {}", want.mac);
                events.push(NetworkEvent::DeviceChanged { link: want.name.clone(), detail });
            }
        }
        // What a fresh device still needs: up, and whatever the host changed since it was made.
        if let LinkPlan::Change(rest) = plan_link(&want, Some(&link)) {
            for op in &rest {
                if let Err(error) = kernel.change_link(op).await {
                    return Ok(Outcome::Unusable(explain(kernel, &want, &error).await?));
                }
            }
            link = kernel.link(&name).await?.unwrap_or(link);
        }
        let problem = renamed.filter(|_| link.name != want.name);
        Ok(Outcome::Usable(Ensured { link, changed: plan != LinkPlan::Keep, mtu, problem }))
    }

    /// The device of a family by its name, else the one that had it.
    async fn find_device(
        &self,
        kernel: &mut dyn Kernel,
        family: Family,
        name: &str,
    ) -> Result<Option<Link>, KernelError> {
        let named = kernel.link(name).await?;
        let Some(last) = self.links.get(family).filter(|_| named.is_none()) else { return Ok(named) };
        Ok(kernel.link_at(last.index).await?.filter(|link| link.vxlan.is_some()))
    }

    /// Makes each family's device exist and be right. Returns what is wrong.
    async fn ensure_all(
        &mut self,
        kernel: &mut dyn Kernel,
        lower: &Link,
        devices: &mut Devices,
    ) -> Result<Vec<String>, KernelError> {
        let mut problems = Vec::new();
        for family in self.sides.families().collect::<Vec<_>>() {
            match self.ensure(kernel, family, lower, &mut devices.events).await? {
                Outcome::Usable(Ensured { link, changed, mtu, problem }) => {
                    problems.extend(problem);
                    let moved = self.links.get(family).is_none_or(|old| old.index != link.index);
                    devices.changed |= changed || moved;
                    if self.without_ipv6(family, lower).is_none() {
                        devices.overlay_mtu =
                            Some(devices.overlay_mtu.map_or(mtu, |smallest| smallest.min(mtu)));
                    }
                    *self.links.get_mut(family) = Some(link);
                }
                Outcome::Unusable(problem) => problems.push(problem),
                Outcome::OutOfService => {}
            }
            devices.unserved.extend(self.without_ipv6(family, lower));
        }
        if !devices.unserved.is_empty() {
            // Pods can't have IPv6 addresses on links with a smaller one, and without those they don't start.
            let least = Mtu(IPV6_MIN_MTU);
            devices.overlay_mtu = Some(devices.overlay_mtu.map_or(least, |mtu| mtu.max(least)));
        }
        if !lower.up {
            problems.push(format!("underlay link {} is down", lower.name));
        }
        Ok(problems)
    }

    /// Looks which of the links that are known are there, and as what.
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

    /// All links that are known and hold objects of ours.
    fn known(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().map(|(_, link)| link).chain(self.lower.iter().filter(|_| self.on_link.is_some()))
    }

    fn is_there(&self, link: &Link) -> bool {
        !self.missing.contains(&link.index)
    }
}

/// What came of making a family's device exist and be right.
enum Outcome {
    /// It can carry packets.
    Usable(Ensured),
    /// It can't be had or used for this reason.
    Unusable(String),
    /// The underlay leaves too little room for the family, so that nothing is done about its device.
    OutOfService,
}

/// A device that can carry packets.
struct Ensured {
    link: Link,
    changed: bool,
    mtu: Mtu,
    /// What the kernel refused to change.
    problem: Option<String>,
}

/// What was done to a device.
fn event(plan: &LinkPlan, name: &str, want: &DeviceSpec) -> Option<NetworkEvent> {
    match plan {
        LinkPlan::Change(ops) => {
            let done: Vec<String> = ops.iter().map(ToString::to_string).collect();
            Some(NetworkEvent::DeviceChanged { link: name.to_owned(), detail: done.join(", ") })
        }
        LinkPlan::Recreate { why, .. } => {
            Some(NetworkEvent::DeviceRecreated { link: want.name.clone(), reason: why.clone() })
        }
        LinkPlan::Create => {
            let detail = format!("VNI {}, VTEP MAC {}", want.vxlan.vni, want.mac);
            Some(NetworkEvent::DeviceCreated { link: want.name.clone(), mtu: want.mtu, detail })
        }
        LinkPlan::Keep | LinkPlan::Foreign { .. } => None,
    }
}

fn create(want: &DeviceSpec) -> LinkOp {
    LinkOp::create_vxlan(&want.name, want.mac, want.mtu, &want.vxlan)
}

/// The kernel's answer with what an operator can do about it.
async fn explain(
    kernel: &mut dyn Kernel,
    want: &DeviceSpec,
    error: &KernelError,
) -> Result<String, KernelError> {
    let name = &want.name;
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    let hint = match error.errno() {
        Some(libc::EEXIST | libc::EADDRINUSE) => {
            let (links, holder) = (kernel.links().await?, kernel.udp_port_holder(want.vxlan.port).await);
            format!("; {}", who_is_in_the_way(want, &links, holder))
        }
        Some(libc::EOPNOTSUPP | libc::ENODEV) => {
            "; is the kernel built with VXLAN (modprobe vxlan)?".to_owned()
        }
        Some(libc::EPERM) => "; the agent needs CAP_NET_ADMIN".to_owned(),
        _ => String::new(),
    };
    Ok(format!("device {name}: {error}{source}{hint}"))
}

/// Whose device or process has the port, or the VNI on it. `holder` is who has the port.
fn who_is_in_the_way(want: &DeviceSpec, links: &[Link], holder: Option<String>) -> String {
    let (vni, port) = (want.vxlan.vni, want.vxlan.port);
    // Each family has a socket of its own, and so our own device of the other family is not in the way.
    let shares_family = |link: &Link| {
        let local = link.vxlan.as_ref().and_then(|vxlan| vxlan.local);
        local.zip(want.vxlan.local).is_none_or(|(a, b)| Family::of(a) == Family::of(b))
    };
    let others = || {
        let others = links.iter().filter(|link| link.name != want.name && shares_family(link));
        others.filter_map(|link| Some((&link.name, link.vxlan.as_ref()?))).filter(|(_, it)| it.port == port)
    };
    let remedy = "remove it, or choose another VNI or Backend.Port on all nodes";
    if let Some((other, _)) = others().find(|(_, it)| it.vni == vni) {
        format!("device {other} has VNI {vni} on UDP port {port}: {remedy}")
    } else if let Some((other, _)) = others().find(|_| true).filter(|_| holder.is_some()) {
        format!("device {other} has UDP port {port}: {remedy}")
    } else {
        let holder = holder.unwrap_or_else(|| "somebody".to_owned());
        format!(
            "{holder} has UDP port {port}, or its VNI: stop it, or choose another Backend.Port on all nodes"
        )
    }
}

/// The pods' router is no concern of router advertisements. Fails where /proc/sys is read-only, which is as
/// it always was in unprivileged pods.
async fn quiet_router_advertisements(kernel: &mut dyn Kernel, name: &str) {
    if let Err(error) = kernel.ignore_router_advertisements(name).await {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::debug!(%error, cause, "router advertisements are not ignored");
    }
}

#[async_trait]
impl Driver for VxlanDriver {
    async fn ensure_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Devices, KernelError> {
        let mut devices = Devices::default();
        let lower = underlay::find(kernel, &self.underlay).await?;
        let problems = match &lower {
            Some(lower) => self.ensure_all(kernel, lower, &mut devices).await?,
            None => vec![format!("underlay link {} is gone", self.underlay.name)],
        };
        self.lower = lower.clone().or(self.lower.take());
        if problems.is_empty() && devices.unserved.is_empty() {
            self.missing.clear();
        } else {
            self.look_for_missing(kernel).await?;
        }
        devices.problem = (!problems.is_empty()).then(|| problems.join("; "));
        if devices.problem.is_none() && !self.links.is_empty() {
            self.settle_form(kernel).await?;
            devices.datapath = self.form.as_ref().map(|form| self.datapath(form));
        }
        if let Some(lower) = &lower {
            devices.peers_changed = self.look_on_link(kernel, lower).await?;
        }
        devices.links = self.known().map(|link| link.index).collect();
        devices.shown = self.known().map(|link| DeviceStatus::of(link, self.is_there(link))).collect();
        devices.away =
            self.known().filter(|link| !self.is_there(link) || !link.up).map(|link| link.index).collect();
        Ok(devices)
    }

    fn set_lease(&mut self, lease: &Lease) {
        for family in Family::ALL {
            if let Some(side) = self.sides.get_mut(family) {
                side.subnet = lease.subnet(family);
            }
        }
    }

    /// The MACs stay: peers know them, and only the way to them changes.
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
    fn take_config(&mut self, next: &BackendConfig, _: Vec<String>) -> Result<AppliedConfig, ConfigError> {
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
            // Behind NAT both are ours.
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
        peer(lease, &Paths { links: &self.indexes(), through, direct })
    }

    /// On-link peers are reached without a tunnel.
    fn path(&self, family: Family, peer: &Peer) -> Option<&'static str> {
        let lower = self.lower.as_ref().filter(|_| self.on_link.is_some())?.index;
        let is_direct = |object: &Object| matches!(object, Object::Route(route) if route.dst.family() == family && route.link == Some(lower));
        peer.objects.iter().any(is_direct).then_some("direct")
    }

    fn gate(&mut self) -> Option<(Gate, Desk)> {
        self.gate.take()
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

    /// On our own devices: what lies in our network, and FDB entries of stations. The kernel's own routes and
    /// everything else somebody put there stays.
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
                    Some(known) => known != link || !self.is_there(known),
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
