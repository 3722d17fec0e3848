//! Looks into a running network: what differs between desired and observed state, and which kernel objects a peer has.
//!
//! The reconcile loop answers ([`Network::inspector`](crate::backend::Network::inspector)), so the plan that it returns is
//! the one that it would carry out. Nothing is changed.

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::kernel::KernelError;
use crate::lease::LeaseKey;

/// How many questions can wait for the loop.
const ROOM: usize = 16;

/// Asks a running network. A clone asks the same network.
#[derive(Debug, Clone)]
pub struct Inspector(mpsc::Sender<Question>);

/// What the loop is asked.
#[derive(Debug)]
pub(crate) enum Question {
    /// What differs between desired and observed state.
    Differences(oneshot::Sender<Result<Differences, KernelError>>),
    /// The objects of a peer.
    Peer(LeaseKey, oneshot::Sender<Vec<PeerObject>>),
    /// A command that the backend may know.
    Command(String, oneshot::Sender<Result<String, CommandError>>),
}

/// Why a backend does not carry out a command ([`Inspector::command`]).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The backend has no such command.
    #[error("the backend of this network has no such command")]
    Unknown,
    /// It tried, and failed.
    #[error("{0}")]
    Failed(String),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// The network does not run yet, or has ended.
    #[error("the network does not run")]
    NotRunning,
    /// The backend does not use the reconcile loop.
    #[error("this backend can't be inspected: it does not use the reconcile loop")]
    NoLoop,
    /// The kernel can't be read.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The backend does not carry out a command.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// What differs between desired and observed state, as the agent would repair it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Differences {
    /// The differences in the order in which they are repaired.
    pub differences: Vec<Difference>,
    /// What could not be compared or made right, with the reasons: without differences there may still be some.
    pub problems: Vec<String>,
    /// What stays as it is, with the reasons.
    pub notes: Vec<String>,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// What is wrong.
    pub kind: DifferenceKind,
    /// Shell commands that end it. They do the same as the agent.
    pub commands: Vec<String>,
    /// Why the agent does not do that now; `None` if it is about to. Something surplus that is held must not be deleted by
    /// hand either, unless the reason is known to be wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
}

/// What is wrong with an object, a device or a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DifferenceKind {
    /// It does not exist.
    Missing,
    /// It is not as it should be.
    Different,
    /// It is ours, and should not exist.
    Surplus,
    /// A firewall rule is missing, different or surplus.
    Rule,
}

impl Difference {
    /// A difference that the agent is about to end.
    pub fn new(kind: DifferenceKind, commands: Vec<String>) -> Self {
        Self { kind, commands, held: None }
    }
}

/// A kernel object that a peer needs, or its entry in a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PeerObject {
    /// The shell command that shows it.
    pub command: String,
    /// Whether the kernel has it as it should be, as far as the loop knows.
    pub present: bool,
}

impl PeerObject {
    /// An object that this shell command shows.
    pub fn new(command: impl Into<String>, present: bool) -> Self {
        Self { command: command.into(), present }
    }
}

impl Inspector {
    /// An inspector, and the other end, where the loop receives the questions.
    pub(crate) fn channel() -> (Self, mpsc::Receiver<Question>) {
        let (sender, receiver) = mpsc::channel(ROOM);
        (Self(sender), receiver)
    }

    /// Compares the desired state with what the kernel has now, without changing anything. It reads all objects of ours,
    /// which takes milliseconds for a thousand peers. If there are differences, the loop repairs them right after this
    /// answer, as after a resync.
    pub async fn differences(&self) -> Result<Differences, InspectError> {
        Ok(self.ask(Question::Differences).await??)
    }

    /// The objects of a peer, in build-up order. There are none if the peer is not programmed, or if its backend needs no
    /// objects.
    pub async fn peer(&self, lease: LeaseKey) -> Result<Vec<PeerObject>, InspectError> {
        self.ask(|answer| Question::Peer(lease, answer)).await
    }

    /// Tells the backend to do what only backends of its kind can, such as `rotate-key`
    /// ([`Driver::carry_out`](crate::reconcile::Driver::carry_out)). Returns what it does, in words.
    pub async fn command(&self, name: impl Into<String>) -> Result<String, InspectError> {
        let name = name.into();
        Ok(self.ask(|answer| Question::Command(name, answer)).await??)
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, InspectError> {
        let (sender, answer) = oneshot::channel();
        self.0.send(question(sender)).await.map_err(|_| InspectError::NotRunning)?;
        answer.await.map_err(|_| InspectError::NotRunning)
    }
}
