//! Watches a file that others replace.

use std::io;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use super::inotify::{Fd, listen};

/// Some programs, such as the kubelet, replace a file in several steps. One read after all of them is enough.
const SETTLE: Duration = Duration::from_millis(100);

/// Watches the folder of a file by inotify. inotify does not see some changes, such as those that another host makes on
/// NFS, or a replaced parent folder. So the caller must also read the file periodically.
#[derive(Debug)]
pub struct FileWatch(AsyncFd<Fd>);

impl FileWatch {
    /// Watches the folder of `path`, not the file, because the file of a `ConfigMap` is a link through another link,
    /// which is replaced. The error is that of `inotify_add_watch(2)`. The file need not exist.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O.
    pub fn open(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        inotify.add_watch(folder, flags)?;
        listen(inotify).map(Self)
    }

    /// Waits until something changes in the folder, and another 100 ms for further steps. Returns whether the path
    /// still names the same folder; if not, open a new watch. Dropping the future loses no change.
    pub async fn changed(&self) -> bool {
        let Ok(mut ready) = self.0.readable().await else { return false };
        sleep(SETTLE).await;
        // All events that have arrived count as one change.
        let ended = AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_UNMOUNT;
        loop {
            match self.0.get_ref().0.read_events() {
                Ok(events) if events.iter().any(|event| event.mask.intersects(ended)) => return false,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => return false,
            }
        }
        ready.clear_ready();
        true
    }
}
