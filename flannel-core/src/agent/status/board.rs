//! Collects the status of the agent's parts for its readers.

use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::{AgentStatus, Phase};
use crate::agent::event::AgentEvent;
use crate::agent::firewall::FirewallOptions;
use crate::agent::journal::Journal;
use crate::agent::node::Node;
use crate::backend::NetworkStatus;
use crate::events::{Event, EventSender, Timed};
use crate::firewall::{FirewallInspector, FirewallStatus};
use crate::heartbeat::Pulse;
use crate::inspect::Inspector;
use crate::lease::LeaseAttrs;
use crate::probe::ProbeStatus;
use crate::subnet::StoreStatus;

/// The status of one agent, combined from that of its parts.
#[derive(Debug)]
pub(in crate::agent) struct Board {
    status: watch::Sender<Arc<AgentStatus>>,
    sources: Mutex<Sources>,
    /// Notified when a source is added.
    added: Notify,
    /// What events said last.
    told: Mutex<Told>,
    /// Asks the loop of the network whether it turns.
    pulse: Mutex<Option<Pulse>>,
    inspectors: Mutex<Inspectors>,
    /// The events.
    pub(in crate::agent) journal: Journal,
}

/// What events said last.
#[derive(Debug, Default)]
struct Told {
    /// Whether pods can be started.
    ready: bool,
    /// Since when the store can't be reached.
    away: Option<Instant>,
}

/// What answers questions about the running parts.
#[derive(Debug, Clone, Default)]
pub(in crate::agent) struct Inspectors {
    /// `None` before the network runs, and for a backend that can't be inspected.
    pub(in crate::agent) network: Option<Inspector>,
    pub(in crate::agent) firewall: Option<FirewallInspector>,
}

/// The status receivers of the parts.
#[derive(Debug, Clone, Default)]
struct Sources {
    store: Option<watch::Receiver<StoreStatus>>,
    network: Option<watch::Receiver<NetworkStatus>>,
    firewall: Option<watch::Receiver<FirewallStatus>>,
    probes: Option<watch::Receiver<ProbeStatus>>,
}

impl Board {
    /// The board of a new agent.
    pub(in crate::agent) fn new(asked: FirewallOptions, remarks: Vec<String>) -> Self {
        let status = AgentStatus { remarks, ..AgentStatus::new(asked) };
        Self {
            status: watch::Sender::new(Arc::new(status)),
            sources: Mutex::default(),
            added: Notify::new(),
            told: Mutex::default(),
            pulse: Mutex::default(),
            inspectors: Mutex::default(),
            journal: Journal::new(),
        }
    }

    pub(in crate::agent) fn subscribe(&self) -> watch::Receiver<Arc<AgentStatus>> {
        self.status.subscribe()
    }

    pub(in crate::agent) fn emit(&self, event: AgentEvent) {
        self.journal.emit(event);
    }

    /// Tells an event of a part of the agent.
    pub(in crate::agent) fn forward(&self, event: Timed<impl Into<AgentEvent>>) {
        self.journal.forward(event);
    }

    /// A sender for a part of the agent, whose events are told at once.
    pub(in crate::agent) fn sender<E: Event + Into<AgentEvent>>(self: &Arc<Self>) -> EventSender<E> {
        let board = Arc::clone(self);
        EventSender::forwarding(move |event| board.forward(event))
    }

    /// Enters a phase. A lost lease stays lost, whatever else goes on, until the agent stops.
    pub(in crate::agent) fn enter(&self, phase: Phase) {
        self.change(|status| {
            let keeps = matches!(status.phase, Phase::LeaseLost { .. }) && !phase.is_over();
            status.was_up |= phase == Phase::Running;
            if !keeps && status.phase != phase {
                status.phase = phase;
            }
        });
    }

    /// Shows that the agent has ended, and why if it was not told to, and ends the events.
    pub(in crate::agent) fn end(&self, error: Option<String>) {
        self.enter(Phase::Ended { error: error.clone() });
        self.change(|status| {
            (status.store, status.network, status.firewall, status.probes) = (None, None, None, None);
        });
        self.emit(AgentEvent::Ended { error });
        self.journal.close();
    }

    /// Shows what the agent waits for before it is up.
    pub(in crate::agent) fn starting(&self, waiting_for: impl Into<String>) {
        self.enter(Phase::Starting { waiting_for: waiting_for.into() });
    }

    /// Sets this node's place in the network.
    pub(in crate::agent) fn set_node(&self, node: Node) {
        self.change(|status| status.node = Some(node));
    }

    /// Shows what this node publishes now.
    pub(in crate::agent) fn set_published(&self, attrs: LeaseAttrs) {
        self.change(|status| {
            if let Some(node) = &mut status.node {
                node.lease.attrs = attrs;
            }
        });
    }

    /// Adds remarks from the start, which are shown while the agent is ready.
    pub(in crate::agent) fn remark(&self, remarks: Vec<String>) {
        self.change(|status| status.remarks.splice(0..0, remarks).for_each(drop));
    }

    /// Shows the status of the store from now on.
    pub(in crate::agent) fn watch_store(&self, mut status: watch::Receiver<StoreStatus>) {
        status.mark_changed();
        self.watch(|sources| sources.store = Some(status));
    }

    /// Shows the status of the network from now on.
    pub(in crate::agent) fn watch_network(&self, mut status: watch::Receiver<NetworkStatus>) {
        status.mark_changed();
        self.watch(|sources| sources.network = Some(status));
    }

    /// Asks the loop of the network from now on whether it turns.
    pub(in crate::agent) fn watch_loop(&self, pulse: Option<Pulse>) {
        *self.pulse.lock().unwrap_or_else(PoisonError::into_inner) = pulse;
    }

    /// Asks the loop of the network, if it runs.
    pub(in crate::agent) fn pulse(&self) -> Option<Pulse> {
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shows the status of the firewall rules from now on.
    pub(in crate::agent) fn watch_firewall(&self, mut status: watch::Receiver<FirewallStatus>) {
        status.mark_changed();
        self.watch(|sources| sources.firewall = Some(status));
    }

    /// Sets what answers questions about the running parts.
    pub(in crate::agent) fn change_inspectors(&self, change: impl FnOnce(&mut Inspectors)) {
        change(&mut self.inspectors.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What answers questions about the running parts.
    pub(in crate::agent) fn inspectors(&self) -> Inspectors {
        self.inspectors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets which store it is.
    pub(in crate::agent) fn set_store_place(&self, place: String) {
        self.change(|status| status.store_place = Some(place));
    }

    /// Shows what probes find out from now on.
    pub(in crate::agent) fn watch_probes(&self, mut status: watch::Receiver<ProbeStatus>) {
        status.mark_changed();
        self.watch(|sources| sources.probes = Some(status));
    }

    /// Brings the status up to date for as long as it is polled.
    pub(in crate::agent) async fn follow(&self) -> Infallible {
        let mut sources = self.sources().clone();
        loop {
            self.refresh(&mut sources);
            let deadline = self.status.borrow().deadline(Instant::now());
            let due = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = changed(sources.store.as_mut()) => {}
                () = changed(sources.network.as_mut()) => {}
                () = changed(sources.firewall.as_mut()) => {}
                () = changed(sources.probes.as_mut()) => {}
                () = self.added.notified() => sources = self.sources().clone(),
                // The status is the same, but its readiness has changed with time, so readers are notified.
                () = due => self.change(|_| {}),
            }
        }
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, add: impl FnOnce(&mut Sources)) {
        let mut sources = {
            let mut sources = self.sources();
            add(&mut sources);
            sources.clone()
        };
        self.refresh(&mut sources);
        self.added.notify_one();
    }

    /// Copies the present status of the parts.
    fn refresh(&self, sources: &mut Sources) {
        let store = news(sources.store.as_mut());
        let network = news(sources.network.as_mut());
        let firewall = news(sources.firewall.as_mut());
        let probes = news(sources.probes.as_mut());
        if let Some(store) = &store {
            self.tell_contact(store);
            self.tell_renewal(store);
        }
        if store.is_some() || network.is_some() || firewall.is_some() || probes.is_some() {
            self.change(|status| {
                status.store = store.or(status.store.take());
                status.network = network.or(status.network.take());
                let published = status.network.as_ref().and_then(|network| network.backends.first());
                if let (Some(node), Some(published)) = (&mut status.node, published) {
                    node.backend.clone_from(published);
                }
                status.firewall = firewall.or(status.firewall.take());
                status.probes = probes.or(status.probes.take());
            });
        }
    }

    /// Changes the status, and emits events if readiness changed.
    fn change(&self, change: impl FnOnce(&mut AgentStatus)) {
        self.status.send_modify(|status| change(Arc::make_mut(status)));
        let readiness = self.status.borrow().readiness();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.ready != readiness.is_ready() {
            told.ready = readiness.is_ready();
            let reasons: Vec<_> = readiness.reasons.into_iter().map(|reason| reason.text).collect();
            self.emit(if told.ready { AgentEvent::Ready } else { AgentEvent::NotReady { reasons } });
        }
    }

    /// Emits an event that the lease was renewed. Its first term came with the lease itself.
    fn tell_renewal(&self, now: &StoreStatus) {
        let shown = self.status.borrow();
        let before = shown.store.as_ref().and_then(|store| store.lease_term);
        let (Some(before), Some(now), Some(node)) = (before, now.lease_term, &shown.node) else { return };
        if now.renewed > before.renewed {
            let lease = node.lease.key.to_string();
            self.emit(AgentEvent::LeaseRenewed { lease, expires: now.expires });
        }
    }

    /// Emits an event if the store became unavailable or available. Before the first contact there is none.
    fn tell_contact(&self, now: &StoreStatus) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if now.connected {
            if let Some(since) = told.away.take() {
                self.emit(AgentEvent::StoreBack { away: now.since.saturating_duration_since(since) });
            }
        } else if told.away.is_none() && self.status.borrow().store.as_ref().is_some_and(|it| it.connected) {
            told.away = Some(now.since);
            self.emit(AgentEvent::StoreLost { problem: now.problem.clone() });
        }
    }
}

/// The status of a part, if it is new. It is not compared with the last one, since there may be many peers in it.
fn news<T: Clone>(source: Option<&mut watch::Receiver<T>>) -> Option<T> {
    let source = source?;
    // After the end of a part its last value still counts.
    let is_new = source.has_changed().unwrap_or(true);
    is_new.then(|| source.borrow_and_update().clone())
}

/// Waits for a new status of a part, without taking it. If the part has ended, it waits for ever; others handle that
/// end.
async fn changed<T>(source: Option<&mut watch::Receiver<T>>) {
    let Some(source) = source else { return pending().await };
    match source.changed().await {
        Ok(()) => source.mark_changed(),
        Err(_) => pending().await,
    }
}
