//! Sandboxes: nothing leaks out of one, and nothing passes without having run in one.

use std::fs;
use std::panic::catch_unwind;
use std::process::Command;
use std::time::Duration;

use flannel_lab::sandbox::{in_sandbox, in_sandbox_within, is_inside};
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

/// Processes on the machine with this argument.
fn running(argument: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let command_lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    command_lines.filter(|line| line.split(|byte| *byte == 0).any(|arg| arg == argument.as_bytes())).count()
}

fn panic_text(test: impl FnOnce() + std::panic::UnwindSafe) -> String {
    let panic = catch_unwind(test).unwrap_err();
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn a_sandbox_is_the_machine_anew() {
    in_sandbox(test_name!(), || {
        assert!(is_inside());
        assert_eq!(std::process::id(), 1);
        assert_eq!(fs::read_dir("/run").unwrap().count(), 0);
        let links = fs::read_to_string("/proc/net/dev").unwrap();
        assert_eq!(links.lines().filter(|line| line.contains(':')).count(), 1, "{links}");
    });
    assert!(!is_inside() || std::process::id() == 1);
}

#[test]
fn a_left_over_process_is_killed() {
    let argument = "1000.0815";
    in_sandbox(test_name!(), || {
        let child = Command::new("sleep").arg(argument).spawn().unwrap();
        // `spawn` may return before the kernel shows the new program's arguments.
        eventually(Duration::from_secs(5), "the sleep to be there", || running(argument) == 1);
        // Neither waited for nor killed.
        drop(child);
    });
    if !is_inside() {
        eventually(Duration::from_secs(5), "the sleep to be gone", || running(argument) == 0);
    }
}

#[test]
fn a_slow_test_is_killed_with_all_it_started() {
    let argument = "1000.4711";
    let body = || {
        println!("about to sleep");
        Command::new("sleep").arg(argument).status().unwrap();
    };
    let name = test_name!();
    if is_inside() {
        return in_sandbox(name, body);
    }
    let text = panic_text(|| in_sandbox_within(Duration::from_secs(1), name, body));
    assert!(text.contains("killed after 1s") && text.contains("about to sleep"), "{text}");
    eventually(Duration::from_secs(5), "the sleep to be gone", || running(argument) == 0);
}

#[test]
fn a_failure_shows_what_happened_inside() {
    let body = || panic!("for this reason");
    let name = test_name!();
    if is_inside() {
        return in_sandbox(name, body);
    }
    let text = panic_text(|| in_sandbox(name, body));
    assert!(text.contains("failed in its sandbox") && text.contains("for this reason"), "{text}");
}

#[test]
fn a_wrong_name_never_passes() {
    let text = panic_text(|| in_sandbox("no_such_test", || unreachable!("not in this process")));
    assert!(text.contains("no test \"no_such_test\""), "{text}");
}

mod inner {
    #[test]
    fn the_name_of_a_test_is_its_path() {
        assert_eq!(flannel_lab::test_name!(), "inner::the_name_of_a_test_is_its_path");
    }
}
