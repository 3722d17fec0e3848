//! A change's way from the API server to the kernel.

use std::collections::HashMap;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use flannel_benches::announce::Listener;
use flannel_benches::leases::{base, mac, underlay};
use flannel_benches::stats::Sample;
use flannel_benches::{Fallible, proc};
use flannel_core::addr::MacAddr;
use flannel_core::dataplane::{Object, ObjectKey};
use flannel_core::kernel::KernelEvent;
use flannel_lab::kube::fake::touch_status;

use crate::bed::{Bed, backend_data, name, pace, peer, writes};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// Where nodes move to.
const MOVED: u32 = 0x8000;

/// Whether a notification is about something that agents write; the kernel's own neighbours come and go.
pub(crate) fn is_ours(event: &KernelEvent) -> bool {
    matches!(
        event,
        KernelEvent::Put(_)
            | KernelEvent::Gone(ObjectKey::Route(..) | ObjectKey::Fdb(_) | ObjectKey::NextHop(..))
    )
}

/// What a change leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Sign {
    Route(IpAddr),
    NoRoute(IpAddr),
    /// An FDB entry and a neighbour.
    Fdb(MacAddr, IpAddr),
    Neighbour(MacAddr),
}

impl Sign {
    pub(crate) fn of(event: &KernelEvent) -> Option<Self> {
        Some(match event {
            KernelEvent::Put(Object::Route(route)) => Self::Route(route.dst.base()),
            KernelEvent::Gone(ObjectKey::Route(dst, _)) => Self::NoRoute(dst.base()),
            KernelEvent::Put(Object::Fdb(entry)) => Self::Fdb(entry.mac, entry.dst),
            KernelEvent::Put(Object::Neighbour(neighbour)) => Self::Neighbour(neighbour.mac),
            _ => return None,
        })
    }
}

/// Waits until the kernel has announced all of some signs; milliseconds from when each was caused.
///
/// # Panics
///
/// If they don't come.
pub(crate) fn wait_for(listener: &Listener, mut missing: HashMap<Sign, Instant>) -> Sample {
    let mut times = Sample::new();
    while !missing.is_empty() {
        let (at, event) = listener.news.recv_timeout(DEADLINE).expect("the changes come");
        if let Some(start) = Sign::of(&event).and_then(|sign| missing.remove(&sign)) {
            times.push(at.saturating_duration_since(start).as_secs_f64() * 1e3);
        }
    }
    times
}

/// One change after the other.
pub(crate) fn singles(what: &str, bed: &Bed, singles: u32) -> Fallible<()> {
    eprintln!("{what}: {singles} single changes");
    let _agent = bed.start_settled()?;
    let listener = Listener::start(bed.netns())?;
    let mut samples = [const { Sample::new() }; 3];
    for n in bed.nodes..bed.nodes + singles {
        let (dst, moved) = (base(n).parse()?, underlay("vxlan", n | MOVED));
        let act: [(&dyn Fn(), Sign); 3] = [
            (&|| bed.api().put_node(peer(n)), Sign::Route(dst)),
            (&|| bed.annotate(n, "public-ip", &moved), Sign::Fdb(mac(n).parse()?, moved.parse()?)),
            (&|| _ = bed.api().delete_node(&name(n)), Sign::NoRoute(dst)),
        ];
        for ((act, sign), sample) in act.into_iter().zip(&mut samples) {
            // Not in step with anything.
            sleep(Duration::from_millis(fastrand::u64(5..15)));
            let start = Instant::now();
            act();
            sample.push(wait_for(&listener, [(sign, start)].into()).median());
        }
    }
    println!("\n{what}; ms from the API server to the kernel of another node");
    for (name, sample) in ["node joins", "node moves", "node leaves"].into_iter().zip(samples) {
        println!("  {name:<27} {sample:.2}, p99 {:.2}", sample.percentile(99));
    }
    Ok(())
}

/// A rolling restart: all agents write their annotations again, with another MAC if their nodes lost theirs.
pub(crate) fn restarts(what: &str, bed: &Bed, restarts: u32, rate: u32) -> Fallible<()> {
    eprintln!("{what}: {restarts} nodes restart, {rate} a second");
    let agent = bed.start_settled()?;
    let listener = Listener::start(bed.netns())?;
    println!("\n{what}; {restarts} nodes restart, {rate} a second");
    for loses_mac in [false, true] {
        let (revision, written) = (bed.api().revision(), writes(&agent));
        let before = proc::activity(agent.pid())?;
        let mut signs = HashMap::new();
        pace(restarts, rate, |n| {
            let start = Instant::now();
            if loses_mac {
                let mac = mac(n | MOVED << 8);
                bed.annotate(n, "backend-data", &backend_data(&mac));
                let mac = mac.parse().expect("a MAC");
                let dst = underlay("vxlan", n).parse().expect("an address");
                signs.extend([(Sign::Fdb(mac, dst), start), (Sign::Neighbour(mac), start)]);
            } else {
                bed.api().edit_node(&name(n), |node| touch_status(node, 1_000_000 + u64::from(n)));
            }
        });
        // The last word, which shows that all before it were heard.
        let last = bed.nodes - 1 - u32::from(loses_mac);
        let moved = underlay("vxlan", last | MOVED);
        bed.annotate(last, "public-ip", &moved);
        let sign = Sign::Fdb(mac(last).parse()?, moved.parse()?);
        let times = if loses_mac { wait_for(&listener, signs) } else { Sample::new() };
        wait_for(&listener, [(sign, Instant::now())].into());
        let cpu = proc::activity(agent.pid())?.since(&before).cpu.as_secs_f64();
        let events = bed.api().revision() - revision;
        println!("  {}", if loses_mac { "with another MAC" } else { "unchanged" });
        println!(
            "    events, kernel writes     {events}, {} (one node moves at the end)",
            writes(&agent) - written
        );
        println!("    processor time an event   {:.0} us", cpu / events as f64 * 1e6);
        if loses_mac {
            println!("    to the kernel, ms         {times:.2}, p99 {:.2}", times.percentile(99));
        }
    }
    Ok(())
}
