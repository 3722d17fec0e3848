//! Where the state file is, and what an earlier run left in it.

use std::path::{Path, PathBuf};

use flannel_core::addr::PerFamily;
use flannel_core::kernel::{Kernel, KernelError};
use flannel_core::state_file::{Host, Recalled, State, StoredOn, read};
use flannel_core::subnet::{Identity, Memory};
use flannel_core::subnet_file;
use tracing::{info, warn};

/// The state file that belongs to a subnet file.
pub(crate) fn path(subnet_file: &Path) -> PathBuf {
    let mut name = subnet_file.as_os_str().to_owned();
    name.push(".state");
    name.into()
}

/// What an earlier run stored. A file that can't be used is named in the log and counts as none.
pub(crate) fn recall(path: &Path) -> Option<State> {
    let Recalled { state, problem } = read(path);
    if let Some(problem) = problem {
        let path = path.display();
        warn!(
            %path,
            problem,
            "state file can't be used; the store is waited for, and leftovers that only the file could prove to be \
             ours stay"
        );
    }
    state
}

/// What this host has that tells it from others.
pub(crate) async fn read_host(
    kernel: &mut dyn Kernel,
    state: Option<&State>,
    file: &subnet_file::Previous,
) -> Result<Host, KernelError> {
    let stored = state.map(|state| state.networks).unwrap_or_default();
    let overlay = PerFamily::from_fn(|family| file.networks.get(family).or(stored.get(family)).copied());
    Ok(Host::of(&kernel.links().await?, &kernel.addresses().await?, &overlay))
}

/// Takes what proves another machine's lease out of a state that came here with its disk. Returns where it was stored.
pub(crate) fn check_host(state: Option<&State>, host: &Host) -> StoredOn {
    let stored_on = state.map_or(StoredOn::Unknown, |state| state.stored_on(&host.macs));
    if stored_on == StoredOn::AnotherHost {
        let lease = state.and_then(|state| state.own.as_ref()).map(ToString::to_string).unwrap_or_default();
        warn!(
            lease,
            "the state file was stored on a host with other NICs, as after a copy of its disk; its lease is not taken for \
             ours by it"
        );
    }
    stored_on
}

/// What this node knows of itself, for a store at `place`.
pub(crate) fn identity(
    file: &subnet_file::Previous,
    state: Option<&State>,
    place: &str,
    stored_on: StoredOn,
    host: &Host,
) -> Identity {
    let proof = state.map(|state| Identity::of_state(state, place, stored_on)).unwrap_or_default();
    // As a wish the key counts wherever it was stored.
    let own = || state?.own.as_ref().map(|own| own.key);
    Identity { subnets: file.key.or_else(own), host_ips: host.ips.clone(), ..proof }
}

/// What of it can stand in for a store that is away.
pub(crate) fn stand_in(state: Option<&State>, place: &str, stored_on: StoredOn) -> Option<Memory> {
    match Memory::of(state?, place) {
        Ok(memory) => Some(memory.stored_on(stored_on)),
        Err(why) => {
            info!(why, "what is stored can't stand in for the store");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn belongs_to_its_subnet_file() {
        let path = path(Path::new("/run/flannel/subnet.env"));
        assert_eq!(path, Path::new("/run/flannel/subnet.env.state"));
    }

    #[test]
    fn a_damaged_file_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env.state");
        assert_eq!(recall(&path), None);
        std::fs::write(&path, "garbage").unwrap();
        assert_eq!(recall(&path), None);
        assert_eq!(stand_in(None, "", StoredOn::Unknown), None);
        assert_eq!(stand_in(Some(&State::default()), "", StoredOn::ThisHost), None);
    }
}
