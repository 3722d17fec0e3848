//! What an agent costs while kubelets tell that their nodes are well, and while nobody says anything.

use std::thread::sleep;
use std::time::{Duration, Instant};

use flannel_benches::announce::Listener;
use flannel_benches::{Fallible, proc};
use flannel_lab::kube::fake::{Counts, touch_status};

use crate::bed::{Bed, mebibytes, name, pace, writes};
use crate::spread::is_ours;

/// `rate` status updates a second in all, or none.
pub(crate) fn run(what: &str, bed: &Bed, seconds: u32, rate: u32) -> Fallible<()> {
    eprintln!("{what}: {rate} status updates a second for {seconds} s");
    let agent = bed.start_settled()?;
    let listener = Listener::start(bed.netns())?;
    bed.api().clear_requests();
    let (written, resident, received) = (writes(&agent), agent.rss()?, bed.received()?);
    let (before, start) = (proc::activity(agent.pid())?, Instant::now());
    if rate == 0 {
        sleep(Duration::from_secs(seconds.into()));
    } else {
        pace(seconds * rate, rate, |n| {
            // Not in the order of the names: 7919 is prime.
            let node = name((n * 7919) % bed.nodes);
            bed.api().edit_node(&node, |node| touch_status(node, n.into()));
        });
    }
    let (used, took) = (proc::activity(agent.pid())?.since(&before), start.elapsed().as_secs_f64());
    let (requests, written) = (bed.api().counts(), writes(&agent) - written);
    let announced = listener.news.try_iter().filter(|(_, event)| is_ours(event)).count();
    if (written, announced) != (0, 0) || requests != Counts::default() {
        return Err(format!("{written} writes, {announced} announcements, {requests:?}").into());
    }
    let cpu = used.cpu.as_secs_f64();
    println!("\n{what}; {rate} status updates a second for {took:.0} s");
    println!(
        "  processor time              {:.2} % of one core, {:.1} ms a minute",
        cpu / took * 100.0,
        cpu / took * 6e4
    );
    if rate > 0 {
        println!("  processor time an update    {:.0} us", cpu / f64::from(seconds * rate) * 1e6);
    }
    println!("  wake-ups a minute           {:.0}", used.switches as f64 / took * 60.0);
    println!("  requests, kernel writes     none");
    println!("  received                    {:.1} MB", (bed.received()? - received) as f64 / 1e6);
    println!(
        "  resident memory             {:.1} MiB before, {:.1} after",
        mebibytes(resident),
        mebibytes(agent.rss()?)
    );
    Ok(())
}
