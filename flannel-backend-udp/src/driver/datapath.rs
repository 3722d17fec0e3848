//! The TUN and the datapath on it: makes them, moves them to another underlay, and makes them again when they end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flannel_core::addr::{Mtu, PerFamily};
use flannel_core::error::chain;
use flannel_core::events::NetworkEvent;
use flannel_core::kernel::{Kernel, KernelError, Link, LinkOp};
use flannel_core::port_holder::udp_port_holder;
use tracing::{debug, error, info, warn};

use super::UdpDriver;
use crate::counters::DropReason;
use crate::engine::{Engine, EngineOptions};
use crate::socket::{ErrorSocket, SocketError, SocketOptions, UnderlaySocket};
use crate::threads::EngineEvent;
use crate::tun::{Tun, TunOptions};

/// The pattern of the TUN's name; the first free number is taken, as upstream does.
const TUN_PATTERN: &str = "flannel%d";

impl UdpDriver {
    /// Starts the datapath on a new TUN. The old one, if any, is stopped first, since both need the port.
    fn start_engine(&mut self) -> Result<(), String> {
        let name = self.tun.as_ref().map(|tun| tun.name.clone());
        self.engine = None;
        let open = || Tun::open(name.as_deref().unwrap_or(TUN_PATTERN), TunOptions::default());
        let tun =
            self.netns.run(open).map_err(|error| chain(&error))?.map_err(|error| {
                format!("{}; the agent needs /dev/net/tun and CAP_NET_ADMIN", chain(&error))
            })?;
        let sockets = self.bind(&PerFamily::default())?;
        self.run_engine(Arc::new(tun), sockets)
    }

    /// Binds a socket for each family that has none yet.
    fn bind(&self, there: &PerFamily<Arc<UnderlaySocket>>) -> Result<PerFamily<Arc<UnderlaySocket>>, String> {
        PerFamily::try_from_fn(|family| {
            let Some(side) = self.sides.get(family) else { return Ok(None) };
            let local = SocketAddr::new(side.local, self.port);
            if let Some(socket) = there.get(family).filter(|socket| socket.local() == local) {
                return Ok(Some(Arc::clone(socket)));
            }
            let bound = self.netns.run(|| UnderlaySocket::bind(local, SocketOptions::default()));
            bound
                .map_err(|error| chain(&error))?
                .map(|socket| Some(Arc::new(socket)))
                .map_err(|error| self.why_unbound(&error))
        })
    }

    /// Moves the datapath to sockets of the present underlay. The TUN stays, with its queued packets, and so do sockets
    /// whose address stays.
    fn move_engine(&mut self) -> Result<(), String> {
        let Some(engine) = &self.engine else { return Ok(()) };
        let (tun, sockets) = (Arc::clone(engine.tun()), self.bind(engine.sockets())?);
        self.engine = None;
        self.run_engine(tun, sockets)
    }

    fn why_unbound(&self, error: &SocketError) -> String {
        let is_taken = error.source.kind() == std::io::ErrorKind::AddrInUse;
        let holder = is_taken.then(|| udp_port_holder(&self.netns, self.port)).flatten();
        let holder = holder.map(|holder| {
            let port = self.port;
            format!("; {holder} has UDP port {port}: stop it, or set another Backend.Port on all nodes")
        });
        chain(error) + &holder.unwrap_or_default()
    }

    fn run_engine(&mut self, tun: Arc<Tun>, sockets: PerFamily<Arc<UnderlaySocket>>) -> Result<(), String> {
        let errors = PerFamily::from_fn(|family| {
            self.sides.get(family)?;
            let open = || ErrorSocket::open(family);
            self.netns
                .run(open)
                .unwrap_or_else(|error| Err(error.into()))
                .inspect_err(
                    |error| warn!(%error, %family, "no ICMP errors will be sent; they need CAP_NET_RAW"),
                )
                .ok()
        });
        // Each datapath has a flag of its own, so that a late failure of the last one does not count for this one.
        self.failed = Arc::default();
        let (alarm, failed, table) = (Arc::clone(&self.alarm), Arc::clone(&self.failed), self.table());
        let on_event = Arc::new(move |event: EngineEvent| {
            match event {
                EngineEvent::TunGone => debug!("TUN device is gone"),
                event => error!(?event, "udp datapath stopped"),
            }
            failed.store(true, Ordering::Relaxed);
            alarm.notify_one();
        });
        let layout = self.options.layout;
        let options = EngineOptions::new(tun, sockets, table, on_event).errors(errors).layout(layout);
        let engine =
            Engine::start(options).map_err(|error| format!("udp threads can't be started: {error}"))?;
        self.counters = engine.shared_counters();
        self.engine = Some(engine);
        self.moved = false;
        Ok(())
    }

    /// Creates the TUN with its datapath if it is missing, sets it up, and sets its MTU.
    pub(super) async fn ensure_tun(
        &mut self,
        kernel: &mut dyn Kernel,
        mtu: Mtu,
        events: &mut Vec<NetworkEvent>,
    ) -> Result<Ensured, KernelError> {
        let (mut changed, was_there) = (false, self.tun.is_some());
        let mut link = self.find_tun(kernel).await?;
        if link.is_none() || self.failed.load(Ordering::Relaxed) {
            if let Err(problem) = self.start_engine() {
                return Ok(Ensured::Not(problem));
            }
            changed = true;
            link = self.find_tun(kernel).await?;
        } else if self.moved
            && let Err(problem) = self.move_engine()
        {
            return Ok(Ensured::Not(problem));
        }
        let Some(link) = link else { return Ok(Ensured::Not("the TUN went away again".to_owned())) };
        if changed {
            events.push(made(&link, mtu, was_there));
        }
        let mut ops = Vec::new();
        if link.mtu != mtu {
            ops.push(LinkOp::SetMtu(link.index, mtu));
        }
        if !link.up {
            ops.push(LinkOp::SetUp(link.index));
        }
        for op in &ops {
            if let Err(error) = kernel.change_link(op).await {
                return Ok(Ensured::Not(format!("device {}: {}", link.name, chain(&error))));
            }
        }
        Ok(if changed || !ops.is_empty() { Ensured::Changed } else { Ensured::AsItWas })
    }

    /// Our own TUN in the kernel, whatever its name is now, and not another link that has got its name since.
    pub(super) async fn find_tun(&self, kernel: &mut dyn Kernel) -> Result<Option<Link>, KernelError> {
        let Some(tun) = self.engine.as_ref().map(Engine::tun) else { return Ok(None) };
        kernel.link_at(tun.index()).await
    }

    /// Logs new drops, at most once a resync.
    pub(super) fn tell_drops(&mut self) {
        let Some(engine) = &self.engine else { return };
        let mut drops = engine.counters().drops;
        // Packets of the host to its neighbours (such as router solicitations) are not worth a line.
        drops.retain(|(reason, _)| !matches!(reason, DropReason::Group | DropReason::FamilyDisabled));
        if drops == self.told {
            return;
        }
        let news = drops.iter().map(|(reason, count)| format!("{}={count}", reason.name()));
        info!(drops = news.collect::<Vec<_>>().join(" "), "packets dropped since the start");
        for strange in engine.peers().iter().filter(|peer| peer.admitted_packets > 0) {
            let packets = strange.admitted_packets;
            info!(underlay = %strange.endpoint.ip(), packets, "a peer sends from an address that it does not publish");
        }
        self.told = drops;
    }
}

/// What is told of a TUN that was just made.
fn made(tun: &Link, mtu: Mtu, was_there: bool) -> NetworkEvent {
    let link = tun.name.clone();
    if was_there {
        let reason = "it was gone, or its datapath had stopped".to_owned();
        return NetworkEvent::DeviceRecreated { link, reason };
    }
    NetworkEvent::DeviceCreated { link, mtu, detail: "tun".to_owned() }
}

/// What came of making the TUN exist and be right.
pub(super) enum Ensured {
    /// It was right before.
    AsItWas,
    /// It is right now.
    Changed,
    /// Why it is not right.
    Not(String),
}
