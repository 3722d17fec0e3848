//! An API server that is down, has lost its history, or doesn't answer. Pods must notice nothing, and agents must catch
//! up.

use std::thread::sleep;
use std::time::{Duration, Instant};

use flannel_lab::wait::wait_for;

use crate::Fallible;
use crate::checks::traffic::Background;
use crate::requests::Requests;
use crate::world::{SOON, World};

/// How long the server is away.
const AWAY: Duration = Duration::from_secs(5);
/// Whose agent crashes meanwhile.
const CRASHES: u8 = 2;
/// How long agents may take to try again: they wait longer each time, but not for long.
const CATCH_UP: Duration = Duration::from_secs(40);
/// In what time a connection that nothing comes over any more has to be given up.
const HALF_DEAD: Duration = Duration::from_secs(90);

/// Kills the server. While it is away an agent crashes, one node leaves and another joins, and the store forgets its
/// history, so that no agent can go on from where it was.
pub(crate) fn away(world: &mut World, leaves: u8) -> Fallible<String> {
    let joins = world.add_node()?;
    // Pings to and from it would end with it.
    world.pods.remove(&leaves);
    let pings = Background::start(world)?;
    let lists = lists(world, 1)?;
    world.api.kill()?;
    world.restart_agent(CRASHES)?;
    sleep(AWAY);
    // Only we see it.
    world.api.restart_hidden()?;
    world.agents.remove(&leaves);
    world.unregister(leaves)?;
    world.register(joins, &world.pod_cidrs(joins))?;
    world.api.kill()?;
    let revision = world.etcd.compact()?;
    let readiness = world.readiness(1);
    world.api.restart()?;
    let start = Instant::now();
    world.start_agent(joins)?;
    world.wait_for_route_within(CATCH_UP, 1, leaves, false)?;
    let forgot = start.elapsed();
    world.wait_for_route_within(CATCH_UP, 1, joins, true)?;
    let learnt = start.elapsed();
    world.wait_until_ready(joins)?;
    world.wait_for_everybody(CATCH_UP, leaves, false)?;
    world.wait_for_everybody(CATCH_UP, joins, true)?;
    world.wait_until_ready_within(CATCH_UP, CRASHES)?;
    let pings = pings.stop()?;
    world.attach_pod(joins)?;
    if self::lists(world, 1)? <= lists {
        return Err(format!("node1 asked for no list, though revision {revision} was compacted").into());
    }
    let ready = if readiness.is_ok() { "ready" } else { "not ready" };
    Ok(format!(
        "{pings}; {ready} without the server; with it, node{leaves} forgotten after {:.2} s, node{joins} known after {:.2} s",
        forgot.as_secs_f64(),
        learnt.as_secs_f64()
    ))
}

/// Breaks the connections of node 1: it resumes its watch and reads no list.
pub(crate) fn reset(world: &mut World) -> Fallible<String> {
    let before = world.audited(1)?.len();
    let start = Instant::now();
    reset_connections(world, 1)?;
    let requests = wait_for(CATCH_UP, "node1 to watch again", || -> Fallible<Requests> {
        let requests = Requests::count(&world.audited(1)?[before..]);
        if requests.of("watch") > 0 { Ok(requests) } else { Err(format!("{requests}").into()) }
    })?;
    let took = start.elapsed().as_secs_f64();
    if requests.of("list") > 0 {
        return Err(format!("node1 asked for {requests}").into());
    }
    Ok(format!("watching again after {took:.2} s: {requests}"))
}

/// Drops all packets of node 1's connections without closing them; new connections would work. A node joins.
pub(crate) fn half_dead(world: &mut World) -> Fallible<String> {
    let node = world.node(1);
    let ports = ports(world, 1)?;
    if ports.is_empty() {
        return Err("node1 has no connection to the API server".into());
    }
    let address = node.ipv4().ok_or("node1 has an address")?;
    let list = ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let rules = format!(
        "table inet half_dead {{\n\
         chain in {{ type filter hook input priority 0; ip saddr {address} tcp sport {{ {list} }} drop; }}\n\
         chain out {{ type filter hook output priority 0; ip daddr {address} tcp dport {{ {list} }} drop; }}\n}}"
    );
    nft(world, &rules)?;
    let pings = Background::start(world)?;
    let start = Instant::now();
    let joins = world.add_node()?;
    world.register(joins, &world.pod_cidrs(joins))?;
    world.start_agent(joins)?;
    world.wait_until_ready(joins)?;
    world.wait_for_route_within(HALF_DEAD, 1, joins, true)?;
    let took = start.elapsed();
    let pings = pings.stop()?;
    nft(world, "delete table inet half_dead")?;
    Ok(format!("node{joins} known to node1 {:.1} s after its connection died; {pings}", took.as_secs_f64()))
}

/// Resets every connection of a node to the API server.
pub(crate) fn reset_connections(world: &World, number: u8) -> Fallible<()> {
    let node = world.node(number);
    let address = node.ipv4().ok_or("a node has an address")?;
    // The server's next packet, or the agent's, is answered by a reset in both directions.
    let rules = format!(
        "table inet cut {{\n\
         chain in {{ type filter hook input priority 0; ip saddr {address} tcp dport {port} reject with tcp reset; }}\n}}",
        port = world.api.address().port()
    );
    nft(world, &rules)?;
    let before = ports(world, number)?;
    let touched = touch(world);
    let reset = wait_for(SOON, "the connections to be reset", || -> Fallible<()> {
        let now = ports(world, number)?;
        if before.iter().any(|port| now.contains(port)) {
            Err(format!("{now:?} are left").into())
        } else {
            Ok(())
        }
    });
    nft(world, "delete table inet cut")?;
    touched?;
    Ok(reset?)
}

/// Changes something about a node that is none of flannel's business, so that every watch has an event.
fn touch(world: &World) -> Fallible<()> {
    let label = serde_json::json!({ "metadata": { "labels": { "touched": fastrand::u32(..).to_string() } } });
    world.api.merge("/api/v1/nodes/node1", &label)?;
    Ok(())
}

/// The ports of a node's connections to the API server.
fn ports(world: &World, number: u8) -> Fallible<Vec<u16>> {
    let server = world.api.address();
    let filter = format!("dst {} and dport = :{}", server.ip(), server.port());
    let sockets = world.node(number).netns().run("ss", &["-Htn", "state", "established", &filter])?;
    let local = sockets.lines().filter_map(|line| line.split_whitespace().nth(2));
    Ok(local.filter_map(|local| local.rsplit_once(':')?.1.parse().ok()).collect())
}

fn nft(world: &World, rules: &str) -> Fallible<()> {
    world.cluster.fabric().run("nft", &[rules])?;
    Ok(())
}

fn lists(world: &World, number: u8) -> Fallible<u64> {
    Ok(Requests::count(&world.audited(number)?).of("list"))
}
