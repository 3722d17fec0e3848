//! What a server does when the system has nothing left for a further connection.

use std::io;
use std::time::Duration;

/// The pause after the system had no descriptor or memory for a connection.
pub(crate) const REST: Duration = Duration::from_millis(100);

/// Whether the process or the system has no descriptors or memory left for a connection, which then stays in the queue.
pub(crate) fn is_one(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
