//! Sandboxes for tests: one test of a test binary, run again by itself.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{command, is_inside_for, prepare};
use crate::LabError;
use crate::wait::patiently;

/// How long [`in_sandbox`] lets a test run.
pub const DEADLINE: Duration = Duration::from_mins(3);

/// What libtest prints at the end of a run of exactly one test that passed.
const ONE_PASSED: &str = "test result: ok. 1 passed;";

/// The name libtest knows the surrounding test by: its path without the crate.
///
/// Only for the body of the test function itself.
#[macro_export]
macro_rules! test_name {
    () => {{
        fn here() {}
        let path = ::std::any::type_name_of_val(&here);
        let path = path.strip_suffix("::here").unwrap_or(path);
        let path = path.strip_suffix("::{{closure}}").unwrap_or(path);
        path.split_once("::").map_or(path, |(_crate, test)| test)
    }};
}

/// Runs the body of the test `test_name` in a sandbox of its own, within [`DEADLINE`].
///
/// Outside, the test binary is run again with this one test's name; inside, the body runs. Works
/// under `cargo test` and nextest alike. Take the name from [`test_name!`](crate::test_name).
///
/// # Panics
///
/// If the test fails in the sandbox, is too slow, or isn't found there; with all of its output.
#[track_caller]
pub fn in_sandbox(test_name: &str, body: impl FnOnce()) {
    in_sandbox_within(DEADLINE, test_name, body);
}

/// [`in_sandbox`] with another deadline. A slow machine gets more: see [`patiently`].
#[track_caller]
pub fn in_sandbox_within(deadline: Duration, test_name: &str, body: impl FnOnce()) {
    if is_inside_for(test_name) {
        prepare().expect("a new sandbox can be prepared");
        return body();
    }
    let deadline = patiently(deadline);
    match rerun(test_name, deadline) {
        // By `print!`, so that libtest shows it only where it shows a test's output at all.
        Ok((Some(status), output)) if status.success() && output.contains(ONE_PASSED) => {
            print!("{output}");
        }
        Ok((Some(status), output)) if status.success() => {
            panic!("there is no test {test_name:?} in this binary; its output:\n{output}")
        }
        Ok((Some(status), output)) => {
            panic!("{test_name} failed in its sandbox ({status}); its output:\n{output}")
        }
        Ok((None, output)) => {
            panic!("{test_name} was killed after {deadline:?}; its output so far:\n{output}")
        }
        Err(error) => panic!("no sandbox for {test_name}: {error}; {error:?}"),
    }
}

/// The test's exit status, `None` if it had to be killed, and all it printed.
fn rerun(test_name: &str, deadline: Duration) -> Result<(Option<ExitStatus>, String), LabError> {
    let what = || LabError::io("the sandbox's output file");
    // A file and not a pipe: whatever still holds it open can't keep us waiting.
    let mut output = tempfile::tempfile().map_err(what())?;
    let mut command = command(test_name)?;
    command
        .args([test_name, "--exact", "--include-ignored", "--nocapture", "--test-threads=1"])
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(what())?)
        .stderr(output.try_clone().map_err(what())?);
    let line = crate::exec::describe(&command);
    let mut child = command.spawn().map_err(|source| LabError::Spawn { command: line, source })?;
    let status = wait(&mut child, deadline).map_err(LabError::io("waiting for the sandbox"))?;
    Ok((status, read(&mut output).map_err(what())?))
}

fn wait(child: &mut Child, deadline: Duration) -> std::io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    while start.elapsed() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

fn read(output: &mut File) -> std::io::Result<String> {
    output.rewind()?;
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
