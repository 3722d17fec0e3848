//! The gate of the tunnels. The loop tells it which leases and devices there are, admits peers before it puts their
//! routes, and shows the gate's state.

use std::future::pending;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Driver, Reconciler};
use crate::events::NetworkEventSender;
use crate::firewall::gate::{Desk, Gate, GateCounters, GateStatus, Mode};
use crate::lease::LeaseChange;
use crate::status::{Harm, Problem, Subject};

/// The gate and the loop's side of it.
pub(super) struct Guard {
    desk: Desk,
    /// `None` once its task has started.
    gate: Option<Gate>,
    running: Option<Running>,
    status: watch::Receiver<GateStatus>,
}

/// Ends the gate's task with the loop, however that ends, or with the tunnels. The gate's tables stay.
struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Guard {
    pub(super) fn new((gate, desk): (Gate, Desk)) -> Self {
        Self { status: desk.status(), desk, gate: Some(gate), running: None }
    }

    /// Starts the gate's task, unless it runs.
    pub(super) fn start(&mut self, events: &NetworkEventSender, cancel: &CancellationToken) {
        if let Some(gate) = self.gate.take() {
            self.running = Some(Running(tokio::spawn(gate.run(events.clone(), cancel.clone()))));
        }
    }

    /// Whether the gate keeps tables in the kernel.
    pub(super) fn keeps_tables(&self) -> bool {
        self.status.borrow().in_force.is_some_and(|mode| mode != Mode::Off)
    }

    /// Reads what the gate has counted.
    pub(super) fn counters(&self) -> GateCounters {
        self.desk.counters()
    }

    /// The gate's problems. None of them costs a packet of an honest node.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let status = self.status.borrow();
        let texts = status.problem.iter().chain(&status.strangers);
        texts.map(|text| Problem::new(Subject::Strangers, Harm::None, text.clone())).collect()
    }
}

/// Waits until the gate has something new to show.
pub(super) async fn news(guard: &mut Option<Guard>) {
    let changed = match guard {
        Some(guard) => guard.status.changed().await,
        None => pending().await,
    };
    if changed.is_err() {
        // The gate's task has ended because the loop is about to end.
        pending::<()>().await;
    }
}

impl<D: Driver> Reconciler<D> {
    /// Tells the gate which leases of other nodes changed.
    pub(super) fn tell_guard(&self, changes: &[LeaseChange]) {
        let Some(guard) = &self.guard else { return };
        let has_unknown = !self.leases.unknown().is_empty() || !self.peers.unknown().is_empty();
        guard.desk.leases(changes, self.leases.is_synced(), has_unknown);
    }

    /// Tells the gate which devices there are, and waits until it admits the peers that are to be programmed.
    pub(super) async fn open_gate(&mut self) {
        let tunnels = self.guard.as_ref().and_then(|_| self.driver.tunnels());
        let Some(guard) = &mut self.guard else { return };
        guard.desk.tunnels(tunnels);
        if guard.gate.is_none() {
            guard.desk.admitted().await;
        }
    }
}
