//! What probes found out, in all, and of each peer if that is asked for.

use std::time::Duration;

use flannel_core::probe::{ProbeList, ProbeStatus, RTT_BUCKETS, WayProbe};

use super::network::label;
use crate::catalogue as all;
use crate::output::{Output, Written};

pub(super) fn in_all(out: &mut Output<'_>, found: &ProbeStatus) -> Written {
    let verdicts = found.counts.iter().map(|(verdict, count)| ([verdict.name()], count as u64));
    out.values(&all::PROBE_VERDICTS, verdicts)?;
    let totals = &found.totals;
    let ways = |overlay, underlay| [(["overlay"], overlay), (["underlay"], underlay)];
    out.counts(&all::PROBES, ways(totals.overlay.probes, totals.underlay.probes))?;
    out.counts(&all::PROBES_LOST, ways(totals.overlay.lost, totals.underlay.lost))?;
    out.count(&all::PROBE_PACKETS, totals.sent)?;
    out.histogram(&all::PROBE_RTT, &RTT_BUCKETS.map(Duration::from_micros), &totals.rtt, totals.rtt_sum)
}

pub(super) fn each(out: &mut Output<'_>, peers: &ProbeList) -> Written {
    let names: Vec<String> = peers.iter().map(|peer| peer.lease.to_string()).collect();
    let families = || {
        let each = names.iter().zip(peers.iter());
        each.flat_map(|(name, peer)| {
            peer.families.iter().map(move |(family, it)| (name.as_str(), label(family), it))
        })
    };
    let verdicts = families().map(|(name, family, it)| ([name, family, it.verdict.name()], 1_u32));
    out.values(&all::PEER_VERDICT, verdicts)?;
    let ways = || {
        families().flat_map(|(name, family, it)| {
            [([name, family, "overlay"], &it.overlay), ([name, family, "underlay"], &it.underlay)]
        })
    };
    let rtt = |(labels, way): ([_; 3], &WayProbe)| Some((labels, Duration::from(way.rtt?).as_secs_f64()));
    out.values(&all::PEER_RTT, ways().filter_map(rtt))?;
    out.values(&all::PEER_LOSS, ways().map(|(labels, way)| (labels, f64::from(way.loss_percent) / 100.0)))
}
