//! The WireGuard backend's part of the reconcile loop: the devices with their keys and peers, and the routes to them.

mod ensure;
mod hold;
mod look;
mod nat;
mod ours;
mod recall;
mod rotate;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use flannel_backend_udp::datapath::Path;
use flannel_core::addr::{Family, LinkIndex, MacAddr, PerFamily, Subnet};
use flannel_core::backend::{Answers, HostProblem, Probing, Tunnel as ProbedTunnel, Underlay};
use flannel_core::config::{BackendConfig, ConfigError};
use flannel_core::dataplane::Object;
use flannel_core::error::chain;
use flannel_core::inspect::{CommandError, Differences, PeerObject};
use flannel_core::kernel::{Kernel, KernelError, KernelEvent, Kinds, Link, LinkOp, Refusal, Scope};
use flannel_core::lease::{Lease, LeaseAttrs, LeaseKey};
use flannel_core::netns::Netns;
use flannel_core::peers::{Claim, Peer, PeerError};
use flannel_core::reconcile::{AppliedConfig, Devices, Driver, Held, Prune};
use flannel_core::status::{Counters, DeviceStatus, Problem, Reason, Sessions, ipv6_refused};
use flannel_core::underlay;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;

use crate::config::WireguardConfig;
use crate::key::{PrivateKey, PublicKey};
use crate::key_file;
use crate::nat::NatOptions;
use crate::peer::{self, Paths, Second};
use crate::plan::Wish;
use crate::provider::Chosen;
use crate::tunnel::{Shown, Tunnel};

use look::Look;
pub(crate) use nat::Nat;
pub(crate) use rotate::Rotation;

/// One family's side of the backend.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    /// The overlay network. Objects on the device that are inside it are ours.
    pub(crate) network: Subnet,
    /// The address of this node on the underlay.
    pub(crate) local: IpAddr,
    /// The address that peers send to.
    pub(crate) published: IpAddr,
    /// Our own subnet; `None` until the lease is acquired.
    pub(crate) subnet: Option<Subnet>,
}

/// The devices of this node, and the objects that they need.
pub(crate) struct WireguardDriver {
    netns: Netns,
    config: WireguardConfig,
    underlay: Underlay,
    sides: PerFamily<Side>,
    chosen: Chosen,
    key: PrivateKey,
    key_file: PathBuf,
    tunnels: Vec<Tunnel>,
    lower: Option<Link>,
    /// The leases that this node stored last, whose published endpoints its devices know. They are used once.
    recalled: Vec<Lease>,
    look: Look,
    /// Notified when a device in this process ends by itself.
    alarm: Arc<Notify>,
    rotation: Rotation,
    nat: Nat,
    /// What the status reads of the devices.
    shown: Shown,
    /// Reads the sessions with peers.
    sessions: Sessions,
}

impl WireguardDriver {
    pub(crate) fn new(
        netns: Netns,
        config: WireguardConfig,
        underlay: Underlay,
        sides: PerFamily<Side>,
        chosen: Chosen,
        (key, key_file): (PrivateKey, PathBuf),
        rotation: Rotation,
    ) -> Self {
        let families: Vec<Family> = sides.families().collect();
        let tunnels = Tunnel::of_mode(config.mode, &families);
        let names = tunnels.iter().map(|tunnel| tunnel.name.to_owned()).collect();
        let counters = Counters::of_devices(netns.clone(), names);
        let nat = Nat::new(NatOptions::default(), None, &tunnels);
        let look = Look::new(counters);
        let shown = Shown::default();
        let sessions = shown.sessions();
        let (recalled, alarm, lower) = (Vec::new(), Arc::default(), None);
        Self {
            netns,
            config,
            underlay,
            sides,
            chosen,
            key,
            key_file,
            tunnels,
            lower,
            recalled,
            look,
            alarm,
            rotation,
            nat,
            shown,
            sessions,
        }
    }

    /// The same, of a node that stored these leases last.
    pub(crate) fn recalling(self, leases: Vec<Lease>) -> Self {
        Self { recalled: leases, ..self }
    }

    /// The same, of a node with these options, whose record was this last.
    pub(crate) fn across_nats(self, options: NatOptions, record: Option<&LeaseAttrs>) -> Self {
        let nat = Nat::new(options, record.map(|record| &record.backend_data), &self.tunnels);
        Self { nat, ..self }
    }

    /// The names of the devices.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.tunnels.iter().map(|tunnel| tunnel.name)
    }

    /// The device of each family.
    fn links(&self) -> PerFamily<LinkIndex> {
        PerFamily::from_fn(|family| {
            let tunnel = self.tunnels.iter().find(|tunnel| tunnel.families.contains(&family))?;
            tunnel.link.as_ref().map(|link| link.index)
        })
    }

    fn published(&self) -> PerFamily<IpAddr> {
        PerFamily::from_fn(|family| self.sides.get(family).map(|side| side.published))
    }

    /// Who moves packets, whether the kernel could not, and by which way, in a few words: the log has the kernel's answer and
    /// the path of each device.
    fn path(&self) -> String {
        let Chosen { provider, why } = &self.chosen;
        let why = if why.is_some() { ", since the kernel has none" } else { "" };
        let devices = self.tunnels.iter().filter_map(|tunnel| tunnel.device.as_ref()?.path());
        let summary = Path::summary(&devices.collect::<Vec<_>>());
        let summary = summary.map(|summary| format!("; {summary}")).unwrap_or_default();
        format!("WireGuard in {}{why}{summary}", provider.name())
    }

    /// The counters of devices whose packets this process moves. The kernel counts for its own.
    fn counters(&self) -> Counters {
        let each = self.tunnels.iter().filter_map(|tunnel| tunnel.device.as_ref()?.counters());
        each.fold(Counters::default(), Counters::and)
    }
}

/// The tunnel as probes see it: nobody but the device can make its messages, and it ignores all others.
#[derive(Debug)]
struct Ports(PerFamily<u16>);

impl ProbedTunnel for Ports {
    fn port(&self, family: Family) -> u16 {
        self.0.get(family).copied().unwrap_or_default()
    }

    fn wrap(&self, _: Family, _: Option<MacAddr>, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

#[async_trait]
impl Driver for WireguardDriver {
    /// The base of each subnet is an address of the peer's device.
    fn probing(&self) -> Option<Probing> {
        let ports = PerFamily::from_fn(|family| Some(self.config.port(family)));
        let mut probing =
            Probing::new(Answers::Base).tunnel(Arc::new(Ports(ports))).sessions(self.sessions.clone());
        probing.overhead = PerFamily::from_fn(|family| self.config.added(family));
        Some(probing)
    }

    async fn ensure_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Devices, KernelError> {
        let mut devices = Devices::default();
        let found = underlay::find(kernel, &self.underlay).await?;
        let name = &self.underlay.name;
        match &found {
            None => devices.problems.add(None, format!("underlay link {name} is gone")),
            Some(lower) if !lower.up => devices.problems.add(None, format!("underlay link {name} is down")),
            Some(_) => {}
        }
        self.lower = found.or(self.lower.take());
        // Without the underlay the devices stay as they are.
        if let Some(lower) = self.lower.clone() {
            self.choose_second(kernel, &mut devices).await?;
            self.ensure_all(kernel, &lower, &mut devices).await?;
        }
        self.look_at_sessions(kernel, &mut devices).await;
        self.settle_recalled();
        self.expect_settled();
        for tunnel in &self.tunnels {
            let Some(link) = &tunnel.link else { continue };
            devices.links.push(link.index);
            devices.away.extend((!tunnel.is_up()).then_some(link.index));
            devices.shown.push(DeviceStatus::of(link, tunnel.is_there));
        }
        devices.datapath = Some(self.path());
        devices.counters = self.counters();
        self.shown.set(&self.tunnels);
        devices.sessions = self.sessions.clone();
        Ok(devices)
    }

    async fn plan_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Vec<LinkOp>, KernelError> {
        match underlay::find(kernel, &self.underlay).await? {
            Some(lower) => self.plan_all(kernel, &lower).await,
            None => Ok(Vec::new()),
        }
    }

    async fn further_differences(&mut self, _: &mut dyn Kernel) -> Result<Differences, KernelError> {
        let mut found = Differences::default();
        if self
            .tunnels
            .iter()
            .any(|tunnel| tunnel.device.as_ref().is_some_and(|device| device.path().is_some()))
        {
            found.notes.push(
                "the TUNs of WireGuard in user space, and what is in them, are not compared here: no command makes them, and \
                 the agent makes them again when they end"
                    .to_owned(),
            );
        }
        Ok(found)
    }

    fn set_lease(&mut self, lease: &Lease) {
        for family in Family::ALL {
            if let Some(side) = self.sides.get_mut(family) {
                side.subnet = lease.subnet(family);
            }
        }
    }

    /// The devices receive on all addresses, and send from that which the route takes. So sessions go on.
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

    fn apply_config(&mut self, next: &BackendConfig, _: Vec<String>) -> Result<AppliedConfig, ConfigError> {
        let next = WireguardConfig::parse(next)?;
        next.check(&self.sides.families().collect::<Vec<_>>())?;
        let (now, applied) = self.config.towards(next);
        self.config = now;
        Ok(applied)
    }

    fn attrs(&self) -> LeaseAttrs {
        let families: Vec<Family> = self.sides.families().collect();
        let nat = self.published_nat();
        peer::attrs(&self.config, self.published_keys(), &families, self.underlay.published, &nat)
    }

    fn own_record(&mut self, attrs: &LeaseAttrs) {
        self.rotation.record = Some(attrs.backend_data.clone());
        // Nodes of Go flannel have a new key from now on, and wait for this node to have it, too.
        if self.rotation.is_own() {
            self.rotation.look_at = Instant::now();
        }
    }

    fn carry_out(&mut self, command: &str) -> Result<String, CommandError> {
        match command {
            rotate::COMMAND => self.ask_for_rotation(),
            _ => Err(CommandError::Unknown),
        }
    }

    fn problems(&self) -> Vec<Problem> {
        self.rotation.problems().into_iter().chain(self.nat.problems()).collect()
    }

    /// Draws another key: another node had this one first, so that its file was copied.
    fn resign(&mut self, _: &[Family], _: &mut dyn Iterator<Item = &LeaseAttrs>) -> bool {
        match key_file::create(&self.key_file) {
            Ok(key) => {
                self.key = key;
                // Sessions end anyway.
                self.abandon_rotation();
                true
            }
            Err(error) => {
                warn!(
                    error = chain(&error),
                    "another node has this node's WireGuard key, and no new one can be stored"
                );
                false
            }
        }
    }

    fn own_objects(&self) -> Vec<Object> {
        self.objects_of_node()
    }

    fn own_claims(&self) -> Vec<Claim> {
        self.claims_of_node()
    }

    fn peer(&self, lease: &Lease) -> Result<Peer, PeerError> {
        let (links, ours, second) = (self.links(), self.published(), self.second_links());
        let way = |family, keys| self.way(family, keys);
        let second = Second { links: &second, is_own: self.rotation.is_own(), way: &way };
        peer::peer(lease, &Paths { config: &self.config, links: &links, ours: &ours, second })
    }

    fn set_peers(&mut self, peers: &mut dyn Iterator<Item = (&LeaseKey, &Peer)>) {
        self.rotation.forget_peers();
        let peers: Vec<(&LeaseKey, &Peer)> = peers.collect();
        for (lease, peer) in &peers {
            self.note_rotation_of(**lease, peer);
        }
        self.note_nat_of(&peers);
        for (at, tunnel) in self.tunnels.iter().enumerate() {
            let gets_none = tunnel.second_key.is_some() && self.rotation.is_strict;
            let peers = if gets_none { &[][..] } else { &peers[..] };
            tunnel.set_peers(peers, |link, key| {
                let wish = self.nat.wish(at, &key);
                Wish { keepalive: self.keepalive(link, key).or(wish.keepalive), ..wish }
            });
        }
        self.hurry_rotation();
    }

    /// What the kernel's device knows of the peer. One in this process is none that `wg` shows.
    fn further_objects(&self, lease: &LeaseKey) -> Vec<PeerObject> {
        if self.chosen.provider.kind() != "wireguard" {
            return Vec::new();
        }
        let peers = self.tunnels.iter().filter_map(|tunnel| Some((tunnel.name, tunnel.peer_of(lease)?)));
        let show = |(name, (key, present)): (&str, (PublicKey, bool))| {
            PeerObject::new(format!("wg show {name} | grep -A 7 -F {key}"), present)
        };
        peers.map(show).collect()
    }

    async fn hold(&mut self, read: bool, prune: Prune<'_>) -> Held {
        self.rotation.is_synced = prune.is_synced();
        self.hold_all(read, prune).await
    }

    fn desires_anew(&mut self) -> bool {
        self.rotation.desires_anew()
    }

    /// That of [`Self::attention`] may be the progress of a rotation or the way to a peer, which no object of the kernel shows.
    fn changed_peers(&mut self) -> Option<Vec<LeaseKey>> {
        (self.rotation.has_progress() | self.nat.has_news()).then(Vec::new)
    }

    fn holds_anew(&mut self) -> bool {
        self.nat.holds_anew()
    }

    /// Looks at the errors that the devices count. If they grow, a peer may be gone. A device in this process tells when it
    /// ends. While a node changes its key, it looks at the sessions, too.
    async fn attention(&mut self) {
        loop {
            tokio::select! {
                () = self.alarm.notified() => return,
                () = tokio::time::sleep_until(self.rotation.look_at) => {
                    if self.look_at_rotation().await {
                        return;
                    }
                    continue;
                }
                () = tokio::time::sleep_until(self.nat.look_at) => {
                    if self.look_at_nat().await {
                        return;
                    }
                    continue;
                }
                () = tokio::time::sleep_until(self.look.next) => {}
            }
            if self.look.finds_more_errors() {
                return;
            }
        }
    }

    fn scopes(&self) -> Vec<Scope> {
        // A WireGuard device has no neighbours.
        let kinds = Kinds { neighbours: false, fdb: false, next_hops: false, ..Kinds::ALL };
        let there = self.tunnels.iter().filter(|tunnel| tunnel.is_there);
        let scopes = there.filter_map(|tunnel| {
            let link = tunnel.link.as_ref()?.index;
            Some(tunnel.families.iter().map(move |family| Scope { link, family: *family, kinds }))
        });
        scopes.flatten().collect()
    }

    fn owns(&self, object: &Object) -> bool {
        self.is_ours(object)
    }

    fn explain(&self, refusal: &Refusal) -> Option<Reason> {
        let Object::Address(address) = refusal.op.object() else { return None };
        let tunnel = self.tunnel_at(address.link).filter(|_| address.addr.is_ipv6())?;
        ipv6_refused(tunnel.name, address.addr, refusal.errno)
    }

    fn concerns(&self, event: &KernelEvent) -> bool {
        let known = || {
            let ours = self.tunnels.iter().filter_map(|it| Some((it.link.as_ref()?, it.is_there)));
            ours.chain(self.lower.as_ref().map(|lower| (lower, true)))
        };
        match event {
            KernelEvent::Link(link) => match known().find(|(known, _)| known.index == link.index) {
                Some((known, is_there)) => known != link || !is_there,
                None => link.name == self.underlay.name || self.tunnels.iter().any(|it| it.name == link.name),
            },
            KernelEvent::LinkGone(index, _) => known().any(|(link, _)| link.index == *index),
            _ => false,
        }
    }
}
