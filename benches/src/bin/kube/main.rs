//! The agent with the Kubernetes API as its store: start, spread, and what it costs while kubelets report, on the lab's
//! API server.
//!
//! Start counts from exec until the agent says that all peers are in the kernel, against `ip -batch` and
//! `bridge -batch` of the same entries on a node beside it, in every round. Everything else counts from the moment
//! before a node object is changed to the kernel's notification. What must not happen ends the bench: a write to the
//! kernel or a request without a reason, a lease lost, a route of a live peer removed.

mod beats;
mod bed;
mod cut;
mod spread;
mod start;
mod steady;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use flannel_benches::{Fallible, with_agent};
use flannel_lab::flanneld::Stores;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Cold start with both kinds of lists, and start again with everything in place.
    Start,
    /// Kubelets report, nothing else happens.
    Steady,
    /// What one heartbeat of a real-sized node costs: whole objects and metadata alone in turn.
    Beats,
    /// Nothing happens.
    Idle,
    /// Single changes.
    Spread,
    /// A rolling restart.
    Restart,
    /// The watch is cut again and again.
    Cut,
}

/// The control plane on Kubernetes: start, spread of leases, steady and idle cost.
#[derive(Parser)]
struct Options {
    /// Nodes in the cluster, for the start.
    #[arg(long, value_delimiter = ',', default_value = "1000,5000")]
    nodes: Vec<u32>,
    /// Rounds of starts.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// What to measure. All but the start is measured with the most nodes.
    #[arg(long, value_delimiter = ',', default_value = "start,steady,idle,spread,restart,cut")]
    parts: Vec<Part>,
    /// Status updates a second, in all.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Seconds of status updates, and of idleness.
    #[arg(long, default_value_t = 65)]
    seconds: u32,
    /// Single changes of each kind.
    #[arg(long, default_value_t = 100)]
    singles: u32,
    /// Nodes that restart.
    #[arg(long, default_value_t = 1000)]
    restarts: u32,
    /// How many of them a second.
    #[arg(long, default_value_t = 200)]
    restart_rate: u32,
    /// How often the watch is cut.
    #[arg(long, default_value_t = 100)]
    cuts: u32,
    /// Another agent than the one of this workspace, to compare the two.
    #[arg(long)]
    flanneld: Option<PathBuf>,
    /// More arguments for the agent.
    #[arg(long, allow_hyphen_values = true)]
    flag: Vec<String>,
}

fn main() -> Fallible<ExitCode> {
    let options = Options::parse();
    let most = *options.nodes.iter().max().ok_or("no number of nodes")?;
    if most + options.singles.max(options.cuts) > flannel_benches::leases::MOST {
        return Err(format!("{most} nodes are too many for the network").into());
    }
    if options.restarts.max(options.cuts) + 2 > most {
        return Err(format!("{most} nodes are too few for what is to happen to them").into());
    }
    with_agent(options.flanneld.as_deref(), Stores::All, |flanneld| {
        let bed = |nodes, watch_list| bed::Bed::build(flanneld, &options.flag, nodes, watch_list);
        let what = format!("{most} nodes");
        for part in &options.parts {
            match part {
                Part::Start => {
                    for nodes in &options.nodes {
                        for (watch_list, how) in [(true, "by a watch"), (false, "in pages")] {
                            let what = format!("{nodes} nodes, listed {how}");
                            start::run(&what, options.rounds, || bed(*nodes, watch_list))?;
                        }
                    }
                }
                Part::Steady => steady::run(&what, &bed(most, true)?, options.seconds, options.rate)?,
                Part::Beats => {
                    let bed = |metadata| bed::Bed::full(flanneld, &options.flag, most, metadata);
                    beats::run(&what, options.rounds, options.seconds, options.rate, bed)?;
                }
                Part::Idle => steady::run(&what, &bed(most, true)?, options.seconds, 0)?,
                Part::Spread => spread::singles(&what, &bed(most, true)?, options.singles)?,
                Part::Restart => {
                    spread::restarts(&what, &bed(most, true)?, options.restarts, options.restart_rate)?;
                }
                Part::Cut => cut::run(&what, &bed(most, true)?, options.cuts)?,
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}
