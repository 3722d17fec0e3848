//! The one unsafe call of this module.
#![allow(unsafe_code)]

use std::io;

use neli::socket::NlSocket;
use tokio::io::unix::AsyncFd;

/// Registers a socket with tokio's reactor.
pub(super) fn register(socket: NlSocket) -> io::Result<AsyncFd<NlSocket>> {
    // SAFETY: an `NlSocket` owns its descriptor, always names the same one and closes it only when it is
    // dropped; `AsyncFd` owns the `NlSocket` and gives out no more than shared references here.
    Ok(unsafe { AsyncFd::register(socket) }?)
}
