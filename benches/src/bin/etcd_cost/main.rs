//! What a cluster costs its etcd: requests, watch events and bytes for each node and hour, and a storm of nodes that join.
//!
//! All agents run in this process. Each is the library's [`Agent`](flannel_core::agent::Agent) with the etcd store and the vxlan
//! backend, as `flanneld` makes them: with a client, a connection and a kernel of its own, so it asks the store whatever
//! `flanneld` asks. The kernels are fakes. There are no files of earlier runs, no TLS, no login, and one etcd, without
//! fsync. Probes and firewall rules don't concern the store. Requests and events are counted by etcd, bytes on the link between
//! agents and etcd, where a segment that is larger than a frame has one set of headers.
//!
//! What grows with time (questions for the progress of watches, probes of connections) is measured while nothing changes and no lease
//! is due; what grows with renewals, with leases so short that renewals are nearly all there is; what grows with changes, by
//! nodes that join, publish anew and leave one after the other. A renewal that is an event for others, or writes to the store, ends the
//! bench.

mod bed;
mod crowd;
mod formula;
mod heard;
mod measure;
mod report;

use std::process::ExitCode;

use clap::Parser;
use flannel_benches::{Fallible, in_sandbox};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The cost of a cluster on etcd.
#[derive(Parser)]
struct Options {
    /// Agents at once.
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000")]
    agents: Vec<u32>,
    /// Seconds of quiet, and of renewals.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Nodes that join, publish anew and leave one after the other.
    #[arg(long, default_value_t = 10)]
    changes: u32,
    /// Nodes of the cluster that the formula is for.
    #[arg(long, default_value_t = 20_000)]
    nodes: u32,
    /// Changes an hour there, in percent of the nodes.
    #[arg(long, default_value_t = 1.0)]
    churn: f64,
}

fn main() -> Fallible<ExitCode> {
    let options = Options::parse();
    in_sandbox(|| {
        if cfg!(debug_assertions) {
            eprintln!("warning: this is no release build");
        }
        // Each agent has a connection and some timers; the server has as many connections.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        let points = options.agents.iter().map(|agents| {
            let point = measure::point(*agents, options.seconds, options.changes)?;
            report::storm(&point);
            report::rates(&point);
            Ok(point)
        });
        let points = points.collect::<Fallible<Vec<_>>>()?;
        report::formula(&points, options.nodes, options.churn / 100.0);
        Ok(ExitCode::SUCCESS)
    })
}
