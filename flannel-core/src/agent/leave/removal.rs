//! What goes, and how.

use std::path::PathBuf;

use crate::addr::{LinkIndex, Vni};
use crate::dataplane::Route;
use crate::firewall::Step;
use crate::lease::{Lease, LeaseKey};

/// Something that goes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Removal {
    /// What it is; the same for several that follow each other.
    pub what: String,
    /// Commands of a shell that do the same. What fails is told by them.
    pub commands: Vec<String>,
    /// How it is done.
    pub(super) action: Action,
}

impl Removal {
    /// The lease that is released by it. Which command does that is known to who knows the store.
    pub fn lease(&self) -> Option<LeaseKey> {
        match &self.action {
            Action::Lease(lease) => Some(lease.key),
            _ => None,
        }
    }
}

/// How something is removed.
#[derive(Debug, Clone)]
pub(super) enum Action {
    /// By netlink.
    Route(Route),
    /// By netlink, with everything on it.
    Link(LinkIndex),
    /// By netlink: the table of the underlay gate.
    Gate(Vni),
    /// By a program.
    Rules(Step),
    /// From the store.
    Lease(Lease),
    /// From a disk.
    File(PathBuf),
}

/// What is to be done.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    /// In this order.
    pub(super) removals: Vec<Removal>,
    /// What stays although it looks like ours, and why.
    pub(super) notes: Vec<String>,
    /// What could not be looked at, and may have to go.
    pub(super) problems: Vec<String>,
}

impl Plan {
    /// Adds what comes after all that.
    pub(super) fn add(&mut self, mut other: Self) {
        self.removals.append(&mut other.removals);
        self.notes.append(&mut other.notes);
        self.problems.append(&mut other.problems);
    }
}
