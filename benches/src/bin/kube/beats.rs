//! What a kubelet's heartbeat costs an agent, and what it costs the API server to send it: with whole objects, as servers
//! send them that can't do otherwise, and with their metadata alone, one after the other in each round.

use std::thread::sleep;
use std::time::Instant;

use flannel_benches::stats::Sample;
use flannel_benches::{Fallible, proc};
use flannel_lab::kube::fake::{MetadataOnly, touch_status};

use crate::bed::{Bed, mebibytes, name, pace};

/// Heartbeats a second before those that are measured.
const WARM_UP: u32 = 1000;

/// What was measured of one way.
#[derive(Default)]
struct Way {
    bytes: Sample,
    micros: Sample,
    ready: Sample,
    peak: Sample,
    own: Sample,
}

pub(crate) fn run(
    what: &str,
    rounds: u32,
    seconds: u32,
    rate: u32,
    build: impl Fn(MetadataOnly) -> Fallible<Bed>,
) -> Fallible<()> {
    let kinds = [MetadataOnly::Unknown, MetadataOnly::Served];
    let mut ways = [Way::default(), Way::default()];
    for round in 1..=rounds {
        for (kind, way) in kinds.into_iter().zip(&mut ways) {
            eprintln!("{what}: heartbeats, {kind:?}, round {round} of {rounds}");
            measure(&build(kind)?, seconds, rate, way)?;
        }
    }
    println!("\n{what} of real size, {rate} heartbeats a second; median (min..max, n)");
    for (name, way) in ["whole objects", "metadata alone"].into_iter().zip(&ways) {
        println!("  {name}");
        println!("    received a heartbeat      {:.0} bytes", way.bytes);
        println!("    processor time            {:.0} us", way.micros);
        println!("    start, exec to all peers  {:.3} s", way.ready);
        println!("    peak memory               {:.1} MiB, {:.1} its own at the end", way.peak, way.own);
    }
    let [whole, metadata] = &ways;
    println!("  metadata / whole            {:.2} of the bytes", metadata.bytes.ratios_to(&whole.bytes));
    println!("                              {:.2} of the time", metadata.micros.ratios_to(&whole.micros));
    Ok(())
}

fn measure(bed: &Bed, seconds: u32, rate: u32, way: &mut Way) -> Fallible<()> {
    let agent = bed.start(&[])?;
    way.ready.push(bed.wait_ready()?);
    way.peak.push(mebibytes(proc::peak_memory(agent.pid())?));
    sleep(crate::bed::SETTLE);
    let beats = |from: u32, count: u32, rate: u32| {
        pace(count, rate, |n| {
            // Not in the order of the names: 7919 is prime.
            let node = name((n * 7919) % bed.nodes);
            bed.api().edit_node(&node, |node| touch_status(node, (from + n).into()));
        });
    };
    // The first heartbeat of a node is its first word in the watch, which is compared in full.
    beats(0, bed.nodes, WARM_UP);
    bed.api().clear_requests();
    let (received, before) = (bed.received()?, proc::activity(agent.pid())?);
    let start = Instant::now();
    beats(1_000_000, seconds * rate, rate);
    let used = proc::activity(agent.pid())?.since(&before);
    let received = bed.received()? - received;
    let asked = bed.api().counts();
    if asked.gets + asked.lists + asked.pages + asked.patches > 0 {
        return Err(format!("heartbeats led to requests: {asked:?}").into());
    }
    let count = f64::from(seconds * rate);
    eprintln!("  {:.0} s, {:.2} s of processor time", start.elapsed().as_secs_f64(), used.cpu.as_secs_f64());
    way.bytes.push(received as f64 / count);
    way.micros.push(used.cpu.as_secs_f64() / count * 1e6);
    way.own.push(mebibytes(proc::own_memory(agent.pid())?));
    Ok(())
}
