//! inotify for a tokio runtime.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::sys::inotify::Inotify;
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub(in crate::subnet) struct Fd(pub(in crate::subnet) Inotify);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// An inotify instance of which tokio reports when it is readable.
pub(in crate::subnet) fn listen(inotify: Inotify) -> io::Result<AsyncFd<Fd>> {
    #[expect(deprecated, reason = "its successor is unsafe; `Fd` owns its descriptor and never changes it")]
    AsyncFd::new(Fd(inotify))
}
