//! Why rules can't be read or changed.

use std::io;
use std::time::Duration;

use crate::kernel::KernelError;
use crate::netns::NetnsError;

/// How long a program may run. It may wait for a lock of its own first.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

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
