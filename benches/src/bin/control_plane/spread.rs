//! A lease's way from etcd to another node's kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use flannel_benches::Fallible;
use flannel_benches::announce::Listener;
use flannel_benches::etcd::{delete, put, talk};
use flannel_benches::leases::base;
use flannel_benches::stats::Sample;
use flannel_core::dataplane::{Object, ObjectKey};
use flannel_core::kernel::KernelEvent;

use crate::bed::Bed;

/// Leases in a burst.
pub(crate) const BURST: u32 = 1000;
const BURSTS: usize = 5;
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn run(bed: &Bed, singles: u32) -> Fallible<()> {
    eprintln!("{}, {} leases in etcd: spread", bed.backend, bed.leases);
    let agent = bed.start()?;
    bed.wait_ready()?;
    let mut listener = Listener::start(bed.netns())?;
    let news = &mut listener.news;
    let backend = bed.backend.as_str();

    let (mut single, mut gone) = (Sample::new(), Sample::new());
    talk(bed, async |client| {
        for n in bed.leases..bed.leases + singles {
            let start = Instant::now();
            put(client, backend, n..n + 1).await?;
            single.push(millis(start, until(news, n..n + 1, true)));
            // Not in step with anything.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(5..15))).await;
            let start = Instant::now();
            delete(client, n..n + 1).await?;
            gone.push(millis(start, until(news, n..n + 1, false)));
        }
        Ok(())
    })?;
    let mut burst = Sample::new();
    let leases = bed.leases..bed.leases + BURST;
    for _ in 0..BURSTS {
        talk(bed, async |client| {
            let start = Instant::now();
            put(client, backend, leases.clone()).await?;
            burst.push(millis(start, until(news, leases.clone(), true)));
            delete(client, leases.clone()).await?;
            until(news, leases.clone(), false);
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

fn millis(start: Instant, end: Instant) -> f64 {
    end.saturating_duration_since(start).as_secs_f64() * 1e3
}

/// Waits for all of some routes and returns when the last came.
///
/// # Panics
///
/// If they don't come.
fn until(news: &mut Receiver<(Instant, KernelEvent)>, leases: std::ops::Range<u32>, put: bool) -> Instant {
    let mut missing: BTreeSet<IpAddr> = leases.map(|n| base(n).parse().expect("an address")).collect();
    loop {
        let (at, event) = news.recv_timeout(DEADLINE).expect("the routes come");
        let dst = match event {
            KernelEvent::Put(Object::Route(route)) if put => route.dst.base(),
            KernelEvent::Gone(ObjectKey::Route(dst, _)) if !put => dst.base(),
            _ => continue,
        };
        if missing.remove(&dst) && missing.is_empty() {
            return at;
        }
    }
}
