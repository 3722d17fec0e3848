//! Sandboxes for whole programs, and what Ctrl-C means for them.
//!
//! Two processes share the terminal: the outer one, which waits, and the inner one. Ctrl-C reaches
//! both; a signal sent to the outer one alone is passed on. The inner one handles signals as it
//! likes; as the first process of its pid namespace it lacks the kernel's default actions, so
//! [`enter_sandbox`] gives it handlers that do the same. A second signal ends the sandbox whatever
//! the inner process makes of it.

use std::env;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitCode, ExitStatus, Stdio};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

use super::{command, is_inside_for, prepare};
use crate::{LabError, exec, sys};

/// The marker's value for programs; no test can have this name.
const PROGRAM: &str = "(program)";

/// What users end programs by.
const PASSED_ON: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// On which side of the sandbox's wall we are.
#[derive(Debug)]
pub enum Entered {
    /// In it: go on.
    Inside,
    /// Outside, and the inner program is done: leave with its exit code.
    Outside(ExitCode),
}

/// Runs the whole program again, with the same arguments, in a sandbox.
///
/// Call it first in `main`, while there is one thread: signals are taken over for that thread only.
/// Inside, signals end the program as usual until it handles them itself.
pub fn enter_sandbox() -> Result<Entered, LabError> {
    let ours = [Signal::SIGCHLD].into_iter().chain(PASSED_ON);
    let signals = ours.collect::<SigSet>();
    if is_inside_for(PROGRAM) {
        sys::exit_on(&PASSED_ON).map_err(LabError::io("setting signal handlers"))?;
        // The outer process blocked them for itself, and a mask is inherited.
        let unblocked = signals.thread_unblock();
        unblocked.map_err(LabError::io("unblocking signals"))?;
        prepare()?;
        return Ok(Entered::Inside);
    }
    let blocked = signals.thread_block();
    blocked.map_err(LabError::io("blocking signals"))?;
    let code = run(&signals);
    let unblocked = signals.thread_unblock();
    unblocked.map_err(LabError::io("unblocking signals"))?;
    code.map(|code| Entered::Outside(ExitCode::from(code)))
}

fn run(signals: &SigSet) -> Result<u8, LabError> {
    let reader = SignalFd::new(signals).map_err(LabError::io("a signalfd"))?;
    let mut command = command(PROGRAM)?;
    command.args(env::args_os().skip(1)).stdin(Stdio::inherit());
    let line = exec::describe(&command);
    let spawned = command.spawn();
    let mut child = spawned.map_err(|source| LabError::Spawn {
        command: line,
        source,
    })?;
    let mut is_first = true;
    loop {
        let ended = child.try_wait();
        if let Some(status) = ended.map_err(LabError::io("waiting for the sandbox"))? {
            return Ok(exit_code(status));
        }
        let info = reader.read_signal();
        let info = info.map_err(LabError::io("reading the signalfd"))?;
        let Some(info) = info else { continue };
        let number = i32::try_from(info.ssi_signo).unwrap_or_default();
        let Ok(signal) = Signal::try_from(number) else {
            continue;
        };
        if signal == Signal::SIGCHLD {
            continue;
        }
        // The terminal sends its signals to the whole foreground group, the inner one included.
        let has_it = info.ssi_code == libc::SI_KERNEL;
        if !is_first || !(has_it || pass_on(&child, signal)) {
            child.kill().map_err(LabError::io("ending the sandbox"))?;
        }
        is_first = false;
    }
}

/// Hands a signal to the sandbox's first process, the only child of `unshare`.
fn pass_on(unshare: &Child, signal: Signal) -> bool {
    only_child(unshare.id()).is_some_and(|inner| kill(inner, signal).is_ok())
}

fn only_child(parent: u32) -> Option<Pid> {
    let processes = fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let its_parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        (its_parent.trim().parse() == Ok(parent)).then(|| Pid::from_raw(pid))
    })
}

/// The shell's convention: 128 and the signal for a program that a signal ended.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_the_shell() {
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
        assert_eq!(exit_code(ExitStatus::from_raw(0)), 0);
    }
}
