//! What the agent's files say about it.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use super::removal::{Action, Plan, Removal};
use crate::addr::{PerFamily, Subnet};
use crate::agent::firewall::ranges;
use crate::agent::node::Node;
use crate::agent::{lock, memory};
use crate::dataplane::command::word;
use crate::firewall::rules::Range;
use crate::lease::LeaseKey;
use crate::state_file::{self, Recalled, State};
use crate::subnet_file::{self, Previous};

/// The content of an agent's files.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// Its state file.
    pub(super) state: Option<State>,
    /// Its subnet file.
    pub(super) subnets: Previous,
    /// Its files that are there.
    pub(super) files: Vec<PathBuf>,
    /// Files that are there and stay, with the reasons.
    pub(super) notes: Vec<String>,
}

impl Known {
    /// Reads the files. One that can't be used counts as missing.
    pub(super) fn read(subnet_file: Option<&Path>, state_file: Option<&Path>) -> Self {
        let mut known = Self::default();
        if let Some(path) = subnet_file {
            known.read_subnets(path);
        }
        if let Some(path) = state_file {
            known.read_state(path, subnet_file.map(memory::state_file_of).as_deref());
        }
        known.files.extend(subnet_file.map(lock::path).filter(|path| path.exists()));
        // An agent that was killed left its socket.
        let is_socket =
            |path: &PathBuf| path.symlink_metadata().is_ok_and(|file| file.file_type().is_socket());
        known.files.extend(subnet_file.map(memory::socket_of).filter(is_socket));
        known
    }

    /// Adds what an agent of this process had, if there is no state file.
    pub(super) fn add(&mut self, node: Option<&Node>) {
        let Some(node) = node.filter(|_| self.state.is_none()) else { return };
        let (networks, own) = (node.networks, Some(node.lease.clone()));
        self.state = Some(State { networks, own, backend: node.backend.clone(), ..State::default() });
    }

    /// An operator can name any file as the subnet file, so it is removed only if it has the content of one.
    fn read_subnets(&mut self, path: &Path) {
        if !path.exists() {
            return;
        }
        self.subnets = subnet_file::read_previous(path);
        if self.subnets.key.is_some() || !self.subnets.networks.is_empty() {
            self.files.push(path.to_owned());
        } else {
            self.notes.push(format!("{} stays: it has no subnets of a node", path.display()));
        }
    }

    /// A damaged state file is removed if it has the name that an agent gives it.
    fn read_state(&mut self, path: &Path, usual: Option<&Path>) {
        let Recalled { state, problem, .. } = state_file::read(path);
        if state.is_some() || problem.is_some() && Some(path) == usual {
            self.files.push(path.to_owned());
        } else if let Some(problem) = problem {
            self.notes.push(format!("{} stays: it {problem}", path.display()));
        }
        self.state = state;
    }

    /// The subnets that this node had.
    pub(super) fn key(&self) -> Option<LeaseKey> {
        let stored = self.state.as_ref().and_then(|state| state.own.as_ref());
        stored.map(|own| own.key).or(self.subnets.key)
    }

    /// The overlay networks of both files.
    pub(super) fn networks(&self) -> Vec<Subnet> {
        let stored = self.state.as_ref().map(|state| state.networks);
        let all: [Option<PerFamily<Subnet>>; 2] = [stored, Some(self.subnets.networks)];
        let each = |networks: &PerFamily<Subnet>| networks.iter().map(|(_, it)| *it).collect::<Vec<_>>();
        all.iter().flatten().flat_map(each).collect()
    }

    /// The networks and subnets for which rules were written, from both files.
    pub(super) fn ranges(&self) -> Vec<PerFamily<Range>> {
        let subnets = |key: LeaseKey| key.subnets();
        let stored = self.state.as_ref().map(|state| {
            let own = state.own.as_ref().map(|own| subnets(own.key));
            ranges(state.networks, own.unwrap_or_default())
        });
        let written = ranges(self.subnets.networks, self.subnets.key.map(subnets).unwrap_or_default());
        stored.into_iter().chain([written]).filter(|ranges| !ranges.is_empty()).collect()
    }

    /// The removal of the files. It comes last, since they prove what is ours.
    pub(super) fn removals(&self) -> Plan {
        let removal = |path: &PathBuf| Removal {
            what: "files of the agent".to_owned(),
            commands: vec![format!("rm -f {}", word(&path.to_string_lossy()))],
            action: Action::File(path.clone()),
        };
        Plan {
            removals: self.files.iter().map(removal).collect(),
            notes: self.notes.clone(),
            problems: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(folder: &Path, state_file: &str) -> Known {
        Known::read(Some(&folder.join("subnet.env")), Some(&folder.join(state_file)))
    }

    #[test]
    fn nothing_there_is_nothing_known() {
        let folder = tempfile::tempdir().unwrap();
        let known = read(folder.path(), "subnet.env.state");
        assert!(known.files.is_empty() && known.notes.is_empty() && known.networks().is_empty());
        assert!(known.removals().removals.is_empty());
    }

    #[test]
    fn files_that_say_what_an_agent_writes_go() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("subnet.env"), "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\n").unwrap();
        fs::write(at("subnet.env.state"), "damaged").unwrap();
        fs::write(at("subnet.env.lock"), "").unwrap();
        drop(std::os::unix::net::UnixListener::bind(at("subnet.env.sock")).unwrap());
        let known = read(folder.path(), "subnet.env.state");
        let files = ["subnet.env", "subnet.env.state", "subnet.env.lock", "subnet.env.sock"];
        assert_eq!(known.files, files.map(at));
        assert_eq!(known.networks(), ["10.5.0.0/16".parse().unwrap()]);
        assert_eq!(known.key(), Some("10.5.1.0-24".parse().unwrap()));
        let range = Range { network: known.networks()[0], subnet: "10.5.1.0/24".parse().unwrap() };
        assert_eq!(known.ranges(), [PerFamily { v4: Some(range), v6: None }]);
        assert!(known.removals().removals[0].commands[0].starts_with("rm -f /"));
    }

    #[test]
    fn files_of_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("subnet.env"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        fs::write(folder.path().join("other"), "{}").unwrap();
        fs::write(folder.path().join("subnet.env.sock"), "no socket").unwrap();
        let known = read(folder.path(), "other");
        assert!(known.files.is_empty(), "{known:?}");
        assert_eq!(known.notes.len(), 2, "{known:?}");
    }
}
