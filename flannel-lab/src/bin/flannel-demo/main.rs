//! The demo: a cluster on this machine, with the real agent on every node, that gets broken and heals.
//!
//! In a sandbox it makes the nodes, starts the agents, pings between pods, does damage and measures the repair. All of it goes
//! with the sandbox, however the demo ends. `cargo demo` builds it, and the agent beside it.

mod agents;
mod batch;
mod faults;
mod keep;
mod lab;
mod leases;
mod matrix;
mod options;
mod pings;
mod preflight;
mod report;
mod screen;
mod status;
mod table;
mod tour;
mod way;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use flannel_lab::flanneld;
use flannel_lab::sandbox::{Entered, enter_sandbox, is_inside};

use self::options::Options;
use self::screen::Screen;

/// Any failure; it ends the demo, which shows it with all its causes.
type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let options = Options::parse();
    let screen = Screen::new(options.no_color);
    run(&options, &screen).unwrap_or_else(|error| {
        screen.error(error.as_ref());
        ExitCode::FAILURE
    })
}

fn run(options: &Options, screen: &Screen) -> Fallible<ExitCode> {
    let flanneld = flanneld::path(options.flanneld.as_deref())?;
    if !is_inside() {
        if !flanneld.is_file() {
            let why = "no such file; `cargo demo` builds it, and --flanneld names another";
            return Err(format!("{}: {why}", flanneld.display()).into());
        }
        preflight::check()?;
    }
    match enter_sandbox()? {
        Entered::Inside => tour::run(options, &flanneld, screen),
        Entered::Outside(code) => {
            if [130, 143].map(ExitCode::from).contains(&code) {
                screen.line("\ninterrupted; the cluster is gone");
            }
            Ok(code)
        }
    }
}
