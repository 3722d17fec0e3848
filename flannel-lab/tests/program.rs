//! Whole programs in a sandbox, by the example: how they end, and that nothing stays.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use flannel_lab::wait::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Cargo builds the examples with all tests, next to them; before `cargo test --test program` it takes
/// `cargo build --examples`.
fn example() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    tests.ancestors().nth(2).unwrap().join("examples/two_nodes")
}

/// The example at work, with an argument that tells its processes from all others.
fn watching(argument: &str) -> (Child, BufReader<ChildStdout>) {
    let mut command = Command::new(example());
    let mut child = command
        .args(["watch", argument])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("until Ctrl-C") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "an early end");
    }
    (child, output)
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

fn assert_gone(argument: &str) {
    let is_ours = |line: &Vec<u8>| {
        line.split(|byte| *byte == 0)
            .any(|arg| arg == argument.as_bytes())
    };
    eventually(
        Duration::from_secs(5),
        "all its processes to be gone",
        || {
            let processes = fs::read_dir("/proc").unwrap().flatten();
            let mut lines =
                processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
            !lines.any(|line| is_ours(&line))
        },
    );
}

#[test]
fn its_output_and_exit_code_come_out() {
    let output = Command::new(example()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text.matches("5 of 5 answered").count(), 2, "{text}");
}

#[test]
fn a_signal_it_handles_is_passed_on() {
    let (mut child, mut output) = watching("handled");
    send(&child, Signal::SIGINT);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("answered"), "{rest}");
    assert!(child.wait().unwrap().success());
    assert_gone("handled");
}

#[test]
fn a_signal_it_does_not_handle_ends_it() {
    let (mut child, _output) = watching("unhandled");
    send(&child, Signal::SIGTERM);
    assert_eq!(
        child.wait().unwrap().code(),
        Some(128 + Signal::SIGTERM as i32)
    );
    assert_gone("unhandled");
}

#[test]
fn nothing_survives_the_outer_process() {
    let (mut child, _output) = watching("orphaned");
    send(&child, Signal::SIGKILL);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_gone("orphaned");
}
