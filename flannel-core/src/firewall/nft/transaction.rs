//! Changes of our tables on their way to the kernel, and what it says to them.

use super::command::Command;
use crate::firewall::error::FirewallError;
use crate::kernel::KernelError;
use crate::netlink::nftables::{Change, NfTables};
use crate::netns::Netns;

/// Changes of our tables that the kernel carries out together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    pub(super) commands: Vec<Command>,
    /// The generation of the rule set that they were planned for. In another one their handles may mean nothing.
    pub(super) generation: u32,
}

impl Transaction {
    /// Carries it out in a network namespace.
    pub(in crate::firewall) async fn run(&self, netns: &Netns) -> Result<(), FirewallError> {
        self.run_by(&mut open(netns)?).await
    }

    pub(super) async fn run_by(&self, kernel: &mut NfTables) -> Result<(), FirewallError> {
        let changes: Vec<Change<'_>> = self.commands.iter().map(Command::change).collect();
        let done = kernel.transact_on(Some(self.generation), "change rules of nf_tables", &changes).await;
        done.map_err(|error| match error.errno() {
            Some(libc::ERESTART) => FirewallError::Outdated,
            // Who may not change any rules may not read them either.
            Some(libc::EPERM) => FirewallError::Owned(error),
            _ => lacking(error),
        })
    }
}

pub(in crate::firewall) fn open(netns: &Netns) -> Result<NfTables, FirewallError> {
    netns.run(NfTables::open)?.map_err(lacking)
}

/// Says what is missing where an error of the kernel does not.
pub(in crate::firewall) fn lacking(error: KernelError) -> FirewallError {
    match error.errno() {
        Some(libc::EPERM) => FirewallError::NotPermitted(error),
        Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL) => {
            FirewallError::NoNfTables(error)
        }
        _ => FirewallError::Kernel(error),
    }
}
