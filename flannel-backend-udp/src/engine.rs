//! The running datapath of the udp backend: its threads, its table and its counters.

use std::fmt;
use std::io;
use std::sync::Arc;

use flannel_core::addr::PerFamily;
use flannel_core::status;

use crate::counters::{PeerSnapshot, Snapshot};
use crate::forward::{ForwardingTable, TableCell};
use crate::path::{Layout, Path};
use crate::peer;
use crate::socket::{ErrorSocket, UnderlaySocket};
use crate::threads::{EventHook, ThreadOptions, Threads};
use crate::tun::Tun;

/// The parts of an engine.
#[non_exhaustive]
pub struct EngineOptions {
    /// The TUN, which can outlive the engine.
    pub tun: Arc<Tun>,
    /// The sockets, for the underlay families there are.
    pub sockets: PerFamily<Arc<UnderlaySocket>>,
    /// The sockets for ICMP errors. Without one, errors are written to the TUN, where the kernel may drop them.
    pub errors: PerFamily<ErrorSocket>,
    /// How many threads.
    pub layout: Layout,
    /// The first table.
    pub table: ForwardingTable,
    /// Called with events.
    pub on_event: EventHook,
}

impl EngineOptions {
    /// A datapath between a TUN and these sockets, with as many threads as the load asks for and without sockets for ICMP
    /// errors. `on_event` is told what happens to it by itself.
    pub fn new(
        tun: Arc<Tun>,
        sockets: PerFamily<Arc<UnderlaySocket>>,
        table: ForwardingTable,
        on_event: EventHook,
    ) -> Self {
        Self { tun, sockets, errors: PerFamily::default(), layout: Layout::default(), table, on_event }
    }

    /// The same with sockets for ICMP errors.
    #[must_use]
    pub fn errors(self, errors: PerFamily<ErrorSocket>) -> Self {
        Self { errors, ..self }
    }

    /// The same with this many threads.
    #[must_use]
    pub fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }
}

/// A running datapath. Stops when dropped.
pub struct Engine {
    threads: Threads,
    cell: Arc<TableCell<ForwardingTable>>,
}

impl Engine {
    /// Starts the threads.
    pub fn start(options: EngineOptions) -> io::Result<Self> {
        let EngineOptions { tun, sockets, errors, layout, table, on_event } = options;
        let cell = TableCell::new(table);
        let options = ThreadOptions {
            name: peer::KIND,
            tun,
            sockets,
            errors,
            layout,
            counters: Arc::default(),
            on_event,
        };
        let threads = Threads::start(options, || cell.reader())?;
        Ok(Self { threads, cell })
    }

    /// Puts a new table in use, from the next batch on.
    pub fn set_table(&self, table: ForwardingTable) {
        self.cell.set(table);
    }

    /// The table in use.
    pub fn table(&self) -> Arc<ForwardingTable> {
        self.cell.get()
    }

    /// What has been counted.
    pub fn counters(&self) -> Snapshot {
        self.threads.counters()
    }

    /// Reads what has been counted, also after the engine has ended.
    pub(crate) fn shared_counters(&self) -> status::Counters {
        self.threads.shared_counters()
    }

    /// What has been counted for each peer of the table in use.
    pub fn peers(&self) -> Vec<PeerSnapshot> {
        self.table().snapshots()
    }

    /// The TUN.
    pub fn tun(&self) -> &Arc<Tun> {
        self.threads.tun()
    }

    /// The sockets.
    pub fn sockets(&self) -> &PerFamily<Arc<UnderlaySocket>> {
        self.threads.sockets()
    }

    /// Which path packets take here.
    pub fn path(&self) -> Path {
        self.threads.path()
    }

    /// Ends the threads after their current batch and waits for them.
    pub fn stop(self) {
        drop(self);
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("path", &self.path()).finish_non_exhaustive()
    }
}
