//! The trait of managers that keep rules in the kernel, and the code that runs their programs.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::nft::Transaction;
use super::rules::{Ours, Wanted};
use crate::kernel::KernelError;
use crate::netns::{Netns, NetnsError};

/// How long a program may run. It may wait for a lock of its own first.
const DEADLINE: Duration = Duration::from_secs(30);

/// One way to keep rules in the kernel.
#[async_trait]
pub trait RuleManager: Send {
    /// Its name, for the log.
    fn name(&self) -> &'static str;

    /// Its name with the variant that it uses now, such as `iptables-legacy`. It is the value of
    /// [`FirewallStatus::manager`](super::FirewallStatus::manager).
    fn kind(&self) -> &'static str {
        self.name()
    }

    /// Reads the present rules, and plans the changes that lead to `want`. Rules that are not ours stay.
    async fn plan(&mut self, want: &Wanted, ours: &Ours) -> Result<Plan, FirewallError>;

    /// Carries out one step of a plan.
    async fn apply(&mut self, step: &Step) -> Result<(), FirewallError>;

    /// Waits until the rules should be read again, because they changed or may have changed. Dropping the future loses
    /// nothing.
    async fn changed(&mut self);

    /// Which variant it uses and why, if it may use another one later.
    fn choice(&self) -> Option<&str> {
        None
    }
}

/// The steps of a change, and what an operator should know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps, in this order. Each is carried out completely or not at all.
    pub steps: Vec<Step>,
    /// Notes about rules of others in our chains, and the like.
    pub notes: Vec<String>,
}

/// One change of the kernel's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// How it is carried out.
    pub work: Work,
    /// The equivalent shell commands, one a line, for operators who want to see what would be done.
    pub commands: Vec<String>,
}

/// How a step is carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// By one run of a program.
    Program {
        /// Its name; it is looked up as a shell would.
        program: &'static str,
        /// Its arguments.
        args: Vec<String>,
        /// Its standard input.
        input: String,
    },
    /// By one transaction of `nf_tables`.
    Transaction(Transaction),
}

impl Step {
    /// Carries the step out in a network namespace.
    pub async fn run(&self, netns: &Netns) -> Result<(), FirewallError> {
        match &self.work {
            Work::Program { program, args, input } => run(netns, program, args, input).await.map(drop),
            Work::Transaction(transaction) => transaction.run(netns).await,
        }
    }
}

/// Why rules can't be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FirewallError {
    /// A program is not installed.
    #[error("{program} is not installed (Debian and Red Hat package {package})")]
    Missing {
        /// The program.
        program: String,
        /// The package that contains it.
        package: &'static str,
    },
    /// There is nothing to keep rules with.
    #[error(
        "iptables is not installed (Debian and Red Hat package iptables), and the kernel has no nf_tables (`modprobe \
         nf_tables`)"
    )]
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
        /// Its exit status.
        status: std::process::ExitStatus,
        /// Its error output.
        said: String,
    },
    /// The kernel does not know nftables.
    #[error(
        "the kernel has no nf_tables: load the module (`modprobe nf_tables`), or use iptables (EnableNFTables false in \
         the network config)"
    )]
    NoNfTables(#[source] KernelError),
    /// The agent lacks the capability to change rules.
    #[error("capability CAP_NET_ADMIN is missing, which nftables needs")]
    NotPermitted(#[source] KernelError),
    /// A table of ours belongs to another process, as long as that runs.
    #[error(
        "table flannel-ipv4 or flannel-ipv6 belongs to another process, which alone may change it (`nft list tables` and \
         `nft list table` show `flags owner`): end that process"
    )]
    Owned(#[source] KernelError),
    /// Somebody changed rules after they were read. They are read again.
    #[error("rules of nf_tables were changed all the time while they were compared; this is tried again")]
    Outdated,
    /// A program took too long.
    #[error("{command} did not end within {} s and was stopped", DEADLINE.as_secs())]
    TimedOut {
        /// The command.
        command: String,
    },
    /// The output of a program can't be parsed.
    #[error("the output of {command} can't be read: {why}")]
    Unreadable {
        /// The command.
        command: String,
        /// What is wrong with it.
        why: String,
    },
    /// The kernel does not answer, or refuses.
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
        // Some messages are parsed, so they must not be translated.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = netns.run(|| child.spawn())?.map_err(spawn_error)?;
    let mut stdin = child.stdin.take().expect("it was asked for");
    let feed = async {
        // A program that ends without reading reports the reason by its status and error output.
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

/// The package that contains a program.
fn package_of(program: &str) -> &'static str {
    if program == "nft" { "nftables" } else { "iptables" }
}
