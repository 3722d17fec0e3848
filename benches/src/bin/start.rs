//! Start: from the start of an agent's process to its subnet file, with masquerading by nftables on a store that is
//! there: where an earlier run left everything in the kernel, and where nothing is. Unit: milliseconds.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use flannel_benches::machine::Watch;
use flannel_benches::stats::Sample;
use flannel_benches::{Fallible, bed, wait_ready, with_agent};
use flannel_lab::bed::Bed;
use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::flanneld::{self, Stores};
use flannel_lab::store::{Folder, Store as _};

/// How soon an agent has written its subnet file.
#[derive(Parser)]
struct Options {
    /// Starts of each kind.
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// The agent to measure, in place of one that is built beside this program.
    #[arg(long)]
    flanneld: Option<PathBuf>,
    /// Another agent to measure in turn with it, such as an earlier version.
    #[arg(long)]
    beside: Option<PathBuf>,
}

/// One agent's figures.
struct Figures {
    agent: PathBuf,
    fresh: Sample,
    again: Sample,
}

fn main() -> Fallible<ExitCode> {
    let options = Options::parse();
    with_agent(options.flanneld.as_deref(), Stores::Local, |flanneld| {
        let beside = options.beside.as_deref().map(|path| flanneld::path(Some(path))).transpose()?;
        let agents = [flanneld.to_owned()].into_iter().chain(beside);
        let mut figures: Vec<Figures> = agents
            .map(|agent| Figures { agent, fresh: Sample::default(), again: Sample::default() })
            .collect();
        let watch = Watch::start();
        for _ in 0..options.rounds {
            figures.iter_mut().try_for_each(run)?;
        }
        println!("start of the process to the subnet file, ms; median (min..max, n)");
        for Figures { agent, fresh, again } in &figures {
            println!("{}", agent.display());
            println!("  nothing in the kernel       {fresh:.1}");
            println!("  everything in the kernel    {again:.1}");
        }
        println!("processor used, by the agents too, {:.0} %", watch.stop().foreign(Duration::ZERO) * 100.0);
        Ok(ExitCode::SUCCESS)
    })
}

/// Starts an agent twice on a node of its own: without and with what an earlier run left.
fn run(figures: &mut Figures) -> Fallible<()> {
    let cluster = Cluster::builder().nodes(1).families(Families::Dual).build()?;
    let store = Folder::new("/run/start")?;
    store.put_config(
        r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/56","EnableNFTables":true,
            "Backend":{"Type":"vxlan"}}"#,
    )?;
    let bed = bed(cluster, store, &figures.agent, &["--ip-masq".to_owned()]);
    figures.fresh.push(start(&bed)?);
    figures.again.push(start(&bed)?);
    let rules = bed.netns(1).run("nft", &["list", "ruleset"])?;
    if rules.contains("masquerade") { Ok(()) } else { Err(format!("no rule masquerades:\n{rules}").into()) }
}

/// From the start to the subnet file.
fn start(bed: &Bed<Folder>) -> Fallible<f64> {
    let file = bed.subnet_file(1);
    // What an earlier run left of it is no sign of this one.
    let _ = fs::remove_file(&file);
    let begin = Instant::now();
    let agent = bed.flanneld(1).start()?;
    while !file.exists() {
        if begin.elapsed() > Duration::from_secs(20) {
            return Err(format!("no subnet file:\n{}", agent.last_lines()).into());
        }
        sleep(Duration::from_micros(100));
    }
    let took = begin.elapsed();
    wait_ready(bed.netns(1))?;
    agent.terminate()?;
    Ok(took.as_secs_f64() * 1000.0)
}
