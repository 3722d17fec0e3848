//! Tables of the kernel that can be full.

use flannel_core::addr::Family;

use crate::facts::Facts;
use crate::finding::{Checked, Finding, Skip};

/// Entries besides those of peers: pods of this node, hosts of the underlay.
const NEIGHBOURS_OF_OTHERS: u64 = 256;
/// Per cent of the table from which on it is nearly full, and as good as full.
const NEARLY: u64 = 80;
const FULL: u64 = 95;

/// A neighbour entry each for every peer, in one table for all links of a family.
pub(super) async fn neighbours(facts: &Facts) -> Checked {
    let networks = facts.networks();
    let families: Vec<(Family, &str)> = [(Family::V4, "ipv4"), (Family::V6, "ipv6")]
        .into_iter()
        .filter(|(family, _)| networks.get(*family).is_some() || networks.is_empty() && *family == Family::V4)
        .collect();
    let read = facts.host.look(move |files| {
        let limit = |(_, name): (Family, &'static str)| {
            Ok((name, files.number(&format!("net/{name}/neigh/default/gc_thresh3"))?))
        };
        families.into_iter().map(limit).collect::<Result<Vec<_>, Skip>>()
    });
    let limits = read.await??;
    if facts.recalled.is_denied {
        facts.state()?;
    }
    let peers = facts.peers().count() as u64;
    let needed = peers + NEIGHBOURS_OF_OTHERS;
    let small = limits.iter().filter(|(_, limit)| *limit < needed).map(|(name, limit)| {
        let table = format!("net.{name}.neigh.default");
        let (first, second, third) = (needed, needed * 2, needed * 4);
        Finding::warning(
            format!("{table}.gc_thresh3 is {limit}, and {peers} nodes need {needed} entries: \"neighbour table overflow\""),
            format!("`sysctl -w {table}.gc_thresh1={first} {table}.gc_thresh2={second} {table}.gc_thresh3={third}`, and in /etc/sysctl.d for the next boot"),
        )
    });
    Ok(Finding::of_all(small, || {
        let limits: Vec<String> =
            limits.iter().map(|(name, limit)| format!("gc_thresh3 {limit} of {name}")).collect();
        format!("{} is enough for {peers} nodes", limits.join(" and "))
    }))
}

pub(super) async fn conntrack(facts: &Facts) -> Checked {
    let read = facts.host.look(|files| {
        let count = files.number("net/netfilter/nf_conntrack_count")?;
        Ok::<_, Skip>((count, files.number("net/netfilter/nf_conntrack_max")?))
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
