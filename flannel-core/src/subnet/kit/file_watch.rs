//! Watching a file that others replace.

use std::io;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use super::inotify::{Fd, listen};

/// A file is replaced by several steps, such as the kubelet's; one look after them will do.
const SETTLE: Duration = Duration::from_millis(100);

/// Watches the folder of a file by inotify. It is blind to some changes, such as those that another host makes on NFS or
/// that replace the folder's folder, so its owner also looks without being told, now and then.
#[derive(Debug)]
pub struct FileWatch(AsyncFd<Fd>);

impl FileWatch {
    /// Watches the folder of `path`, not the file: a `ConfigMap`'s file is a link that leads through another, which is
    /// swapped. The error is that of `inotify_add_watch(2)`; there need be no file.
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

    /// Waits until something changed in the folder, and 100 ms more for what follows. Returns whether the folder still
    /// is the one that the path named; if not, open another watch. Dropping the future loses no change.
    pub async fn changed(&self) -> bool {
        let Ok(mut ready) = self.0.readable().await else { return false };
        sleep(SETTLE).await;
        // All that has come is one reason to look.
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
