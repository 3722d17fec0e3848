//! Why an agent can't start or go on.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinError;

use crate::backend::BackendError;
use crate::firewall::FirewallError;
use crate::kernel::KernelError;
use crate::subnet::SubnetError;
use crate::underlay::UnderlayError;

/// How long the datapath of a lost lease is kept, so that an operator can see what happened while pods
/// still have their traffic.
pub(super) const LOST_LEASE_GRACE: Duration = Duration::from_secs(60);

/// The agent could not start, or ended by itself. Clones are the same error.
#[derive(Debug, Clone)]
pub struct AgentError(Arc<Failure>);

impl AgentError {
    /// What went wrong.
    pub fn failure(&self) -> &Failure {
        &self.0
    }
}

impl From<Failure> for AgentError {
    fn from(failure: Failure) -> Self {
        Self(Arc::new(failure))
    }
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for AgentError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// What ends an agent, or keeps it from starting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// There is no tokio runtime with I/O and time around the call.
    #[error("an agent runs in a tokio runtime, and this is none; call `start` inside of one")]
    NoRuntime,
    /// The kernel can't be spoken to.
    #[error("can't speak to the kernel")]
    Kernel(#[from] KernelError),
    /// The store refused something for good.
    #[error(transparent)]
    Store(#[from] SubnetError),
    /// No underlay.
    #[error(transparent)]
    Underlay(#[from] UnderlayError),
    /// No underlay with the addresses that the store wants published.
    #[error("the addresses of {by} can't be used")]
    WantedUnderlay {
        /// What says them there.
        by: String,
        /// Why not.
        source: UnderlayError,
    },
    /// The backend that the network config names is not one of the agent's.
    #[error("config key Backend.Type can't be used")]
    UnknownBackend(#[from] UnknownBackend),
    /// There is no way to write firewall rules that were required.
    #[error("firewall rules for {} can't be written", if *.masquerade { "masquerading" } else { "forwarding" })]
    Firewall {
        /// Whether masquerading was asked for.
        masquerade: bool,
        /// Why.
        source: FirewallError,
    },
    /// The backend can't start or go on.
    #[error("backend {kind} failed")]
    Backend {
        /// Which one.
        kind: String,
        /// Why.
        source: BackendError,
    },
    /// The network ended by itself, which it never should.
    #[error("the network ended by itself")]
    NetworkEnded,
    /// A bug.
    #[error("a task of the agent crashed; please report this")]
    Crashed(#[source] JoinError),
    /// The runtime that the agent ran on was shut down.
    #[error("the runtime of the agent was shut down")]
    Aborted,
    /// The agent was told to stop before it was ready.
    #[error("the agent was stopped before it was ready")]
    Stopped,
    /// Another node has our subnets. The datapath was kept for a minute since.
    #[error("the lease was lost {} s ago", LOST_LEASE_GRACE.as_secs())]
    LeaseLost(#[source] SubnetError),
}

/// A backend that the agent was not given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("backend {kind:?} is unknown; this agent has: {}", known.join(", "))]
#[non_exhaustive]
pub struct UnknownBackend {
    /// What the network config says.
    pub kind: String,
    /// The kinds that the agent has.
    pub known: Vec<String>,
}
