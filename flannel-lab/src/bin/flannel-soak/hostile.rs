//! The hostile run: every kind of attacker attacks at the same time, while honest pods ping each other and honest nodes
//! join and leave.
//!
//! A writer to the store writes useless records, and tens of thousands of them (`records`, `flood`); a host that is no
//! node sends tunnel packets (`packets`); a pod attacks the health port (`health`); a writer to the local store's
//! folder sets traps among its files (`folder`). All the while these must be true, and are measured:
//! - no honest ping is lost, other than those that udp's own restart costs;
//! - an honest lease is programmed in time on every node, and nothing hostile is in any kernel;
//! - `/healthz` answers, memory, descriptors and logs stay within bounds (`watch`);
//! - an agent ends at once when it is asked to, and starts again in the middle of it all;
//! - once the attackers are gone, kernels, store and rules are what they were.

mod flood;
mod folder;
mod health;
mod packets;
mod records;
mod shapes;
mod watch;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use flannel_lab::netns::Netns;
use flannel_lab::stranger::add_metadata_host;

pub(crate) use self::health::lower_descriptor_limit;
use self::watch::Watch;
use crate::Fallible;
use crate::action::Touch;
use crate::lab::{LIMIT, Lab};
use crate::model::Backend;
use crate::pings::Pings;
use crate::report::Journal;
use crate::rounds::unexplained;
use crate::store::Store;

/// From one honest lease to the next.
const BEAT: Duration = Duration::from_millis(500);
/// How long an agent may take to end. It gives open requests of its health port 3 s.
const FAREWELL: Duration = Duration::from_secs(5);

/// Who attacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Attack {
    /// Records of every useless shape, written and deleted at a high rate
    Records,
    /// Tunnel packets from a host that is no node, whole and malformed
    Packets,
    /// Half-open, oversized and slow requests from pods to the health port
    Health,
    /// Links, pipes, holes and drafts in the folder of a local store
    Folder,
    /// Tens of thousands of keys, deleted in one revision where the store can
    Flood,
}

impl Attack {
    /// Whether there is something to attack.
    fn applies(self, backend: Backend, store: &Store) -> bool {
        match self {
            Self::Packets => !matches!(backend, Backend::HostGw | Backend::Ipip),
            Self::Folder => matches!(store, Store::Local(_)),
            Self::Records | Self::Health | Self::Flood => true,
        }
    }

    /// Does it until the scene is over, and says what was done.
    fn run(self, scene: &Scene<'_>) -> Fallible<String> {
        match self {
            Self::Records => records::run(scene),
            Self::Packets => packets::run(scene),
            Self::Health => health::run(scene),
            Self::Folder => folder::run(scene),
            Self::Flood => flood::run(scene),
        }
    }
}

/// What attackers have to do with.
struct Scene<'a> {
    lab: &'a Lab,
    seed: u64,
    /// The host that is no node.
    stranger: Netns,
    /// The host beyond the nodes' network that tells secrets.
    metadata: Netns,
    over: AtomicBool,
    /// Held by whoever looks at agents, and alone by whoever starts one again.
    calm: RwLock<()>,
}

impl Scene<'_> {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Sleeps, but not beyond the end.
    fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.is_over() && Instant::now() < end {
            sleep(Duration::from_millis(20).min(end.saturating_duration_since(Instant::now())));
        }
    }

    /// A failure ends it for all.
    fn until_failure<T>(&self, run: impl FnOnce() -> Fallible<T>) -> Fallible<T> {
        run().inspect_err(|_| self.over.store(true, Ordering::Relaxed))
    }

    fn busy(&self) -> RwLockReadGuard<'_, ()> {
        self.calm.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn quiet(&self) -> RwLockWriteGuard<'_, ()> {
        self.calm.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Ends a node's agent as a supervisor would, and starts it again. Returns how long the end took.
    fn restart(&self, number: u8) -> Fallible<Duration> {
        self.restart_amid(number, || Ok(()))
    }

    /// The same, and does something else until it is ready again.
    fn restart_amid(&self, number: u8, meanwhile: impl FnOnce() -> Fallible<()>) -> Fallible<Duration> {
        let quiet = self.quiet();
        let time = terminate(self.lab, number)?;
        self.lab.start_agent(number)?;
        meanwhile()?;
        self.lab.wait_until_ready(number, LIMIT)?;
        drop(quiet);
        Ok(time)
    }
}

/// What was measured.
#[derive(Debug, Default)]
struct Measured {
    sent: u64,
    lost: u64,
    beats: u32,
    slowest_beat: Duration,
    slowest_end: Duration,
}

/// Runs it for a time. An error is a violation, or the lab itself failed.
pub(crate) fn run(
    lab: &mut Lab,
    attacks: &[Attack],
    time: Duration,
    seed: u64,
    journal: &Journal,
) -> Fallible<String> {
    let metadata = add_metadata_host(&mut lab.bed.cluster)?;
    let stranger = lab.bed.cluster.add_node()?.netns().clone();
    let metadata = lab.node(metadata).netns().clone();
    let lab = &*lab;
    let chosen = |attack: &Attack| attacks.is_empty() || attacks.contains(attack);
    let attacks = Attack::value_variants().iter().filter(|attack| chosen(attack));
    let attacks = attacks.filter(|attack| attack.applies(lab.backend, &lab.store)).collect::<Vec<_>>();
    if attacks.is_empty() {
        return Err("nothing of what was asked for can be attacked with this backend and store".into());
    }
    let scene = Scene { lab, seed, stranger, metadata, over: false.into(), calm: RwLock::default() };
    let watch = Watch::begin(lab)?;
    health::raise_descriptor_limit()?;
    let mut measured = Measured::default();
    let mut lines = Vec::new();
    let result: Fallible<()> = scope(|scope| {
        let threads = attacks.iter().map(|attack| {
            let scene = &scene;
            (**attack, scope.spawn(move || scene.until_failure(|| attack.run(scene))))
        });
        let threads = threads.collect::<Vec<_>>();
        let guards = lab.numbers().map(|number| {
            let (watch, scene) = (&watch, &scene);
            scope.spawn(move || scene.until_failure(|| watch.node(scene, number)))
        });
        let guards = guards.collect::<Vec<_>>();
        let lived = live(&scene, time, &mut measured, journal);
        scene.over.store(true, Ordering::Relaxed);
        let mut failures = lived.err().map(|error| error.to_string()).into_iter().collect::<Vec<_>>();
        for (attack, thread) in threads {
            match thread.join().expect("no attacker panics") {
                Ok(line) => lines.push(format!("{attack:?}: {line}")),
                Err(error) => failures.push(format!("{attack:?}: {error}")),
            }
        }
        for guard in guards {
            match guard.join().expect("no guard panics") {
                Ok(line) => lines.push(line),
                Err(error) => failures.push(error.to_string()),
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
    });
    result.map_err(|error| format!("{error}\nso far:\n{}", lines.join("\n")))?;
    aftermath(&scene, &watch, &mut measured, journal)?;
    let Measured { sent, lost, beats, slowest_beat, slowest_end } = measured;
    lines.push(format!(
        "{sent} pings, {lost} of them lost in restarts of udp; {beats} honest leases programmed everywhere, the \
         slowest after {} ms; the slowest end of an agent took {} ms",
        slowest_beat.as_millis(),
        slowest_end.as_millis()
    ));
    Ok(lines.join("\n"))
}

/// Honest life under attack: pings, nodes that come and go, and an agent that is restarted at half time.
fn live(scene: &Scene<'_>, time: Duration, measured: &mut Measured, journal: &Journal) -> Fallible<()> {
    let begin = Instant::now();
    // Where packets go through the agent none passes while there is none, and traps in the folder are set for one that starts.
    let is_in_agent = scene.lab.backend.is_in_agent();
    let touch = |number| is_in_agent.then_some(Touch { node: number, peer: None, v6: None });
    let trapped = touch(folder::NODE).filter(|_| matches!(scene.lab.store, Store::Local(_)));
    let mut pings = Pings::start(scene.lab)?;
    beats(scene, begin + time / 2, measured)?;
    pings = next(scene, pings, trapped.as_slice(), measured)?;
    journal.note("half of the time is over; restarting node1's agent");
    let took = scene.restart(1)?;
    measured.slowest_end = measured.slowest_end.max(took);
    journal.note(format!("node1's agent ended within {} ms and is ready again", took.as_millis()));
    pings.wait_for_replies()?;
    let touches = touch(1).into_iter().chain(trapped).collect::<Vec<_>>();
    pings = next(scene, pings, &touches, measured)?;
    beats(scene, begin + time, measured)?;
    next(scene, pings, trapped.as_slice(), measured)?;
    Ok(())
}

/// Lets honest nodes join and leave until then, each seen by all before the next.
fn beats(scene: &Scene<'_>, until: Instant, measured: &mut Measured) -> Fallible<()> {
    let numbers = scene.lab.numbers().collect::<Vec<_>>();
    loop {
        let begin = Instant::now();
        scene.lab.beat()?;
        scene.lab.wait_for_model(&numbers, begin + LIMIT)?;
        measured.beats += 1;
        measured.slowest_beat = measured.slowest_beat.max(begin.elapsed());
        if scene.is_over() || Instant::now() > until {
            return Ok(());
        }
        scene.sleep(BEAT);
    }
}

/// Judges the pings of a time, and returns those of the next, which begin before.
fn next(scene: &Scene<'_>, pings: Pings, touches: &[Touch], measured: &mut Measured) -> Fallible<Pings> {
    let next = Pings::start(scene.lab)?;
    let (sent, losses) = pings.stop();
    measured.sent += sent;
    measured.lost += losses.iter().map(|loss| loss.report.lost).sum::<u64>();
    let (_, lines) = unexplained(touches, &losses);
    if lines.is_empty() { Ok(next) } else { Err(lines.join("\n").into()) }
}

/// The attackers are gone: an agent is asked to end while the others still have to do with what they left, and
/// then all is what it was.
fn aftermath(scene: &Scene<'_>, watch: &Watch, measured: &mut Measured, journal: &Journal) -> Fallible<()> {
    let lab = scene.lab;
    journal.note("the attackers are gone");
    let numbers = lab.numbers().collect::<Vec<_>>();
    let last = *numbers.last().ok_or("there are no nodes")?;
    measured.slowest_end = measured.slowest_end.max(scene.restart(last)?);
    lab.beat()?;
    lab.wait_for_model(&numbers, Instant::now() + LIMIT)?;
    numbers.iter().try_for_each(|number| lab.wait_until_ready(*number, LIMIT))?;
    let pings = Pings::start(lab)?;
    pings.wait_for_replies()?;
    next(scene, pings, &[], measured)?;
    if let Some(deviation) = lab.store_deviation()? {
        return Err(deviation.into());
    }
    watch.settled(lab)?;
    for number in numbers {
        measured.slowest_end = measured.slowest_end.max(terminate(lab, number)?);
    }
    Ok(())
}

/// Ends a node's agent as a supervisor would.
fn terminate(lab: &Lab, number: u8) -> Fallible<Duration> {
    let begin = Instant::now();
    let status = lab.agent(number).terminate()?;
    let took = begin.elapsed();
    if !status.success() {
        return Err(format!("node{number}'s agent ended with {status} when it was asked to end").into());
    }
    if took > FAREWELL {
        return Err(format!("node{number}'s agent took {took:?} to end").into());
    }
    Ok(took)
}
