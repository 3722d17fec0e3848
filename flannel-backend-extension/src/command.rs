//! Runs a command: without a shell, in the network namespace of the agent, for a limited time, with bounded output.

mod output;

use std::ffi::OsString;
use std::io;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::netns::{Netns, NetnsError};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use output::Output;

/// How long to wait for the rest of the output after a command has ended: something that it started in the background may
/// have its pipes open.
const REST: Duration = Duration::from_millis(200);

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// The program, and its arguments.
    pub(crate) args: Vec<String>,
    /// Variables besides those that each command gets.
    pub(crate) variables: Vec<(&'static str, String)>,
    /// The standard input.
    pub(crate) input: String,
    pub(crate) limit: Duration,
}

/// Runs commands. Dropping the future of [`Self::run`] kills the command.
#[async_trait]
pub(crate) trait Run: Send + Sync {
    /// Runs a command to its end, and returns its standard output without white space around it.
    async fn run(&self, request: Request) -> Result<String, CommandError>;
}

/// Why a command did not do its work. No text has its arguments, which may be secrets.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("names no program: its first word is empty")]
    NoProgram,
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error("{program} can't be run: {source}")]
    Start { program: String, source: io::Error },
    #[error("{program} can't be waited for: {source}")]
    Wait { program: String, source: io::Error },
    #[error("{program} did not end within {} s (Backend.CommandTimeout) and was killed{said}", limit.as_secs())]
    TimedOut { program: String, limit: Duration, said: String },
    #[error("{program} failed ({status}){said}")]
    Failed { program: String, status: ExitStatus, said: String },
    #[error("{program} printed more than {} bytes", output::MOST)]
    TooMuch { program: String },
}

/// Runs commands as processes.
pub(crate) struct Processes {
    pub(crate) netns: Netns,
    /// The environment of each command; it has nothing of the agent's own.
    pub(crate) environment: Vec<(OsString, OsString)>,
}

/// The process group of a command. It is killed unless the command has ended.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // An error means that there is none any more.
            _ = killpg(group, Signal::SIGKILL);
        }
    }
}

#[async_trait]
impl Run for Processes {
    async fn run(&self, request: Request) -> Result<String, CommandError> {
        let Request { args, variables, input, limit } = request;
        let (program, args) =
            args.split_first().filter(|(it, _)| !it.is_empty()).ok_or(CommandError::NoProgram)?;
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let program = program.clone();
        let mut child = (self.netns.run(|| command.spawn())?)
            .map_err(|source| CommandError::Start { program: program.clone(), source })?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let mut group = Group(pid);
        let (mut stdout, mut stderr) = (Output::default(), Output::default());
        let mut stdin = child.stdin.take().expect("it was asked for");
        let out = child.stdout.take().expect("it was asked for");
        let err = child.stderr.take().expect("it was asked for");
        let ended = {
            let feed = async {
                // A command that ends without reading says the rest by its status.
                _ = stdin.write_all(format!("{input}\n").as_bytes()).await;
                drop(stdin);
            };
            let mut pipes = pin!(async { tokio::join!(feed, stdout.fill(out), stderr.fill(err)) });
            let whole = async {
                let mut are_closed = false;
                let status = loop {
                    tokio::select! {
                        status = child.wait() => break status,
                        _ = &mut pipes, if !are_closed => are_closed = true,
                    }
                };
                group.0 = None;
                if !are_closed {
                    _ = timeout(REST, &mut pipes).await;
                }
                status
            };
            timeout(limit, whole).await
        };
        let said = || output::said(&stdout, &stderr);
        match ended {
            Err(_) => {
                drop(group);
                Err(CommandError::TimedOut { program, limit, said: said() })
            }
            Ok(Err(source)) => Err(CommandError::Wait { program, source }),
            Ok(Ok(status)) if !status.success() => {
                Err(CommandError::Failed { program, status, said: said() })
            }
            Ok(Ok(_)) => stdout.text().ok_or(CommandError::TooMuch { program }),
        }
    }
}

#[cfg(test)]
mod tests;
