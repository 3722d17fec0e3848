//! The network's part: peers, what the loop does, and traffic.

use flannel_core::addr::Family;
use flannel_core::backend::NetworkStatus;
use flannel_core::firewall::gate::{GateReading, Mode};
use flannel_core::status::{Reach, Subject, TrafficCounters};
use flannel_core::subnet::StoreStatus;

use super::peers;
use crate::catalogue as all;
use crate::output::{Output, Written};

/// What is, and what is wrong with it.
pub(super) fn state(out: &mut Output<'_>, network: &NetworkStatus, store: Option<&StoreStatus>) -> Written {
    out.value(&all::LEASES, network.peer_list.len() as u64)?;
    peers::by_state(out, &network.peer_list)?;
    let reach = || network.problems.reach.iter().map(|(family, reach)| (label(family), *reach));
    out.values(
        &all::PEERS_EXPECTED,
        reach().map(|(family, Reach { expected, .. })| ([family], expected as u64)),
    )?;
    out.values(&all::PEERS_CUT, reach().map(|(family, Reach { cut, .. })| ([family], cut as u64)))?;
    if let Some(store) = store {
        out.value(&all::UNREADABLE, store.unreadable.count as u64)?;
        out.value(&all::MISSING, store.missing_count as u64)?;
    }
    out.value(&all::REJECTED, network.problems.leases.count as u64)?;
    // Those that peers need are counted; those that this node needs are named.
    let ours = network.problems.node.iter().filter(|problem| matches!(problem.subject, Subject::Object(_)));
    out.value(&all::REFUSED, (network.problems.objects.count + ours.count()) as u64)?;
    out.value(&all::SYNCED, u32::from(network.synced))?;
    out.value(&all::RECALLED, u32::from(network.recalled.is_some()))?;
    let devices = || network.devices.iter();
    out.values(&all::DEVICE_USABLE, devices().map(|it| ([it.name.as_str()], u32::from(it.usable))))?;
    out.values(&all::DEVICE_MTU, devices().map(|it| ([it.name.as_str()], u64::from(it.mtu.0))))
}

/// What the loop did, and how long it took.
pub(super) fn work(out: &mut Output<'_>, network: &NetworkStatus) -> Written {
    out.count(&all::REPAIRS, network.repairs)?;
    let repaired =
        network.repaired.iter().map(|(kind, cause, count)| ([kind.as_str(), cause.as_str()], count));
    out.counts(&all::REPAIRED, repaired)?;
    out.count(&all::OPERATIONS, network.operations)?;
    out.count(&all::REFUSALS, network.refusals)?;
    let timings = &network.timings;
    for (metric, histogram) in [
        (&all::PLAN, &timings.plan),
        (&all::READ, &timings.read),
        (&all::NETLINK, &timings.netlink),
        (&all::WATCH_LAG, &timings.watch_lag),
        (&all::PROGRAM, &timings.program),
        (&all::REPAIR, &timings.repair),
    ] {
        out.durations(metric, &histogram.read())?;
    }
    Ok(())
}

/// What devices and datapaths carried and dropped.
pub(super) fn traffic(out: &mut Output<'_>, counters: &[TrafficCounters]) -> Written {
    let each = |of: fn(&TrafficCounters) -> [u64; 2]| {
        counters.iter().flat_map(move |it| {
            let [sent, received] = of(it);
            [([it.of.as_str(), "sent"], sent), ([it.of.as_str(), "received"], received)]
        })
    };
    out.counts(&all::PACKETS, each(|it| [it.sent.packets, it.received.packets]))?;
    out.counts(&all::BYTES, each(|it| [it.sent.bytes, it.received.bytes]))?;
    let dropped = counters.iter().flat_map(|it| {
        // A reason that never came up is not in the status. A query for the rate needs the 0 before the first drop.
        let is_known = |reason: &&str| it.dropped.iter().any(|dropped| dropped.reason == *reason);
        let never = OF_DEVICES.into_iter().filter(move |reason| !is_known(reason));
        let came_up = it.dropped.iter().map(|dropped| (dropped.reason, dropped.packets));
        came_up
            .chain(never.map(|reason| (reason, 0)))
            .map(|(reason, packets)| ([it.of.as_str(), reason], packets))
    });
    out.counts(&all::DROPPED, dropped)
}

/// What the gate of the tunnels counted. Both metrics have all reasons: a query for the rate needs the 0 before the first
/// packet.
pub(super) fn gate(out: &mut Output<'_>, reading: Option<&GateReading>) -> Written {
    let Some(GateReading { mode, counted, .. }) = reading else { return Ok(()) };
    let each =
        |fate: Mode| counted.iter().map(move |it| ([it.reason], if fate == *mode { it.packets } else { 0 }));
    out.counts(&all::GATE_DROPPED, each(Mode::Enforce))?;
    out.counts(&all::GATE_LET_IN, each(Mode::Observe))
}

/// The reasons for which the kernel drops packets of any device.
const OF_DEVICES: [&str; 4] = ["receive_errors", "receive_dropped", "send_errors", "send_dropped"];

pub(super) fn label(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}
