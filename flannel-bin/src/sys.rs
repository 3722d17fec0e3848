//! The C library, where no wrapper of it is safe.
#![allow(unsafe_code)]

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::ForkResult;

/// Keeps the heap small (glibc's mallopt(3)). The agent allocates little but in bursts of leases, and its datapath
/// nothing.
///
/// - `M_ARENA_MAX`: all threads allocate from one heap. With a heap for each, what one thread freed is of no use to
///   the others, and stays.
/// - `M_MMAP_THRESHOLD`: what is large goes back to the system as soon as it is freed. Without it glibc raises the
///   limit with the first large block that is freed, and later ones stay in the heap.
pub(crate) fn keep_heap_small() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: no pointers are handed over, and no other thread runs yet that could allocate meanwhile.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        }
    }
}

/// Splits the process in two (fork(2)), each with a copy of all that there is, and with children that can be waited for.
pub(crate) fn fork() -> nix::Result<ForkResult> {
    // SAFETY: no handler is set that could run meanwhile, and no other thread runs yet, so the child may go on as a
    // process of its own.
    unsafe {
        // Children of a process that ignores their end can't be waited for.
        signal(Signal::SIGCHLD, SigHandler::SigDfl)?;
        nix::unistd::fork()
    }
}
