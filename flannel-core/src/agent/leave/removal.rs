//! What is removed, and how.

use std::path::PathBuf;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::addr::{LinkIndex, Vni};
use crate::dataplane::Route;
use crate::firewall::Step;
use crate::firewall::rules::Ours;
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

/// The commands of removals, with a comment before those of one thing.
pub(super) fn script(removals: &[Removal]) -> String {
    let (mut script, mut last) = (String::new(), "");
    for removal in removals {
        if removal.what != last {
            script.extend(["# ", &removal.what, "\n"]);
            last = &removal.what;
        }
        for command in &removal.commands {
            script.extend([command, "\n"]);
        }
    }
    script
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
    /// By a program, or by netlink: these of the rules that are ours.
    Rules(Step, Ours),
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
    fn a_script_names_what_belongs_together_once() {
        let removal = |what: &str, command: &str| Removal {
            what: what.to_owned(),
            commands: vec![command.to_owned()],
            action: Action::File("/x".into()),
        };
        let removals =
            [removal("files", "rm -f /a"), removal("files", "rm -f /b"), removal("lease", "etcdctl del x")];
        assert_eq!(script(&removals), "# files\nrm -f /a\nrm -f /b\n# lease\netcdctl del x\n");
    }

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
