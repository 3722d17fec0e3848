//! What a gate has counted, for those who ask: nobody reads it otherwise.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use tokio::sync::watch;
use tracing::debug;

use super::desk::Shared;
use super::reconcile::GateStatus;
use super::{Mode, table_name};
use crate::error::chain;
use crate::kernel::KernelError;
use crate::netlink::nftables::{TableFamily, rule_counters};
use crate::netns::Netns;

/// The packets that a gate's rules have counted, and what became of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GateReading {
    /// What the rules do about packets that don't belong here: they are dropped, or let in.
    pub mode: Mode,
    /// How many there were, by reason.
    pub counted: Vec<GateCount>,
}

impl GateReading {
    /// What a gate in this mode counted: packets from sources without a lease, and those out of the overlay that are not
    /// for this node's subnets.
    pub fn new(mode: Mode, no_lease: u64, not_own_subnet: u64) -> Self {
        let count = |reason, packets| GateCount { reason, packets };
        Self { mode, counted: vec![count("no_lease", no_lease), count("not_own_subnet", not_own_subnet)] }
    }
}

/// The packets that were counted for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GateCount {
    /// `no_lease`: they came to the tunnel from an address that no lease publishes. `not_own_subnet`: they came out of
    /// the overlay, and are neither for this node nor for its subnets.
    pub reason: &'static str,
    /// How many there were since the rules were put. They stay when an agent ends, so this is not since its start.
    pub packets: u64,
}

/// Says what is counted now.
type Read = dyn Fn() -> Option<GateReading> + Send + Sync;

/// A handle that reads the counters of a gate's rules from the kernel, by one dump of each of its two small tables. A clone
/// reads the same counters.
#[derive(Clone, Default)]
pub struct GateCounters(Option<Arc<Read>>);

impl GateCounters {
    /// A handle that calls this function, which must not block for longer than a read of a file in `/proc` takes.
    pub fn new(read: impl Fn() -> Option<GateReading> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(read)))
    }

    /// A handle for the gate with this state in a network namespace.
    pub(super) fn of(netns: &Netns, shared: &Arc<Shared>, status: &watch::Sender<GateStatus>) -> Self {
        let (netns, shared, status) = (netns.clone(), Arc::clone(shared), status.subscribe());
        Self::new(move || {
            let mode = status.borrow().in_force.filter(|mode| *mode != Mode::Off)?;
            let vni = shared.known().tunnels.as_ref()?.vni;
            read(&netns, &table_name(vni), mode)
                .inspect_err(|error| debug!(error = %chain(error), "the gate's counters can't be read"))
                .ok()
        })
    }

    /// Reads the present values; `None` without a gate, before its rules are put, and if they can't be read.
    pub fn read(&self) -> Option<GateReading> {
        self.0.as_ref()?()
    }
}

fn read(netns: &Netns, table: &str, mode: Mode) -> Result<GateReading, KernelError> {
    let of = |family| -> Result<u64, KernelError> {
        Ok(rule_counters(family, table)?.into_iter().map(|(_, packets)| packets).sum())
    };
    netns.run(|| Ok(GateReading::new(mode, of(TableFamily::Inet)?, of(TableFamily::Netdev)?)))?
}

/// Two handles are equal if they read the same counters, whatever the values are.
impl PartialEq for GateCounters {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        }
    }
}

impl Eq for GateCounters {}

impl fmt::Debug for GateCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GateCounters").field(&self.0.is_some()).finish()
    }
}

impl Serialize for GateCounters {
    /// Serialises the present values.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.read().serialize(serializer)
    }
}
