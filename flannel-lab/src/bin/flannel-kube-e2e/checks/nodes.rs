//! Nodes that come, go, and are not what they should be.

use std::time::{Duration, Instant};

use flannel_lab::kernel_state::KernelState;
use flannel_lab::wait::wait_for;
use serde_json::json;

use crate::Fallible;
use crate::checks::{published, traffic};
use crate::requests::{GO_RESTART, GO_START, Requests};
use crate::world::{SOON, World, node_path};

/// How long the controllers keep a node waiting for its pod CIDR here.
const LATE: Duration = Duration::from_secs(3);

/// Starts the first agents and waits until all know each other.
pub(crate) fn start(world: &mut World, count: u8) -> Fallible<String> {
    for number in 1..=count {
        world.register(number, &world.pod_cidrs(number))?;
    }
    let start = Instant::now();
    for number in 1..=count {
        world.start_agent(number)?;
    }
    let mut written = Duration::ZERO;
    for number in 1..=count {
        world.agents[&number].wait_until_ready(&world.subnet_file(number), SOON)?;
        written = written.max(start.elapsed());
    }
    for number in 1..=count {
        world.wait_until_ready(number)?;
        world.attach_pod(number)?;
    }
    for (from, to) in pairs(count) {
        world.wait_for_route(from, to, true)?;
    }
    Ok(format!("{count} agents ready, the last subnet.env {:.2} s after their start", written.as_secs_f64()))
}

/// Compares all nodes with the records.
pub(crate) fn published(world: &World, count: u8) -> Fallible<String> {
    for number in 1..=count {
        published::annotations(world, number)?;
        published::condition(world, number)?;
    }
    Ok(format!("annotations of {count} nodes as a Go agent wrote them, NetworkUnavailable is False"))
}

/// Counts what each agent asked at its start.
pub(crate) fn requests(world: &World, count: u8) -> Fallible<String> {
    let mut seen = Vec::new();
    for number in 1..=count {
        let (requests, audited) = wait_for(SOON, "a watch to begin", || -> Fallible<_> {
            let audited = world.audited(number)?;
            let requests = Requests::count(&audited);
            if requests.of("watch") > 0 { Ok((requests, audited)) } else { Err(format!("{requests}").into()) }
        })?;
        if let Some(verb) = requests.beyond(&GO_START) {
            return Err(format!("node{number}: {requests}, more {verb} than Go's: {audited:#?}").into());
        }
        seen.push(requests.to_string());
    }
    seen.dedup();
    Ok(format!("{} (Go: 2 get, 1 list, 2 patch, 1 watch)", seen.join("; ")))
}

/// Lets a node join.
pub(crate) fn join(world: &mut World) -> Fallible<String> {
    let number = world.add_node()?;
    world.register(number, &world.pod_cidrs(number))?;
    world.start_agent(number)?;
    let start = Instant::now();
    world.wait_for_route(1, number, true)?;
    let learnt = start.elapsed();
    world.wait_until_ready(number)?;
    world.wait_for_everybody(SOON, number, true)?;
    world.attach_pod(number)?;
    traffic::all_pairs(world)?;
    Ok(format!(
        "node{number} known to node1 {:.2} s after its agent started, its pod reached",
        learnt.as_secs_f64()
    ))
}

/// Starts an agent before the controllers gave its node a pod CIDR.
pub(crate) fn late_cidr(world: &mut World) -> Fallible<String> {
    let number = world.add_node()?;
    world.register(number, &[])?;
    world.start_agent(number)?;
    std::thread::sleep(LATE);
    if world.readiness(number).is_ok() || world.subnet_file(number).exists() {
        return Err("it claims to be ready".into());
    }
    let log = world.agents[&number].last_lines();
    let said =
        log.lines().find(|line| line.to_lowercase().contains("podcidr")).unwrap_or_default().to_owned();
    if !world.agents[&number].is_running() || said.is_empty() {
        return Err(format!("it ended, or did not say what it waits for: {log}").into());
    }
    let cidrs = world.pod_cidrs(number);
    let path = node_path(world.node(number).name());
    world.api.merge(&path, &json!({ "spec": { "podCIDR": cidrs[0], "podCIDRs": cidrs } }))?;
    let start = Instant::now();
    world.wait_until_ready(number)?;
    let took = start.elapsed().as_secs_f64();
    world.wait_for_route(1, number, true)?;
    Ok(format!("said: {}; ready {took:.2} s after it was given one", said.trim()))
}

/// Puts a node there that says nonsense, and one without an agent: all others stay as they are.
pub(crate) fn nonsense(world: &mut World) -> Fallible<String> {
    let before = KernelState::of(world.node(1).netns())?;
    let prefix = "flannel.alpha.coreos.com";
    let nonsense = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "nonsense", "annotations": {
            format!("{prefix}/kube-subnet-manager"): "true",
            format!("{prefix}/backend-type"): "vxlan",
            format!("{prefix}/backend-data"): "{\"VNI\":",
            format!("{prefix}/public-ip"): "here",
        } },
        "spec": { "podCIDR": "10.244.200.0/24", "podCIDRs": ["10.244.200.0/24"] },
    });
    let bare = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "bare" } });
    for node in [&nonsense, &bare] {
        world.api.create("/api/v1/nodes", node)?;
    }
    // Behind them in the same watch comes something that is seen.
    let learnt = join(world)?;
    let number = *world.agents.keys().last().ok_or("there are agents")?;
    world.readiness(1).map_err(|answer| format!("node1 isn't ready: {answer}"))?;
    remove(world, number)?;
    wait_for(SOON, "node1's kernel to be as before", || -> Fallible<()> {
        let after = KernelState::of(world.node(1).netns())?;
        if after == before { Ok(()) } else { Err(format!("before:\n{before}after:\n{after}").into()) }
    })?;
    for name in ["nonsense", "bare"] {
        world.api.delete(&node_path(name))?;
    }
    Ok(format!("skipped, node1 stays ready; {learnt}"))
}

/// Deletes a node whose agent runs, as an operator would by mistake, and lets its kubelet make it again.
pub(crate) fn made_anew(world: &mut World, number: u8) -> Fallible<String> {
    world.unregister(number)?;
    world.wait_for_everybody(SOON, number, false)?;
    world.register(number, &world.pod_cidrs(number))?;
    let start = Instant::now();
    world.wait_for_everybody(SOON, number, true)?;
    let took = start.elapsed();
    wait_for(SOON, "the node to be published as before", || -> Fallible<()> {
        published::annotations(world, number)?;
        published::condition(world, number)
    })?;
    world.wait_until_ready(number)?;
    traffic::all_pairs(world)?;
    Ok(format!("node{number} known to all {:.2} s after it was there again", took.as_secs_f64()))
}

/// Deletes a node from the cluster.
pub(crate) fn leave(world: &mut World, number: u8) -> Fallible<String> {
    let took = remove(world, number)?;
    world.wait_for_everybody(SOON, number, false)?;
    traffic::all_pairs(world)?;
    Ok(format!("node{number} forgotten by node1 after {:.3} s", took.as_secs_f64()))
}

/// Ends a node's agent and deletes the node; returns how long node 1 took to forget it.
fn remove(world: &mut World, number: u8) -> Fallible<Duration> {
    world.pods.remove(&number);
    if let Some(agent) = world.agents.remove(&number) {
        agent.terminate()?;
    }
    world.unregister(number)?;
    world.wait_for_route(1, number, false)
}

/// Replaces the agent of node 1: nothing may change, so nothing is patched.
pub(crate) fn restart(world: &mut World) -> Fallible<String> {
    let state = KernelState::of(world.node(1).netns())?;
    let object = world.object(1)?;
    let pings = traffic::Background::start(world)?;
    world.agents[&1].kill()?;
    let before = world.audited(1)?.len();
    world.start_agent(1)?;
    // The file is there already, and a health server answers before the network is complete.
    world.wait_until_ready(1)?;
    let pings = pings.stop()?;
    let after = KernelState::of(world.node(1).netns())?;
    if after != state {
        return Err(format!("the kernel's state changed; before:\n{state}after:\n{after}").into());
    }
    if world.object(1)? != object {
        return Err("the node's object changed".into());
    }
    let requests = Requests::count(&world.audited(1)?[before..]);
    if requests.of("patch") > 0 || requests.beyond(&GO_RESTART).is_some() {
        return Err(format!("asked for {requests}").into());
    }
    Ok(format!("{requests}; {pings}; kernel and node object unchanged"))
}

fn pairs(count: u8) -> impl Iterator<Item = (u8, u8)> {
    (1..=count).flat_map(move |from| (1..=count).map(move |to| (from, to))).filter(|(from, to)| from != to)
}
