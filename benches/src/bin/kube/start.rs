//! Cold start, and start again with everything in place.

use flannel_benches::batch::{batch, check_routes};
use flannel_benches::machine::Watch;
use flannel_benches::stats::Sample;
use flannel_benches::{Fallible, proc};

use crate::bed::{Bed, mebibytes};

pub(crate) fn run(what: &str, rounds: u32, build: impl Fn() -> Fallible<Bed>) -> Fallible<()> {
    let [mut agent, mut floor, mut cpu, mut peak, mut warm, mut foreign] = [const { Sample::new() }; 6];
    for round in 1..=rounds {
        eprintln!("{what}: start, round {round} of {rounds}");
        let bed = build()?;
        let watch = Watch::start();
        let running = bed.start(&[])?;
        agent.push(bed.wait_ready()?);
        let used = running.cpu_time()?;
        foreign.push(watch.stop().foreign(used) * 100.0);
        cpu.push(used.as_secs_f64());
        peak.push(mebibytes(proc::peak_memory(running.pid())?));
        check_routes(bed.netns(), bed.nodes)?;
        running.kill()?;
        drop(running);
        let running = bed.start(&[])?;
        warm.push(bed.wait_ready()?);
        check_routes(bed.netns(), bed.nodes)?;
        drop(running);
        floor.push(batch(bed.cluster.node(2), "vxlan", bed.nodes)?);
        check_routes(bed.cluster.node(2).netns(), bed.nodes)?;
    }
    println!("\n{what}; median (min..max, n)");
    println!("  agent, exec to all peers    {agent:.3} s");
    println!("  ip and bridge -batch        {floor:.3} s");
    println!("  agent / batch               {:.2}", agent.ratios_to(&floor));
    println!("  agent, processor time       {cpu:.2} s");
    println!("  agent, peak memory          {peak:.1} MiB");
    println!("  agent killed, start again   {warm:.3} s");
    println!("  processor used by others    {foreign:.0} %");
    Ok(())
}
