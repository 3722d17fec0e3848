//! Cold start: an agent meets a store full of leases and a kernel without any, against `ip -batch` and
//! `bridge -batch` of the same entries on a node beside it, in every round.
//!
//! The agent's time counts from its start until it says that all peers are in the kernel; it includes reading
//! the leases from the folder, a lease of its own and its devices. Unit: seconds.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use clap::Parser;
use flannel_benches::batch::{batch, check_routes};
use flannel_benches::machine::Watch;
use flannel_benches::stats::Sample;
use flannel_benches::{Fallible, HEALTH_PORT, in_lab, leases, wait_ready};
use flannel_lab::cluster::Cluster;
use flannel_lab::flanneld::{self, Stores};
use flannel_lab::node::Node;

/// Cold start of an agent against `ip -batch` of the same entries.
#[derive(Parser)]
struct Options {
    /// Leases in the store.
    #[arg(long, default_value_t = 10_000)]
    leases: u32,
    /// Rounds; each runs everything once.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Backends to measure; vxlan-plain is vxlan with --nexthop-objects=off.
    #[arg(long, value_delimiter = ',', default_value = "vxlan")]
    backends: Vec<String>,
}

/// One backend's figures.
#[derive(Default)]
struct Figures {
    agent: Sample,
    batch: Sample,
    cpu: Sample,
    rss: Sample,
    restart: Sample,
    foreign: Sample,
}

fn main() -> Fallible<ExitCode> {
    let options = Options::parse();
    in_lab(Stores::Local, || {
        let flanneld = flanneld::path(None)?;
        let mut figures: Vec<Figures> = options.backends.iter().map(|_| Figures::default()).collect();
        for round in 1..=options.rounds {
            for (backend, figures) in options.backends.iter().zip(&mut figures) {
                eprintln!("round {round} of {}: {backend}", options.rounds);
                run(&flanneld, backend, options.leases, figures)?;
            }
        }
        for (backend, figures) in options.backends.iter().zip(&figures) {
            print(backend, options.leases, figures);
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn print(backend: &str, leases: u32, figures: &Figures) {
    println!("\n{backend}, {leases} leases; median (min..max, n)");
    println!("  agent, start to all peers   {:.3} s", figures.agent);
    println!("  ip and bridge -batch        {:.3} s", figures.batch);
    println!("  agent / batch               {:.2}", figures.agent.ratios_to(&figures.batch));
    println!("  agent, processor time       {:.2} s", figures.cpu);
    println!("  agent, resident memory      {:.1} MiB", figures.rss);
    println!("  agent killed, start again   {:.3} s", figures.restart);
    println!("  processor used by others    {:.0} %", figures.foreign);
}

fn run(flanneld: &Path, named: &str, count: u32, figures: &mut Figures) -> Fallible<()> {
    let (backend, flags): (_, &[&str]) = match named {
        "vxlan-plain" => ("vxlan", &["--nexthop-objects=off"]),
        other => (other, &[]),
    };
    let cluster = Cluster::builder().nodes(2).build()?;
    for node in cluster.nodes() {
        // Room for every node's own gateway on the link.
        node.netns().ip(&format!("address add 10.200.{}.254/16 dev eth0", 254 + node.number() % 2))?;
    }
    let store = Path::new("/run/cold-start");
    let _ = fs::remove_dir_all(store);
    fs::create_dir_all(store.join("subnets"))?;
    fs::write(store.join("config"), leases::config(backend))?;
    for n in 0..count {
        fs::write(store.join("subnets").join(leases::key(n)), leases::value(backend, n))?;
    }

    // As a store that has stood for a while: files written a moment ago are read twice, to be sure.
    sleep(Duration::from_secs(3));
    let watch = Watch::start();
    let agent = start(flanneld, cluster.node(1), store, flags)?;
    figures.agent.push(wait_ready(cluster.node(1).netns())?);
    let cpu = agent.cpu_time()?;
    figures.foreign.push(watch.stop().foreign(cpu) * 100.0);
    figures.cpu.push(cpu.as_secs_f64());
    figures.rss.push(agent.rss()? as f64 / f64::from(1 << 20));
    check_routes(cluster.node(1).netns(), count)?;
    agent.kill()?;
    drop(agent);
    let agent = start(flanneld, cluster.node(1), store, flags)?;
    figures.restart.push(wait_ready(cluster.node(1).netns())?);
    drop(agent);

    figures.batch.push(batch(cluster.node(2), backend, count)?);
    check_routes(cluster.node(2).netns(), count)
}

fn start(flanneld: &Path, node: &Node, store: &Path, flags: &[&str]) -> Fallible<flannel_lab::agent::Agent> {
    let agent = node.agent("flanneld", flanneld).args([
        "--iface=eth0".to_owned(),
        format!("--store=local:{}", store.display()),
        "--subnet-file=/run/cold-start.env".to_owned(),
        format!("--healthz-port={HEALTH_PORT}"),
    ]);
    Ok(agent.args(flags.iter().copied()).start()?)
}
