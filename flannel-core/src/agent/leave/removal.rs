//! What is removed, and how.

use std::path::PathBuf;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::addr::{LinkIndex, Vni};
use crate::dataplane::Route;
use crate::firewall::Step;
use crate::lease::{Lease, LeaseKey};

/// Something that is removed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Removal {
    /// What it is; several in a row can have the same text.
    pub what: String,
    /// Shell commands that do the same. Messages about failures name them.
    pub commands: Vec<String>,
    /// How it is removed.
    pub(super) action: Action,
}

impl Serialize for Removal {
    /// Serializes what it is, its commands, and the lease that it releases.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut removal = serializer.serialize_struct("Removal", 3)?;
        removal.serialize_field("what", &self.what)?;
        removal.serialize_field("commands", &self.commands)?;
        removal.serialize_field("lease", &self.lease())?;
        removal.end()
    }
}

impl Removal {
    /// The lease that it releases. Only the embedding program, which knows the store, can name a command for that.
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

/// The steps of a plan.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    /// What is removed, in this order.
    pub(super) removals: Vec<Removal>,
    /// What stays although it looks like ours, and why.
    pub(super) notes: Vec<String>,
    /// What could not be read, and may have to be removed.
    pub(super) problems: Vec<String>,
}

impl Plan {
    /// Appends another plan.
    pub(super) fn add(&mut self, mut other: Self) {
        self.removals.append(&mut other.removals);
        self.notes.append(&mut other.notes);
        self.problems.append(&mut other.problems);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_can_be_shown_to_programs() {
        let removal = Removal {
            what: "files".to_owned(),
            commands: vec!["rm -f /run/flannel/subnet.env".to_owned()],
            action: Action::File(PathBuf::from("/run/flannel/subnet.env")),
        };
        assert_eq!(
            serde_json::to_string(&removal).unwrap(),
            r#"{"what":"files","commands":["rm -f /run/flannel/subnet.env"],"lease":null}"#
        );
    }
}
