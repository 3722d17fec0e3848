//! What happened to what an agent remembers over restarts, as values, and the log lines of it.

use serde::Serialize;
use tracing::{info, warn};

use super::{Event, EventSender};
use crate::addr::Family;
use crate::lease::LeaseKey;
use crate::state_file::age;
use crate::times::unix_instant;

/// Sends the events of an agent's memory.
pub type MemoryEventSender = EventSender<MemoryEvent>;

/// Something that happened to the state file, or to a start from it while the store is unavailable.
///
/// It is serialized with its name in `event`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MemoryEvent {
    /// The reader was too slow and missed this many events.
    LeftOut {
        /// How many.
        events: u64,
    },
    /// The state file can't be written; it is tried again. Until then the next start would not know what is ours.
    StateFileRefused {
        /// Why.
        reason: String,
    },
    /// The state file can be written again.
    StateFileBack,
    /// The store does not answer, so the agent starts from what an earlier run stored.
    StartedFromMemory {
        /// The stored lease of this node.
        lease: LeaseKey,
        /// How many leases of other nodes were stored.
        peers: usize,
        /// When all of it was stored, in seconds since 1970; 0 if the file does not say.
        #[serde(serialize_with = "unix_instant")]
        stored: u64,
        /// Why the store does not answer.
        reason: String,
    },
    /// The store is back, and this node has the lease that was stored.
    LeaseConfirmed {
        /// The lease.
        lease: LeaseKey,
    },
    /// The store is back, and a lease of another node has this node's backend data. This node takes other data.
    BackendDataTaken {
        /// The lease of this node.
        lease: LeaseKey,
        /// The lease of the other node.
        other: String,
        /// The family of the data.
        family: Family,
    },
    /// The store answers, but can't confirm the stored config and lease. It is asked again.
    NotConfirmed {
        /// Why.
        reason: String,
    },
    /// The stored lease turned out to be another node's, so the agent waits for the store.
    StoredLeaseForeign {
        /// The addresses that the stored lease publishes.
        stored: String,
        /// The addresses of this node.
        here: String,
    },
}

impl Event for MemoryEvent {
    fn left_out(events: u64) -> Self {
        Self::LeftOut { events }
    }

    fn log(&self) {
        match self {
            Self::StateFileRefused { reason } => warn!(
                error = reason,
                "state file not written, so the next start would not know what is ours; trying again"
            ),
            Self::StateFileBack => info!("state file is written again"),
            Self::StartedFromMemory { lease, peers, stored, reason } => warn!(
                error = reason,
                known = age(*stored),
                peers,
                subnet = %lease,
                "the store does not answer; starting from what an earlier run stored"
            ),
            Self::LeaseConfirmed { lease } => {
                info!(subnet = %lease, "the store is back and confirms the lease of this node");
            }
            Self::BackendDataTaken { lease, other, family } => warn!(
                subnet = %lease,
                lease = other,
                %family,
                "the store is back, and another node's lease has this node's backend data"
            ),
            Self::NotConfirmed { reason } => {
                warn!(error = reason, "waiting for the store to confirm the stored config and lease");
            }
            Self::StoredLeaseForeign { stored, here } => {
                warn!(stored, here, "the stored lease is another node's; waiting for the store");
            }
            // For readers who were too slow.
            Self::LeftOut { .. } => {}
        }
    }
}
