//! The task that keeps the kernel's tables as desired: it compares, changes what differs, and waits until something may
//! have changed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::build::{Found, Kernel, NEEDS, blind, build, open};
use super::desk::{Desk, Moves, Shared};
use super::strangers::Sightings;
use super::table::{nodes, strangers, strays, tables};
use super::{GateCounters, GateOptions, Mode, Tunnels, remove_by, table_name};
use crate::addr::{Family, LinkIndex, PerFamily};
use crate::backoff::{Backoff, Delays};
use crate::error::chain;
use crate::events::{NetworkEvent, NetworkEventSender, RepairCause};
use crate::kernel::KernelError;
use crate::netlink::nftables::{Change, Table, TableChange, TableFamily};
use crate::netns::Netns;
use crate::resync;

/// How often the counters are read.
const READING: Duration = Duration::from_secs(10);
/// Delays after failures.
const RETRY: Delays = Delays::new(Duration::from_millis(200), Duration::from_secs(30));

/// The status of a gate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GateStatus {
    /// What the kernel does with packets of strangers now; `None` while that is unknown.
    pub in_force: Option<Mode>,
    /// Why that may not be the desired mode.
    pub problem: Option<String>,
    /// The strangers that were seen, as lines of text, bounded in number.
    pub strangers: Vec<String>,
    /// How many times somebody else's change was undone.
    pub repairs: u64,
}

/// One of the two tables, as far as it is known.
#[derive(Default)]
struct Half {
    /// Chains, sets and rules as they were put; `None` if they must be read.
    built: Option<Table>,
    /// What was put last, whatever the kernel has now.
    last: Option<Table>,
}

/// What is in force of one of the two tables after a look at it.
enum InForce {
    /// Nothing: the kernel has no tables, or it is too early for one.
    Nothing,
    /// Its rules.
    Rules {
        /// What they do about strangers.
        mode: Mode,
        /// Whether somebody else's change was undone for that.
        was_repaired: bool,
    },
}

/// Keeps the tables of one node.
pub struct Gate {
    options: GateOptions,
    shared: Arc<Shared>,
    done: watch::Sender<u64>,
    status: watch::Sender<GateStatus>,
    events: NetworkEventSender,
    /// How the next difference was found.
    cause: RepairCause,
    /// `None` if the kernel lacks what the gate needs.
    kernel: Option<Kernel>,
    /// The elements of the sets for nodes; `None` if they must be read.
    elements: Option<BTreeSet<IpAddr>>,
    /// The table for underlay packets, and the one for overlay packets.
    halves: [Half; 2],
    /// Whether the tables are known not to exist.
    is_off: bool,
    /// The links whose frames the second table gets.
    links: PerFamily<LinkIndex>,
    /// Whether addresses that no lease publishes may be removed.
    prunes: bool,
    sightings: Sightings,
    backoff: Backoff,
    next_resync: Instant,
    next_reading: Instant,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Gate {
    /// Opens the sockets in a network namespace, and tests whether the kernel has what the gate needs. If not,
    /// [`Mode::Enforce`] fails; with any other mode the gate does nothing, and its status says so.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time.
    pub async fn open(netns: &Netns, options: GateOptions) -> Result<(Self, Desk), KernelError> {
        let kernel = open(netns, &options).await;
        let (gate, mut desk) = Self::with(options, kernel)?;
        desk.counters = GateCounters::of(netns, &gate.shared, &gate.status);
        Ok((gate, desk))
    }

    /// A gate for a kernel that was tested.
    pub(super) fn with(
        options: GateOptions,
        kernel: Result<Kernel, KernelError>,
    ) -> Result<(Self, Desk), KernelError> {
        let (kernel, problem) = match (kernel, options.mode) {
            (Ok(kernel), _) => (Some(kernel), None),
            (Err(error), Mode::Enforce) => return Err(error),
            (Err(error), Mode::Observe) => (None, Some(blind(&error))),
            (Err(_), Mode::Off) => (None, None),
        };
        let (shared, done) = (Arc::<Shared>::default(), watch::Sender::new(0));
        let status = watch::Sender::new(GateStatus { problem, ..GateStatus::default() });
        let desk = Desk {
            mode: options.mode,
            shared: Arc::clone(&shared),
            done: done.subscribe(),
            status: status.subscribe(),
            counters: GateCounters::default(),
        };
        let now = Instant::now();
        let gate = Self {
            options,
            shared,
            done,
            status,
            events: NetworkEventSender::default(),
            cause: RepairCause::Resync,
            kernel,
            elements: None,
            halves: Default::default(),
            is_off: false,
            links: PerFamily::default(),
            prunes: false,
            sightings: Sightings::default(),
            backoff: Backoff::with(RETRY),
            next_resync: now + resync::PERIOD,
            next_reading: now + READING,
        };
        Ok((gate, desk))
    }

    /// Runs until `cancel` fires, and sends what happens to `events`. The tables stay, so that a restart lets no stranger
    /// in.
    pub async fn run(mut self, events: NetworkEventSender, cancel: CancellationToken) {
        self.events = events;
        if let Some(reason) = self.status.borrow().problem.clone() {
            self.events.send(NetworkEvent::GateUnavailable { reason });
        }
        while !cancel.is_cancelled() {
            let next = self.look().await;
            tokio::select! {
                () = cancel.cancelled() => return,
                change = self.wait(next) => self.note_change(change),
            }
        }
    }

    /// Waits until something may have to be done, until `next` at the latest.
    async fn wait(&mut self, next: Instant) -> TableChange {
        let none = TableChange::default();
        let tunnels = self.shared.known().tunnels.clone();
        // Without devices, or without a kernel, there is nothing to watch.
        let (Some((tables, events)), Some(tunnels)) = (&mut self.kernel, tunnels) else {
            self.shared.changed.notified().await;
            return none;
        };
        let (name, sets) = (table_name(tunnels.vni), Family::ALL.map(nodes));
        tokio::select! {
            () = self.shared.changed.notified() => none,
            () = sleep_until(next) => none,
            change = events.next(&name, &sets, tables.port()) => change,
        }
    }

    fn note_change(&mut self, change: TableChange) {
        if change.structure || change.elements {
            self.cause = RepairCause::Announced;
        }
        if change.structure {
            self.forget();
        }
        if change.structure || change.elements {
            self.elements = None;
        }
    }

    /// Makes the next comparison read chains and rules.
    fn forget(&mut self) {
        self.is_off = false;
        self.halves.iter_mut().for_each(|half| half.built = None);
    }

    /// Makes the kernel's tables as desired. Returns when to compare again at the latest.
    async fn look(&mut self) -> Instant {
        let now = Instant::now();
        if now >= self.next_resync {
            self.next_resync = resync::next(now);
            self.forget();
            self.elements = None;
        }
        let (number, is_synced, prunes, tunnels) = {
            let known = self.shared.known();
            let prunes = known.is_synced && !known.has_unknown;
            (known.number, known.is_synced, prunes, known.tunnels.clone())
        };
        let Some(tunnels) = tunnels else {
            self.done.send_replace(number);
            return self.next_resync;
        };
        if std::mem::replace(&mut self.prunes, prunes) != prunes {
            self.elements = None;
        }
        if std::mem::replace(&mut self.links, tunnels.links) != tunnels.links {
            self.halves[1].built = None;
        }
        match self.converge(&tunnels, is_synced, now).await {
            Ok(()) => {
                self.cause = RepairCause::Resync;
                self.backoff.reset();
                self.done.send_replace(number);
                self.set_problem(None);
                if now >= self.next_reading {
                    self.next_reading = now + READING;
                    self.read_counters(&tunnels, now).await;
                }
                self.next_resync.min(self.next_reading)
            }
            Err(error) => {
                self.cause = RepairCause::Retry;
                self.forget();
                self.elements = None;
                self.set_problem(Some(self.explain(&error)));
                now + self.backoff.pause()
            }
        }
    }

    fn explain(&self, error: &KernelError) -> String {
        let mode = self.options.mode;
        format!(
            "the underlay gate is not as it should be (--strict-underlay={mode}): {}; {NEEDS}",
            chain(error)
        )
    }

    /// Changes what differs.
    async fn converge(
        &mut self,
        tunnels: &Tunnels,
        is_synced: bool,
        since: Instant,
    ) -> Result<(), KernelError> {
        let Some(wanted) = tables(tunnels, &self.options, self.options.mode) else {
            return self.end(tunnels).await;
        };
        let lax = tables(tunnels, &self.options, Mode::Observe).unwrap_or_else(|| wanted.clone());
        let (mut repairs, mut in_force) = (false, Mode::Enforce);
        // The table that admits nodes comes first: it needs no device.
        for (half, (wanted, lax)) in wanted.into_iter().zip(lax).enumerate() {
            match self.converge_half(half, tunnels, wanted, lax, is_synced).await? {
                InForce::Nothing => return Ok(()),
                InForce::Rules { mode, was_repaired } => {
                    repairs |= was_repaired;
                    if mode == Mode::Observe {
                        in_force = mode;
                    }
                }
            }
        }
        self.set_in_force(in_force);
        if repairs {
            let (cause, took) = (self.cause, since.elapsed());
            self.events.send(NetworkEvent::GateRepaired { cause, took });
            self.status.send_modify(|status| status.repairs += 1);
        }
        Ok(())
    }

    async fn end(&mut self, tunnels: &Tunnels) -> Result<(), KernelError> {
        let Some((tables, _)) = &mut self.kernel else { return Ok(()) };
        if !self.is_off {
            remove_by(tables, tunnels.vni).await?;
            self.is_off = true;
        }
        self.set_in_force(Mode::Off);
        Ok(())
    }

    /// Changes what differs in one of the two tables. Returns whether that was a repair, and the mode in force; `None`
    /// if there is no table, and it is too early for one.
    async fn converge_half(
        &mut self,
        half: usize,
        tunnels: &Tunnels,
        wanted: Table,
        lax: Table,
        is_synced: bool,
    ) -> Result<InForce, KernelError> {
        let Some((tables, _)) = &mut self.kernel else { return Ok(InForce::Nothing) };
        let last = self.halves[half].last.as_ref();
        // Until the store has listed all nodes, only the rules of an earlier run keep anybody out, and nobody is
        // reported as a stranger.
        let mut repairs = false;
        let built = match self.halves[half].built.take() {
            Some(built) if built == wanted || built == lax => built,
            _ => match build(tables, &wanted, &lax, is_synced).await? {
                Found::Nothing => return Ok(InForce::Nothing),
                Found::Table(built) => built,
                Found::Made(bare) => {
                    repairs = last.is_some_and(|last| *last == wanted || *last == lax);
                    bare
                }
            },
        };
        let was_put = last.is_some();
        if wanted.family == TableFamily::Inet {
            // New sets have no elements.
            self.elements.take_if(|_| built.chains.iter().all(|chain| chain.rules.is_empty()));
            repairs |= self.follow(&wanted.name, tunnels).await? && was_put;
        }
        let Some((tables, _)) = &mut self.kernel else { return Ok(InForce::Nothing) };
        let target = if is_synced || built == wanted { wanted } else { lax.clone() };
        if built != target {
            tables.transact("put the rules of the underlay gate", &[Change::Rules(&target)]).await?;
        }
        let mode = if target == lax { Mode::Observe } else { Mode::Enforce };
        self.halves[half] = Half { built: Some(target.clone()), last: Some(target) };
        Ok(InForce::Rules { mode, was_repaired: repairs })
    }

    /// Updates the sets for nodes to the published addresses. Returns whether an address was missing that should have
    /// been there.
    async fn follow(&mut self, name: &str, tunnels: &Tunnels) -> Result<bool, KernelError> {
        let Some((tables, _)) = &mut self.kernel else { return Ok(false) };
        let known_there = self.elements.take();
        let all = known_there.is_none();
        let mut there = known_there.unwrap_or_default();
        if all {
            for family in tunnels.devices.families() {
                let elements = tables.elements(TableFamily::Inet, name, nodes(family)).await?;
                there.extend(elements.into_iter().map(|element| element.addr));
            }
        }
        let Moves { add, delete, missing } = self.shared.known().moves(&there, all, &tunnels.devices);
        for family in tunnels.devices.families() {
            let of = |addrs: &[IpAddr]| -> Vec<IpAddr> {
                addrs.iter().filter(|it| Family::of(**it) == family).copied().collect()
            };
            tables.change_elements(name, nodes(family), &of(&add), &of(&delete)).await?;
        }
        if !add.is_empty() || !delete.is_empty() {
            debug!(added = add.len(), removed = delete.len(), "underlay addresses of nodes changed");
        }
        there.extend(add);
        for addr in &delete {
            there.remove(addr);
        }
        self.elements = Some(there);
        Ok(missing)
    }

    async fn read_counters(&mut self, tunnels: &Tunnels, now: Instant) {
        let mode = self.status.borrow().in_force.unwrap_or_default();
        let Some((tables, _)) = &mut self.kernel else { return };
        if mode == Mode::Off {
            return;
        }
        let name = table_name(tunnels.vni);
        let (mut outside, mut inside) = (Vec::new(), Vec::new());
        for family in Family::ALL {
            for (table, set, into) in [
                (TableFamily::Inet, strangers(family), &mut outside),
                (TableFamily::Netdev, strays(family), &mut inside),
            ] {
                match tables.elements(table, &name, set).await {
                    Ok(elements) => into.extend(elements),
                    Err(error) => return debug!(%error, set, "counters can't be read"),
                }
            }
        }
        // A source that has a lease by now sent its packets before the lease was known.
        self.shared.known().retain_unpublished(&mut outside);
        let report = self.sightings.read(&outside, &inside, tunnels, mode, now);
        if let Some(report) = report.news {
            self.events.send(NetworkEvent::StrangersSeen { report });
        }
        self.status.send_if_modified(|status| {
            let changed = status.strangers != report.lines;
            status.strangers = report.lines;
            changed
        });
    }

    fn set_in_force(&self, mode: Mode) {
        self.status.send_if_modified(|status| {
            let changed = status.in_force != Some(mode);
            if changed && mode != Mode::Off {
                self.events.send(NetworkEvent::GateInForce { mode });
            }
            status.in_force = Some(mode);
            changed
        });
    }

    fn set_problem(&self, problem: Option<String>) {
        if self.kernel.is_none() || self.status.borrow().problem == problem {
            return;
        }
        self.events.send(match problem.clone() {
            Some(reason) => NetworkEvent::GateNotReady { reason },
            None => NetworkEvent::GateReady,
        });
        self.status.send_modify(|status| status.problem = problem);
    }
}
