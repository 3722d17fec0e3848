//! What an agent costs while nothing changes, and what a second backend adds to that.

use std::thread::sleep;
use std::time::Duration;

use flannel_benches::{Fallible, proc};

use crate::bed::Bed;

/// Until a start has settled.
const SETTLE: Duration = Duration::from_secs(5);

/// What it costs.
struct Cost {
    /// Processor time in milliseconds a minute.
    cpu: f64,
    /// Wake-ups a minute.
    wakeups: f64,
    /// Resident memory in MiB.
    resident: f64,
    /// What of it is its own, in MiB.
    own: f64,
    /// The most that was resident since the start, in MiB.
    peak: f64,
}

pub(crate) fn run(bed: &Bed, seconds: u64) -> Fallible<()> {
    let Cost { cpu, wakeups, resident, own, peak } = measure(bed, seconds)?;
    println!("\n{}, {} leases in etcd; nothing changes for {seconds} s", bed.backend, bed.leases);
    println!("  processor time a minute     {cpu:.1} ms");
    println!("  wake-ups a minute           {wakeups:.0}");
    println!("  resident memory             {resident:.1} MiB, {own:.1} of them no pages of files");
    println!("  peak memory since the start {peak:.1} MiB");
    Ok(())
}

/// The same without and with a second backend, in turn.
pub(crate) fn second(
    seconds: u64,
    rounds: u32,
    fallback: &str,
    bed: impl Fn(Option<&str>) -> Fallible<Bed>,
) -> Fallible<()> {
    for round in 1..=rounds {
        // A statement each: the first bed has to be gone before the second is built, since they use the same names.
        let alone = measure(&bed(None)?, seconds)?;
        let both = measure(&bed(Some(fallback))?, seconds)?;
        println!("\nround {round}: without {fallback} beside it, with it, and what that adds");
        let row = |name: &str, one: f64, other: f64| {
            println!("  {name:<36}{one:8.1}  {other:8.1}  {:+8.1}", other - one);
        };
        row("processor time a minute in ms", alone.cpu, both.cpu);
        row("wake-ups a minute", alone.wakeups, both.wakeups);
        row("resident memory in MiB", alone.resident, both.resident);
        row("of it no pages of files", alone.own, both.own);
    }
    Ok(())
}

fn measure(bed: &Bed, seconds: u64) -> Fallible<Cost> {
    eprintln!("{}, {} leases in etcd: {seconds} s of idleness", bed.backend, bed.leases);
    let agent = bed.start()?;
    bed.wait_ready()?;
    sleep(SETTLE);
    let before = proc::activity(agent.pid())?;
    sleep(Duration::from_secs(seconds));
    let used = proc::activity(agent.pid())?.since(&before);
    let a_minute = 60.0 / seconds as f64;
    let cpu = used.cpu.as_secs_f64() * 1e3 * a_minute;
    let wakeups = used.switches as f64 * a_minute;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (resident, own) = (mib(agent.rss()?), mib(proc::own_memory(agent.pid())?));
    let peak = mib(proc::peak_memory(agent.pid())?);
    Ok(Cost { cpu, wakeups, resident, own, peak })
}
