//! A row for each peer, those in trouble first.

use std::collections::BTreeMap;

use super::paint::Style;
use super::reach::{is_trouble, rtt, verdict, worst};
use super::table::{Cell, table};
use super::units::{age, count};
use super::{Detail, Look};
use crate::wire::{Network, Peer, PeerProbe};

/// The results of probes by lease; empty without probes.
type Results<'a> = BTreeMap<&'a str, &'a PeerProbe>;

/// How much a peer needs attention: the more, the smaller. Peers that are as good go by their subnets.
fn rank(peer: &Peer, probes: &Results<'_>) -> (u8, Vec<u32>) {
    let probe = probes.get(peer.lease.as_str()).and_then(|probe| worst(probe));
    let trouble = match peer.state.as_str() {
        "refused" => 0,
        "rejected" => 1,
        "repairing" => 2,
        "waiting" => 3,
        "recalled" | "programmed" if probe.is_some_and(is_trouble) => 4,
        "recalled" => 5,
        "programmed" => 6,
        _ => 4,
    };
    (trouble, subnet_order(&peer.lease))
}

/// The numbers in a lease's name, so that 10.5.2.0 comes before 10.5.10.0.
fn subnet_order(lease: &str) -> Vec<u32> {
    let numbers = lease.split(|digit: char| !digit.is_ascii_digit()).filter(|number| !number.is_empty());
    numbers.take(5).map(|number| number.parse().unwrap_or(u32::MAX)).collect()
}

/// A lease's key as the subnets that it names: `10.5.1.0-24&fd00:5:0:1::-64` is `10.5.1.0/24 fd00:5:0:1::/64`.
pub(super) fn subnets(lease: &str) -> String {
    let subnet = |part: &str| {
        part.rsplit_once('-').map_or_else(|| part.to_owned(), |(base, length)| format!("{base}/{length}"))
    };
    // A lease with IPv6 alone has an empty IPv4 subnet in its key.
    let parts = lease.split('&').filter(|part| *part != "0.0.0.0-0");
    parts.map(subnet).collect::<Vec<_>>().join(" ")
}

pub(super) fn style(state: &str) -> Style {
    match state {
        "programmed" => Style::Good,
        "refused" | "rejected" => Style::Bad,
        _ => Style::Fair,
    }
}

/// How a peer is reached: one word if both families go the same way.
pub(super) fn paths(peer: &Peer) -> String {
    let mut paths: Vec<&str> = peer.path.iter().map(String::as_str).collect();
    paths.dedup();
    paths.join(" ")
}

fn row(peer: &Peer, probes: &Results<'_>, detail: Detail, look: Look) -> Vec<Cell> {
    let join = |words: Vec<String>| words.join(" ");
    let nodes = join(peer.underlay.iter().map(ToString::to_string).collect());
    let probe = probes.get(peer.lease.as_str()).and_then(|probe| worst(probe));
    let mut row: Vec<Cell> = vec![
        subnets(&peer.lease).into(),
        nodes.into(),
        paths(peer).into(),
        Cell::new(&peer.state, style(&peer.state)),
    ];
    if !probes.is_empty() {
        row.push(probe.map_or_else(|| "".into(), verdict));
        row.push(probe.map(rtt).unwrap_or_default().into());
    }
    row.push(age(peer.since.age(look.now)).into());
    if detail == Detail::Wide {
        row.push(age(peer.changed.age(look.now)).into());
    }
    // What is wrong in the kernel explains what probes see.
    let why = peer.reason.clone().or_else(|| Some(probe.filter(|it| is_trouble(it))?.evidence.join(", ")));
    row.push(why.unwrap_or_default().into());
    row
}

fn header(detail: Detail, has_probes: bool) -> Vec<Cell> {
    let mut names = vec!["SUBNET", "NODE", "PATH", "STATE"];
    if has_probes {
        names.extend(["REACHED", "RTT"]);
    }
    names.push("SINCE");
    if detail == Detail::Wide {
        names.push("CHANGED");
    }
    names.push("WHY");
    names.into_iter().map(|name| Cell::new(name, Style::Strong)).collect()
}

/// How many peers there are in which state, as a line.
fn summary(network: &Network, look: Look) -> String {
    let all = network.peer_list.len();
    let mut states: Vec<(&str, u64)> = Vec::new();
    for peer in &network.peer_list {
        match states.iter_mut().find(|(state, _)| *state == peer.state) {
            Some((_, number)) => *number += 1,
            None => states.push((&peer.state, 1)),
        }
    }
    states.sort_unstable();
    let mut row = vec![Cell::new(
        format!("{} {}", count(all as u64), if all == 1 { "peer" } else { "peers" }),
        Style::Strong,
    )];
    row.extend(
        states
            .into_iter()
            .map(|(state, number)| Cell::new(format!("{} {state}", count(number)), style(state))),
    );
    if !network.synced {
        row.push(Cell::new("the store's leases are not all programmed yet", Style::Fair));
    }
    table(&[row], look)
}

/// The table.
pub(super) fn peers(network: &Network, probes: &Results<'_>, detail: Detail, look: Look) -> String {
    let mut text = summary(network, look);
    if network.peer_list.is_empty() {
        return text;
    }
    let mut order: Vec<_> = network.peer_list.iter().map(|peer| (rank(peer, probes), peer)).collect();
    order.sort_by(|(one, _), (other, _)| one.cmp(other));
    // The summary, the header, and a line that counts the others.
    let fits = look.height.map_or(usize::MAX, |height| height.saturating_sub(2));
    let fits = if order.len() > fits { fits.saturating_sub(1) } else { order.len() };
    let rows = std::iter::once(header(detail, !probes.is_empty()));
    let rows: Vec<_> =
        rows.chain(order.iter().take(fits).map(|(_, peer)| row(peer, probes, detail, look))).collect();
    text.push_str(&table(&rows, look));
    if order.len() > fits {
        let more = format!("… and {} more", count((order.len() - fits) as u64));
        text.push_str(&Style::Dim.paint(&more, look.colour));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_shown_as_subnets() {
        for (lease, want) in [
            ("10.5.1.0-24", "10.5.1.0/24"),
            ("10.5.1.0-24&fd00:5:0:1::-64", "10.5.1.0/24 fd00:5:0:1::/64"),
            ("0.0.0.0-0&fd00:5:0:1::-64", "fd00:5:0:1::/64"),
            ("odd", "odd"),
        ] {
            assert_eq!(subnets(lease), want);
        }
        assert!(subnet_order("10.5.2.0-24") < subnet_order("10.5.10.0-24"));
    }
}
