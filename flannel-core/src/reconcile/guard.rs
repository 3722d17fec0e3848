//! The gate of the tunnels: the loop tells it what it knows, lets peers in before it puts their routes, and shows how
//! it is.

use std::future::pending;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Driver, Reconciler};
use crate::firewall::gate::{Desk, Gate, GateStatus};
use crate::lease::LeaseChange;
use crate::status::{Harm, Problem, Subject};

/// The gate and the loop's side of it.
pub(super) struct Guard {
    desk: Desk,
    /// Until the loop runs.
    gate: Option<Gate>,
    status: watch::Receiver<GateStatus>,
}

/// Ends the gate's task with the loop, however that ends. What it put stays.
pub(super) struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Guard {
    pub(super) fn new((gate, desk): (Gate, Desk)) -> Self {
        Self { status: desk.status(), desk, gate: Some(gate) }
    }

    /// Starts the gate's task.
    pub(super) fn start(&mut self, cancel: &CancellationToken) -> Option<Running> {
        let gate = self.gate.take()?;
        Some(Running(tokio::spawn(gate.run(cancel.clone()))))
    }

    /// What an operator should know. It costs no packet of an honest node.
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
        // It ended with the loop that is about to end, too.
        pending::<()>().await;
    }
}

impl<D: Driver> Reconciler<D> {
    /// Tells which leases changed. That of this node is not among them.
    pub(super) fn tell_guard(&self, changes: &[LeaseChange]) {
        let Some(guard) = &self.guard else { return };
        let has_unknown = !self.leases.unknown().is_empty() || !self.peers.unknown().is_empty();
        guard.desk.leases(changes, self.leases.is_synced(), has_unknown);
    }

    /// Tells which devices there are, and lets in who is to be programmed.
    pub(super) async fn open_gate(&mut self) {
        let tunnels = self.guard.as_ref().and_then(|_| self.driver.tunnels());
        let Some(guard) = &mut self.guard else { return };
        guard.desk.tunnels(tunnels);
        if guard.gate.is_none() {
            guard.desk.admitted().await;
        }
    }
}
