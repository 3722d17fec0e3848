//! A WireGuard device in this process, for kernels without the module: the same messages on the wire, on the datapath of
//! the udp backend.
//!
//! ```text
//!   TUN ─► split ─► allowed addresses ─► seal ─► trains ─► socket       two threads under load, one otherwise
//!   TUN ◄─ merge ◄─ allowed addresses ◄─ open ◄─ trains ◄─ socket
//!                                         └─► handshakes, timers        a thread of their own, asleep when all is quiet
//! ```
//!
//! The protocol's core is boringtun's (`noise`). It is one lock for each peer, so one flow uses one core in each
//! direction.

mod control;
mod message;
mod noise;
mod passage;
mod peer;
mod setup;
mod table;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use async_trait::async_trait;
use flannel_backend_udp::Layout;
use flannel_backend_udp::datapath::{
    Counters, EventHook, Path, Snapshot, SocketError, SocketOptions, TableCell, ThreadOptions, Threads, Tun,
    TunError, TunOptions, UnderlaySocket,
};
use flannel_core::addr::{Family, Mtu, PerFamily};
use flannel_core::netns::{Netns, NetnsError};

use self::control::Inbox;
use self::passage::WireGuard;
use self::peer::Post;
use self::setup::Setup;
use self::table::Table;
use crate::device::{Change, Device, DeviceState};

/// The MTU of a tunnel over an underlay with 1500 bytes: outer IPv6 40, UDP 8, WireGuard 32.
const DEFAULT_MTU: Mtu = Mtu(1420);

/// The kind of this datapath in logs and counters, and the name of its threads.
const KIND: &str = "wireguard";

/// What a device is made of.
#[non_exhaustive]
pub struct UserspaceOptions {
    /// The namespace of the TUN and the sockets.
    pub netns: Netns,
    /// The name of the TUN; `%d` in it gets a number.
    pub name: String,
    /// The UDP port, 0 for any that is free.
    pub listen_port: u16,
    /// How many threads move packets.
    pub layout: Layout,
    /// Which offloads of the TUN to use.
    pub tun: TunOptions,
    /// What to use of the sockets.
    pub sockets: SocketOptions,
    /// Called when the datapath can't go on, on one of its threads.
    pub on_event: EventHook,
}

impl UserspaceOptions {
    /// A device `name` in a namespace, on any port, with all that the kernel offers.
    pub fn new(netns: Netns, name: impl Into<String>, on_event: EventHook) -> Self {
        Self {
            netns,
            name: name.into(),
            listen_port: 0,
            layout: Layout::default(),
            tun: TunOptions::default(),
            sockets: SocketOptions::default(),
            on_event,
        }
    }

    /// The same on this UDP port.
    #[must_use]
    pub fn listen_port(self, listen_port: u16) -> Self {
        Self { listen_port, ..self }
    }

    /// The same with this many threads.
    #[must_use]
    pub fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// The same with these offloads of the TUN.
    #[must_use]
    pub fn tun(self, tun: TunOptions) -> Self {
        Self { tun, ..self }
    }

    /// The same with these options of the sockets.
    #[must_use]
    pub fn sockets(self, sockets: SocketOptions) -> Self {
        Self { sockets, ..self }
    }
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserspaceError {
    /// The namespace can't be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// There is no TUN.
    #[error("a TUN for WireGuard in user space; it needs /dev/net/tun and CAP_NET_ADMIN")]
    Tun(#[source] TunError),
    /// The port can't be bound.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The threads can't be started.
    #[error("threads for WireGuard in user space")]
    Threads(#[source] io::Error),
}

impl From<UserspaceError> for io::Error {
    fn from(error: UserspaceError) -> Self {
        let kind = match &error {
            UserspaceError::Socket(error) => error.source.kind(),
            UserspaceError::Threads(error) => error.kind(),
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// What the threads share.
struct Shared {
    cell: Arc<TableCell<Table>>,
    inbox: Inbox,
    counters: Arc<Counters>,
    /// The link's MTU, beyond which packets aren't padded.
    mtu: AtomicU32,
    /// Where messages are sent that are in no batch.
    sockets: Mutex<PerFamily<Arc<UnderlaySocket>>>,
}

impl Post for Shared {
    fn post(&self, message: &[u8], to: SocketAddr) {
        let socket = lock(&self.sockets).get(Family::of(to.ip())).cloned();
        // What can't be sent now is repeated by timers, as what is lost on the way.
        if let Some(Err(error)) = socket.map(|socket| socket.send_to(message, to)) {
            tracing::debug!(%error, %to, "a WireGuard message can't be sent");
        }
    }

    fn arm(&self) {
        self.inbox.arm();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A WireGuard device whose packets this process seals and opens. It ends, with its TUN, when this is dropped.
///
/// Its sessions live as long as it does: after a restart of the process new handshakes begin, with the first packet in
/// either direction.
pub struct UserspaceDevice {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    running: Mutex<Running>,
    netns: Netns,
    options: (SocketOptions, Layout, EventHook),
    control: Option<JoinHandle<()>>,
}

/// What changes of the device change.
struct Running {
    setup: Setup,
    threads: Threads,
    port: u16,
}

impl UserspaceDevice {
    /// Makes the TUN, binds the port in both families, and starts the threads. There is no key yet, and no peer. The link is
    /// down, and has neither addresses nor routes.
    pub fn open(options: UserspaceOptions) -> Result<Self, UserspaceError> {
        let UserspaceOptions { netns, name, listen_port, layout, tun, sockets: how, on_event } = options;
        let tun = netns.run(|| Tun::open(&name, tun))?.map_err(UserspaceError::Tun)?;
        let (sockets, port) = netns.run(|| bind(listen_port, how))??;
        let shared = Arc::new(Shared {
            cell: TableCell::new(Table::default()),
            inbox: Inbox::default(),
            counters: Arc::default(),
            mtu: AtomicU32::new(DEFAULT_MTU.0),
            sockets: Mutex::new(sockets.clone()),
        });
        let threads = start(&shared, Arc::new(tun), sockets, layout, &on_event)?;
        let of_thread = Arc::clone(&shared);
        let body = move || control::run(&of_thread.inbox, &of_thread.cell, &of_thread.counters, &*of_thread);
        let control = thread::Builder::new().name("wireguard-hs".to_owned()).spawn(body);
        let control = Some(control.map_err(UserspaceError::Threads)?);
        let running = Mutex::new(Running { setup: Setup::default(), threads, port });
        let inner = Inner { shared, running, netns, options: (how, layout, on_event), control };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Tells the device its link's MTU, up to which packets are padded. It doesn't set the link's.
    pub fn set_mtu(&self, mtu: Mtu) {
        self.inner.shared.mtu.store(mtu.0, Ordering::Relaxed);
    }

    /// The TUN. Its index and its name are those of the device's link.
    pub fn tun(&self) -> Arc<Tun> {
        Arc::clone(lock(&self.inner.running).threads.tun())
    }

    /// Which offloads the kernel agreed to, and how many threads there are.
    pub fn path(&self) -> Path {
        lock(&self.inner.running).threads.path()
    }

    /// What has been counted since the device was opened, with drops by reason.
    pub fn counters(&self) -> Snapshot {
        self.inner.shared.counters.snapshot()
    }

    /// Reads the same for an agent's status, also after the device has ended.
    pub fn shared_counters(&self) -> flannel_core::status::Counters {
        lock(&self.inner.running).threads.shared_counters()
    }
}

#[async_trait]
impl Device for UserspaceDevice {
    async fn state(&self) -> io::Result<DeviceState> {
        let running = lock(&self.inner.running);
        Ok(running.setup.state(running.port))
    }

    async fn apply(&self, changes: &[Change]) -> io::Result<()> {
        let (inner, changes) = (Arc::clone(&self.inner), changes.to_vec());
        // Keys take a while: a tenth of a millisecond for each peer.
        let applied = tokio::task::spawn_blocking(move || inner.apply(&changes)).await;
        applied.map_err(io::Error::other)?
    }
}

impl fmt::Debug for UserspaceDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserspaceDevice").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl Inner {
    fn apply(&self, changes: &[Change]) -> io::Result<()> {
        let mut running = lock(&self.running);
        let result = changes.iter().try_for_each(|change| match change {
            Change::ListenPort(port) => self.listen(&mut running, *port).map_err(io::Error::from),
            change => running.setup.apply(change),
        });
        // Whatever was changed is in force from the next batch on.
        self.shared.cell.set(running.setup.table());
        self.shared.inbox.arm();
        result
    }

    /// Moves to another port. Sessions stay, and so do packets that wait in the TUN.
    fn listen(&self, running: &mut Running, port: u16) -> Result<(), UserspaceError> {
        if port == running.port {
            return Ok(());
        }
        let (how, layout, on_event) = &self.options;
        let (sockets, port) = self.netns.run(|| bind(port, *how))??;
        let tun = Arc::clone(running.threads.tun());
        *lock(&self.shared.sockets) = sockets.clone();
        // The former threads end as this is dropped.
        running.threads = start(&self.shared, tun, sockets, *layout, on_event)?;
        running.port = port;
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.inbox.stop();
        if let Some(thread) = self.control.take() {
            // A panic has been reported already.
            let _ = thread.join();
        }
    }
}

/// Binds a port on all addresses of both families. IPv6 may be switched off; IPv4 may not.
fn bind(port: u16, how: SocketOptions) -> Result<(PerFamily<Arc<UnderlaySocket>>, u16), SocketError> {
    let bind = |family: Family, port| {
        UnderlaySocket::bind(SocketAddr::new(family.unspecified(), port), how).map(Arc::new)
    };
    let v4 = bind(Family::V4, port)?;
    let port = v4.local().port();
    let v6 = match bind(Family::V6, port) {
        Ok(socket) => Some(socket),
        Err(error) if error.source.kind() == io::ErrorKind::AddrInUse => return Err(error),
        Err(error) => {
            tracing::debug!(error = flannel_core::error::chain(&error), "WireGuard without IPv6 underlay");
            None
        }
    };
    Ok((PerFamily { v4: Some(v4), v6 }, port))
}

fn start(
    shared: &Arc<Shared>,
    tun: Arc<Tun>,
    sockets: PerFamily<Arc<UnderlaySocket>>,
    layout: Layout,
    on_event: &EventHook,
) -> Result<Threads, UserspaceError> {
    let options = ThreadOptions::new(KIND, tun, sockets, Arc::clone(on_event)).layout(layout);
    let options = options.counters(Arc::clone(&shared.counters));
    Threads::start(options, || WireGuard::new(Arc::clone(shared))).map_err(UserspaceError::Threads)
}

#[cfg(test)]
mod tests;
