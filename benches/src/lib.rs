//! What the benches share: statistics, the share of the processor that others use, and the agent under test.
//!
//! Absolute figures drift with the machine, so every bench runs what it compares side by side, interleaved, and
//! reports ratios with their spread.

pub mod announce;
pub mod batch;
pub mod flood;
pub mod leases;
pub mod machine;
pub mod peak;
pub mod proc;
pub mod stats;
pub mod sys;

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use flannel_lab::flanneld::{self, Stores};
use flannel_lab::netns::Netns;
use flannel_lab::sandbox::{Entered, enter_sandbox, is_inside};

/// Any failure ends a bench.
pub type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// The port at which agents of the benches tell their readiness.
pub const HEALTH_PORT: u16 = 8471;

/// Runs a bench in a sandbox of its own, with a `flanneld` built for it beside this program.
pub fn in_lab(stores: Stores, bench: impl FnOnce() -> Fallible<ExitCode>) -> Fallible<ExitCode> {
    if !is_inside() {
        if cfg!(debug_assertions) {
            eprintln!("warning: this is no release build");
        }
        flanneld::build(stores)?;
    }
    match enter_sandbox()? {
        Entered::Outside(code) => Ok(code),
        Entered::Inside => bench(),
    }
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
