//! The first process of a container.
//!
//! A process that loses its parent there becomes a child of the first process, and stays a zombie until that reaps it.
//! Programs that keep firewall rules may leave such processes behind. The agent can't reap all children, since other
//! code waits for the status of those that it runs. So it runs as a child of a process that only reaps.

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
        // The agent can still do its work, but orphans are not reaped.
        Err(error) => {
            eprintln!("flanneld: processes without a parent are not reaped, since fork fails: {error}");
            agent()
        }
    }
}

/// Reaps children and forwards the signals that end the agent, until it has ended.
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
