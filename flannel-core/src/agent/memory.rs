//! The path of the state file, and what an earlier run stored in it.

use std::path::{Path, PathBuf};

use super::event::AgentEvent;
use super::journal::Journal;
use crate::addr::PerFamily;
use crate::kernel::{Kernel, KernelError};
use crate::remembering::Memory;
use crate::state_file::{HostIdentity, Recalled, State, StoredOn, read};
use crate::subnet::Identity;
use crate::subnet_file;

/// The usual place of an agent's state file: beside its subnet file, with `.state` behind the name.
pub fn state_file_of(subnet_file: &Path) -> PathBuf {
    let mut name = subnet_file.as_os_str().to_owned();
    name.push(".state");
    name.into()
}

/// The usual path of the control socket: the subnet file's name with `.sock` behind it. The agent itself serves no socket; the
/// crate `flannel-control` does.
pub fn socket_of(subnet_file: &Path) -> PathBuf {
    let mut name = subnet_file.as_os_str().to_owned();
    name.push(".sock");
    name.into()
}

/// What an earlier run stored. A file that can't be used is named in the log and counts as none.
pub(super) fn recall(path: &Path, journal: &Journal) -> Option<State> {
    let Recalled { state, problem, .. } = read(path);
    if let Some(problem) = problem {
        journal.emit(AgentEvent::StateFileUnusable { path: path.to_owned(), problem });
    }
    state
}

/// Reads what distinguishes this host from others.
pub(super) async fn read_host(
    kernel: &mut dyn Kernel,
    state: Option<&State>,
    file: &subnet_file::Previous,
) -> Result<HostIdentity, KernelError> {
    let stored = state.map(|state| state.networks).unwrap_or_default();
    let overlay = PerFamily::from_fn(|family| file.networks.get(family).or(stored.get(family)).copied());
    Ok(HostIdentity::of(&kernel.links().await?, &kernel.addresses().await?, &overlay))
}

/// Checks whether the state was stored on this host, and reports it if it came with the disk of another machine.
pub(super) fn check_host(state: Option<&State>, host: &HostIdentity, journal: &Journal) -> StoredOn {
    let stored_on = state.map_or(StoredOn::Unknown, |state| state.stored_on(&host.macs));
    if stored_on == StoredOn::AnotherHost {
        let lease = state.and_then(|state| state.own.as_ref()).map(ToString::to_string).unwrap_or_default();
        journal.emit(AgentEvent::StateFileOfAnotherHost { lease });
    }
    stored_on
}

/// What this node knows of itself, for a store at `place`.
pub(super) fn identity(
    file: &subnet_file::Previous,
    state: Option<&State>,
    place: &str,
    stored_on: StoredOn,
    host: &HostIdentity,
) -> Identity {
    let proof = state.map(|state| Identity::of_state(state, place, stored_on)).unwrap_or_default();
    // As a preference the key counts on any host.
    let own = || state?.own.as_ref().map(|own| own.key);
    Identity { subnets: file.key.or_else(own), host_ips: host.ips.clone(), ..proof }
}

/// The memory for a start without the store, if the stored state can be used for that.
pub(super) fn stand_in(
    state: Option<&State>,
    place: &str,
    stored_on: StoredOn,
    journal: &Journal,
) -> Option<Memory> {
    match Memory::of(state?, place) {
        Ok(memory) => Some(memory.stored_on(stored_on)),
        Err(error) => {
            journal.emit(AgentEvent::NoStandIn { why: error.to_string() });
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn belongs_to_its_subnet_file() {
        let path = state_file_of(Path::new("/run/flannel/subnet.env"));
        assert_eq!(path, Path::new("/run/flannel/subnet.env.state"));
        let path = socket_of(Path::new("/run/flannel/subnet.env"));
        assert_eq!(path, Path::new("/run/flannel/subnet.env.sock"));
    }

    #[test]
    fn a_damaged_file_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let (path, journal) = (folder.path().join("subnet.env.state"), Journal::new());
        assert_eq!(recall(&path, &journal), None);
        std::fs::write(&path, "garbage").unwrap();
        assert_eq!(recall(&path, &journal), None);
        assert_eq!(stand_in(None, "", StoredOn::Unknown, &journal), None);
        assert_eq!(stand_in(Some(&State::default()), "", StoredOn::ThisHost, &journal), None);
    }
}
