//! The trait of managers that keep rules in the kernel, and the changes that they plan.

use async_trait::async_trait;

use super::error::FirewallError;
use super::nft::transaction::Transaction;
use super::program::run;
use super::rules::{Ours, Wanted};
use crate::netns::Netns;

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
