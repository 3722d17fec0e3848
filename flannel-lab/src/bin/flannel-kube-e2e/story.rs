//! The story, in order: each part finds the cluster as the one before left it.

use std::path::Path;
use std::process::ExitCode;

use flannel_lab::cluster::Families;
use serde_json::{Value, json};

use crate::checks::{access, fake, nodes, outages, traffic};
use crate::report::Report;
use crate::world::World;
use crate::{Fallible, manifest};

/// Nodes at the start.
const NODES: u8 = 3;
/// The manifest's network config.
const CONFIG_MAP: &str = "/api/v1/namespaces/kube-flannel/configmaps/kube-flannel-cfg";

/// Runs all of it, inside the sandbox.
pub(crate) fn tell(
    families: Families,
    manifest: &str,
    kube_apiserver: &Path,
    flanneld: &Path,
) -> Fallible<ExitCode> {
    println!("{families:?}, {}", kube_apiserver.display());
    let mut report = Report::default();
    let mut world = None;
    report.check("control plane", || {
        let started = world.insert(World::start(NODES, families, kube_apiserver, flanneld)?);
        Ok(format!("kube-apiserver {} with TLS and RBAC, etcd", started.api.version()?))
    })?;
    let mut world = world.ok_or("it was started")?;
    let told = chapters(&mut world, manifest, &mut report);
    println!("\n{}\n", report.show());
    let Err(error) = told else {
        println!("All as it should be.");
        return Ok(ExitCode::SUCCESS);
    };
    for agent in world.agents.values() {
        println!("the end of {}'s log:\n{}\n", agent.name(), agent.last_lines());
    }
    println!("FAILED: {error}");
    Ok(ExitCode::FAILURE)
}

fn chapters(world: &mut World, manifest: &str, report: &mut Report) -> Fallible<()> {
    report.check("manifest applied", || {
        let kinds = manifest::apply(&world.api, manifest)?;
        configure(world)?;
        Ok(kinds.join(", "))
    })?;
    report.check("least privilege", || access::least(world))?;
    report.check("agents started", || nodes::start(world, NODES))?;
    report.check("published", || nodes::published(world, NODES))?;
    report.check("requests of a start", || nodes::requests(world, NODES))?;
    report.check("full-size pings", || traffic::all_pairs(world))?;
    report.check("agent replaced", || nodes::restart(world))?;
    report.check("node joins", || nodes::join(world))?;
    report.check("nonsense on a node", || nodes::nonsense(world))?;
    report.check("connection reset", || outages::reset(world))?;
    report.check("server away, compaction", || outages::away(world, NODES + 1))?;
    report.check("the tests' own server", || fake::same_answers(world))?;
    report.check("node deleted", || nodes::leave(world, NODES))?;
    report.check("node made anew", || nodes::made_anew(world, 2))?;
    report.check("no pod CIDR yet", || nodes::late_cidr(world))?;
    report.check("permission missing", || access::forbidden(world))?;
    report.check("token replaced", || access::token_replaced(world))?;
    report.check("connection half dead", || outages::half_dead(world))?;
    report.check("full-size pings at the end", || traffic::all_pairs(world))
}

/// Gives the network its second family, as an operator would by editing the config map.
fn configure(world: &World) -> Fallible<()> {
    if !world.cluster.families().v6() {
        return Ok(());
    }
    let map = world.api.get(CONFIG_MAP)?;
    let text = map["data"]["net-conf.json"].as_str().ok_or("the config map has no net-conf.json")?;
    let mut config: Value = serde_json::from_str(text)?;
    config["EnableIPv6"] = json!(true);
    config["IPv6Network"] = json!("fd00:10:244::/48");
    world.api.merge(CONFIG_MAP, &json!({ "data": { "net-conf.json": config.to_string() } }))?;
    Ok(())
}
