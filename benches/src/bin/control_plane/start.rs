//! Cold start, and start again with everything in place.

use flannel_benches::batch::{batch, check_routes};
use flannel_benches::machine::Watch;
use flannel_benches::stats::Sample;
use flannel_benches::{Fallible, proc};

use crate::bed::Bed;

pub(crate) fn run(rounds: u32, build: impl Fn() -> Fallible<Bed>) -> Fallible<()> {
    let [mut agent, mut floor, mut cpu, mut peak, mut warm, mut foreign] = [const { Sample::new() }; 6];
    let mut what = String::new();
    for round in 1..=rounds {
        let bed = build()?;
        what = format!("{}, {} leases in etcd", bed.backend, bed.leases);
        eprintln!("{what}: start, round {round} of {rounds}");
        let watch = Watch::start();
        let running = bed.start()?;
        agent.push(bed.wait_ready()?);
        let used = running.cpu_time()?;
        foreign.push(watch.stop().foreign(used) * 100.0);
        cpu.push(used.as_secs_f64());
        peak.push(proc::peak_memory(running.pid())? as f64 / f64::from(1 << 20));
        check_routes(bed.netns(), bed.leases)?;
        running.kill()?;
        drop(running);
        let running = bed.start()?;
        warm.push(bed.wait_ready()?);
        check_routes(bed.netns(), bed.leases)?;
        drop(running);
        floor.push(batch(bed.cluster.node(2), &bed.backend, bed.leases)?);
        check_routes(bed.cluster.node(2).netns(), bed.leases)?;
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
