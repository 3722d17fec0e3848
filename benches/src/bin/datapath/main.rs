//! The way of packets between pods of two nodes, by every backend, side by side.
//!
//! Every method has two nodes and two pods of its own on one underlay; all stand at once, and each round runs
//! them in another order. Units: Gbit/s of TCP payload, thousands of 64-byte UDP packets per second, median
//! round-trip time in microseconds, processor seconds per gigabyte and per million packets (iperf3 or flood,
//! agents and soft interrupts of both nodes).

mod bed;
mod core;
mod report;
mod run;
mod wireguard;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use flannel_benches::{Fallible, with_agent};
use flannel_lab::flanneld::Stores;

use bed::{Bed, Lab, Method};
use report::Report;
use run::Part;

/// Throughput, small packets, latency and cost of all backends.
#[derive(Parser)]
struct Options {
    /// Rounds; each runs every method once.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each TCP run, whole ones as iperf3 wants them.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Underlays: a, veth as it is; b, no TSO but GRO, as a wire; c, neither.
    #[arg(long, value_delimiter = ',', default_value = "a,b,c")]
    labs: Vec<Lab>,
    /// Methods to run.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "underlay,host-gw,vxlan,udp,udp-2,wireguard-user,wireguard-go,naive,to-naive,from-naive"
    )]
    methods: Vec<Method>,
    /// Runs during which others used this share of the processor or more don't count in Gbit/s, packets per
    /// second and round-trip times. Fix it before the run.
    #[arg(long, default_value_t = 0.2)]
    quiet: f64,
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Tcp, Part::Small, Part::Rtt])]
    parts: Vec<Part>,
    /// How many more nodes, which do not exist, the stores of vxlan have.
    #[arg(long, default_value_t = 0)]
    leases: u32,
    /// The agent to measure, in place of one that is built beside this program: to compare versions, in turn.
    #[arg(long)]
    flanneld: Option<PathBuf>,
}

fn main() -> Fallible<ExitCode> {
    let options = Options::parse();
    with_agent(options.flanneld.as_deref(), Stores::Local, |flanneld| {
        let naive = std::env::current_exe()?.with_file_name("naive_udp");
        let bed = Bed::build(&options.methods, flanneld, &naive, options.leases)?;
        for lab in &options.labs {
            bed.shape(*lab)?;
            let mut report = Report::new(options.quiet);
            let seals = options.methods.contains(&Method::WireguardUser);
            let mut core = core::Cost::default();
            for round in 1..=options.rounds {
                let mut order = options.methods.clone();
                fastrand::shuffle(&mut order);
                for method in order {
                    eprintln!("lab {lab}, round {round} of {}: {method}", options.rounds);
                    run::parts(&bed, method, &options.parts, options.seconds, &mut report)?;
                }
                if seals {
                    core.measure()?;
                }
            }
            println!("\n## lab {lab}: {}\n", lab.describe());
            report.print(&options.methods);
            if seals {
                println!("{core}");
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}
