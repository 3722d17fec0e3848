//! What the benches share: statistics, the share of the processor that others use, and the agent under test.
//!
//! Absolute figures drift with the machine, so every bench runs what it compares side by side, interleaved, and
//! reports ratios with their spread.

pub mod announce;
pub mod batch;
pub mod etcd;
pub mod flood;
pub mod leases;
pub mod machine;
pub mod peak;
pub mod proc;
pub mod stats;
pub mod sys;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use flannel_lab::bed::{Bed, FOLDER, HEALTH_PORT};
use flannel_lab::cluster::Cluster;
use flannel_lab::flanneld::{self, Stores};
use flannel_lab::netns::Netns;
use flannel_lab::sandbox::{Entered, enter_sandbox, is_inside};
use flannel_lab::store::Store;

/// Any failure ends a bench.
pub type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Runs a bench in a sandbox of its own, with a `flanneld` built for it beside this program.
pub fn in_lab(stores: Stores, bench: impl FnOnce() -> Fallible<ExitCode>) -> Fallible<ExitCode> {
    if !is_inside() {
        if cfg!(debug_assertions) {
            eprintln!("warning: this is no release build");
        }
        flanneld::build(stores)?;
    }
    in_sandbox(bench)
}

/// Runs a bench in a sandbox of its own, of this agent, or of one that is built for it beside this program.
pub fn with_agent(
    given: Option<&Path>,
    stores: Stores,
    bench: impl FnOnce(&Path) -> Fallible<ExitCode>,
) -> Fallible<ExitCode> {
    let flanneld = given.map(|path| flanneld::path(Some(path))).transpose()?;
    match flanneld {
        Some(flanneld) => in_sandbox(|| bench(&flanneld)),
        None => in_lab(stores, || bench(&flanneld::path(None)?)),
    }
}

/// Runs a bench of agents that are there in a sandbox of its own.
pub fn in_sandbox(bench: impl FnOnce() -> Fallible<ExitCode>) -> Fallible<ExitCode> {
    match enter_sandbox()? {
        Entered::Outside(code) => Ok(code),
        Entered::Inside => bench(),
    }
}

/// A bed whose agents take the node's NIC and these flags, and know nothing of an earlier bed.
pub fn bed<S: Store>(cluster: Cluster, store: S, flanneld: &Path, flags: &[String]) -> Bed<S> {
    // There is none after the first one's end.
    let _ = fs::remove_dir_all(FOLDER);
    Bed::new(cluster, store, flanneld).flags(["--iface=eth0"]).flags(flags)
}

/// Waits until the agent in a namespace says that all peers are in the kernel; seconds.
pub fn wait_ready(netns: &Netns) -> Fallible<f64> {
    let start = Instant::now();
    while let Err(why) = flanneld::ready(netns, HEALTH_PORT) {
        if start.elapsed() > Duration::from_secs(120) {
            return Err(format!("the agent did not become ready: {why}").into());
        }
        sleep(Duration::from_millis(2));
    }
    Ok(start.elapsed().as_secs_f64())
}
