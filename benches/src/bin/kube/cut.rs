//! A watch that is cut again and again while nodes change.

use std::collections::HashSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use flannel_benches::announce::Listener;
use flannel_benches::batch::check_routes;
use flannel_benches::leases::{base, mac, underlay};
use flannel_benches::stats::Sample;
use flannel_benches::{Fallible, proc};
use flannel_core::dataplane::ObjectKey;
use flannel_core::kernel::KernelEvent;
use flannel_lab::kube::fake::touch_status;

use crate::bed::{Bed, name, peer};
use crate::spread::{DEADLINE, Sign};

/// Heartbeats on either side of a cut.
const BEATS: u32 = 10;

pub(crate) fn run(what: &str, bed: &Bed, cuts: u32) -> Fallible<()> {
    eprintln!("{what}: the watch is cut {cuts} times");
    let agent = bed.start_settled()?;
    let listener = Listener::start(bed.netns())?;
    bed.api().clear_requests();
    let (received, before) = (bed.received()?, proc::activity(agent.pid())?);
    let (mut signs, mut away) = (HashSet::new(), Sample::new());
    for round in 0..cuts {
        let beats = |bed: &Bed| {
            for beat in 0..BEATS {
                bed.api().edit_node(&name(fastrand::u32(..bed.nodes)), |node| {
                    touch_status(node, (round * BEATS + beat).into());
                });
            }
        };
        beats(bed);
        let moved = underlay("vxlan", round | 0x8000);
        bed.annotate(round, "public-ip", &moved);
        signs.insert(Sign::Fdb(mac(round).parse()?, moved.parse()?));
        bed.api().disconnect();
        let start = Instant::now();
        bed.api().put_node(peer(bed.nodes + round));
        signs.insert(Sign::Route(base(bed.nodes + round).parse()?));
        beats(bed);
        for watches in [0, 1] {
            while bed.api().open_watches() != watches {
                if start.elapsed() > DEADLINE {
                    return Err(format!("cut {round}: no watch again\n{}", agent.last_lines()).into());
                }
                sleep(Duration::from_millis(1));
            }
        }
        away.push(start.elapsed().as_secs_f64());
    }
    let mut gone = 0;
    while !signs.is_empty() {
        let (_, event) = listener.news.recv_timeout(DEADLINE)?;
        gone += u32::from(matches!(event, KernelEvent::Gone(ObjectKey::Route(..))));
        let _ = Sign::of(&event).map(|sign| signs.remove(&sign));
    }
    check_routes(bed.netns(), bed.nodes + cuts)?;
    if gone > 0 {
        return Err(format!("{gone} routes of live peers were removed").into());
    }
    let requests = bed.api().counts();
    let cpu = proc::activity(agent.pid())?.since(&before).cpu;
    println!("\n{what}; the watch is cut {cuts} times, with {} changes around each", 2 * BEATS + 2);
    println!("  away                        {away:.2} s");
    println!(
        "  requests                    {} watches, {} lists (of one node), {} others",
        requests.watches,
        requests.lists,
        requests.pages + requests.gets + requests.patches + requests.others
    );
    println!(
        "  received a cut              {:.0} kB",
        (bed.received()? - received) as f64 / 1e3 / f64::from(cuts)
    );
    println!("  processor time a cut        {:.1} ms", cpu.as_secs_f64() * 1e3 / f64::from(cuts));
    println!("  leases lost, routes removed none");
    Ok(())
}
