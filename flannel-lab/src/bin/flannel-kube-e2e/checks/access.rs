//! Who may do what: the role's extent, tokens that are replaced, and a role that lacks something.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use flannel_lab::kube::real::Body;
use flannel_lab::wait::wait_for;
use serde_json::json;

use crate::Fallible;
use crate::checks::outages;
use crate::kubelet::withdraw;
use crate::manifest::NAMESPACE;
use crate::world::{SOON, World};

/// The manifest's role.
const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/flannel";
/// What the agent needs, and the most it may have.
const LEAST: [&str; 5] = ["pods get", "nodes get", "nodes list", "nodes watch", "nodes/status patch"];
/// How long the server goes on to take a token that was withdrawn: it remembers whom it let in for 10 s.
const REMEMBERED: Duration = Duration::from_secs(30);
/// In what time an agent has to have read its token file again. The kubelet replaces a token long before its end.
const REREAD: Duration = Duration::from_secs(90);

/// Asks the server what the manifest's account may do.
pub(crate) fn least(world: &World) -> Fallible<String> {
    // The server reads its own roles with a delay.
    wait_for(SOON, "the account to have its rights", || -> Fallible<()> {
        let may = may(world)?;
        if may == LEAST.map(str::to_owned).into() { Ok(()) } else { Err(format!("{may:?}").into()) }
    })?;
    Ok(format!("the account may {}, and nothing else", LEAST.join(", ")))
}

fn may(world: &World) -> Fallible<BTreeSet<String>> {
    let token = world.api.token(NAMESPACE, "flannel", None)?;
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": { "namespace": NAMESPACE },
    });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let answer = world.api.ask_as(&token, "POST", path, Some(Body::json(&review)))?.success()?;
    let mut may = BTreeSet::new();
    let texts = |list: &serde_json::Value| {
        let texts = list.as_array().into_iter().flatten();
        texts.filter_map(|text| text.as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    for rule in answer["status"]["resourceRules"].as_array().into_iter().flatten() {
        for resource in texts(&rule["resources"]) {
            // Everybody may ask about himself.
            if !resource.starts_with("selfsubject") {
                may.extend(texts(&rule["verbs"]).iter().map(|verb| format!("{resource} {verb}")));
            }
        }
    }
    Ok(may)
}

/// Replaces node 1's token and withdraws the old one; then breaks its connections, so that it needs the new one.
pub(crate) fn token_replaced(world: &mut World) -> Fallible<String> {
    let kubelet = world.kubelets.get_mut(&1).ok_or("node1 has a kubelet")?;
    let (old, bound_to) = (kubelet.token()?, kubelet.bound_to());
    kubelet.put_token(&world.api)?;
    withdraw(&world.api, &bound_to)?;
    let path = "/api/v1/nodes/node1";
    wait_for(REMEMBERED, "the server to refuse the old token", || {
        world.api.ask_as(&old, "GET", path, None).is_ok_and(|answer| answer.status == 401)
    })?;
    let before = world.audited(1)?.len();
    outages::reset_connections(world, 1)?;
    let start = Instant::now();
    wait_for(REREAD, "node1 to watch with its new token", || -> Fallible<()> {
        let audited = world.audited(1)?;
        let is_let_in = |request: &&flannel_lab::kube::real::Audited| {
            request.verb == "watch" && request.code.is_none_or(|code| code == 200) && !request.ended
        };
        audited[before..].iter().find(is_let_in).map(|_| ()).ok_or_else(|| "no watch".into())
    })?;
    Ok(format!(
        "the old token refused, watching again with the new one after {:.2} s",
        start.elapsed().as_secs_f64()
    ))
}

/// Starts an agent whose account may not patch: it says what it lacks, and goes on once it has it.
pub(crate) fn forbidden(world: &mut World) -> Fallible<String> {
    let whole = world.api.get(ROLE)?["rules"].take();
    let lacking =
        whole.as_array().into_iter().flatten().filter(|rule| rule["resources"] != json!(["nodes/status"]));
    let lacking = lacking.cloned().collect::<Vec<_>>();
    world.api.merge(ROLE, &json!({ "rules": lacking }))?;
    wait_for(SOON, "the account to lack a right", || -> Fallible<()> {
        let may = may(world)?;
        if may.contains("nodes/status patch") { Err(format!("{may:?}").into()) } else { Ok(()) }
    })?;
    let number = world.add_node()?;
    world.register(number, &world.pod_cidrs(number))?;
    world.start_agent(number)?;
    let said = wait_for(SOON, "the agent to say what it may not do", || {
        let log = world.agents[&number].last_lines();
        let line = log.lines().find(|line| line.contains("nodes/status") && line.contains("cannot patch"));
        line.map(str::to_owned).ok_or(log.clone())
    })?;
    if !world.agents[&number].is_running() {
        return Err(format!("it ended: {said}").into());
    }
    if world.readiness(number).is_ok() {
        return Err("it says that it is ready".into());
    }
    world.api.merge(ROLE, &json!({ "rules": whole }))?;
    let start = Instant::now();
    world.wait_until_ready_within(REREAD, number)?;
    let took = start.elapsed().as_secs_f64();
    world.wait_for_route(1, number, true)?;
    Ok(format!("said: {}; ready {took:.2} s after it was allowed", said.trim()))
}
