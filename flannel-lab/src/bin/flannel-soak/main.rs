//! The soak: minutes of seeded random churn on a cluster of this machine, with the real agent on every node.
//!
//! Every round does one to three things at once (leases that come, go and change, damage in the kernel, links
//! and stores that fail, agents that die), waits until all is well again, and checks:
//! - the kernel of every node equals the model: what the leases in the store ask for, worked out by code that
//!   shares nothing with the agent (`model.rs`);
//! - pairs of pods that nothing happened to lost no ping (`action.rs` says who may suffer by what), and all others
//!   are back;
//! - no agent's probes called a node unreached that nothing happened to, and after the round none does (`alarms.rs`);
//! - every node's firewall rules are those that its agent wrote at first;
//! - nodes that nothing happened to never deviated, and what others put on a node is still there (`foreign.rs`);
//! - the store holds the leases it should, also where others changed or removed them, and every agent is ready;
//! - a node is who it was when its address or its NIC's name changes, no two have a value that is one's alone, and a
//!   record that claims what is another's costs nobody a ping but the node it is of;
//! - a store restored from a backup takes no lease away.
//!
//! With `--hostile` or `--changes` it does something else: `hostile.rs`, `changes.rs`.
//!
//! A violation ends it with status 1 and shows seed, actions, difference and logs. The same seed and options
//! give the same actions, though not at the same microsecond.

mod act;
mod action;
mod alarms;
mod changes;
mod foreign;
mod hostile;
mod identity;
mod lab;
mod meddling;
mod model;
mod options;
mod phantom;
mod pings;
mod plan;
#[path = "../flannel-demo/preflight.rs"]
mod preflight;
mod report;
mod rounds;
mod rules;
mod store;
mod tampering;
mod trouble;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use flannel_lab::error::chain;
use flannel_lab::flanneld::{self, Stores};
use flannel_lab::sandbox::{Entered, enter_sandbox, is_inside};

use self::alarms::Alarms;
use self::hostile::Attack;
use self::lab::Lab;
use self::options::Options;
use self::pings::Pings;
use self::plan::{Planner, Setting};
use self::report::{Journal, Report};

/// Any failure; it ends the soak.
type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// How often a quiet soak says that it is alive.
const SIGN: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let options = Options::parse();
    run(&options).unwrap_or_else(|error| {
        eprintln!("error: {}", chain(&*error));
        ExitCode::FAILURE
    })
}

fn run(options: &Options) -> Fallible<ExitCode> {
    let flanneld = flanneld::path(options.flanneld.as_deref())?;
    if !is_inside() {
        if options.flanneld.is_none() {
            flanneld::build(Stores::All)?;
        }
        preflight::check()?;
    }
    match enter_sandbox()? {
        Entered::Inside => soak(options, &flanneld),
        Entered::Outside(code) => Ok(code),
    }
}

fn soak(options: &Options, flanneld: &Path) -> Fallible<ExitCode> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000_000));
    let journal = Journal::new(options.verbose);
    if let Some(parts) = &options.changes {
        println!("seed {seed}: changes of {} minutes", options.minutes);
        let all_well = changes::run(parts, options, flanneld, (seed, &journal))?;
        return Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    println!(
        "seed {seed}: {} nodes, {} leases of none, {:?}, {:?}, {:?}, {} minutes",
        options.nodes, options.phantoms, options.backend, options.families, options.store, options.minutes
    );
    if options.hostile.is_some() {
        hostile::lower_descriptor_limit()?;
    }
    let mut lab = Lab::start(options, flanneld)?;
    let mut planner = Planner::new(
        seed,
        Setting {
            backend: options.backend,
            store: options.store,
            families: lab.families(),
            nodes: options.nodes,
            phantoms: options.phantoms,
            only: options.only.clone(),
            without: options.without.clone(),
        },
    );
    if !planner.has_choice() {
        return Err("nothing of what was asked for can happen with this backend and store".into());
    }
    let ended = if let Some(attacks) = &options.hostile {
        besiege(&mut lab, &mut planner, attacks, options, (seed, &journal))
    } else {
        let mut report = Report::default();
        let churned = churn(&lab, &mut planner, options, &journal, &mut report);
        println!("\nseed {seed}: {}\n{}", report.headline(), report.show());
        churned
    };
    let Err(error) = ended else { return Ok(ExitCode::SUCCESS) };
    show_violation(&lab, &*error, seed, &journal);
    Ok(ExitCode::FAILURE)
}

/// Shows what was violated, and what led to it.
fn show_violation(lab: &Lab, error: &(dyn Error + Send + Sync), seed: u64, journal: &Journal) {
    println!("VIOLATION with seed {seed} after {:.1} s\n{error}", journal.elapsed().as_secs_f64());
    println!("\nthe last actions:\n{}", journal.last());
    for number in lab.numbers() {
        println!("\nthe end of the log of node{number}'s agent:\n{}", lab.last_lines(number));
    }
    println!("\nVIOLATION, see above; again: --seed {seed}");
}

/// The hostile run, instead of churn.
fn besiege(
    lab: &mut Lab,
    planner: &mut Planner,
    attacks: &[Attack],
    options: &Options,
    (seed, journal): (u64, &Journal),
) -> Fallible<()> {
    populate(lab, planner)?;
    println!("built in {:.1} s; under attack", journal.elapsed().as_secs_f64());
    let time = Duration::from_secs_f64(options.minutes * 60.0);
    let report = hostile::run(lab, attacks, time, seed, journal)?;
    println!("\nseed {seed}:\n{report}");
    Ok(())
}

/// Lets the first leases of none join.
fn populate(lab: &Lab, planner: &mut Planner) -> Fallible<()> {
    lab.write(&planner.first(), &[])?;
    let numbers = lab.numbers().collect::<Vec<_>>();
    lab.wait_for_model(&numbers, Instant::now() + lab::LIMIT)?;
    let pings = Pings::start(lab)?;
    pings.wait_for_replies()?;
    pings.stop();
    Ok(())
}

fn churn(
    lab: &Lab,
    planner: &mut Planner,
    options: &Options,
    journal: &Journal,
    report: &mut Report,
) -> Fallible<()> {
    // The first echoes meet neighbours that nobody has resolved yet, so they don't count.
    populate(lab, planner)?;
    let mut pings = Pings::start(lab)?;
    println!("built in {:.1} s; churning", journal.elapsed().as_secs_f64());
    let end = Instant::now() + Duration::from_secs_f64(options.minutes * 60.0);
    let mut sign = Instant::now() + SIGN;
    let (mut before, mut alarms) = (Vec::new(), Alarms::default());
    while Instant::now() < end {
        let actions = planner.round();
        rounds::run(lab, &actions, &before, &mut pings, &mut alarms, journal, report)?;
        before = actions;
        report.rounds += 1;
        if !options.verbose && Instant::now() > sign {
            sign += SIGN;
            println!("[{:6.0} s] {}", journal.elapsed().as_secs_f64(), report.headline());
        }
    }
    Ok(())
}
