//! Sandboxes for whole programs, and what Ctrl-C means for them.
//!
//! Two processes share the terminal: the outer one, which waits, and the inner one, which is the
//! first process of its pid namespace. The kernel drops signals such a process doesn't handle, so
//! the outer one looks first: a signal that the inner one handles is passed on, any other one
//! ends the sandbox as it would end a plain program. A second signal always ends it.

use std::env;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitCode, ExitStatus};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

use super::{command, is_inside_for, prepare};
use crate::{LabError, exec};

/// The marker's value for programs; no test can have this name.
const PROGRAM: &str = "(program)";

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
pub fn enter_sandbox() -> Result<Entered, LabError> {
    let signals: SigSet =
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD].into_iter().collect();
    if is_inside_for(PROGRAM) {
        // The outer process blocked them for itself, and a mask is inherited.
        signals.thread_unblock().map_err(LabError::io("unblocking signals"))?;
        prepare()?;
        return Ok(Entered::Inside);
    }
    signals.thread_block().map_err(LabError::io("blocking signals"))?;
    let code = run(&signals);
    signals.thread_unblock().map_err(LabError::io("unblocking signals"))?;
    code.map(|code| Entered::Outside(ExitCode::from(code)))
}

fn run(signals: &SigSet) -> Result<u8, LabError> {
    let reader = SignalFd::new(signals).map_err(LabError::io("a signalfd"))?;
    let mut command = command(PROGRAM)?;
    command.args(env::args_os().skip(1)).stdin(std::process::Stdio::inherit());
    let line = exec::describe(&command);
    let mut child = command.spawn().map_err(|source| LabError::Spawn { command: line, source })?;
    let mut asked = None;
    loop {
        if let Some(status) = child.try_wait().map_err(LabError::io("waiting for the sandbox"))? {
            return Ok(exit_code(status, asked));
        }
        let info = reader.read_signal().map_err(LabError::io("reading the signalfd"))?;
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
        if asked.replace(signal).is_some() || !pass_on(&child, signal, has_it) {
            child.kill().map_err(LabError::io("ending the sandbox"))?;
        }
    }
}

/// Hands a signal to the inner process, unless that has it already. False if it would ignore it.
fn pass_on(unshare: &Child, signal: Signal, has_it: bool) -> bool {
    let Some(inner) = only_child(unshare.id()) else {
        return false;
    };
    let status = fs::read_to_string(format!("/proc/{inner}/status")).unwrap_or_default();
    let heeds = ["SigCgt:", "SigBlk:"].into_iter().any(|field| mask_has(&status, field, signal));
    heeds && (has_it || kill(inner, signal).is_ok())
}

/// Whether a mask of `/proc/<pid>/status` holds the signal: hexadecimal, signal 1 the lowest bit.
fn mask_has(status: &str, field: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix(field));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal as i32 - 1) & 1 == 1)
}

/// `unshare` has one child: the sandbox's first process.
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
fn exit_code(status: ExitStatus, asked: Option<Signal>) -> u8 {
    let signal = asked.map(|signal| signal as i32).or(status.signal()).unwrap_or_default();
    let code = status.code().unwrap_or(128 + signal);
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_count_from_signal_one() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigCgt:\t0000000000004002\n";
        assert!(mask_has(status, "SigCgt:", Signal::SIGINT));
        assert!(mask_has(status, "SigCgt:", Signal::SIGTERM));
        assert!(!mask_has(status, "SigCgt:", Signal::SIGHUP));
        assert!(!mask_has(status, "SigBlk:", Signal::SIGINT));
    }

    #[test]
    fn exit_codes_follow_the_shell() {
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8), None), 3);
        assert_eq!(exit_code(ExitStatus::from_raw(9), None), 137);
        assert_eq!(exit_code(ExitStatus::from_raw(9), Some(Signal::SIGINT)), 130);
        assert_eq!(exit_code(ExitStatus::from_raw(0), Some(Signal::SIGINT)), 0);
    }
}
