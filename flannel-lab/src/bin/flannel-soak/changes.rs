//! The run of changes: what an operator or a network changes while a cluster runs, and which costs no more than is promised.
//!
//! Its first part (`backends`) changes the backend of a cluster, blocks tunnels between nodes and restarts agents in the middle of
//! that. Its second (`nat`) has nodes behind NATs that forget their mappings or are replaced, and relays that end. The churn compares
//! each kernel with a model of one backend, which a changing one has not, so here the pings are the judge: each that is lost must have
//! a cause, with the pairs that it may concern and the time that it may last (`cause`). After each round every agent is ready, and
//! the records are as they should be.

mod backends;
mod cause;
mod nat;
mod restart;
mod tally;
mod traffic;

use std::path::Path;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::Value;

use self::cause::Cause;
use self::tally::Tally;
use self::traffic::Traffic;
use crate::Fallible;
use crate::lab::Lab;
use crate::options::Options;
use crate::report::Journal;

/// The flags of all agents: the log has what operators see.
const FLAGS: [&str; 4] = ["--ip-masq", "--healthz-ip=127.0.0.1", "-v=0", "--wireguard=userspace"];

/// What changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Part {
    /// The backend, with blocked tunnels
    Backends,
    /// NATs before nodes, and relays; 2 public nodes and 3 behind NATs, with IPv4 and a folder as the store
    Nat,
}

/// A cluster to which something happens, round by round.
trait Scene {
    /// Does the next round's actions, and waits until all is settled. What they may cost goes into the run, also if that fails.
    fn round(&mut self, run: &mut Run<'_>, traffic: &Traffic) -> Fallible<()>;

    /// Its cluster.
    fn lab(&self) -> &Lab;
}

/// What a run keeps.
struct Run<'a> {
    journal: &'a Journal,
    tally: Tally,
    /// What happened at the end of a round may cost pings of the next one.
    causes: Vec<Cause>,
}

impl Run<'_> {
    /// Notes an action, and that it was done.
    fn act(&mut self, name: &'static str, what: &str) {
        self.journal.note(format!("{name}: {what}"));
        self.tally.act(name);
    }
}

/// Runs these parts, or both, one after the other. Whether all was well.
pub(crate) fn run(
    parts: &[Part],
    options: &Options,
    flanneld: &Path,
    (seed, journal): (u64, &Journal),
) -> Fallible<bool> {
    let chosen = |part: &&Part| parts.is_empty() || parts.contains(part);
    let parts = Part::value_variants().iter().filter(chosen).collect::<Vec<_>>();
    let time = Duration::from_secs_f64(options.minutes * 60.0) / u32::try_from(parts.len())?;
    for part in parts {
        let mut run = Run { journal, tally: Tally::default(), causes: Vec::new() };
        let mut scene: Box<dyn Scene> = match part {
            Part::Backends => Box::new(backends::Cluster::start(options, flanneld, seed)?),
            Part::Nat => Box::new(nat::Site::start(flanneld, seed)?),
        };
        println!("built in {:.1} s; changing: {part:?}", journal.elapsed().as_secs_f64());
        let ended = rounds(&mut *scene, &mut run, Instant::now() + time);
        println!("\nseed {seed}, {part:?}: {}", run.tally.show());
        if let Err(error) = ended {
            crate::show_violation(scene.lab(), &*error, seed, journal);
            return Ok(false);
        }
    }
    Ok(true)
}

fn rounds(scene: &mut dyn Scene, run: &mut Run<'_>, end: Instant) -> Fallible<()> {
    // The first echoes meet neighbours that nobody has resolved yet, and paths that are not found yet, so they don't count.
    Traffic::start(scene.lab())?.stop_once_replied()?;
    let mut traffic = Traffic::start(scene.lab())?;
    while Instant::now() < end {
        let began = Instant::now();
        run.causes.retain(|cause| cause.until > traffic.start);
        let settled = scene.round(run, &traffic).and_then(|()| traffic.wait_for_replies());
        let next = Traffic::start(scene.lab())?;
        let lines = run.tally.judge(std::mem::replace(&mut traffic, next).stop(), &run.causes);
        // What was lost tells more than that something did not come.
        if !lines.is_empty() || settled.is_err() {
            let error = settled.err().map(|error| error.to_string());
            return Err(lines.into_iter().chain(error).collect::<Vec<_>>().join("\n").into());
        }
        run.tally.rounds += 1;
        run.journal.note(format!("all well after {:.1} s", began.elapsed().as_secs_f64()));
    }
    Ok(())
}

/// The status of a node's agent, as its JSON has it.
fn status(lab: &Lab, flanneld: &Path, number: u8) -> Fallible<Value> {
    let file = lab.subnet_file(number).display().to_string();
    let flanneld = flanneld.to_str().ok_or("a path that is no text")?;
    let args = ["status", "--subnet-file", &file, "--output=json"];
    Ok(serde_json::from_str(&lab.netns(number).run(flanneld, &args)?)?)
}
