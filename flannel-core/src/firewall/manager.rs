//! The trait of what keeps rules in the kernel, and how its programs are run.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::rules::{Ours, Wanted};
use crate::kernel::KernelError;
use crate::netns::{Netns, NetnsError};

/// How long a program may run. It may wait for a lock of its own first.
const DEADLINE: Duration = Duration::from_secs(30);

/// One way to have rules in the kernel.
#[async_trait]
pub trait RuleManager: Send {
    /// Its name, for the log.
    fn name(&self) -> &'static str;

    /// Reads what is there and says what must change so that `want` holds. Rules that are not ours stay.
    async fn plan(&mut self, want: &Wanted, ours: &Ours) -> Result<Plan, FirewallError>;

    /// Does one step of a plan.
    async fn apply(&mut self, step: &Step) -> Result<(), FirewallError>;

    /// Waits until a look is worth its while: something changed, or might have. Dropping the future is no loss.
    async fn changed(&mut self);

    /// Which of its ways it takes and why, if it may take another one later.
    fn choice(&self) -> Option<&str> {
        None
    }
}

/// What is to be done, and what an operator should know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order. Each is done in full or not at all.
    pub steps: Vec<Step>,
    /// What is in the way of the rules, or around them.
    pub notes: Vec<String>,
}

/// One run of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its name; it is looked up as a shell would.
    pub program: &'static str,
    /// Its arguments.
    pub args: Vec<String>,
    /// What it reads.
    pub input: String,
    /// The same as commands for a shell, one a line, for those who want to see what would be done.
    pub commands: Vec<String>,
}

impl Step {
    /// Does it in a network namespace.
    pub async fn run(&self, netns: &Netns) -> Result<(), FirewallError> {
        run(netns, self.program, &self.args, &self.input).await.map(drop)
    }
}

/// Rules can't be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FirewallError {
    /// A program is not on this host.
    #[error("{program} is not installed (Debian and Red Hat package {package})")]
    Missing {
        /// Which.
        program: String,
        /// What brings it.
        package: &'static str,
    },
    /// There is no program for rules at all.
    #[error("neither iptables nor nft is installed (Debian and Red Hat packages iptables and nftables)")]
    Neither,
    /// A program can't be run.
    #[error("can't run {command}")]
    Run {
        /// The command.
        command: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{command} failed with {status}: {said}")]
    Failed {
        /// The command.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said about it.
        said: String,
    },
    /// The kernel does not know nftables.
    #[error(
        "the kernel has no nf_tables: load the module (`modprobe nf_tables`), or use iptables (EnableNFTables false in \
         the network config); nft said: {said}"
    )]
    NoNfTables {
        /// What nft said.
        said: String,
    },
    /// The kernel lets only others change rules.
    #[error("capability CAP_NET_ADMIN is missing, which nftables needs; nft said: {said}")]
    NotPermitted {
        /// What nft said.
        said: String,
    },
    /// A program took too long.
    #[error("{command} did not end within {} s and was stopped", DEADLINE.as_secs())]
    TimedOut {
        /// The command.
        command: String,
    },
    /// A program said something that can't be read.
    #[error("the output of {command} can't be read: {why}")]
    Unreadable {
        /// The command.
        command: String,
        /// What is wrong with it.
        why: String,
    },
    /// The kernel does not tell of changes.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Programs can't be run in the network namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

/// Runs a program in a network namespace to its end and returns what it printed.
pub(super) async fn run(
    netns: &Netns,
    program: &str,
    args: &[impl AsRef<str>],
    input: &str,
) -> Result<String, FirewallError> {
    let args: Vec<_> = args.iter().map(AsRef::as_ref).collect();
    let command = || std::iter::once(program).chain(args.iter().copied()).collect::<Vec<_>>().join(" ");
    let spawn_error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => {
            FirewallError::Missing { program: program.to_owned(), package: package_of(program) }
        }
        _ => FirewallError::Run { command: command(), source },
    };
    let mut child = Command::new(program);
    child
        .args(&args)
        // What it says is partly read, so it must not be translated.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = netns.run(|| child.spawn())?.map_err(spawn_error)?;
    let mut stdin = child.stdin.take().expect("it was asked for");
    let feed = async {
        // A program that ends without reading says why in another way.
        _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
    };
    let whole = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(DEADLINE, whole)
        .await
        .map_err(|_| FirewallError::TimedOut { command: command() })?
        .map_err(|source| FirewallError::Run { command: command(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(FirewallError::Failed { command: command(), status: output.status, said })
}

/// The package that brings a program.
fn package_of(program: &str) -> &'static str {
    if program == "nft" { "nftables" } else { "iptables" }
}
