//! What it costs to look at an agent with many peers: the status over the control socket from the request to the last byte,
//! and `flanneld status` from its start to its end, as a table and as JSON. Unit: milliseconds.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use flannel_benches::machine::Watch;
use flannel_benches::stats::Sample;
use flannel_benches::{Fallible, bed, in_lab, leases, wait_ready};
use flannel_lab::cluster::Cluster;
use flannel_lab::flanneld::{self, Stores};
use flannel_lab::store::{Folder, Store as _};

/// The cost of a status with many peers.
#[derive(Parser)]
struct Options {
    /// Leases in the store.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000")]
    leases: Vec<u32>,
    /// How often each is asked.
    #[arg(long, default_value_t = 20)]
    rounds: u32,
}

fn main() -> Fallible<ExitCode> {
    let options = Options::parse();
    in_lab(Stores::Local, || {
        let flanneld = flanneld::path(None)?;
        for count in &options.leases {
            run(&flanneld, *count, options.rounds)?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn run(flanneld: &Path, count: u32, rounds: u32) -> Fallible<()> {
    let cluster = Cluster::builder().nodes(1).build()?;
    leases::make_room(&cluster)?;
    let store = Folder::new("/run/status")?;
    store.put_config(&leases::config("vxlan"))?;
    (0..count).try_for_each(|n| store.put(&leases::key(n), &leases::value("vxlan", n)))?;
    let bed = bed(cluster, store, flanneld, &[]);
    // As a store that has stood for a while.
    sleep(Duration::from_secs(3));
    let agent = bed.flanneld(1).start()?;
    wait_ready(bed.netns(1))?;

    let subnet_file = bed.subnet_file(1).display().to_string();
    let socket = format!("{subnet_file}.sock");
    let before = (agent.cpu_time()?, agent.rss()?);
    let (mut request, mut table, mut json) = (Sample::new(), Sample::new(), Sample::new());
    let (mut bytes, mut peak) = (0, 0);
    let watch = Watch::start();
    for _ in 0..rounds {
        let begin = Instant::now();
        bytes = ask(&socket)?;
        request.push(begin.elapsed().as_secs_f64() * 1e3);
        peak = agent.rss()?.max(peak);
    }
    let cpu = agent.cpu_time()?.saturating_sub(before.0);
    for (output, sample) in [("table", &mut table), ("json", &mut json)] {
        for _ in 0..rounds {
            let mut status = bed.netns(1).command(flanneld);
            let status = status.args(["status", "--output", output, "--subnet-file", &subnet_file]);
            let begin = Instant::now();
            let ended = status.stdout(Stdio::null()).status()?;
            sample.push(begin.elapsed().as_secs_f64() * 1e3);
            if !ended.success() {
                return Err(format!("flanneld status ended with {ended}").into());
            }
        }
    }
    let foreign = watch.stop().foreign(cpu) * 100.0;
    println!("\n{count} peers; median (min..max, n)");
    println!("  request to last byte        {request:.1} ms, {bytes} bytes");
    println!("  flanneld status, table      {table:.1} ms");
    println!("  flanneld status, JSON       {json:.1} ms");
    println!("  agent, processor a request  {:.1} ms", cpu.as_secs_f64() * 1e3 / f64::from(rounds));
    println!("  agent, memory more          {} KiB", peak.saturating_sub(before.1) >> 10);
    println!("  processor used by others    {foreign:.0} % (those that ask among them)");
    Ok(())
}

/// Asks for a status; how many bytes it has.
fn ask(socket: &str) -> Fallible<usize> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(b"{\"version\":1,\"request\":\"status\"}\n")?;
    let mut answer = Vec::new();
    Ok(stream.read_to_end(&mut answer)?)
}
