//! The removal of the agent's firewall rules: the plan that leads to no rules at all.

#[cfg(test)]
mod tests;

use std::time::Duration;

use super::known::Known;
use super::removal::{Action, Plan, Removal};
use super::seen::Seen;
use crate::addr::Vni;
use crate::error::chain;
use crate::firewall::gate;
use crate::firewall::iptables::Iptables;
use crate::firewall::nft::Nftables;
use crate::firewall::rules::{Ours, Wanted};
use crate::firewall::{FirewallError, RuleManager, Step, converge};
use crate::netns::Netns;

/// The resync interval, which does not matter: the rules are read once.
const ONCE: Duration = Duration::from_secs(60);

/// The removal of rules for the networks that the files name, since another agent of this host may have rules in the
/// same chains. Without a file nothing shows whose rules they are.
pub(super) async fn removals(netns: &Netns, known: &Known) -> Plan {
    let ranges = known.ranges();
    let is_known = !ranges.is_empty();
    let ours = if is_known { Ours::Of(ranges) } else { Ours::AnyRange };
    let mut plan = Plan::default();
    for steps in rule_steps(netns, &ours).await {
        match steps {
            Ok(steps) if is_known => plan.removals.extend(steps.into_iter().map(|step| Removal {
                what: "firewall rules".to_owned(),
                commands: step.commands.clone(),
                action: Action::Rules(step, ours.clone()),
            })),
            Ok(steps) => plan.notes.extend(steps.into_iter().map(|step| {
                let commands = step.commands.join("; ");
                format!(
                    "firewall rules stay: neither subnet file nor state file is there to prove whose they are; \
                     remove them by: {commands}"
                )
            })),
            // A program that is not installed has no rules here, nor has a kernel that does not know them.
            Err(FirewallError::Missing { .. } | FirewallError::NoNfTables(_)) => {}
            Err(error) => plan.problems.push(format!("firewall rules can't be read: {}", chain(&error))),
        }
    }
    plan
}

/// Carries out a step of the plan.
pub(super) async fn remove(netns: &Netns, step: &Step, ours: &Ours) -> Result<(), FirewallError> {
    match step.run(netns).await {
        // Somebody has changed rules since, so what the step names may be something else now.
        Err(FirewallError::Outdated) => {
            converge(Some(&mut Nftables::open(netns)), &Wanted::default(), ours).await.map(drop)
        }
        done => done,
    }
}

/// The removal of the gates' tables for the VNIs of this agent, which its state file or its devices name.
pub(super) async fn gates(netns: &Netns, known: &Known, seen: &Seen, so_far: &Plan) -> Plan {
    let mut plan = Plan::default();
    let present = match gate::present(netns).await {
        Ok(present) => present,
        Err(error) => {
            plan.problems.push(format!("underlay gates can't be read: {}", chain(&error)));
            return plan;
        }
    };
    let stored = known.state.iter().flat_map(|state| &state.devices).filter_map(|device| device.vni);
    let goes =
        |index| so_far.removals.iter().any(|it| matches!(it.action, Action::Link(link) if link == index));
    let links = seen.links.iter().filter(|link| goes(link.index));
    let ours: Vec<Vni> = stored.chain(links.filter_map(|link| Some(link.vxlan.as_ref()?.vni))).collect();
    for vni in present {
        let table = gate::table_name(vni);
        let commands: Vec<String> =
            ["inet", "netdev"].map(|family| format!("nft delete table {family} {table}")).into();
        if ours.contains(&vni) {
            let what = "the gate of the tunnels".to_owned();
            plan.removals.push(Removal { what, commands, action: Action::Gate(vni) });
        } else {
            plan.notes.push(format!(
                "table {table} stays: nothing proves that VNI {vni} was this agent's; remove it by: {}",
                commands.join("; ")
            ));
        }
    }
    plan
}

/// The steps that remove the rules of each manager.
async fn rule_steps(netns: &Netns, ours: &Ours) -> Vec<Result<Vec<Step>, FirewallError>> {
    let iptables = Iptables::open(netns, &[], ONCE).await;
    vec![steps_of(Ok(Nftables::open(netns)), ours).await, steps_of(iptables, ours).await]
}

async fn steps_of<M: RuleManager>(
    manager: Result<M, FirewallError>,
    ours: &Ours,
) -> Result<Vec<Step>, FirewallError> {
    Ok(manager?.plan(&Wanted::default(), ours).await?.steps)
}
