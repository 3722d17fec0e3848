//! Calls of the C library.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;

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

/// A process of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pid(libc::pid_t);

/// The process in which the call returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forked {
    /// The new one.
    Child,
    /// The old one, with all signals blocked.
    Parent(Pid),
}

/// A signal that a process with blocked signals received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// A child ended.
    ChildEnded,
    /// A process sent this signal, rather than the terminal, which sends it to the children, too.
    ByProcess(i32),
    /// Something else.
    Other,
}

/// Forks the process (fork(2)). The parent has all signals blocked, to wait for them; the child has the signals as they
/// were.
pub(crate) fn fork_to_wait() -> io::Result<Forked> {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the calls fill the sets that they get, which live as long as they are used. No other thread runs
    // yet, so the child may go on as a process of its own.
    unsafe {
        // Children of a process that ignores their end can't be waited for.
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::sigfillset(all.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        match libc::fork() {
            0 => {
                libc::sigprocmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
                Ok(Forked::Child)
            }
            pid if pid < 0 => {
                let error = io::Error::last_os_error();
                libc::sigprocmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
                Err(error)
            }
            pid => Ok(Forked::Parent(Pid(pid))),
        }
    }
}

/// Waits for a blocked signal (sigwaitinfo(2)).
pub(crate) fn wait_for_signal() -> Sent {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: both are filled by the calls, which get them as valid places; zeroes are a valid siginfo_t, too.
    let (signal, info) = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        (libc::sigwaitinfo(all.as_ptr(), info.as_mut_ptr()), info.assume_init())
    };
    match signal {
        libc::SIGCHLD => Sent::ChildEnded,
        signal if signal > 0 && info.si_code <= 0 => Sent::ByProcess(signal),
        _ => Sent::Other,
    }
}

/// Reaps any child that has ended (waitpid(2)): its exit code, or 128 plus the signal. `None` if there is none.
pub(crate) fn reap() -> Option<(Pid, u8)> {
    let mut status = 0;
    // SAFETY: the status is a place of this function.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) };
    (pid > 0).then(|| (Pid(pid), u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Sends a signal. A process that has ended gets none.
pub(crate) fn send(Pid(pid): Pid, signal: i32) {
    // SAFETY: the call touches no memory. The child is not reaped yet, so the number is its own.
    unsafe {
        libc::kill(pid, signal);
    }
}
