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
mod options;
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
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use async_trait::async_trait;
use flannel_backend_udp::Layout;
use flannel_backend_udp::datapath::{
    Counters, EngineEvent, EventHook, Path, Snapshot, SocketError, SocketOptions, TableCell, ThreadOptions,
    Threads, Tun, UnderlaySocket,
};
use flannel_core::addr::{Family, Mtu, PerFamily};
use flannel_core::netns::Netns;
use flannel_core::status;

use self::control::Inbox;
use self::passage::WireGuard;
use self::peer::Post;
use self::setup::Setup;
use self::table::Table;
use crate::device::{Change, Device, DeviceState, ReadState};
use crate::key::PublicKey;

pub use self::options::{UserspaceError, UserspaceOptions};

/// The MTU of a tunnel over an underlay with 1500 bytes: outer IPv6 40, UDP 8, WireGuard 32.
const DEFAULT_MTU: Mtu = Mtu(1420);

/// The kind of this datapath in logs and counters, and the name of its threads.
const KIND: &str = "wireguard";

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
/// Its sessions live as long as it does. After a restart of the process new handshakes begin: with the peers that it
/// [expects](Device::expect) as soon as they are added, with others at the first packet in either direction.
pub struct UserspaceDevice {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    running: Mutex<Running>,
    netns: Netns,
    options: (SocketOptions, Layout, EventHook),
    counters: status::Counters,
    control: Option<JoinHandle<()>>,
}

/// What changes of the device change.
struct Running {
    setup: Setup,
    threads: Threads,
    /// Whether these threads ended by themselves.
    has_ended: Arc<AtomicBool>,
    port: u16,
}

impl UserspaceDevice {
    /// Makes the TUN, binds the port in both families, and starts the threads. There is no key yet, and no peer. The link is
    /// down, and has neither addresses nor routes.
    pub fn open(options: UserspaceOptions) -> Result<Self, UserspaceError> {
        let UserspaceOptions { netns, name, counted_as, listen_port, layout, tun, sockets: how, on_event } =
            options;
        let tun = netns.run(|| Tun::open(&name, tun))?.map_err(UserspaceError::Tun)?;
        let (sockets, port) = netns.run(|| bind(listen_port, how))??;
        let shared = Arc::new(Shared {
            cell: TableCell::new(Table::default()),
            inbox: Inbox::default(),
            counters: Arc::default(),
            mtu: AtomicU32::new(DEFAULT_MTU.0),
            sockets: Mutex::new(sockets.clone()),
        });
        let counted = Arc::clone(&shared.counters);
        let counters = status::Counters::new(move || vec![counted.snapshot().traffic(&counted_as)]);
        let (threads, has_ended) = start(&shared, Arc::new(tun), sockets, layout, &on_event)?;
        let of_thread = Arc::clone(&shared);
        let body = move || control::run(&of_thread.inbox, &of_thread.cell, &of_thread.counters, &*of_thread);
        let control = thread::Builder::new().name("wireguard-hs".to_owned()).spawn(body);
        let control = Some(control.map_err(UserspaceError::Threads)?);
        let running = Mutex::new(Running { setup: Setup::default(), threads, has_ended, port });
        let inner = Inner { shared, running, netns, options: (how, layout, on_event), counters, control };
        Ok(Self { inner: Arc::new(inner) })
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
}

#[async_trait]
impl Device for UserspaceDevice {
    async fn state(&self) -> io::Result<DeviceState> {
        Ok(self.inner.state())
    }

    async fn apply(&self, changes: &[Change]) -> io::Result<()> {
        let (inner, changes) = (Arc::clone(&self.inner), changes.to_vec());
        // Keys take a while: a tenth of a millisecond for each peer.
        let applied = tokio::task::spawn_blocking(move || inner.apply(&changes)).await;
        applied.map_err(io::Error::other)?
    }

    fn reader(self: Arc<Self>) -> Option<Arc<ReadState>> {
        // Somebody's status must not keep the TUN and the port.
        let inner = Arc::downgrade(&self.inner);
        Some(Arc::new(move || match inner.upgrade() {
            Some(inner) => Ok(inner.state()),
            None => Err(io::Error::new(io::ErrorKind::NotFound, "the device has ended")),
        }))
    }

    fn set_mtu(&self, mtu: Mtu) {
        self.inner.shared.mtu.store(mtu.0, Ordering::Relaxed);
    }

    fn expect(&self, peers: &[PublicKey]) {
        lock(&self.inner.running).setup.expect(peers);
    }

    fn has_ended(&self) -> bool {
        lock(&self.inner.running).has_ended.load(Ordering::Relaxed)
    }

    fn path(&self) -> Option<Path> {
        Some(Self::path(self))
    }

    fn counters(&self) -> Option<status::Counters> {
        Some(self.inner.counters.clone())
    }
}

impl fmt::Debug for UserspaceDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserspaceDevice").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl Inner {
    fn state(&self) -> DeviceState {
        let running = lock(&self.running);
        running.setup.state(running.port)
    }

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
        (running.threads, running.has_ended) = start(&self.shared, tun, sockets, *layout, on_event)?;
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
) -> Result<(Threads, Arc<AtomicBool>), UserspaceError> {
    // Each set of threads has a flag of its own, so that a late failure of the last one does not count for this one.
    let has_ended = Arc::new(AtomicBool::new(false));
    let (flag, hook) = (Arc::clone(&has_ended), Arc::clone(on_event));
    let on_event = Arc::new(move |event: EngineEvent| {
        flag.store(true, Ordering::Relaxed);
        hook(event);
    });
    let options = ThreadOptions::new(KIND, tun, sockets, on_event).layout(layout);
    let options = options.counters(Arc::clone(&shared.counters));
    let threads = Threads::start(options, || WireGuard::new(Arc::clone(shared)));
    Ok((threads.map_err(UserspaceError::Threads)?, has_ended))
}

#[cfg(test)]
mod tests;
