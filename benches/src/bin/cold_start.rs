//! Cold start: an agent meets a store full of leases and a kernel without any, against `ip -batch` and
//! `bridge -batch` of the same entries on a node beside it, in every round.
//!
//! The agent's time counts from its start until it says that all peers are in the kernel; it includes reading
//! the leases from the folder, a lease of its own and its devices. Unit: seconds. With `--singles` it then counts from
//! before a lease is written to the kernel's notification of its route.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use flannel_benches::announce::{Listener, millis};
use flannel_benches::batch::{batch, check_routes};
use flannel_benches::machine::Watch;
use flannel_benches::stats::Sample;
use flannel_benches::{Fallible, bed, leases, proc, wait_ready, with_agent};
use flannel_lab::cluster::Cluster;
use flannel_lab::flanneld::Stores;
use flannel_lab::store::{Folder, Store as _};

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
    /// Single leases to write and remove in each round.
    #[arg(long, default_value_t = 0)]
    singles: u32,
    /// The agent to measure, in place of one that is built beside this program: to compare versions, in turn.
    #[arg(long)]
    flanneld: Option<PathBuf>,
}

/// One backend's figures.
#[derive(Default)]
struct Figures {
    agent: Sample,
    batch: Sample,
    cpu: Sample,
    rss: Sample,
    peak: Sample,
    restart: Sample,
    added: Sample,
    removed: Sample,
    foreign: Sample,
}

fn main() -> Fallible<ExitCode> {
    let options = Options::parse();
    if options.leases + options.singles > leases::MOST {
        return Err(format!("{} leases are too many for the network", options.leases).into());
    }
    with_agent(options.flanneld.as_deref(), Stores::Local, |flanneld| {
        let mut figures: Vec<Figures> = options.backends.iter().map(|_| Figures::default()).collect();
        for round in 1..=options.rounds {
            for (backend, figures) in options.backends.iter().zip(&mut figures) {
                eprintln!("round {round} of {}: {backend}", options.rounds);
                run(flanneld, backend, &options, figures)?;
            }
        }
        for (backend, figures) in options.backends.iter().zip(&figures) {
            print(backend, &options, figures);
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn print(backend: &str, options: &Options, figures: &Figures) {
    println!("\n{backend}, {} leases; median (min..max, n)", options.leases);
    println!("  agent, start to all peers   {:.3} s", figures.agent);
    println!("  ip and bridge -batch        {:.3} s", figures.batch);
    println!("  agent / batch               {:.2}", figures.agent.ratios_to(&figures.batch));
    println!("  agent, processor time       {:.2} s", figures.cpu);
    println!("  agent, resident memory      {:.1} MiB", figures.rss);
    println!("  agent, peak memory          {:.1} MiB", figures.peak);
    println!("  agent killed, start again   {:.3} s", figures.restart);
    println!("  processor used by others    {:.0} %", figures.foreign);
    if options.singles > 0 {
        println!("  one lease added             {:.2} ms", figures.added);
        println!("  one lease removed           {:.2} ms", figures.removed);
    }
}

fn run(flanneld: &Path, named: &str, options: &Options, figures: &mut Figures) -> Fallible<()> {
    let count = options.leases;
    let (backend, flags): (_, &[&str]) = match named {
        "vxlan-plain" => ("vxlan", &["--nexthop-objects=off"]),
        other => (other, &[]),
    };
    let cluster = Cluster::builder().nodes(2).build()?;
    leases::make_room(&cluster)?;
    let store = Folder::new("/run/cold-start")?;
    store.put_config(&leases::config(backend))?;
    (0..count).try_for_each(|n| store.put(&leases::key(n), &leases::value(backend, n)))?;
    let bed = bed(cluster, store, flanneld, &flags.iter().map(ToString::to_string).collect::<Vec<_>>());

    // As a store that has stood for a while: files written a moment ago are read twice, to be sure.
    sleep(Duration::from_secs(3));
    let watch = Watch::start();
    let agent = bed.flanneld(1).start()?;
    figures.agent.push(wait_ready(bed.netns(1))?);
    let cpu = agent.cpu_time()?;
    figures.foreign.push(watch.stop().foreign(cpu) * 100.0);
    figures.cpu.push(cpu.as_secs_f64());
    figures.rss.push(agent.rss()? as f64 / f64::from(1 << 20));
    figures.peak.push(proc::peak_memory(agent.pid())? as f64 / f64::from(1 << 20));
    check_routes(bed.netns(1), count)?;
    agent.kill()?;
    drop(agent);
    let agent = bed.flanneld(1).start()?;
    figures.restart.push(wait_ready(bed.netns(1))?);
    let mut listener = Listener::start(bed.netns(1))?;
    for n in count..count + options.singles {
        // Not in step with anything.
        sleep(Duration::from_millis(fastrand::u64(5..15)));
        let start = Instant::now();
        bed.store.put(&leases::key(n), &leases::value(backend, n))?;
        figures.added.push(millis(start, listener.routes(n..n + 1, true)));
        sleep(Duration::from_millis(fastrand::u64(5..15)));
        let start = Instant::now();
        bed.store.delete(&leases::key(n))?;
        figures.removed.push(millis(start, listener.routes(n..n + 1, false)));
    }
    drop(listener);
    drop(agent);

    figures.batch.push(batch(bed.node(2), backend, count)?);
    check_routes(bed.netns(2), count)
}
