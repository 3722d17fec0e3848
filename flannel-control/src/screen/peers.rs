//! A row for each peer, those in trouble first.

use std::collections::BTreeMap;

use super::columns::{Has, Row, lay_out};
use super::paint::Style;
use super::reach::{self, Grade, grade, name, path, rtt, verdict, why, worst};
use super::sessions::{ByLease, by_lease, handshake, sum, way};
use super::table::{Cell, flow};
use super::units::{age, count, plural};
use super::{Detail, Look};
use crate::wire::{Moment, Network, Peer, PeerProbe};

/// The results of probes by lease; empty without probes.
type Results<'a> = BTreeMap<&'a str, &'a PeerProbe>;

/// How much a peer needs attention: the more, the smaller. Peers that are as good go by their subnets.
fn rank(peer: &Peer, probes: &Results<'_>) -> (u8, Vec<u32>) {
    let probe = probes.get(peer.lease.as_str()).and_then(|probe| worst(probe));
    let grade = probe.map_or(Grade::Good, |(_, probe)| grade(&probe.verdict));
    let trouble = match (peer.state.as_str(), grade) {
        ("refused", _) => 0,
        ("rejected", _) => 1,
        ("repairing", _) => 2,
        ("waiting", _) => 3,
        ("recalled" | "programmed", Grade::Trouble) => 4,
        ("recalled" | "programmed", Grade::Unknown) => 6,
        ("recalled", _) => 7,
        ("programmed", Grade::Limited) => 8,
        ("programmed", Grade::Untested) => 9,
        ("programmed", Grade::Good) => 10,
        _ => 5,
    };
    (trouble, subnet_order(&peer.lease))
}

/// The ranks of peers that something is wrong with, for sure or perhaps.
const TROUBLED: std::ops::RangeInclusive<u8> = 0..=6;

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

fn row(peer: &Peer, probes: &Results<'_>, sessions: &ByLease<'_>, look: Look) -> Row {
    let all = subnets(&peer.lease);
    let first = |all: &str| all.split(' ').next().unwrap_or_default().to_owned();
    let nodes = peer.underlay.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let probe = probes.get(peer.lease.as_str()).copied();
    let reached = probe.map_or_else(|| "".into(), |probe| verdict(peer, probe));
    let state = Cell::new(&peer.state, style(&peer.state));
    let of_peer = sessions.get(peer.lease.as_str()).map_or(&[][..], Vec::as_slice);
    // What is wrong in the kernel explains what probes see.
    let why = peer.reason.clone().or_else(|| why(probe?)).unwrap_or_default();
    Row {
        both: both(peer, &state, &reached, probe),
        subnets: [all.as_str().into(), first(&all).into()],
        nodes: [nodes.as_str().into(), first(&nodes).into()],
        path: way(of_peer).unwrap_or_else(|| paths(peer)).into(),
        state,
        reached,
        rtt: probe.map(rtt).unwrap_or_default().into(),
        since: age(since(peer, probe).age(look.now)).into(),
        changed: age(peer.changed.age(look.now)).into(),
        handshake: handshake(of_peer, look).into(),
        sent: sum(of_peer, |session| session.sent_bytes).into(),
        received: sum(of_peer, |session| session.received_bytes).into(),
        why: why.into(),
    }
}

/// The last change: of the kernel's state or of the verdict.
fn since(peer: &Peer, probe: Option<&PeerProbe>) -> Moment {
    let judged = probe.and_then(worst).filter(|(_, probe)| probe.verdict != "untested");
    judged.map_or(peer.since, |(_, probe)| peer.since.max(probe.since))
}

/// State and verdict in one cell, without what is as it should be.
fn both(peer: &Peer, state: &Cell, reached: &Cell, probe: Option<&PeerProbe>) -> Cell {
    let grade = probe.and_then(worst).map(|(_, probe)| grade(&probe.verdict));
    match (peer.state.as_str(), grade) {
        ("programmed", Some(_)) => reached.clone(),
        (_, Some(Grade::Trouble)) => Cell::new(format!("{}, {}", state.text, reached.text), Style::Bad),
        _ => state.clone(),
    }
}

/// How many peers there are in which state, and how many of them are not reached, what is bad first.
fn summary(network: &Network, probes: &Results<'_>, look: Look) -> Vec<String> {
    let all = network.peer_list.len();
    let mut states: BTreeMap<&str, u64> = BTreeMap::new();
    let mut verdicts: BTreeMap<&str, u64> = BTreeMap::new();
    for peer in &network.peer_list {
        *states.entry(&peer.state).or_default() += 1;
        let probe = probes.get(peer.lease.as_str()).and_then(|probe| worst(probe));
        if let Some((_, probe)) = probe.filter(|(_, probe)| grade(&probe.verdict) <= Grade::Unknown) {
            *verdicts.entry(name(probe, path(peer, probe))).or_default() += 1;
        }
    }
    let mut row = vec![Cell::new(plural(all as u64, "peer", "peers"), Style::Strong)];
    if !network.synced {
        row.push(Cell::new("the store's leases are not all programmed yet", Style::Fair));
    }
    let cell = |word: &str, number: u64, style: Style| Cell::new(format!("{} {word}", count(number)), style);
    let mut counts: Vec<_> =
        states.into_iter().map(|(state, number)| cell(state, number, style(state))).collect();
    counts.extend(verdicts.into_iter().map(|(verdict, number)| cell(verdict, number, reach::style(verdict))));
    counts.sort_by_key(|cell| match cell.style {
        Style::Bad => 0,
        Style::Fair => 1,
        _ => 2,
    });
    row.extend(counts);
    flow(&row, look)
}

/// The rows of all peers, and how much room they need.
pub(super) struct Peers<'a> {
    summary: Vec<String>,
    order: Vec<(u8, &'a Peer)>,
    probes: &'a Results<'a>,
    sessions: ByLease<'a>,
    detail: Detail,
    look: Look,
}

impl<'a> Peers<'a> {
    pub(super) fn of(network: &'a Network, probes: &'a Results<'a>, detail: Detail, look: Look) -> Self {
        let mut order: Vec<_> = network.peer_list.iter().map(|peer| (rank(peer, probes), peer)).collect();
        order.sort_by(|(one, _), (other, _)| one.cmp(other));
        let order = order.into_iter().map(|((rank, _), peer)| (rank, peer)).collect();
        let (summary, sessions) = (summary(network, probes, look), by_lease(network));
        Self { summary, order, probes, sessions, detail, look }
    }

    /// How many lines it takes to show what is wrong with some of the peers, or that nothing is.
    pub(super) fn needs(&self) -> usize {
        const SOME: usize = 5;
        let troubled = self.order.iter().take_while(|(rank, _)| TROUBLED.contains(rank)).take(SOME).count();
        self.summary.len() + if troubled > 0 { 2 + 3 * troubled } else { 0 }
    }

    /// The summary and the table, in so many lines.
    pub(super) fn lines(&self, height: Option<usize>) -> Vec<String> {
        let Self { summary, order, probes, sessions, detail, look } = self;
        let room = height.unwrap_or(usize::MAX);
        let mut lines = summary.clone();
        // A row needs a header, two lines of a reason, and a line that counts the others.
        lines.truncate(room.saturating_sub(if order.is_empty() { 0 } else { 5 }).max(1).min(room));
        // The header and a row at least, and a line that counts the others.
        let (summaries, room) = (lines.len(), room - lines.len());
        if order.is_empty() || room < 2 {
            return lines;
        }
        let rows: Vec<_> =
            order.iter().take(room).map(|(_, peer)| row(peer, probes, sessions, *look)).collect();
        let has =
            Has { probes: !probes.is_empty(), sessions: !sessions.is_empty(), all: *detail == Detail::Wide };
        let (header, mut blocks) = lay_out(&rows, has, *look);
        let fits = shown(&blocks, order.len(), room - 1);
        let all = fits == order.len();
        blocks.truncate(fits.max(1));
        if fits == 0 {
            // One peer with the beginning of what is wrong with it says more than none.
            blocks[0].truncate(room - 1);
        }
        lines.push(header);
        lines.extend(blocks.into_iter().flatten());
        if !all && lines.len() < summaries + room {
            let more = format!("… and {} more", count((order.len() - fits.max(1)) as u64));
            lines.push(Style::Dim.paint(&more, look.colour) + "\n");
        }
        lines
    }
}

/// How many blocks of lines fit into so many lines, if one is needed for a count of those of `all` that don't.
fn shown(blocks: &[Vec<String>], all: usize, room: usize) -> usize {
    let mut used = 0;
    let does_fit = |(number, block): &(usize, &Vec<String>)| {
        used += block.len();
        used + usize::from(number + 1 < all) <= room
    };
    blocks.iter().enumerate().take_while(does_fit).count()
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
