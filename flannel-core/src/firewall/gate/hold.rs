//! The task that makes the kernel follow: look, change what differs, wait until something may have changed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::build::{Found, Kernel, NEEDS, blind, build, open};
use super::desk::{Desk, Moves, Shared};
use super::strangers::Sightings;
use super::table::{nodes, strangers, strays, table};
use super::{GateOptions, Mode, Tunnels, table_name};
use crate::addr::Family;
use crate::kernel::KernelError;
use crate::netlink::nftables::{Change, Table, TableChange};
use crate::subnet::chain;

/// How often everything is looked at, whatever was announced; jittered.
const AUDIT: Duration = Duration::from_secs(60);
/// How often the counters are read.
const READING: Duration = Duration::from_secs(10);
/// The first and the longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// How a gate is, for the status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GateStatus {
    /// What is done about strangers now; `None` while nothing is known of it.
    pub in_force: Option<Mode>,
    /// Why that may not be as it should be.
    pub problem: Option<String>,
    /// Who was seen that has no business here, bounded in number.
    pub strangers: Vec<String>,
    /// How often somebody else's change was undone.
    pub repairs: u64,
}

/// Keeps the table of one node.
pub struct Gate {
    options: GateOptions,
    shared: Arc<Shared>,
    done: watch::Sender<u64>,
    status: watch::Sender<GateStatus>,
    /// `None` where the kernel has nothing of the kind.
    kernel: Option<Kernel>,
    /// What the sets for nodes have; `None` if they have to be read.
    elements: Option<BTreeSet<IpAddr>>,
    /// Chains, sets and rules as they were put; `None` if they have to be read.
    built: Option<Table>,
    /// What was put last, however it is now.
    last: Option<Table>,
    /// Whether what nobody publishes may go.
    prunes: bool,
    sightings: Sightings,
    failures: u32,
    next_audit: Instant,
    next_reading: Instant,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Gate {
    /// Opens the sockets in the network namespace of the calling thread, and tries whether the kernel has what it
    /// takes. Without that [`Mode::Enforce`] is refused. Any other mode costs nobody an agent: its gate does nothing,
    /// and says so.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time.
    pub async fn open(options: GateOptions) -> Result<(Self, Desk), KernelError> {
        let kernel = open(&options).await;
        Self::with(options, kernel)
    }

    /// The gate on a kernel as it was found.
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
        if let Some(problem) = &problem {
            warn!(problem, "packets from strangers are not observed");
        }
        let (shared, done) = (Arc::<Shared>::default(), watch::Sender::new(0));
        let status = watch::Sender::new(GateStatus { problem, ..GateStatus::default() });
        let desk = Desk {
            mode: options.mode,
            shared: Arc::clone(&shared),
            done: done.subscribe(),
            status: status.subscribe(),
        };
        let now = Instant::now();
        let gate = Self {
            options,
            shared,
            done,
            status,
            kernel,
            elements: None,
            built: None,
            last: None,
            prunes: false,
            sightings: Sightings::default(),
            failures: 0,
            next_audit: now + AUDIT,
            next_reading: now + READING,
        };
        Ok((gate, desk))
    }

    /// Runs until `cancel` fires. The table stays, so that a restart opens no door.
    pub async fn run(mut self, cancel: CancellationToken) {
        while !cancel.is_cancelled() {
            let next = self.look().await;
            tokio::select! {
                () = cancel.cancelled() => return,
                change = self.wait(next) => self.take(change),
            }
        }
    }

    /// Waits until something may have to be done: by `next` at the latest.
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

    fn take(&mut self, change: TableChange) {
        if change.structure {
            self.built = None;
        }
        if change.structure || change.elements {
            self.elements = None;
        }
    }

    /// Makes the kernel have what it should. Returns when to look again at the latest.
    async fn look(&mut self) -> Instant {
        let now = Instant::now();
        if now >= self.next_audit {
            self.next_audit = now + AUDIT.mul_f64(0.9 + 0.2 * fastrand::f64());
            (self.built, self.elements) = (None, None);
        }
        let (number, is_synced, prunes, tunnels) = {
            let known = self.shared.known();
            let prunes = known.is_synced && !known.has_unknown;
            (known.number, known.is_synced, prunes, known.tunnels.clone())
        };
        let Some(tunnels) = tunnels else {
            self.done.send_replace(number);
            return self.next_audit;
        };
        if std::mem::replace(&mut self.prunes, prunes) != prunes {
            self.elements = None;
        }
        match self.converge(&tunnels, is_synced, now).await {
            Ok(()) => {
                self.failures = 0;
                self.done.send_replace(number);
                self.set_problem(None);
                if now >= self.next_reading {
                    self.next_reading = now + READING;
                    self.read_counters(&tunnels, now).await;
                }
                self.next_audit.min(self.next_reading)
            }
            Err(error) => {
                (self.built, self.elements) = (None, None);
                self.set_problem(Some(self.explain(&error)));
                let pause = RETRY.0.saturating_mul(1 << self.failures.min(8)).min(RETRY.1);
                self.failures += 1;
                now + pause.mul_f64(0.75 + fastrand::f64() / 2.0)
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
        let Some((tables, _)) = &mut self.kernel else { return Ok(()) };
        let name = table_name(tunnels.vni);
        let Some(wanted) = table(tunnels, &self.options, self.options.mode) else {
            if self.built.is_none() && tables.read(&name).await?.is_some() {
                tables.transact("remove the table of the underlay gate", &[Change::Delete(&name)]).await?;
                info!(table = name, "underlay gate removed");
            }
            // Nothing, and that is right.
            self.built = Some(Table { name, sets: Vec::new(), chains: Vec::new() });
            self.set_in_force(Mode::Off);
            return Ok(());
        };
        let lax = table(tunnels, &self.options, Mode::Observe).unwrap_or_else(|| wanted.clone());
        // Until the store has listed all nodes nobody is kept out, but by what an earlier run put, and nobody is
        // called a stranger.
        let mut repairs = false;
        let built = match self.built.take() {
            Some(built) if built == wanted || built == lax => built,
            _ => match build(tables, &wanted, &lax, is_synced).await? {
                Found::Nothing => return Ok(()),
                Found::Table(built) => built,
                Found::Made(bare) => {
                    self.elements = None;
                    repairs = self.last.as_ref().is_some_and(|last| *last == wanted || *last == lax);
                    bare
                }
            },
        };
        repairs |= self.follow(&name, tunnels).await? && self.last.is_some();
        let Some((tables, _)) = &mut self.kernel else { return Ok(()) };
        let target = if is_synced || built == wanted { wanted } else { lax.clone() };
        if built != target {
            tables.transact("put the rules of the underlay gate", &[Change::Rules(&target)]).await?;
        }
        self.set_in_force(if target == lax { Mode::Observe } else { Mode::Enforce });
        self.last = Some(target.clone());
        self.built = Some(target);
        if repairs {
            warn!(took_us = since.elapsed().as_micros(), "underlay gate repaired");
            self.status.send_modify(|status| status.repairs += 1);
        }
        Ok(())
    }

    /// Makes the sets for nodes have the addresses that are published. Returns whether one was missing that nobody
    /// withdrew.
    async fn follow(&mut self, name: &str, tunnels: &Tunnels) -> Result<bool, KernelError> {
        let Some((tables, _)) = &mut self.kernel else { return Ok(false) };
        let known_there = self.elements.take();
        let all = known_there.is_none();
        let mut there = known_there.unwrap_or_default();
        if all {
            for family in tunnels.devices.families() {
                let elements = tables.elements(name, nodes(family)).await?;
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
            debug!(added = add.len(), removed = delete.len(), "underlay addresses of nodes");
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
            for (set, into) in [(strangers(family), &mut outside), (strays(family), &mut inside)] {
                match tables.elements(&name, set).await {
                    Ok(elements) => into.extend(elements),
                    Err(error) => return debug!(%error, set, "counters can't be read"),
                }
            }
        }
        // Who has a lease by now came before it was known.
        self.shared.known().retain_unpublished(&mut outside);
        let report = self.sightings.read(&outside, &inside, tunnels, mode, now);
        if let Some(news) = report.news {
            warn!(news, "packets from strangers");
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
                info!(%mode, "underlay gate is in force");
            }
            status.in_force = Some(mode);
            changed
        });
    }

    fn set_problem(&self, problem: Option<String>) {
        if self.kernel.is_none() || self.status.borrow().problem == problem {
            return;
        }
        if let Some(problem) = &problem {
            warn!(problem, "underlay gate not as it should be");
        } else {
            info!("underlay gate is as it should be again");
        }
        self.status.send_modify(|status| status.problem = problem);
    }
}
