//! The agents of this host.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::facts::Facts;
use crate::finding::{Checked, Finding, Skip, Verdict, sample};

/// How many run, and whether they get in each other's way.
pub(super) async fn processes(facts: &Facts) -> Checked {
    let mut by_file: BTreeMap<_, Vec<u32>> = BTreeMap::new();
    let others = facts.others.iter().map(|other| &other.process);
    for agent in facts.agents.iter().chain(others.clone()) {
        by_file.entry(agent.subnet_file.clone()).or_default().push(agent.pid);
    }
    let pids = |pids: &[u32]| sample(&pids.iter().map(ToString::to_string).collect::<Vec<_>>());
    let own_file = facts.places.subnet_file.display();
    if facts.agents.is_empty() && !by_file.is_empty() {
        let seen = by_file.iter().map(|(file, agents)| format!("{} (pid {})", file.display(), pids(agents)));
        return Ok(Finding::warning(
            format!(
                "no agent with the subnet file {own_file} runs here, but with {}",
                seen.collect::<Vec<_>>().join(", ")
            ),
            "give the doctor --subnet-file of the agent that is meant, or start it",
        ));
    }
    let shared = by_file.values().any(|agents| agents.len() > 1);
    if shared && facts.agents.iter().chain(others).any(|agent| !agent.is_here) {
        return Err(Skip::denied(
            "agents of other users run, and whether in this network namespace can't be seen",
        ));
    }
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
    let status = facts.status.as_ref().ok_or_else(|| {
        Skip::new("there is no status of a running agent: none runs, or this user may not ask it")
    })?;
    let texts = |name: &str| {
        let list = status[name].as_array().into_iter().flatten();
        let text = |it: &Value| {
            it.as_str().or_else(|| it["text"].as_str()).map_or_else(|| it.to_string(), str::to_owned)
        };
        list.map(text).collect::<Vec<_>>()
    };
    let (reasons, notes) = (texts("reasons"), texts("notes"));
    let fix = "each line says what to do; `flanneld status` shows more";
    let failures = reasons.into_iter().map(|reason| Finding::failure(reason, fix));
    let mut found: Vec<Finding> =
        failures.chain(notes.into_iter().map(|note| Finding::note(note, fix))).collect();
    if status["ready"] == Value::Bool(false) && found.iter().all(|finding| finding.verdict < Verdict::Failure)
    {
        found.push(Finding::failure("the agent is not ready", fix));
    }
    Ok(Finding::of_all(found, || "the agent is ready and has no complaint".to_owned()))
}
