//! Two nodes on an underlay that ping each other, in a sandbox that leaves nothing behind.
//!
//! `cargo run -p flannel-lab --example two_nodes` pings a few times in each family;
//! with `-- watch` at the end it goes on until Ctrl-C and then tells what was lost.

use std::error::Error;
use std::net::IpAddr;
use std::process::ExitCode;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::ping::{PingOptions, PingReport, Pinger, ping};
use flannel_lab::sandbox::{Entered, enter_sandbox};
use nix::sys::signal::{SigSet, Signal};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    if let Entered::Outside(code) = enter_sandbox()? {
        return Ok(code);
    }
    // Before there are other threads, which would take the signal and drop it.
    let ctrl_c = SigSet::from(Signal::SIGINT);
    let watch = std::env::args().nth(1).is_some_and(|arg| arg == "watch");
    if watch {
        ctrl_c.thread_block()?;
    }

    let cluster = Cluster::builder()
        .nodes(2)
        .families(Families::Dual)
        .build()?;
    let from = cluster.node(1).netns();
    let addresses = [cluster.node(2).ipv4(), cluster.node(2).ipv6()];
    for address in addresses.into_iter().flatten() {
        print(address, &ping(from, address, PingOptions::default())?);
    }
    if watch {
        let address = cluster.node(2).address();
        let pinger = Pinger::start(from, address, PingOptions::default())?;
        println!("pinging {address} until Ctrl-C");
        ctrl_c.wait()?;
        print(address, &pinger.stop());
    }
    Ok(ExitCode::SUCCESS)
}

fn print(address: IpAddr, report: &PingReport) {
    let PingReport {
        sent,
        received,
        rtt,
        ..
    } = report;
    let median = rtt.map_or_else(|| "-".to_owned(), |rtt| format!("{:?}", rtt.median));
    println!("{address}: {received} of {sent} answered, median {median}");
}
