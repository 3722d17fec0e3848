//! Tables of the kernel that can be full.

use crate::facts::Facts;
use crate::finding::{Checked, Finding};

/// Entries besides those of peers: pods of this node, hosts of the underlay.
const NEIGHBOURS_OF_OTHERS: u64 = 256;
/// Per cent of the table from which on it is nearly full, and as good as full.
const NEARLY: u64 = 80;
const FULL: u64 = 95;

/// A neighbour entry each for every peer, in one table for all links of a family.
pub(super) async fn neighbours(facts: &Facts) -> Checked {
    let limit = facts.host.look(|files| files.number("net/ipv4/neigh/default/gc_thresh3")).await??;
    let peers = facts.peers().count() as u64;
    let needed = peers + NEIGHBOURS_OF_OTHERS;
    Ok(if limit < needed {
        let (first, second, third) = (needed, needed * 2, needed * 4);
        Finding::warning(
            format!(
                "net.ipv4.neigh.default.gc_thresh3 is {limit}, and {peers} nodes need {needed} entries: \"neighbour table overflow\""
            ),
            format!(
                "`sysctl -w net.ipv4.neigh.default.gc_thresh1={first} net.ipv4.neigh.default.gc_thresh2={second} net.ipv4.neigh.default.gc_thresh3={third}`, and the same for ipv6"
            ),
        )
    } else {
        Finding::ok(format!("gc_thresh3 {limit} is enough for {peers} nodes"))
    })
}

pub(super) async fn conntrack(facts: &Facts) -> Checked {
    let read = facts.host.look(|files| {
        let count = files.number("net/netfilter/nf_conntrack_count")?;
        Ok::<_, crate::finding::Skip>((count, files.number("net/netfilter/nf_conntrack_max")?))
    });
    let (count, max) = read.await??;
    let seen = format!("{count} of {max} connections are tracked");
    let fix = format!(
        "`sysctl -w net.netfilter.nf_conntrack_max={}`, and find out who opens them (`conntrack -L`)",
        max.saturating_mul(2)
    );
    // 0 is no limit.
    Ok(match (count * 100).checked_div(max).unwrap_or(0) {
        FULL.. => Finding::failure(format!("{seen}: new connections are dropped"), fix),
        NEARLY.. => Finding::warning(seen, fix),
        _ => Finding::ok(seen),
    })
}
