//! The first process of a container.
//!
//! Whoever loses its parent there becomes a child of it, and stays a zombie until it is reaped. Programs that keep
//! firewall rules may leave such processes behind. The agent can't reap all children, since the status of those that
//! it runs is awaited elsewhere. So it runs as a child of a process that does nothing else.

use std::process::ExitCode;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{ForkResult, Pid};
use rustix::process::WaitOptions;

use crate::sys;

/// Signals that the agent ends by.
const ENDS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// Runs `agent`: in a child, if this is the first process. Returns how it ended.
pub(crate) fn run(agent: impl FnOnce() -> ExitCode) -> ExitCode {
    if std::process::id() != 1 {
        return agent();
    }
    match split() {
        Ok(Some((child, signals))) => wait(child, &signals),
        Ok(None) => agent(),
        // It can do its work, only not that of a first process.
        Err(error) => {
            eprintln!("flanneld: processes without a parent are not reaped, since fork fails: {error}");
            agent()
        }
    }
}

/// Splits this process. The parent gets the child, and all signals by a descriptor; the child goes on as it was.
fn split() -> nix::Result<Option<(Pid, SignalFd)>> {
    let all = SigSet::all();
    let signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC)?;
    let before = all.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    match sys::fork() {
        Ok(ForkResult::Parent { child }) => Ok(Some((child, signals))),
        other => {
            before.thread_set_mask()?;
            other.map(|_| None)
        }
    }
}

/// Reaps whoever ends, and passes on what the agent ends by, until it ends.
fn wait(agent: Pid, signals: &SignalFd) -> ExitCode {
    loop {
        let Ok(Some(sent)) = signals.read_signal() else { continue };
        match Signal::try_from(sent.ssi_signo.cast_signed()) {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(agent) {
                    return ExitCode::from(code);
                }
            }
            // By a process, rather than by the terminal, which sends it to the children, too.
            Ok(signal) if sent.ssi_code <= 0 && ENDS.contains(&signal) => {
                // It has not been waited for, so the number is its own.
                let _ = kill(agent, signal);
            }
            _ => {}
        }
    }
}

/// Takes the status of all children that have ended. Returns the agent's, if it has: its exit code, or 128 and the signal.
fn reap(agent: Pid) -> Option<u8> {
    let mut ended = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        let code = status.exit_status().or_else(|| Some(128 + status.terminating_signal()?));
        if pid.as_raw_pid() == agent.as_raw() {
            ended = Some(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX));
        }
    }
    ended
}
