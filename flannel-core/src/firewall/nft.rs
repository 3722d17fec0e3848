//! Rules by nftables: tables of our own, changed in one transaction, and read when the kernel notifies of a change.

#[cfg(any(test, feature = "testing"))]
pub(crate) mod fuzz;
pub(super) mod listing;
mod script;
#[cfg(test)]
mod tests;

use std::future::pending;

use async_trait::async_trait;
use tracing::debug;

use self::listing::SeenTable;
use self::script::{family_name, script, table_name};
use super::manager::{FirewallError, Plan, RuleManager, Step, run};
use super::rules::{Ours, Wanted};
use crate::addr::Family;
use crate::netlink::{RulesetChange, RulesetEvents};
use crate::netns::Netns;

const NFT: &str = "nft";

/// `NFPROTO_IPV4` and `NFPROTO_IPV6` of `linux/netfilter.h`.
fn protocol(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// Keeps rules in tables of our own, by the program `nft` (1.0.1 or later).
#[derive(Debug)]
pub struct Nftables {
    netns: Netns,
    /// `None` while the kernel sends no notifications.
    events: Option<RulesetEvents>,
    /// Whether the kernel can choose source ports at random; `None` if that was not tested yet.
    can_be_random: Option<bool>,
}

impl Nftables {
    /// Subscribes to notifications in a network namespace, and keeps rules there.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time.
    pub async fn open(netns: &Netns) -> Result<Self, FirewallError> {
        run(netns, NFT, &["--version"], "").await?;
        Ok(Self { netns: netns.clone(), events: listen(netns), can_be_random: None })
    }

    /// Tests whether source ports can be chosen at random.
    async fn can_be_random(&mut self) -> Result<bool, FirewallError> {
        if let Some(known) = self.can_be_random {
            return Ok(known);
        }
        // Only checked, not carried out.
        let table = format!("{} {}", family_name(Family::V4), table_name(Family::V4));
        let trial = format!(
            "add table {table}\nadd chain {table} masqueradeTest {{ type nat hook postrouting priority srcnat ; }}\n\
             add rule {table} masqueradeTest masquerade fully-random\n"
        );
        let can = match run(&self.netns, NFT, &["-c", "-f", "-"], &trial).await {
            Ok(_) => true,
            Err(FirewallError::Failed { .. }) => false,
            Err(error) => return Err(error),
        };
        self.can_be_random = Some(can);
        Ok(can)
    }
}

/// Whether a change is about our tables.
fn concerns(change: &RulesetChange) -> bool {
    let ours = |(family, name): &(u8, String)| {
        Family::ALL.iter().any(|it| *family == protocol(*it) && name == table_name(*it))
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
        let (v4, v6) = tokio::join!(seen(&self.netns, Family::V4), seen(&self.netns, Family::V6));
        let (v4, v6) = (v4.map_err(lacking)?, v6.map_err(lacking)?);
        // If the test itself fails, the answer stays unknown.
        let can_be_random = want.masquerade && want.fully_random && self.can_be_random().await?;
        let mut plan = Plan::default();
        let mut lines = Vec::new();
        for (family, seen) in [(Family::V4, v4), (Family::V6, v6)] {
            let script = script(family, want, can_be_random, seen.as_ref(), ours);
            lines.extend(script.lines);
            plan.notes.extend(script.notes);
        }
        plan.steps.extend((!lines.is_empty()).then(|| step(&lines)));
        Ok(plan)
    }

    async fn apply(&mut self, step: &Step) -> Result<(), FirewallError> {
        step.run(&self.netns).await.map_err(lacking)
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

/// Replaces an error of nft that does not say what is missing.
fn lacking(error: FirewallError) -> FirewallError {
    match error {
        FirewallError::Failed { said, .. } if said.contains("Operation not permitted") => {
            FirewallError::NotPermitted { said }
        }
        FirewallError::Failed { said, .. }
            if ["cache initialization failed: Invalid argument", "Protocol not supported"]
                .iter()
                .any(|words| said.contains(words)) =>
        {
            FirewallError::NoNfTables { said }
        }
        other => other,
    }
}

/// One transaction.
fn step(lines: &[String]) -> Step {
    Step {
        program: NFT,
        args: vec!["-f".to_owned(), "-".to_owned()],
        input: lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect(),
        commands: lines.iter().map(|line| format!("nft '{line}'")).collect(),
    }
}

/// A family's table; `None` if there is none.
async fn seen(netns: &Netns, family: Family) -> Result<Option<SeenTable>, FirewallError> {
    let args = ["-j", "list", "table", family_name(family), table_name(family)];
    match run(netns, NFT, &args, "").await {
        Ok(json) => {
            let table = listing::table(family, &json);
            table.map(Some).map_err(|why| unreadable(&format!("nft {}", args.join(" ")), why))
        }
        Err(FirewallError::Failed { said, .. }) if said.contains("No such file or directory") => Ok(None),
        Err(error) => Err(error),
    }
}

fn unreadable(command: &str, why: String) -> FirewallError {
    FirewallError::Unreadable { command: command.to_owned(), why }
}
