//! What devices contain besides objects, such as the peers of a `WireGuard` device: the driver reads and repairs it, and the
//! loop says when.

use std::collections::BTreeSet;

use super::work::Why;
use super::{Driver, Reconciler};
use crate::addr::Subnet;
use crate::events::NetworkEvent;
use crate::lease::Unknown;
use crate::status::{DeviceProblems, Problem};

/// What [`Driver::hold`] may take away.
#[derive(Debug, Clone, Copy)]
pub struct Prune<'a> {
    is_synced: bool,
    unknown: [&'a Unknown; 2],
    leaving: &'a BTreeSet<Subnet>,
}

/// No subnet is leaving.
#[cfg(any(test, feature = "testing"))]
static NONE: BTreeSet<Subnet> = BTreeSet::new();

impl<'a> Prune<'a> {
    /// What may be taken away after the first snapshot, or before, but for subnets of these records, for tests of drivers.
    #[cfg(any(test, feature = "testing"))]
    pub fn for_tests(is_synced: bool, unknown: &'a Unknown) -> Self {
        Self { is_synced, unknown: [unknown, unknown], leaving: &NONE }
    }

    /// Whether the first snapshot of leases is known.
    pub fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// Whether what is there for a subnet, and not desired, may be removed: not before the first snapshot of leases, not
    /// while the record of that subnet is unreadable, and not before its route has moved to another device.
    pub fn allows(&self, subnet: Subnet) -> bool {
        self.is_synced
            && !self.leaving.contains(&subnet)
            && !self.unknown.iter().any(|unknown| unknown.has_subnet(subnet))
    }
}

/// What [`Driver::hold`] did and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held {
    /// Whether something was changed.
    pub changed: bool,
    /// Why something can't be read or changed. It is tried again.
    pub problems: DeviceProblems,
    /// Further problems, with the harm that each does.
    pub notes: Vec<Problem>,
    /// What was done.
    pub events: Vec<NetworkEvent>,
}

impl<D: Driver> Reconciler<D> {
    /// Lets the driver hold what is in its devices. With `read` it reads them first. Operations are about to move the routes of
    /// the subnets that are leaving: what is there for these stays until the next time.
    pub(super) async fn hold(&mut self, read: bool, why: Why, leaving: &BTreeSet<Subnet>) {
        let prune = Prune {
            is_synced: self.leases.is_synced(),
            unknown: [self.leases.unknown(), self.peers.unknown()],
            leaving,
        };
        let mut held = self.driver.hold(read, prune).await;
        for event in std::mem::take(&mut held.events) {
            self.events.send(event);
        }
        if std::mem::take(&mut held.changed) && self.shown.synced && !why.is_desired() {
            if why == Why::Resync {
                self.repair.found_by_resync();
            }
            self.repair.add_device();
        }
        if held.problems != self.held.problems {
            self.events.send(match held.problems.text() {
                Some(reason) => NetworkEvent::DevicesNotReady { reason },
                None => NetworkEvent::DevicesReady,
            });
        }
        if !held.problems.is_empty() {
            self.retry_later();
        }
        self.held = held;
    }
}
