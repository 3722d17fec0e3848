//! A lease's way from etcd to another node's kernel.

use std::time::{Duration, Instant};

use flannel_benches::Fallible;
use flannel_benches::announce::{Listener, millis};
use flannel_benches::etcd::{delete, put, talk};
use flannel_benches::stats::Sample;

use crate::bed::Bed;

/// Leases in a burst.
pub(crate) const BURST: u32 = 1000;
const BURSTS: usize = 5;

pub(crate) fn run(bed: &Bed, singles: u32) -> Fallible<()> {
    eprintln!("{}, {} leases in etcd: spread", bed.backend, bed.leases);
    let agent = bed.start()?;
    bed.wait_ready()?;
    let mut listener = Listener::start(bed.netns())?;
    let backend = bed.backend.as_str();

    let (mut single, mut gone) = (Sample::new(), Sample::new());
    talk(bed, async |client| {
        for n in bed.leases..bed.leases + singles {
            let start = Instant::now();
            put(client, backend, n..n + 1).await?;
            single.push(millis(start, listener.routes(n..n + 1, true)));
            // Not in step with anything.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(5..15))).await;
            let start = Instant::now();
            delete(client, n..n + 1).await?;
            gone.push(millis(start, listener.routes(n..n + 1, false)));
        }
        Ok(())
    })?;
    let mut burst = Sample::new();
    let leases = bed.leases..bed.leases + BURST;
    for _ in 0..BURSTS {
        talk(bed, async |client| {
            let start = Instant::now();
            put(client, backend, leases.clone()).await?;
            burst.push(millis(start, listener.routes(leases.clone(), true)));
            delete(client, leases.clone()).await?;
            listener.routes(leases.clone(), false);
            Ok(())
        })?;
    }
    println!("\n{backend}, {} leases in etcd; ms from etcd to the other node's kernel", bed.leases);
    println!("  one lease added             {single:.2}, p99 {:.2}", single.percentile(99));
    println!("  one lease removed           {gone:.2}, p99 {:.2}", gone.percentile(99));
    println!("  {BURST} added at once          {burst:.1}");
    drop(agent);
    Ok(())
}
