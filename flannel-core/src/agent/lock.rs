//! Whether an agent runs that has a subnet file: it holds a lock on a file beside it for as long as it lives.
//!
//! The kernel drops the lock with the process, so a file that was left behind means nothing. Agents share the
//! lock, so that none is kept from starting by another; who cleans up wants it alone.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{info, warn};

use crate::guarded::Dir;

/// The pause between looks at a lock that somebody else has.
const PAUSE: Duration = Duration::from_millis(100);

/// How long what an agent left behind may take to end.
const REMAINS: Duration = Duration::from_secs(1);

/// The file that is locked.
pub(super) fn path(subnet_file: &Path) -> PathBuf {
    let mut name = subnet_file.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// Says that an agent runs, for as long as what is returned lives. Waits while somebody cleans up. Where no file
/// can be made nothing is said: an agent without it is better than none.
pub(super) async fn hold(subnet_file: &Path) -> Option<File> {
    let path = path(subnet_file);
    let mut told = false;
    loop {
        match shared(&path) {
            Ok(Some(file)) => return Some(file),
            Ok(None) => {
                if !std::mem::replace(&mut told, true) {
                    info!(path = %path.display(), "this host is being cleaned up; waiting for the end of it");
                }
            }
            Err(error) => {
                warn!(path = %path.display(), %error, "flanneld cleanup won't see that this agent runs");
                return None;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits for what an agent with this subnet file left behind, for a moment at most. One that was killed while it
/// started a program leaves a process that has all of its files, ports and devices open, the lock among them,
/// until it becomes that program.
pub async fn wait_for_remains(subnet_file: &Path) {
    let Ok(file) = open(&path(subnet_file)) else { return };
    let begin = tokio::time::Instant::now();
    // The lock is given back at once, with the file.
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
        // Who cleaned up may have removed the file meanwhile.
        Ok(()) if dir.is_at(&file, name) => Ok(Some(file)),
        Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Nobody else has the lock, and nobody gets it while this lives.
#[derive(Debug)]
pub(super) struct Alone {
    _locked: Option<File>,
}

/// The lock can't be had.
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

/// Makes sure that no agent runs. Makes no file, so an agent that starts only now is not held up where none was.
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
        let agents = (hold(&subnet_file).await.unwrap(), hold(&subnet_file).await.unwrap());
        assert!(matches!(alone(&subnet_file), Err(LockError::Runs(_))));
        drop(agents);
        // The file that they left means nothing.
        let cleaner = alone(&subnet_file).unwrap();
        let agent = tokio::spawn({
            let subnet_file = subnet_file.clone();
            async move { hold(&subnet_file).await }
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
        assert!(hold(&folder.path().join("file/subnet.env")).await.is_none());
    }

    /// Whoever can write to the folder makes root create no file elsewhere, and holds up neither start nor cleanup.
    #[tokio::test]
    async fn a_lock_that_is_a_link_or_a_fifo_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let (subnet_file, missing) = (folder.path().join("subnet.env"), folder.path().join("missing"));
        let fifo = |path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for make in [&(|path: &Path| symlink(&missing, path).unwrap()) as &dyn Fn(&Path), &fifo] {
            make(&path(&subnet_file));
            assert!(hold(&subnet_file).await.is_none());
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
        let remains = hold(&subnet_file).await.unwrap();
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
