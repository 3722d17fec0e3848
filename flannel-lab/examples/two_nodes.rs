//! Two nodes on an underlay that ping each other, in a sandbox that leaves nothing behind.
//!
//! `cargo run -p flannel-lab --example two_nodes`

use std::error::Error;
use std::process::ExitCode;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::ping::{PingOptions, ping};
use flannel_lab::sandbox::{Entered, enter_sandbox};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    if let Entered::Outside(code) = enter_sandbox()? {
        return Ok(code);
    }
    let cluster = Cluster::builder().nodes(2).families(Families::Dual).build()?;
    let (from, to) = (cluster.node(1), cluster.node(2));
    for address in [to.ipv4(), to.ipv6()].into_iter().flatten() {
        let report = ping(from.netns(), address, PingOptions::default())?;
        let median = report.rtt.map_or_else(|| "-".to_owned(), |rtt| format!("{:?}", rtt.median));
        let (sent, received) = (report.sent, report.received);
        println!("{} -> {address}: {received} of {sent} answered, median {median}", from.name());
    }
    Ok(ExitCode::SUCCESS)
}
