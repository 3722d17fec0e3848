//! Where the state file is, and what an earlier run left in it.

use std::path::{Path, PathBuf};

use flannel_core::state_file::{Recalled, State, read};
use flannel_core::subnet::Memory;
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

/// What of it can stand in for a store that is away.
pub(crate) fn stand_in(state: Option<&State>, place: &str) -> Option<Memory> {
    match Memory::of(state?, place) {
        Ok(memory) => Some(memory),
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
        assert_eq!(stand_in(None, ""), None);
        assert_eq!(stand_in(Some(&State::default()), ""), None);
    }
}
