//! Rules by nftables: tables of our own, changed in one transaction, and read when the kernel notifies of a change. All
//! of it is netlink; no program is run.

mod command;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod fuzz;
mod plan;
pub(super) mod seen;
#[cfg(test)]
mod tests;
pub(super) mod transaction;

use std::future::pending;

use async_trait::async_trait;
use tracing::debug;

use self::command::{family_of, table_name};
pub use self::transaction::Transaction;
use self::transaction::{lacking, open};
use super::error::FirewallError;
use super::manager::{Plan, RuleManager, Step, Work};
use super::rules::{Ours, Rule, Verdict, Wanted};
use crate::addr::{Family, Subnet};
use crate::netlink::nftables::{NfTables, TableFamily};
use crate::netlink::{RulesetChange, RulesetEvents};
use crate::netns::Netns;

/// Keeps rules in tables of our own.
pub struct Nftables {
    netns: Netns,
    /// `None` until the kernel has `nf_tables`.
    kernel: Option<NfTables>,
    /// `None` while the kernel sends no notifications.
    events: Option<RulesetEvents>,
}

impl std::fmt::Debug for Nftables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nftables").field("netns", &self.netns).finish_non_exhaustive()
    }
}

impl Nftables {
    /// Subscribes to notifications in a network namespace, and keeps rules there.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time.
    pub fn open(netns: &Netns) -> Self {
        Self { netns: netns.clone(), kernel: None, events: listen(netns) }
    }

    fn kernel(&mut self) -> Result<&mut NfTables, FirewallError> {
        let kernel = match self.kernel.take() {
            Some(kernel) => kernel,
            None => open(&self.netns)?,
        };
        Ok(self.kernel.insert(kernel))
    }
}

/// The tables of the families `ip`, `ip6` and `inet` in a network namespace, whoever made them, as `nft` names them:
/// `ip filter`. It fails if the kernel has no `nf_tables`, or if this process may not ask.
///
/// # Panics
///
/// Outside of a tokio runtime with I/O and time.
pub async fn tables(netns: &Netns) -> Result<Vec<String>, FirewallError> {
    let mut kernel = open(netns)?;
    let mut tables = Vec::new();
    for family in [TableFamily::Ip, TableFamily::Ip6, TableFamily::Inet] {
        let names = kernel.names(family).await.map_err(lacking)?;
        tables.extend(names.into_iter().map(|name| format!("{} {name}", family.name())));
    }
    Ok(tables)
}

/// Whether a rule of ours in a network namespace gives packets of this network's pods another source.
///
/// # Panics
///
/// Outside of a tokio runtime with I/O and time.
pub async fn masquerades(netns: &Netns, network: Subnet) -> Result<bool, FirewallError> {
    let family = network.family();
    let seen = seen::read(&mut open(netns)?, family).await.map_err(lacking)?;
    let rules = seen.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules);
    let is_it = |rule: Rule| {
        let from_pods = rule.src.is_some_and(|src| src.subnet == network && !src.outside);
        from_pods && matches!(rule.verdict, Verdict::Masquerade { .. })
    };
    Ok(rules.filter_map(|rule| seen::rule(family, rule)).any(is_it))
}

/// Whether a change is about our tables.
fn concerns(change: &RulesetChange) -> bool {
    let ours = |(family, name): &(u8, String)| {
        Family::ALL.iter().any(|it| *family == family_of(*it).number() && name == table_name(*it))
    };
    change.unknown || change.tables.iter().any(ours)
}

#[async_trait]
impl RuleManager for Nftables {
    fn name(&self) -> &'static str {
        "nftables"
    }

    async fn plan(&mut self, want: &Wanted, ours: &Ours) -> Result<Plan, FirewallError> {
        if self.events.is_none() {
            self.events = listen(&self.netns);
        }
        let mut plan = Plan::default();
        // What is read later than this is of this generation, or the transaction is refused.
        let kernel = self.kernel()?;
        let generation = kernel.generation().await.map_err(lacking)?;
        let mut commands = Vec::new();
        for family in Family::ALL {
            let seen = seen::read(kernel, family).await.map_err(lacking)?;
            let changes = plan::changes(family, want, seen.as_ref(), ours);
            commands.extend(changes.commands);
            plan.notes.extend(changes.notes);
        }
        if !commands.is_empty() {
            let shown = commands.iter().map(|command| format!("nft '{command}'")).collect();
            let work = Work::Transaction(Transaction { commands, generation });
            plan.steps.push(Step { work, commands: shown });
        }
        Ok(plan)
    }

    async fn apply(&mut self, step: &Step) -> Result<(), FirewallError> {
        match &step.work {
            Work::Transaction(transaction) => transaction.run_by(self.kernel()?).await,
            Work::Program { .. } => step.run(&self.netns).await,
        }
    }

    async fn changed(&mut self) {
        let Some(events) = &mut self.events else { return pending().await };
        loop {
            let change = events.next().await;
            if concerns(&change) {
                return;
            }
        }
    }
}

fn listen(netns: &Netns) -> Option<RulesetEvents> {
    let told = |error| debug!(%error, "no notifications of nf_tables");
    RulesetEvents::open(netns).map_err(told).ok()
}
