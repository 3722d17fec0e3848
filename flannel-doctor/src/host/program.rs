//! Programs that show something, run in the namespace of the host.

use std::io;
use std::process::{ExitStatus, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use flannel_core::netns::Netns;

use super::Host;
use crate::finding::Skip;

/// What a program said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ran {
    /// Its exit status.
    pub(crate) status: ExitStatus,
    /// Its output.
    pub(crate) out: String,
    /// Its error output.
    pub(crate) err: String,
}

impl Ran {
    /// The output, if the program succeeded.
    pub(crate) fn success(self, program: &str) -> Result<String, Skip> {
        if self.status.success() {
            return Ok(self.out);
        }
        let said = self.err.trim().replace('\n', "; ");
        Err(Skip::new(format!("{program} ended with {}: {said}", self.status)))
    }
}

impl Host {
    /// Runs a program to its end. It is killed when the future is dropped.
    pub(crate) async fn run(&self, program: &str, args: &[&str]) -> Result<Ran, Skip> {
        run(self.netns(), program, args, &[], "").await
    }

    /// The same with variables and an input.
    pub(crate) async fn run_with(
        &self,
        program: &str,
        variables: &[(&str, &str)],
        input: &str,
    ) -> Result<Ran, Skip> {
        run(self.netns(), program, &[], variables, input).await
    }
}

/// Where programs for administrators are, which users do not have in their `PATH`.
const SBIN: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Kills the processes of a group, unless it ended by itself.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended just now.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

pub(super) async fn run(
    netns: &Netns,
    program: &str,
    args: &[&str],
    variables: &[(&str, &str)],
    input: &str,
) -> Result<Ran, Skip> {
    let elsewhere =
        SBIN.iter().filter(|_| !program.contains('/')).map(|folder| format!("{folder}/{program}"));
    let places = [program.to_owned()].into_iter().chain(elsewhere);
    for place in places {
        if let Some(ran) = run_at(netns, &place, args, variables, input).await? {
            return Ok(ran);
        }
    }
    Err(Skip::new(format!("the program {program} is not installed")))
}

/// Runs the program at this path; `None` if there is none. It has a process group of its own, so that what it started ends
/// with it when the future is dropped.
async fn run_at(
    netns: &Netns,
    program: &str,
    args: &[&str],
    variables: &[(&str, &str)],
    input: &str,
) -> Result<Option<Ran>, Skip> {
    let mut command = Command::new(program);
    command
        .args(args)
        .envs(variables.iter().copied())
        // Some messages are parsed, so they must not be translated.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = match netns.run(|| command.spawn())? {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Skip::new(format!("{program} can't be run: {error}"))),
    };
    let pid = child.id().and_then(|pid| pid.try_into().ok()).map(Pid::from_raw);
    let mut group = Group(pid);
    let mut stdin = child.stdin.take();
    let feed = async {
        if let Some(stdin) = &mut stdin {
            // A program that ends without reading says why by its status.
            _ = stdin.write_all(input.as_bytes()).await;
        }
        drop(stdin);
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    // From here on the number may be another process's.
    group.0 = None;
    let output = output.map_err(|error| Skip::new(format!("{program}: {error}")))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Some(Ran { status: output.status, out: text(&output.stdout), err: text(&output.stderr) }))
}
