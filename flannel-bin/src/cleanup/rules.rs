//! Firewall rules of the agent: what a plan for no rules at all takes away.

use std::time::Duration;

use flannel_core::firewall::iptables::Iptables;
use flannel_core::firewall::nft::Nftables;
use flannel_core::firewall::rules::{Ours, Wanted};
use flannel_core::firewall::{FirewallError, RuleManager, Step};

use super::plan::{Action, Plan, Removal};
use crate::report::chain;

/// How often rules would be looked at, which nobody does a second time.
const ONCE: Duration = Duration::from_secs(60);

/// The rules that go.
pub(super) async fn removals() -> Plan {
    let mut plan = Plan::default();
    for steps in rule_steps().await {
        match steps {
            Ok(steps) => plan.removals.extend(steps.into_iter().map(|step| Removal {
                what: "firewall rules".to_owned(),
                commands: step.commands.clone(),
                action: Action::Rules(step),
            })),
            // What is not installed wrote nothing.
            Err(FirewallError::Missing { .. }) => {}
            Err(error) => plan.problems.push(format!("firewall rules can't be read: {}", chain(&error))),
        }
    }
    plan
}

/// What each kind of rules takes to be removed.
async fn rule_steps() -> Vec<Result<Vec<Step>, FirewallError>> {
    let (nftables, iptables) = tokio::join!(Nftables::open(), Iptables::open(&[], ONCE));
    vec![steps_of(nftables).await, steps_of(iptables).await]
}

async fn steps_of<M: RuleManager>(manager: Result<M, FirewallError>) -> Result<Vec<Step>, FirewallError> {
    Ok(manager?.plan(&Wanted::default(), &Ours::AnyRange).await?.steps)
}
