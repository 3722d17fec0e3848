//! What a scrape of an agent's metrics costs: time of the answer, processor time of the agent, and bytes, with and without
//! values for each peer.

use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use flannel_benches::machine::Watch;
use flannel_benches::proc::activity;
use flannel_benches::stats::Sample;
use flannel_benches::{Fallible, bed, in_lab, leases, wait_ready};
use flannel_lab::bed::HEALTH_PORT;
use flannel_lab::cluster::Cluster;
use flannel_lab::flanneld::{self, Stores};
use flannel_lab::netns::Netns;
use flannel_lab::store::{Folder, Store as _};

/// Longer than the agent gives an answer again.
const PAUSE: Duration = Duration::from_millis(1100);

/// Cost of a scrape of an agent's metrics.
#[derive(Parser)]
struct Options {
    /// Leases in the store.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000")]
    leases: Vec<u32>,
    /// Scrapes of each agent.
    #[arg(long, default_value_t = 20)]
    scrapes: u32,
}

fn main() -> Fallible<ExitCode> {
    let options = Options::parse();
    in_lab(Stores::Local, || {
        let flanneld = flanneld::path(None)?;
        println!(
            "| leases | values | answer in ms | processor time a scrape in ms | KiB | used by others in % |"
        );
        println!("|---|---|---|---|---|---|");
        for count in &options.leases {
            for (values, flags) in
                [("in all", &[][..]), ("for each peer, too", &["--metrics-per-peer".to_owned()])]
            {
                run(&flanneld, *count, values, flags, options.scrapes)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn run(flanneld: &Path, count: u32, values: &str, flags: &[String], scrapes: u32) -> Fallible<()> {
    let cluster = Cluster::builder().nodes(1).build()?;
    leases::make_room(&cluster)?;
    let store = Folder::new("/run/scrape")?;
    store.put_config(&leases::config("vxlan"))?;
    (0..count).try_for_each(|n| store.put(&leases::key(n), &leases::value("vxlan", n)))?;
    let bed = bed(cluster, store, flanneld, flags);
    let agent = bed.flanneld(1).start()?;
    wait_ready(bed.netns(1))?;
    // Files written a moment ago are read once more.
    sleep(Duration::from_secs(5));
    let watch = Watch::start();
    let before = activity(agent.pid())?;
    let (mut took, mut bytes, mut cpu) = (Sample::new(), Sample::new(), Sample::new());
    for _ in 0..scrapes {
        sleep(PAUSE);
        let idle = activity(agent.pid())?;
        let (time, size) = scrape(bed.netns(1))?;
        // Until the thread that answered sleeps again.
        sleep(PAUSE / 50);
        cpu.push(activity(agent.pid())?.since(&idle).cpu.as_secs_f64() * 1e3);
        took.push(time.as_secs_f64() * 1e3);
        bytes.push(size as f64 / 1024.0);
    }
    let ours = activity(agent.pid())?.since(&before).cpu;
    let foreign = watch.stop().foreign(ours) * 100.0;
    println!("| {count} | {values} | {took:.2} | {cpu:.2} | {:.0} | {foreign:.0} |", bytes.median());
    Ok(())
}

fn scrape(netns: &Netns) -> Fallible<(Duration, usize)> {
    let start = Instant::now();
    let answer = flanneld::get(netns, HEALTH_PORT, "/metrics")?;
    let took = start.elapsed();
    if !answer.contains("\nflannel_ready 1\n") {
        return Err(format!("no metrics of a ready agent: {answer}").into());
    }
    Ok((took, answer.len()))
}
