//! Shows whether an agent with a subnet file runs: it has a lock on a file beside the subnet file for as long as it
//! lives.
//!
//! The kernel releases the lock with the process, so a file without a lock means nothing. Agents take a shared lock, so
//! that several can run; cleanup takes an exclusive one.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::event::AgentEvent;
use super::journal::Journal;
use crate::error::chain;
use crate::guarded::Dir;

/// The pause between attempts to get a lock that somebody else has.
const PAUSE: Duration = Duration::from_millis(100);

/// How long child processes of a killed agent may take to end.
const REMAINS: Duration = Duration::from_secs(1);

/// The path of the lock file.
pub(super) fn path(subnet_file: &Path) -> PathBuf {
    let mut name = subnet_file.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// Takes the shared lock, which shows that an agent runs until the returned file is dropped. Waits while somebody
/// cleans up. If the file can't be made it returns `None`: the agent then runs without the lock.
pub(super) async fn hold(subnet_file: &Path, journal: &Journal) -> Option<File> {
    let path = path(subnet_file);
    let mut told = false;
    loop {
        match shared(&path) {
            Ok(Some(file)) => return Some(file),
            Ok(None) => {
                if !std::mem::replace(&mut told, true) {
                    journal.emit(AgentEvent::CleanupRuns { path: path.clone() });
                }
            }
            Err(error) => {
                journal.emit(AgentEvent::LockUnusable { path, reason: chain(&error) });
                return None;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits, for a second at most, for child processes of an earlier agent with this subnet file. An agent that was killed
/// while it started a program leaves a child that has all of its files, ports and devices open, including the lock,
/// until the child executes that program.
pub async fn wait_for_remains(subnet_file: &Path) {
    let Ok(file) = open(&path(subnet_file)) else { return };
    let begin = tokio::time::Instant::now();
    // The lock is released at once, when the file is dropped.
    while matches!(file.try_lock(), Err(TryLockError::WouldBlock)) && begin.elapsed() < REMAINS {
        tokio::time::sleep(REMAINS / 100).await;
    }
}

fn open(path: &Path) -> io::Result<File> {
    let (dir, name) = Dir::of(path)?;
    dir.file(name)
}

fn shared(path: &Path) -> io::Result<Option<File>> {
    if let Some(folder) = path.parent().filter(|folder| *folder != Path::new("")) {
        DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    let (dir, name) = Dir::of(path)?;
    let file = dir.file_or_new(name, 0o600)?;
    match file.try_lock_shared() {
        // A cleanup may have removed the file meanwhile.
        Ok(()) if dir.is_at(&file, name) => Ok(Some(file)),
        Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The exclusive lock.
#[derive(Debug)]
pub(super) struct Alone {
    _locked: Option<File>,
}

/// The exclusive lock can't be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// An agent runs, or somebody else cleans up.
    #[error("an agent with this subnet file runs (it holds {}), and would put everything back; stop it first", .0.display())]
    Runs(PathBuf),
    /// The file can't be used.
    #[error("can't tell whether an agent runs, by {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Takes the exclusive lock, which proves that no agent runs. It does not create the file; so if there is none, an
/// agent that starts now does not wait.
pub(super) fn alone(subnet_file: &Path) -> Result<Alone, LockError> {
    let path = path(subnet_file);
    let file = match open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Alone { _locked: None });
        }
        Err(source) => return Err(LockError::File { path, source }),
    };
    match file.try_lock() {
        Ok(()) => Ok(Alone { _locked: Some(file) }),
        Err(TryLockError::WouldBlock) => Err(LockError::Runs(path)),
        Err(TryLockError::Error(source)) => Err(LockError::File { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test]
    async fn who_cleans_up_wants_it_alone_and_agents_share_it() {
        let folder = tempfile::tempdir().unwrap();
        let subnet_file = folder.path().join("run/subnet.env");
        alone(&subnet_file).unwrap();
        assert!(!folder.path().join("run").exists());
        let agents = (
            hold(&subnet_file, &Journal::new()).await.unwrap(),
            hold(&subnet_file, &Journal::new()).await.unwrap(),
        );
        assert!(matches!(alone(&subnet_file), Err(LockError::Runs(_))));
        drop(agents);
        // The file that they left means nothing.
        let cleaner = alone(&subnet_file).unwrap();
        let agent = tokio::spawn({
            let subnet_file = subnet_file.clone();
            async move { hold(&subnet_file, &Journal::new()).await }
        });
        tokio::time::sleep(3 * PAUSE).await;
        assert!(!agent.is_finished());
        // It gets a file that is there, not the one that it opened first.
        fs::remove_file(path(&subnet_file)).unwrap();
        drop(cleaner);
        let _agent = agent.await.unwrap().unwrap();
        assert!(matches!(alone(&subnet_file), Err(LockError::Runs(_))));
    }

    #[tokio::test]
    async fn an_agent_that_can_have_none_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(hold(&folder.path().join("file/subnet.env"), &Journal::new()).await.is_none());
    }

    /// Whoever can write to the folder makes root create no file elsewhere, and holds up neither start nor cleanup.
    #[tokio::test]
    async fn a_lock_that_is_a_link_or_a_fifo_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let (subnet_file, missing) = (folder.path().join("subnet.env"), folder.path().join("missing"));
        let fifo = |path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for make in [&(|path: &Path| symlink(&missing, path).unwrap()) as &dyn Fn(&Path), &fifo] {
            make(&path(&subnet_file));
            assert!(hold(&subnet_file, &Journal::new()).await.is_none());
            wait_for_remains(&subnet_file).await;
            assert!(matches!(alone(&subnet_file), Err(LockError::File { .. })));
            assert!(!missing.exists());
            fs::remove_file(path(&subnet_file)).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn remains_are_waited_for_but_not_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let subnet_file = folder.path().join("subnet.env");
        let waited = async || {
            let begin = tokio::time::Instant::now();
            wait_for_remains(&subnet_file).await;
            begin.elapsed()
        };
        assert_eq!(waited().await, Duration::ZERO, "nothing was there");
        let remains = hold(&subnet_file, &Journal::new()).await.unwrap();
        assert!((REMAINS..2 * REMAINS).contains(&waited().await));
        let ends = tokio::spawn(async move {
            tokio::time::sleep(REMAINS / 4).await;
            drop(remains);
        });
        let time = waited().await;
        assert!((REMAINS / 4..REMAINS / 2).contains(&time), "{time:?}");
        ends.await.unwrap();
        assert_eq!(waited().await, Duration::ZERO, "a file alone means nothing");
    }
}
