//! What an agent costs while nothing changes.

use std::thread::sleep;
use std::time::Duration;

use flannel_benches::{Fallible, proc};

use crate::bed::Bed;

/// Until a start has settled.
const SETTLE: Duration = Duration::from_secs(5);

pub(crate) fn run(bed: &Bed, seconds: u64) -> Fallible<()> {
    eprintln!("{}, {} leases in etcd: {seconds} s of idleness", bed.backend, bed.leases);
    let agent = bed.start()?;
    bed.wait_ready()?;
    sleep(SETTLE);
    let before = proc::activity(agent.pid())?;
    sleep(Duration::from_secs(seconds));
    let after = proc::activity(agent.pid())?;
    let a_minute = 60.0 / seconds as f64;
    let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e3 * a_minute;
    let wakeups = (after.switches - before.switches) as f64 * a_minute;
    let resident = agent.rss()? as f64 / f64::from(1 << 20);
    println!("\n{}, {} leases in etcd; nothing changes for {seconds} s", bed.backend, bed.leases);
    println!("  processor time a minute     {cpu:.1} ms");
    println!("  wake-ups a minute           {wakeups:.0}");
    println!("  resident memory             {resident:.1} MiB");
    Ok(())
}
