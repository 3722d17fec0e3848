//! Network namespaces: how to open, create and change things in the namespace of an agent.
//!
//! A thread has one network namespace. What it opens there (sockets, TUN devices, files below `/proc/net` and
//! `/proc/sys/net`) and the processes that it starts stay in that namespace, whatever the thread does later. So only
//! opening matters: all code of this library that opens one of these does it in [`Netns::run`], in the namespace that
//! it was given.
//!
//! This module never changes the namespace of a thread that others use. For another namespace it starts a new thread,
//! which enters the namespace, runs the closure and ends.
//!
//! `/sys` shows the namespace that mounted it, not that of the thread that reads it. The library does not use it.

mod files;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns};
use tokio::runtime::Handle;

/// The file of the calling thread's namespace. `/proc/self` would show that of the main thread.
const OF_THIS_THREAD: &str = "/proc/thread-self/ns/net";

/// A network namespace. Clones share one descriptor, which keeps the namespace alive.
#[derive(Clone)]
pub struct Netns(Arc<Opened>);

/// An open namespace.
struct Opened {
    file: File,
    id: Id,
    /// The path with which it was opened.
    name: String,
}

/// The identity of a namespace: device and inode number of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Id(u64, u64);

/// Why a namespace can't be opened or entered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetnsError {
    /// The file can't be opened.
    #[error("can't open network namespace {name}")]
    Open {
        /// Its path.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is not a network namespace.
    #[error(
        "{name} is not a network namespace: give a path such as /run/netns/NAME (`ip netns add`) or /proc/PID/ns/net"
    )]
    NotOne {
        /// Its path.
        name: String,
    },
    /// A thread can't enter the namespace.
    #[error(
        "can't enter network namespace {name}; that takes CAP_SYS_ADMIN, here and in the user namespace that owns it"
    )]
    Enter {
        /// Its path.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No thread can be started.
    #[error("can't start a thread in network namespace {name}")]
    Thread {
        /// The namespace's path.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Netns {
    /// Opens the namespace of a file such as `/run/netns/NAME` or `/proc/PID/ns/net`, and enters it once, on a thread
    /// of its own: so a file of another kind or a missing right is an error here and not later.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        let netns = Self::opened(path.as_ref())?;
        netns.run(|| ())?;
        Ok(netns)
    }

    /// The present namespace of the calling thread. The value does not change if the thread enters another namespace.
    ///
    /// It reads `/proc`, and needs no privileges.
    pub fn current() -> Result<Self, NetnsError> {
        Self::opened(Path::new(OF_THIS_THREAD))
    }

    fn opened(path: &Path) -> Result<Self, NetnsError> {
        let name = path.display().to_string();
        // A FIFO without a writer must not block.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let with_id = opened.and_then(|file| Ok((Id::of(&file.metadata()?), file)));
        let (id, file) = with_id.map_err(|source| NetnsError::Open { name: name.clone(), source })?;
        Ok(Self(Arc::new(Opened { file, id, name })))
    }

    /// Whether the calling thread is in this namespace.
    pub fn is_current(&self) -> bool {
        // Without /proc the answer is unknown, and entering the namespace again does no harm.
        fs::metadata(OF_THIS_THREAD).is_ok_and(|now| Id::of(&now) == self.0.id)
    }

    /// Runs a closure in this namespace and returns its result. It blocks until the closure is done, so the closure
    /// should only open or spawn something.
    ///
    /// If the calling thread is in the namespace already, it runs the closure itself. Otherwise a new thread does,
    /// which enters the calling thread's tokio runtime, so that sockets and processes register there. A panic is
    /// propagated to the calling thread.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        if self.is_current() {
            return Ok(work());
        }
        let runtime = Handle::try_current().ok();
        let in_thread = || {
            setns(&self.0.file, CloneFlags::CLONE_NEWNET).map_err(|errno| self.not_entered(errno))?;
            let _runtime = runtime.as_ref().map(Handle::enter);
            Ok(work())
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, in_thread);
            let thread = thread.map_err(|source| NetnsError::Thread { name: self.0.name.clone(), source })?;
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    fn not_entered(&self, errno: nix::Error) -> NetnsError {
        let name = self.0.name.clone();
        match errno {
            nix::Error::EINVAL => NetnsError::NotOne { name },
            errno => NetnsError::Enter { name, source: errno.into() },
        }
    }
}

impl Id {
    fn of(file: &fs::Metadata) -> Self {
        Self(file.dev(), file.ino())
    }
}

/// Two values are equal if they are the same namespace, whatever paths they were opened with.
impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for Netns {}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Netns").field(&self.0.name).field(&self.0.id.1).finish()
    }
}

impl From<NetnsError> for io::Error {
    fn from(error: NetnsError) -> Self {
        Self::other(error)
    }
}
