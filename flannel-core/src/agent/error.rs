//! Why an agent can't start or go on.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinError;

use crate::backend::{BackendError, why_not};
use crate::firewall::FirewallError;
use crate::kernel::KernelError;
use crate::subnet::SubnetError;
use crate::underlay::UnderlayError;

/// How long the agent keeps the datapath after it lost its lease, so that an operator can react while pods still have
/// their traffic.
pub(super) const LOST_LEASE_GRACE: Duration = Duration::from_secs(60);

/// The agent could not start, or ended by itself. Clones are the same error.
#[derive(Debug, Clone)]
pub struct AgentError(Arc<Failure>);

impl AgentError {
    /// Why the agent failed.
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

/// Why an agent ended, or could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// There is no tokio runtime with I/O and time around the call.
    #[error("an agent runs in a tokio runtime, and this is none; call `start` inside of one")]
    NoRuntime,
    /// The kernel could not be reached by netlink.
    #[error("can't speak to the kernel")]
    Kernel(#[from] KernelError),
    /// The store refused a request, and would refuse it again.
    #[error(transparent)]
    Store(#[from] SubnetError),
    /// There is no usable underlay.
    #[error(transparent)]
    Underlay(#[from] UnderlayError),
    /// There is no underlay with the addresses that the store wants published.
    #[error("the addresses of {by} can't be used")]
    WantedUnderlay {
        /// Where the store says so.
        by: String,
        /// Why not.
        source: UnderlayError,
    },
    /// The backend that the network config names is not one of the agent's.
    #[error("config key Backend.Type can't be used")]
    UnknownBackend(#[from] UnknownBackend),
    /// Required firewall rules can't be written.
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
        /// The kind of the backend.
        kind: String,
        /// Why.
        source: BackendError,
    },
    /// The network ended without an error, which breaks the contract of its backend.
    #[error("the network ended by itself")]
    NetworkEnded,
    /// A task panicked, which is a bug.
    #[error("a task of the agent crashed; please report this")]
    Crashed(#[source] JoinError),
    /// The runtime that the agent ran on was shut down.
    #[error("the runtime of the agent was shut down")]
    Aborted,
    /// The agent was told to stop before it was ready.
    #[error("the agent was stopped before it was ready")]
    Stopped,
    /// Another node has our subnets. The agent kept the datapath for a minute after it noticed.
    #[error("the lease was lost {} s ago", LOST_LEASE_GRACE.as_secs())]
    LeaseLost(#[source] SubnetError),
}

/// The network config names a backend that the agent does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("backend {kind:?} {}; this agent has: {}", what_of(kind), known.join(", "))]
#[non_exhaustive]
pub struct UnknownBackend {
    /// The kind that the network config names.
    pub kind: String,
    /// The kinds that the agent has.
    pub known: Vec<String>,
}

/// What is to be said of a kind that the agent does not have.
fn what_of(kind: &str) -> String {
    let of_upstream = |why| format!("of upstream flannel is not here: {why}");
    why_not(kind).map_or_else(|| "is unknown".to_owned(), of_upstream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_of_upstream_is_refused_with_the_reason_and_the_way_out() {
        for (kind, want) in [
            ("vxlna", "backend \"vxlna\" is unknown; this agent has: vxlan, udp"),
            (
                "gce",
                "backend \"gce\" of upstream flannel is not here: upstream has removed it; take alloc and let",
            ),
        ] {
            let known = ["vxlan", "udp"].map(str::to_owned).to_vec();
            let error = UnknownBackend { kind: kind.to_owned(), known }.to_string();
            assert!(error.starts_with(want) && error.ends_with("; this agent has: vxlan, udp"), "{error}");
        }
    }
}
