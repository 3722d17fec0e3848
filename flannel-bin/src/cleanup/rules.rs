//! Firewall rules of the agent: what a plan for no rules at all takes away.

use flannel_core::firewall::nft::Nftables;
use flannel_core::firewall::rules::{Ours, Wanted};
use flannel_core::firewall::{FirewallError, RuleManager, Step};

use super::plan::{Action, Plan, Removal};
use crate::report::chain;

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
    vec![steps_of(Nftables::open().await).await]
}

async fn steps_of<M: RuleManager>(manager: Result<M, FirewallError>) -> Result<Vec<Step>, FirewallError> {
    Ok(manager?.plan(&Wanted::default(), &Ours::AnyRange).await?.steps)
}
