//! The threads that move packets between a TUN and sockets, whatever passage they take.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use flannel_core::addr::PerFamily;
use flannel_core::status;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::counters::{Counters, Snapshot};
use crate::passage::Passage;
use crate::path::{Layout, Path, SocketPath};
use crate::socket::{ErrorSocket, UnderlaySocket};
use crate::tun::Tun;
use crate::worker::{End, Handover, Io, Place, Ways, Worker};

/// Events of an engine that nobody asked for.
#[derive(Debug)]
#[non_exhaustive]
pub enum EngineEvent {
    /// The TUN was deleted. Nothing is forwarded any more.
    TunGone,
    /// A thread failed. Nothing is forwarded any more in its direction.
    Failed(io::Error),
    /// A thread panicked, which is a bug.
    Panicked,
}

/// Called with events, on the thread in which they happen, so it must return quickly.
pub type EventHook = Arc<dyn Fn(EngineEvent) + Send + Sync>;

/// What threads work with.
#[non_exhaustive]
pub struct ThreadOptions {
    /// What the threads are called, and the kind of datapath in logs and counters.
    pub name: &'static str,
    /// The TUN, which can outlive the threads.
    pub tun: Arc<Tun>,
    /// The sockets, for the underlay families there are.
    pub sockets: PerFamily<Arc<UnderlaySocket>>,
    /// The sockets for ICMP errors.
    pub errors: PerFamily<ErrorSocket>,
    /// How many threads.
    pub layout: Layout,
    /// What to count with. Threads that follow others count on with theirs.
    pub counters: Arc<Counters>,
    /// Called with events.
    pub on_event: EventHook,
}

impl ThreadOptions {
    /// Threads between a TUN and these sockets, as many as the load asks for and without sockets for ICMP errors.
    pub fn new(
        name: &'static str,
        tun: Arc<Tun>,
        sockets: PerFamily<Arc<UnderlaySocket>>,
        on_event: EventHook,
    ) -> Self {
        let (errors, layout, counters) = (PerFamily::default(), Layout::default(), Arc::default());
        Self { name, tun, sockets, errors, layout, counters, on_event }
    }

    /// The same with these counters.
    #[must_use]
    pub fn counters(self, counters: Arc<Counters>) -> Self {
        Self { counters, ..self }
    }

    /// The same with this many threads.
    #[must_use]
    pub fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }
}

/// Running threads. They stop when this is dropped.
pub struct Threads {
    name: &'static str,
    io: Arc<Io>,
    layout: Layout,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts the threads, each with a passage of its own.
    pub fn start<P: Passage + 'static>(
        options: ThreadOptions,
        mut passage: impl FnMut() -> P,
    ) -> io::Result<Self> {
        let ThreadOptions { name, tun, sockets, errors, layout, counters, on_event } = options;
        let stop = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let layout = match layout {
            Layout::Adaptive if thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2) => {
                Layout::OneThread
            }
            layout => layout,
        };
        let handover = (layout == Layout::Adaptive).then(Handover::new).transpose()?;
        let io = Arc::new(Io { tun, sockets, errors, counters, stop, handover });
        let ways: &[_] = match layout {
            Layout::Adaptive => &[("", Ways::Shared(Place::First)), ("-send", Ways::Shared(Place::Second))],
            Layout::OneThread => &[("", Ways::Both)],
            Layout::TwoThreads => &[("-send", Ways::FromTun), ("-receive", Ways::ToTun)],
        };
        // From here on, dropping it stops the threads that run.
        let mut threads = Self { name, io, layout, handles: Vec::with_capacity(ways.len()) };
        for (part, ways) in ways {
            let (io, passage, hook) = (Arc::clone(&threads.io), passage(), Arc::clone(&on_event));
            let body = move || run(&io, passage, *ways, hook);
            threads.handles.push(thread::Builder::new().name(format!("{name}{part}")).spawn(body)?);
        }
        tracing::info!(path = %threads.path(), "{name} datapath started");
        Ok(threads)
    }

    /// What has been counted.
    pub fn counters(&self) -> Snapshot {
        self.io.counters.snapshot()
    }

    /// Reads what has been counted, also after the threads have ended.
    pub fn shared_counters(&self) -> status::Counters {
        // Not the whole of `io`: the TUN would live as long as somebody's status.
        let (counters, name) = (Arc::clone(&self.io.counters), self.name);
        status::Counters::new(move || vec![counters.snapshot().traffic(name)])
    }

    /// The TUN.
    pub fn tun(&self) -> &Arc<Tun> {
        &self.io.tun
    }

    /// The sockets.
    pub fn sockets(&self) -> &PerFamily<Arc<UnderlaySocket>> {
        &self.io.sockets
    }

    /// Which path packets take here.
    pub fn path(&self) -> Path {
        let offloads = self.io.tun.offloads();
        Path {
            tun: self.io.tun.name().to_owned(),
            vnet_header: offloads.vnet_header,
            tso: offloads.tso,
            uso: offloads.uso,
            layout: self.layout,
            sockets: PerFamily::from_fn(|family| {
                self.io.sockets.get(family).map(|socket| SocketPath::of(socket))
            }),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Nobody reads it, so it stays set for all threads; it can't be full after one write.
        let _ = self.io.stop.write(1);
        for thread in self.handles.drain(..) {
            // A panic has been reported already.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").field("path", &self.path()).finish_non_exhaustive()
    }
}

/// Reports a panic while it unwinds.
struct PanicGuard(EventHook);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            (self.0)(EngineEvent::Panicked);
        }
    }
}

fn run<P: Passage>(io: &Io, passage: P, ways: Ways, hook: EventHook) {
    let guard = PanicGuard(hook);
    let event = match Worker::new(io, passage, ways).run() {
        End::Stopped => return,
        End::TunGone => EngineEvent::TunGone,
        End::Failed(error) => EngineEvent::Failed(error),
    };
    (guard.0)(event);
}
