//! Keeps the state file in step with the network, so that the next start knows what is ours.

use std::convert::Infallible;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flannel_core::state_file::{Recalled, State, StateFileError, read};
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::report::chain;

/// The pause after a write: a burst of leases costs one more.
const PAUSE: Duration = Duration::from_secs(1);
/// The pause after a failed write.
const RETRY: Duration = Duration::from_secs(10);

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
        warn!(%path, problem, "state file can't be used; leftovers that only it could prove to be ours stay");
    }
    state
}

/// Writes the state whenever it changes.
pub(crate) struct Keeper {
    path: PathBuf,
    state: watch::Receiver<State>,
    /// Whether something was announced that is not written.
    unwritten: bool,
    /// Whether the last failure was told.
    told: bool,
}

impl Keeper {
    /// A keeper that has not written yet.
    pub(crate) fn new(path: PathBuf, state: watch::Receiver<State>) -> Self {
        Self { path, state, unwritten: false, told: false }
    }

    /// Writes for as long as it is polled.
    pub(crate) async fn run(&mut self) -> Infallible {
        loop {
            if self.state.changed().await.is_err() {
                // The network ended, which others notice.
                return pending().await;
            }
            self.unwritten = true;
            while !self.write().await {
                tokio::time::sleep(RETRY).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Writes what is not written yet, at the end.
    pub(crate) async fn finish(mut self) {
        // The network is gone, but its last word may still be there.
        let news = tokio::time::timeout(Duration::ZERO, self.state.changed()).await;
        if self.unwritten || matches!(news, Ok(Ok(()))) {
            self.write().await;
        }
    }

    /// Writes once, away from the threads that serve the network. Returns whether it worked.
    async fn write(&mut self) -> bool {
        let (path, state) = (self.path.clone(), self.state.borrow_and_update().clone());
        let written = tokio::task::spawn_blocking(move || state.write(&path)).await;
        match written.unwrap_or(Ok(())) {
            Ok(()) => {
                debug!(path = %self.path.display(), "state file written");
                (self.told, self.unwritten) = (false, false);
                true
            }
            Err(error) => {
                self.tell(&error);
                false
            }
        }
    }

    fn tell(&mut self, error: &StateFileError) {
        if !std::mem::replace(&mut self.told, true) {
            warn!(error = chain(error), "the next start will not know what is ours; trying again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn state(backend: &str) -> State {
        State { backend: backend.into(), nodes: BTreeMap::new(), ..State::default() }
    }

    #[test]
    fn belongs_to_its_subnet_file() {
        let path = path(Path::new("/run/flannel/subnet.env"));
        assert_eq!(path, Path::new("/run/flannel/subnet.env.state"));
    }

    #[tokio::test]
    async fn writes_changes_and_the_last_one_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env.state");
        let stored = |path: &Path| recall(path).map(|state| state.backend);
        let sender = watch::Sender::new(state("start"));
        let mut keeper = Keeper::new(path.clone(), sender.subscribe());
        let run = |millis| Duration::from_millis(millis);
        let _ = tokio::time::timeout(run(50), keeper.run()).await;
        assert_eq!(stored(&path), None, "nothing was announced yet");
        sender.send_replace(state("first"));
        let _ = tokio::time::timeout(run(200), keeper.run()).await;
        assert_eq!(stored(&path).as_deref(), Some("first"));
        sender.send_replace(state("last"));
        drop(sender);
        keeper.finish().await;
        assert_eq!(stored(&path).as_deref(), Some("last"));
    }

    #[tokio::test]
    async fn a_network_that_said_nothing_leaves_the_file_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env.state");
        let sender = watch::Sender::new(state("start"));
        let keeper = Keeper::new(path.clone(), sender.subscribe());
        drop(sender);
        keeper.finish().await;
        assert!(!path.exists());
        std::fs::write(&path, "garbage").unwrap();
        assert_eq!(recall(&path), None);
    }
}
