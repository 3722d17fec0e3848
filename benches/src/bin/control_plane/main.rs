//! How fast the agent follows its store, and what it costs while nothing happens, with real etcd.
//!
//! Cold start counts from exec until the agent says that all peers are in the kernel, against `ip -batch` and
//! `bridge -batch` of the same entries on a node beside it, in every round. Spread counts from the moment a
//! lease is sent to etcd until the kernel of another node announces its route. Idle is what the agent's
//! threads use in a stretch of time without any change, one resync included.

mod bed;
mod idle;
mod spread;
mod start;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use flannel_benches::{Fallible, leases, with_agent};
use flannel_lab::flanneld::Stores;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Cold start, and start again with everything in place.
    Start,
    /// A lease's way from etcd to another node's kernel.
    Spread,
    /// What it costs while nothing changes.
    Idle,
    /// What a second backend adds to that.
    Second,
}

/// The control plane on etcd: start, spread of leases, idle cost.
#[derive(Parser)]
struct Options {
    /// Leases in the store.
    #[arg(long, value_delimiter = ',', default_value = "1000,5000,10000")]
    leases: Vec<u32>,
    /// Rounds of cold starts, and of idleness without and with a second backend.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// The backend.
    #[arg(long, default_value = "vxlan")]
    backend: String,
    /// The second backend.
    #[arg(long, default_value = "udp")]
    fallback: String,
    /// What to measure.
    #[arg(long, value_delimiter = ',', default_value = "start,spread,idle")]
    parts: Vec<Part>,
    /// Single leases to send.
    #[arg(long, default_value_t = 200)]
    singles: u32,
    /// Seconds of idleness.
    #[arg(long, default_value_t = 65)]
    idle: u64,
    /// More arguments for the agent.
    #[arg(long, allow_hyphen_values = true)]
    flag: Vec<String>,
    /// The agent to measure, in place of one that is built beside this program: to compare versions, in turn.
    #[arg(long)]
    flanneld: Option<PathBuf>,
}

fn main() -> Fallible<ExitCode> {
    let options = Options::parse();
    if let Some(n) = options.leases.iter().find(|n| **n + options.singles + spread::BURST > leases::MOST) {
        return Err(format!("{n} leases are too many for the network").into());
    }
    with_agent(options.flanneld.as_deref(), Stores::All, |flanneld| {
        let backend = options.backend.as_str();
        for part in &options.parts {
            for leases in &options.leases {
                let with = |fallback: Option<&str>| {
                    bed::Bed::build(flanneld, &options.flag, backend, fallback, *leases)
                };
                let bed = || with(None);
                match part {
                    Part::Start => start::run(options.rounds, bed)?,
                    Part::Spread => spread::run(&bed()?, options.singles)?,
                    Part::Idle => idle::run(&bed()?, options.idle)?,
                    Part::Second => idle::second(options.idle, options.rounds, &options.fallback, with)?,
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}
