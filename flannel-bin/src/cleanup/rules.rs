//! Firewall rules of the agent: what a plan for no rules at all takes away.

use std::time::Duration;

use flannel_core::firewall::iptables::Iptables;
use flannel_core::firewall::nft::Nftables;
use flannel_core::firewall::rules::{Ours, Wanted};
use flannel_core::firewall::{FirewallError, RuleManager, Step};

use super::known::Known;
use super::plan::{Action, Plan, Removal};
use crate::report::chain;

/// How often rules would be looked at, which nobody does a second time.
const ONCE: Duration = Duration::from_secs(60);

/// The rules that go: those for the networks that the files name, since another agent of this host may have some
/// in the same chains. Where no file is, nothing says whose they are.
pub(super) async fn removals(known: &Known) -> Plan {
    let ranges = known.ranges();
    let is_known = !ranges.is_empty();
    let ours = if is_known { Ours::Of(ranges) } else { Ours::AnyRange };
    let mut plan = Plan::default();
    for steps in rule_steps(&ours).await {
        match steps {
            Ok(steps) if is_known => plan.removals.extend(steps.into_iter().map(|step| Removal {
                what: "firewall rules".to_owned(),
                commands: step.commands.clone(),
                action: Action::Rules(step),
            })),
            Ok(steps) => plan.notes.extend(steps.into_iter().map(|step| {
                let commands = step.commands.join("; ");
                format!(
                    "firewall rules stay: neither subnet file nor state file is there to prove whose they are; \
                     remove them by: {commands}"
                )
            })),
            // What is not installed wrote nothing.
            Err(FirewallError::Missing { .. }) => {}
            Err(error) => plan.problems.push(format!("firewall rules can't be read: {}", chain(&error))),
        }
    }
    plan
}

/// What each kind of rules takes to be removed.
async fn rule_steps(ours: &Ours) -> Vec<Result<Vec<Step>, FirewallError>> {
    let (nftables, iptables) = tokio::join!(Nftables::open(), Iptables::open(&[], ONCE));
    vec![steps_of(nftables, ours).await, steps_of(iptables, ours).await]
}

async fn steps_of<M: RuleManager>(
    manager: Result<M, FirewallError>,
    ours: &Ours,
) -> Result<Vec<Step>, FirewallError> {
    Ok(manager?.plan(&Wanted::default(), ours).await?.steps)
}
