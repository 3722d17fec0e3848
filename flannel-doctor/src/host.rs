//! The host that is checked: all that the doctor does to it. It reads files, asks the kernel, and runs programs that show
//! something; what must be tried is tried in a network namespace that lives no longer than the trial.

mod echo;
mod program;
mod sys;
mod trial;

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flannel_core::guarded;
use flannel_core::kernel::{Kernel, KernelError, OpenKernel};
use flannel_core::netlink::Netlink;
use flannel_core::netns::Netns;

use crate::finding::{Skip, is_denied};

pub(crate) use echo::{Echo, echo};
pub use trial::{RealTrials, Trial, Trials, Tried};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// A host, seen through one network namespace and one folder of files. Clones share both.
#[derive(Clone)]
pub struct Host {
    netns: Netns,
    root: Arc<Path>,
    kernel: Arc<OpenKernel>,
    trials: Arc<dyn Trials>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("netns", &self.netns).field("root", &self.root).finish_non_exhaustive()
    }
}

impl Host {
    /// The host of a network namespace, with the files of the calling process.
    pub fn new(netns: Netns) -> Self {
        let kernel = |netns: &Netns| Ok(Box::new(Netlink::open_in(netns)?) as Box<dyn Kernel>);
        Self { netns, root: Path::new("/").into(), kernel: Arc::new(kernel), trials: Arc::new(RealTrials) }
    }

    /// Reads files below another folder: a container that has the host's files at `/host`, say. The folder should have
    /// the host's `/proc`, too.
    pub fn root(self, root: impl Into<PathBuf>) -> Self {
        Self { root: root.into().into(), ..self }
    }

    /// Fails if the folder can't be the root of a host: without files, most checks would find nothing wrong.
    pub fn check_root(root: &Path) -> io::Result<()> {
        let is_host = fs::metadata(root)?.is_dir() && root.join("proc").is_dir();
        if is_host { Ok(()) } else { Err(io::Error::other("it has no folder proc")) }
    }

    /// Asks another kernel for links, addresses and routes, such as the fake of `flannel_core::testing`.
    pub fn kernel(self, kernel: Arc<OpenKernel>) -> Self {
        Self { kernel, ..self }
    }

    /// Learns in another way what the kernel can do.
    pub fn trials(self, trials: Arc<dyn Trials>) -> Self {
        Self { trials, ..self }
    }

    /// The network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Where a file of the host is for this process.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        below(&self.root, path.as_ref())
    }

    /// Tries what the kernel can do.
    pub(crate) async fn tried(&self, what: Trial) -> Tried {
        self.trials.tried(what).await
    }

    /// Opens a connection to the kernel.
    pub(crate) fn open_kernel(&self) -> Result<Box<dyn Kernel>, KernelError> {
        (self.kernel)(&self.netns)
    }

    /// Looks at files, on a thread that may wait and that is in the namespace, so that files below `/proc/net` and
    /// `/proc/sys/net` are those of the namespace.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Files) -> T + Send + 'static,
    ) -> Result<T, Skip> {
        let files = Files(self.root.clone());
        self.blocking(move || look(&files)).await
    }

    /// Runs something that may wait on a thread of its own in the namespace.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Skip> {
        let netns = self.netns.clone();
        let done = tokio::task::spawn_blocking(move || netns.run(work)).await;
        Ok(done.map_err(|error| Skip::new(format!("a look at this host failed: {error}")))??)
    }
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The files of a host.
#[derive(Debug)]
pub(crate) struct Files(Arc<Path>);

impl Files {
    /// Where a file is for this process.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        below(&self.0, path.as_ref())
    }

    /// Reads a regular file, through links.
    pub(crate) fn text(&self, path: impl AsRef<Path>) -> io::Result<String> {
        let bytes = guarded::read_linked(&self.path(path), MAX_FILE)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The value of a kernel parameter by its path below `/proc/sys`, without the newline.
    pub(crate) fn sysctl(&self, name: &str) -> io::Result<String> {
        Ok(self.text(format!("/proc/sys/{name}"))?.trim_end().to_owned())
    }

    /// Reads a table of the namespace below `/proc/net`.
    pub(crate) fn proc_net(&self, table: &str) -> io::Result<String> {
        // `/proc/net` leads to the main thread's.
        self.text(format!("/proc/thread-self/net/{table}"))
    }

    /// A kernel parameter that is a number.
    pub(crate) fn number(&self, name: &str) -> Result<u64, Skip> {
        let path = format!("/proc/sys/{name}");
        let text = self.sysctl(name).map_err(|error| Skip::unread(&path, &error))?;
        text.trim().parse().map_err(|_| Skip::new(format!("{path} has {text:?}, which is no number")))
    }

    /// The names in a folder, in order; empty if there is none.
    pub(crate) fn names(&self, folder: impl AsRef<Path>) -> Vec<OsString> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.sort_unstable();
        names
    }

    /// Fails if there is something that this process may not see: then what it does not see may be there.
    pub(crate) fn seen(&self, path: impl AsRef<Path>) -> Result<(), Skip> {
        let path = path.as_ref();
        let found = self
            .metadata(path)
            .and_then(|found| if found.is_dir() { fs::read_dir(self.path(path)).map(drop) } else { Ok(()) });
        match found {
            Err(error) if is_denied(&error) => Err(Skip::unread(path.display(), &error)),
            _ => Ok(()),
        }
    }

    /// What a link points at.
    pub(crate) fn target(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        fs::read_link(self.path(path)).ok()
    }

    /// The owner and the permissions of a file, not of a link to it.
    pub(crate) fn metadata(&self, path: impl AsRef<Path>) -> io::Result<Metadata> {
        fs::metadata(self.path(path))
    }

    /// Whether there is such a file or folder.
    pub(crate) fn has(&self, path: impl AsRef<Path>) -> bool {
        self.metadata(path).is_ok()
    }
}
