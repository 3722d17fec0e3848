//! A running agent, as its owner sees it.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::error::{AgentError, Failure};
use super::event::TimedEvent;
use super::journal::AgentEvents;
use super::leave::{self, LeaveError, LeavePlan};
use super::life;
use super::node::Node;
use super::setup::Setup;
use super::status::{AgentStatus, Board, Inspectors};
use crate::error::chain;
use crate::firewall::Step;
use crate::heartbeat::{self, Pulse};
use crate::inspect::{Difference, DifferenceKind, Differences, InspectError, Inspector, PeerObject};
use crate::kernel::{Kernel, KernelError};
use crate::lease::LeaseKey;
use crate::netns::Netns;

/// How an agent ended; `None` while it runs.
type End = Option<Result<(), AgentError>>;

/// A running agent. Dropping it tells the agent to stop, and does not wait for that.
pub struct Agent {
    setup: Arc<Setup>,
    board: Arc<Board>,
    shutdown: CancellationToken,
    end: watch::Receiver<End>,
    pulse: Pulse,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").field("setup", &self.setup).finish_non_exhaustive()
    }
}

impl Agent {
    /// Starts the task.
    pub(super) fn spawn(setup: Arc<Setup>, netns: Netns, kernel: Box<dyn Kernel>) -> Self {
        let board = Arc::new(Board::new(setup.firewall, setup.remarks.clone()));
        board.set_store_place(setup.store.place());
        let (shutdown, (ends, end)) = (CancellationToken::new(), watch::channel(None));
        let life = life::live(Arc::clone(&setup), netns, kernel, Arc::clone(&board), shutdown.clone());
        let (pulse, heart) = heartbeat::pair();
        let life = async move {
            tokio::select! {
                biased;
                ended = life => ended,
                never = heart.beat_always() => match never {},
            }
        };
        let (task, shown) = (tokio::spawn(life), Arc::clone(&board));
        tokio::spawn(async move {
            let result = match task.await {
                Ok(result) => result,
                Err(crash) if crash.is_panic() => Err(Failure::Crashed(crash)),
                Err(_) => Err(Failure::Aborted),
            };
            let result = result.map_err(AgentError::from);
            shown.end(result.as_ref().err().map(|error| chain(error)));
            ends.send_replace(Some(result));
        });
        Self { setup, board, shutdown, end, pulse }
    }

    /// Waits until pods can start: the network runs, masquerading is in place if it was asked for, and the subnet file
    /// is written if there is one. [`Self::status`] says whether the other nodes are programmed already.
    ///
    /// It fails if the agent ends before. The agent retries temporary failures without a limit.
    pub async fn ready(&self) -> Result<Node, AgentError> {
        let mut status = self.status();
        let up = async {
            // It has a lease when it is up, and the sender is held by `self`.
            status.wait_for(|status| status.was_up && status.node.is_some()).await.ok()?.node.clone()
        };
        tokio::select! {
            biased;
            ended = self.ended() => Err(ended.err().unwrap_or_else(|| Failure::Stopped.into())),
            Some(node) = up => Ok(node),
        }
    }

    /// Waits until the agent has ended: by [`Self::stop`], or by itself, which is an error.
    pub async fn ended(&self) -> Result<(), AgentError> {
        let mut end = self.end.clone();
        let ended = end.wait_for(Option::is_some).await.map(|end| end.clone());
        ended.ok().flatten().unwrap_or_else(|| Err(Failure::Aborted.into()))
    }

    /// The status of the agent, now and from now on. Each change replaces the whole value; reading it copies nothing.
    pub fn status(&self) -> watch::Receiver<Arc<AgentStatus>> {
        self.board.subscribe()
    }

    /// The events of the agent, for every caller from the start, or from the oldest that is still kept. A reader that is
    /// too slow or begins too late learns how many it missed.
    pub fn events(&self) -> AgentEvents {
        self.board.journal.events_after(0)
    }

    /// The events with numbers ([`TimedEvent::seq`]) above `seq`: those that are still kept, and then what comes. So who
    /// continues from the last of [`Self::recent_events`] misses none and reads none twice.
    pub fn events_after(&self, seq: u64) -> AgentEvents {
        self.board.journal.events_after(seq)
    }

    /// The last events, the oldest first: [`KEPT_EVENTS`](super::KEPT_EVENTS) of them, or fewer if they have more than
    /// [`KEPT_BYTES`](super::KEPT_BYTES) as JSON. They stay after the agent has ended.
    pub fn recent_events(&self) -> Vec<Arc<TimedEvent>> {
        self.board.journal.recent()
    }

    /// Asks the agent's loops for a sign of life, and waits for it: the loop of the agent itself, and the one that keeps
    /// the kernel in the desired state, once it runs. It returns at once if the agent has ended, and never if a loop
    /// hangs, so the caller sets a deadline, and then restarts the process: kernel state stays, and the next start adopts
    /// it.
    pub async fn heartbeat(&self) {
        self.pulse.check().await;
        if let Some(network) = self.board.pulse() {
            network.check().await;
        }
    }

    /// Compares desired and observed state, in the kernel and in the firewall rules, without changing anything: what differs,
    /// as commands that do what the agent would do. What it finds is repaired right after that, unless something is in the
    /// way.
    ///
    /// It fails before the network runs, and for a backend that does not use the reconcile loop.
    pub async fn differences(&self) -> Result<Differences, InspectError> {
        let Inspectors { network, firewall } = self.board.inspectors();
        let mut found = self.known(network)?.differences().await?;
        match firewall {
            Some(firewall) => match firewall.plan().await {
                Some(Ok(plan)) => {
                    let steps = plan.steps.into_iter().filter(|step| !step.commands.is_empty());
                    let rule = |step: Step| Difference::new(DifferenceKind::Rule, step.commands);
                    found.differences.extend(steps.map(rule));
                    found.notes.extend(plan.notes);
                }
                Some(Err(error)) => {
                    found.problems.push(format!("the firewall rules can't be compared: {}", chain(&error)));
                }
                None => {}
            },
            None => found.notes.push("the firewall rules are not compared: none are kept yet".to_owned()),
        }
        Ok(found)
    }

    /// The kernel objects of a peer, with the commands that show them.
    ///
    /// It fails before the network runs, and for a backend that does not use the reconcile loop.
    pub async fn peer_objects(&self, lease: LeaseKey) -> Result<Vec<PeerObject>, InspectError> {
        self.known(self.board.inspectors().network)?.peer(lease).await
    }

    /// Tells the backend to do what only backends of its kind can: `rotate-key` of wireguard changes this node's key. Returns
    /// what it does, in words; the status shows how far it is.
    ///
    /// It fails before the network runs, and if the backend does not know the command or can't carry it out.
    pub async fn command(&self, name: impl Into<String>) -> Result<String, InspectError> {
        self.known(self.board.inspectors().network)?.command(name).await
    }

    fn known(&self, network: Option<Inspector>) -> Result<Inspector, InspectError> {
        let runs = self.board.subscribe().borrow().network.is_some();
        network.ok_or(if runs { InspectError::NoLoop } else { InspectError::NotRunning })
    }

    /// Stops the agent, within some seconds, and returns how it ended. Kernel state, rules, files and lease stay, so
    /// pods keep their traffic, and the next start adopts all of it.
    pub async fn stop(&self) -> Result<(), AgentError> {
        self.shutdown.cancel();
        self.ended().await
    }

    /// Stops the agent and takes this node out of the network: its lease is released, and devices, routes, rules and
    /// files of the agent are removed. Pods lose their traffic. What can't be proven to be ours stays.
    pub async fn leave(&self) -> Result<(), LeaveError> {
        // Its result does not matter: it runs no more.
        let _ = self.stop().await;
        let failures = self.plan_leave().await?.carry_out().await?;
        if failures.is_empty() { Ok(()) } else { Err(LeaveError::Incomplete(failures)) }
    }

    /// What [`Self::leave`] would do now. The agent keeps running.
    pub async fn plan_leave(&self) -> Result<LeavePlan, KernelError> {
        let node = self.board.subscribe().borrow().node.clone();
        leave::plan_for(&self.setup, node.as_ref(), true).await
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
