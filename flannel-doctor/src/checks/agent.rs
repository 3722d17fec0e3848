//! The agents of this host.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::facts::Facts;
use crate::finding::{Checked, Finding, Skip};

/// How many run, and whether they get in each other's way.
pub(super) async fn processes(facts: &Facts) -> Checked {
    let mut by_file: BTreeMap<_, Vec<u32>> = BTreeMap::new();
    for agent in &facts.agents {
        by_file.entry(agent.subnet_file.clone()).or_default().push(agent.pid);
    }
    let pids = |pids: &[u32]| pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if by_file.is_empty() {
        return Ok(Finding::warning(
            "no agent runs here",
            "start it: without it nothing is repaired, and no other node is followed",
        ));
    }
    let twice = by_file.iter().filter(|(_, agents)| agents.len() > 1).map(|(file, agents)| {
        Finding::failure(
            format!(
                "agents with the pids {} use one subnet file, {}: they undo each other's changes",
                pids(agents),
                file.display()
            ),
            "stop all but one (a unit beside a DaemonSet?)",
        )
    });
    let mut found: Vec<Finding> = twice.collect();
    if by_file.len() > 1 {
        found.push(Finding::note(
            format!("{} agents run here, with different subnet files", by_file.len()),
            "give each its own network, VNI and CNI config",
        ));
    }
    Ok(Finding::of_all(found, || {
        format!(
            "one agent runs (pid {})",
            pids(&facts.agents.iter().map(|agent| agent.pid).collect::<Vec<_>>())
        )
    }))
}

/// What the running agent itself complains about.
pub(super) async fn problems(facts: &Facts) -> Checked {
    let status =
        facts.status.as_ref().ok_or_else(|| Skip::new("the running agent was not asked for its status"))?;
    let texts = |name: &str| {
        let list = status[name].as_array().into_iter().flatten();
        list.map(|problem| match problem {
            Value::String(text) => text.clone(),
            other => other["message"].as_str().map_or_else(|| other.to_string(), str::to_owned),
        })
    };
    let is_ready = status["ready"].as_bool();
    let problems: Vec<String> = ["reasons", "problems"].into_iter().flat_map(texts).collect();
    let fix = "see each line for its remedy; `flanneld status` shows more";
    Ok(match (is_ready, problems.split_first()) {
        (Some(false), None) => Finding::failure("the agent is not ready", fix),
        (Some(false), Some(_)) => Finding { evidence: problems, ..Finding::failure("", fix) },
        (_, Some(_)) => Finding { evidence: problems, ..Finding::warning("", fix) },
        (_, None) => Finding::ok("the agent is ready and has no complaint"),
    })
}
