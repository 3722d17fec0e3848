//! The first process of a container.
//!
//! Whoever loses its parent there becomes a child of it, and stays a zombie until it is reaped. Programs that keep
//! firewall rules may leave such processes behind. The agent can't reap all children, since the status of those that
//! it runs is awaited elsewhere. So it runs as a child of a process that does nothing else.

use std::process::ExitCode;

use crate::sys::{self, Forked, Pid, Sent};

/// Signals that the agent ends by.
const ENDS: [i32; 2] = [libc::SIGTERM, libc::SIGINT];

/// Runs `agent`: in a child, if this is the first process. Returns how it ended.
pub(crate) fn run(agent: impl FnOnce() -> ExitCode) -> ExitCode {
    if std::process::id() != 1 {
        return agent();
    }
    match sys::fork_to_wait() {
        Ok(Forked::Parent(pid)) => wait(pid),
        Ok(Forked::Child) => agent(),
        // It can do its work, only not that of a first process.
        Err(error) => {
            eprintln!("flanneld: processes without a parent are not reaped, since fork fails: {error}");
            agent()
        }
    }
}

/// Reaps whoever ends, and passes on what the agent ends by, until it ends.
fn wait(agent: Pid) -> ExitCode {
    loop {
        match sys::wait_for_signal() {
            Sent::ChildEnded => {
                while let Some((pid, code)) = sys::reap() {
                    if pid == agent {
                        return ExitCode::from(code);
                    }
                }
            }
            Sent::ByProcess(signal) if ENDS.contains(&signal) => sys::send(agent, signal),
            Sent::ByProcess(_) | Sent::Other => {}
        }
    }
}
