//! The peak memory of a process that lives for a millisecond.
//!
//! `ru_maxrss` of a child that was just forked has its parent's memory in it (getrusage(2)), so the process is
//! stopped at its exit and asked for its own.

use std::io::Write as _;
use std::process::{Command, Stdio};

use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::{Fallible, proc};

/// Runs a program that reads its stdin to the end before anything else, and returns the most memory that it had
/// resident, in bytes, without that of its children.
pub fn peak_memory(command: &mut Command, input: &str) -> Fallible<u64> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let pid = Pid::from_raw(child.id().cast_signed());
    // It waits for its input, so there is time for this.
    ptrace::seize(pid, Options::PTRACE_O_TRACEEXIT)?;
    child.stdin.take().ok_or("no stdin")?.write_all(input.as_bytes())?;
    let mut peak = 0;
    loop {
        match waitpid(pid, None)? {
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXIT) => {
                peak = proc::peak_memory(child.id())?;
                ptrace::cont(pid, None)?;
            }
            WaitStatus::PtraceEvent(..) => ptrace::cont(pid, None)?,
            // A signal on its way, such as the end of a delegate.
            WaitStatus::Stopped(_, signal) => {
                ptrace::cont(pid, Some(signal).filter(|s| *s != Signal::SIGTRAP))?;
            }
            WaitStatus::Exited(_, 0) => return Ok(peak),
            other => return Err(format!("{command:?}: {other:?}").into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_asked_for_its_own_memory() {
        // Much in this process is none of the child's.
        let mine = vec![1_u8; 64 << 20];
        let peak = peak_memory(&mut Command::new("cat"), "x").unwrap();
        assert!((100_000..20_000_000).contains(&peak), "{peak} beside {}", mine.len());
        let failed = peak_memory(Command::new("sh").args(["-c", "cat; exit 3"]), "");
        assert!(failed.unwrap_err().to_string().contains('3'));
    }
}
