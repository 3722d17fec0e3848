//! The udp backend's part of the reconcile loop: the TUN with its datapath, and a forwarding table that follows the
//! peers.

mod datapath;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;
use flannel_core::addr::{Family, MacAddr, Mtu, PerFamily, Subnet};
use flannel_core::backend::{Answers, HostProblem, Probing, Tunnel, Underlay};
use flannel_core::config::{BackendConfig, ConfigError};
use flannel_core::dataplane::{Address, KERNEL_PROTOCOL, Object, Route};
use flannel_core::inspect::Differences;
use flannel_core::kernel::{Kernel, KernelError, KernelEvent, Kinds, Link, Refusal, Scope};
use flannel_core::lease::{Lease, LeaseAttrs, LeaseKey};
use flannel_core::netns::Netns;
use flannel_core::peers::{Claim, Peer, PeerError};
use flannel_core::reconcile::{AppliedConfig, Devices, Driver};
use flannel_core::status::{Counters, DeviceStatus, IPV6_MIN_MTU, Problem, Reason, ipv6_refused};
use flannel_core::underlay;
use tokio::sync::Notify;

use self::datapath::Ensured;
use crate::config::UdpConfig;
use crate::counters::DropReason;
use crate::engine::Engine;
use crate::forward::{self, ForwardingTable, TableSpec};
use crate::options::UdpOptions;
use crate::path::Path;
use crate::peer::{attrs, peer, table_peers};

/// Bytes that the tunnel adds: outer IP header and UDP 8.
pub(crate) fn encap_overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 20 + 8,
        Family::V6 => 40 + 8,
    }
}

/// One family's side of the backend.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    /// The overlay network.
    pub(crate) network: Subnet,
    /// The source address of datagrams.
    pub(crate) local: IpAddr,
    /// The address that peers send to.
    pub(crate) published: IpAddr,
    /// Our own subnet; `None` until the lease is acquired.
    pub(crate) subnet: Option<Subnet>,
}

/// The TUN, its threads, and the objects that it needs.
pub(crate) struct UdpDriver {
    /// Where the TUN and the sockets are.
    netns: Netns,
    port: u16,
    options: UdpOptions,
    underlay: Underlay,
    pub(crate) sides: PerFamily<Side>,
    peers: Vec<forward::Peer>,
    /// Those that are reached by another backend from now on, until their routes have moved there.
    leaving: Vec<forward::Peer>,
    engine: Option<Engine>,
    /// The TUN as last seen. Objects on it stay desired while it is missing.
    tun: Option<Link>,
    /// Whether it is there.
    tun_is_there: bool,
    lower: Option<Link>,
    mtu: Option<Mtu>,
    /// Notified by the datapath when it can't go on.
    alarm: Arc<Notify>,
    /// Whether the running datapath has failed.
    failed: Arc<AtomicBool>,
    /// Whether the sockets of the running datapath are bound to the former underlay.
    moved: bool,
    /// Whether this node runs other backends, too.
    is_shared: bool,
    /// The drops that were logged already.
    told: Vec<(DropReason, u64)>,
    /// Reads the counters of the datapath that runs.
    counters: Counters,
}

impl UdpDriver {
    pub(crate) fn new(
        netns: Netns,
        port: u16,
        options: UdpOptions,
        underlay: Underlay,
        sides: PerFamily<Side>,
    ) -> Self {
        Self {
            netns,
            port,
            options,
            underlay,
            sides,
            peers: Vec::new(),
            leaving: Vec::new(),
            engine: None,
            tun: None,
            tun_is_there: false,
            lower: None,
            mtu: None,
            alarm: Arc::default(),
            failed: Arc::default(),
            moved: false,
            is_shared: false,
            told: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// The largest packet that fits the tunnels of all families in service.
    fn overlay_mtu(&self, lower: &Link) -> Option<Mtu> {
        let in_service = |family: &Family| *family == Family::V4 || self.without_ipv6(lower).is_none();
        let families = self.sides.families().filter(in_service);
        let each = families.map(|family| lower.mtu.less(encap_overhead(family)));
        each.min().unwrap_or(Some(Mtu(IPV6_MIN_MTU)))
    }

    /// Why IPv6 is out of service.
    fn without_ipv6(&self, lower: &Link) -> Option<Problem> {
        self.sides.v6.as_ref()?;
        let overhead = encap_overhead(Family::V6);
        (lower.mtu.0 < IPV6_MIN_MTU + overhead)
            .then(|| Problem::mtu_without_ipv6(&lower.name, lower.mtu.0, Some(("UDP", overhead))))
    }

    /// The MTU of the TUN, and of pods. With a smaller MTU the kernel would remove IPv6 from the TUN, and with it what
    /// still works.
    fn tun_mtu(&self, mtu: Mtu) -> Mtu {
        if self.sides.v6.is_some() { mtu.max(Mtu(IPV6_MIN_MTU)) } else { mtu }
    }

    fn table(&self) -> ForwardingTable {
        let subnets = self.sides.iter().filter_map(|(_, side)| side.subnet);
        let spec = TableSpec {
            own_subnets: subnets.collect(),
            own_addresses: PerFamily::from_fn(|family| Some(self.sides.get(family)?.subnet?.base())),
            overlay_mtu: self.mtu,
            peers: self.peers.iter().chain(&self.leaving).cloned().collect(),
            allowed_sources: self.options.allow_from.clone(),
        };
        let previous = self.engine.as_ref().map(Engine::table);
        ForwardingTable::new(spec, previous.as_deref())
    }

    fn renew_table(&self) {
        if let Some(engine) = &self.engine {
            engine.set_table(self.table());
        }
    }
}

/// The tunnel as probes see it: packets are the datagrams.
#[derive(Debug)]
struct UdpTunnel {
    port: u16,
}

impl Tunnel for UdpTunnel {
    fn port(&self, _: Family) -> u16 {
        self.port
    }

    fn wrap(&self, _: Family, _: Option<MacAddr>, packet: &[u8]) -> Option<Vec<u8>> {
        Some(packet.to_vec())
    }
}

#[async_trait]
impl Driver for UdpDriver {
    fn probing(&self) -> Option<Probing> {
        let tunnel = Arc::new(UdpTunnel { port: self.port });
        Some(Probing::new(Answers::Base).tunnel(tunnel).overhead(encap_overhead))
    }

    async fn ensure_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Devices, KernelError> {
        self.tell_drops();
        self.lower = underlay::find(kernel, &self.underlay).await?;
        let mut devices = Devices::default();
        let mut problems = Vec::new();
        // Without the underlay the TUN stays as it is, so that pods' packets don't leave by a default route.
        let mut mtu = self.mtu;
        if let Some(lower) = &self.lower {
            if !lower.up {
                problems.push(format!("underlay link {} is down", lower.name));
            }
            let now = self.overlay_mtu(lower);
            if now.is_none() {
                problems.push(format!("MTU {} of {} leaves no room for UDP", lower.mtu, lower.name));
            }
            mtu = now.or(mtu);
        } else {
            problems.push(format!("underlay link {} is gone", self.underlay.name));
        }
        if let Some(mtu) = mtu {
            let is_new = self.mtu.replace(mtu) != Some(mtu);
            let before = self.tun.as_ref().map(|tun| tun.index);
            match self.ensure_tun(kernel, self.tun_mtu(mtu), &mut devices.events).await? {
                Ensured::AsItWas => {}
                Ensured::Changed => devices.changed = true,
                Ensured::Not(problem) => problems.push(problem),
            }
            if is_new {
                self.renew_table();
            }
            // It is wrong or missing; objects on it stay desired.
            let found = self.find_tun(kernel).await?;
            self.tun_is_there = found.is_some();
            self.tun = found.or(self.tun.take());
            devices.changed |= self.tun.as_ref().map(|tun| tun.index) != before;
        }
        devices.links.extend(self.tun.as_ref().map(|tun| tun.index));
        let is_away = |tun: &&Link| !self.tun_is_there || !tun.up;
        devices.away.extend(self.tun.as_ref().filter(is_away).map(|tun| tun.index));
        devices.problems.extend(problems);
        devices.unserved.extend(self.lower.as_ref().and_then(|lower| self.without_ipv6(lower)));
        devices.overlay_mtu = self.mtu.map(|mtu| self.tun_mtu(mtu));
        devices.datapath = self.engine.as_ref().and_then(|engine| Path::summary(&[engine.path()]));
        devices.shown.extend(self.tun.as_ref().map(|tun| DeviceStatus::of(tun, self.tun_is_there)));
        devices.counters = self.counters.clone();
        Ok(devices)
    }

    fn set_lease(&mut self, lease: &Lease) {
        for family in Family::ALL {
            if let Some(side) = self.sides.get_mut(family) {
                side.subnet = lease.subnet(family);
            }
        }
        self.renew_table();
    }

    fn set_underlay(&mut self, underlay: &Underlay) -> Result<(), HostProblem> {
        let mut sides = self.sides.clone();
        for family in self.sides.families() {
            let (local, published) = underlay.addresses(family)?;
            if let Some(side) = sides.get_mut(family) {
                self.moved |= side.local != local;
                (side.local, side.published) = (local, published);
            }
        }
        (self.sides, self.underlay) = (sides, underlay.clone());
        Ok(())
    }

    /// All nodes must change the port together, and the others would not know when.
    fn apply_config(&mut self, next: &BackendConfig, _: Vec<String>) -> Result<AppliedConfig, ConfigError> {
        let differs = UdpConfig::parse(next)?.port != self.port;
        let restart = differs.then(|| "Backend.Port".to_owned()).into_iter().collect();
        Ok(AppliedConfig::new(Vec::new(), restart))
    }

    fn attrs(&self) -> LeaseAttrs {
        attrs(self.underlay.published, self.sides.v6.is_some(), self.port)
    }

    /// Beside other backends there is a route for each peer instead of the one for the whole network.
    fn set_shared(&mut self, is_shared: bool) {
        self.is_shared = is_shared;
    }

    /// Its datapath drops what comes from others.
    fn hears_only_peers(&self) -> bool {
        true
    }

    /// The address of the TUN and a route for the whole network: the datapath decides to which node a packet goes, as
    /// upstream does.
    fn own_objects(&self) -> Vec<Object> {
        let Some(link) = self.tun.as_ref().map(|tun| tun.index) else { return Vec::new() };
        let mut objects = Vec::new();
        for (family, side) in self.sides.iter() {
            let Some(subnet) = side.subnet else { continue };
            let host = Subnet::containing(subnet.base(), family.bits()).expect("a full-length prefix fits");
            objects.push(Object::Address(Address { link, addr: host.into() }));
            if !self.is_shared {
                objects.push(Object::Route(Route::by_device(side.network, link)));
            }
        }
        objects
    }

    fn own_claims(&self) -> Vec<Claim> {
        let claims = |side: &Side| {
            // Behind NAT the node has both addresses.
            let underlay = [side.published, side.local].map(Claim::Underlay);
            side.subnet.map(Claim::Subnet).into_iter().chain(underlay)
        };
        self.sides.iter().flat_map(|(_, side)| claims(side)).collect()
    }

    fn peer(&self, lease: &Lease) -> Result<Peer, PeerError> {
        let enabled = PerFamily::from_fn(|family| self.sides.get(family).map(|side| side.local));
        let mut peer = peer(lease, &enabled)?;
        if let Some(tun) = self.tun.as_ref().filter(|_| self.is_shared) {
            let nodes = table_peers(&lease.key, &peer, self.port);
            let subnets = nodes.into_iter().flat_map(|node| node.subnets);
            peer.objects.extend(subnets.map(|subnet| Object::Route(Route::by_device(subnet, tun.index))));
        }
        Ok(peer)
    }

    fn set_peers(&mut self, peers: &mut dyn Iterator<Item = (&LeaseKey, &Peer)>) {
        let peers = peers.flat_map(|(key, peer)| table_peers(key, peer, self.port)).collect();
        let before = std::mem::replace(&mut self.peers, peers);
        if self.is_shared {
            let stay: HashSet<Subnet> = self.peers.iter().flat_map(|peer| &peer.subnets).copied().collect();
            let is_leaving = |peer: &forward::Peer| !peer.subnets.iter().any(|subnet| stay.contains(subnet));
            self.leaving.extend(before);
            self.leaving.retain(is_leaving);
        }
        self.renew_table();
    }

    fn prune_peers(&mut self, _: &dyn Fn(&LeaseKey) -> bool) {
        if !std::mem::take(&mut self.leaving).is_empty() {
            self.renew_table();
        }
    }

    async fn further_differences(&mut self, _: &mut dyn Kernel) -> Result<Differences, KernelError> {
        let mut found = Differences::default();
        found.notes.push(
            "the TUN and its datapath are not compared here: no command makes them, and the agent makes them again when they end"
                .to_owned(),
        );
        Ok(found)
    }

    async fn attention(&mut self) {
        self.alarm.notified().await;
    }

    fn scopes(&self) -> Vec<Scope> {
        let Some(link) = self.tun.as_ref().filter(|_| self.tun_is_there).map(|tun| tun.index) else {
            return Vec::new();
        };
        self.sides.families().map(|family| Scope { link, family, kinds: Kinds::ALL }).collect()
    }

    /// On our TUN objects in our network are ours. The kernel's own routes and everything else stay.
    fn owns(&self, object: &Object) -> bool {
        let Some(ours) = self.tun.as_ref().map(|tun| tun.index) else { return false };
        match object {
            Object::Address(address) => {
                let addr = address.addr.ip();
                let side = self.sides.get(Family::of(addr));
                address.link == ours && side.is_some_and(|side| side.network.contains(addr))
            }
            Object::Route(route) => {
                let side = self.sides.get(route.dst.family());
                route.link == Some(ours)
                    && route.protocol != KERNEL_PROTOCOL
                    && side.is_some_and(|side| side.network.covers(route.dst))
            }
            // A TUN has neither.
            Object::Neighbour(_) | Object::Fdb(_) | Object::NextHop(_) => false,
        }
    }

    fn explain(&self, refusal: &Refusal) -> Option<Reason> {
        let Object::Address(address) = refusal.op.object() else { return None };
        let tun = self.tun.as_ref().filter(|tun| tun.index == address.link && address.addr.is_ipv6())?;
        ipv6_refused(&tun.name, address.addr, refusal.errno)
    }

    fn concerns(&self, event: &KernelEvent) -> bool {
        let known = || self.tun.iter().chain(&self.lower);
        match event {
            KernelEvent::Link(link) => match known().find(|known| known.index == link.index) {
                Some(known) => known != link || !self.tun_is_there,
                None => link.name == self.underlay.name,
            },
            KernelEvent::LinkGone(index, _) => known().any(|link| link.index == *index),
            _ => false,
        }
    }
}
