//! Programs that show something, run in the namespace of the host.

use std::io;
use std::process::{ExitStatus, Stdio};

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

pub(super) async fn run(
    netns: &Netns,
    program: &str,
    args: &[&str],
    variables: &[(&str, &str)],
    input: &str,
) -> Result<Ran, Skip> {
    let mut command = Command::new(program);
    command
        .args(args)
        .envs(variables.iter().copied())
        // Some messages are parsed, so they must not be translated.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = netns.run(|| command.spawn())?.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Skip::new(format!("the program {program} is not installed")),
        _ => Skip::new(format!("{program} can't be run: {error}")),
    })?;
    let mut stdin = child.stdin.take();
    let feed = async {
        if let Some(stdin) = &mut stdin {
            // A program that ends without reading says why by its status.
            _ = stdin.write_all(input.as_bytes()).await;
        }
        drop(stdin);
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    let output = output.map_err(|error| Skip::new(format!("{program}: {error}")))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ran { status: output.status, out: text(&output.stdout), err: text(&output.stderr) })
}
