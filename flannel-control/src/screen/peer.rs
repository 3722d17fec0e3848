//! One peer in detail.

use std::net::IpAddr;

use super::paint::Style;
use super::peers::{paths, style, subnets};
use super::sheet::{Sheet, Weight};
use super::table::{Cell, table};
use super::units::{age, micros};
use super::{Look, reach, sessions};
use crate::wire::{Peer, PeerObjects, PeerProbe, Status, WayProbe};

/// Finds peers by what an operator knows of one: a subnet (`10.5.1.0/24`), an address of a pod or of the node, or the
/// lease's key. `named` are the addresses of a host name.
pub fn find<'a>(status: &'a Status, text: &str, named: &[IpAddr]) -> Vec<&'a Peer> {
    let address: Option<IpAddr> = text.parse().ok();
    let is_meant = |peer: &&Peer| {
        let subnets = subnets(&peer.lease);
        let is_subnet = peer.lease == text || subnets.split(' ').any(|subnet| subnet == text);
        let is_node = |addr: &IpAddr| address == Some(*addr) || named.contains(addr);
        let is_pod = |addr: IpAddr| subnets.split(' ').any(|subnet| contains(subnet, addr));
        is_subnet || peer.underlay.iter().any(is_node) || address.is_some_and(is_pod)
    };
    let peers = status.network.iter().flat_map(|network| &network.peer_list);
    peers.filter(is_meant).collect()
}

fn contains(subnet: &str, addr: IpAddr) -> bool {
    subnet.parse::<flannel_core::addr::Subnet>().is_ok_and(|subnet| subnet.contains(addr))
}

/// A peer of a status, with what the tunnel knows of it and what probes found out, and the commands that show its objects.
pub fn peer(status: &Status, peer: &Peer, objects: &PeerObjects, look: Look) -> String {
    let probes = status.probes.iter().flat_map(|probes| &probes.peers);
    let probe: Option<&PeerProbe> = probes.clone().find(|probe| probe.lease == peer.lease);
    let mut sheet = Sheet::default();
    // Without a name it is about what was added last.
    let mut add = |name: &str, cell: Cell| {
        if name.is_empty() { sheet.more(Weight::Head, cell) } else { sheet.add(Weight::Head, name, cell) }
    };
    add("subnet", subnets(&peer.lease).into());
    add("node", peer.underlay.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ").into());
    add("path", paths(peer).into());
    if !peer.receives.is_empty() {
        add("also by", peer.receives.join(", ").into());
    }
    add(
        "state",
        Cell::new(format!("{} for {}", peer.state, age(peer.since.age(look.now))), style(&peer.state)),
    );
    add("lease", format!("seen first or changed last {} ago", age(peer.changed.age(look.now))).into());
    if let Some(object) = &peer.object {
        let errno = peer.errno.map(|errno| format!(" (errno {errno})")).unwrap_or_default();
        add("refused", Cell::new(format!("{object}{errno}"), Style::Bad));
    }
    if let Some(reason) = &peer.reason {
        add("why", Cell::new(reason, Style::Bad));
    }
    if peer.programmed == Some(true) {
        add("", Cell::new("the last good version of its lease is programmed", Style::Fair));
    }
    let sessions = status.network.iter().flat_map(|network| &network.sessions);
    for session in sessions.filter(|session| session.lease == peer.lease) {
        for (number, line) in sessions::lines(session, look).into_iter().enumerate() {
            add(if number == 0 { "session" } else { "" }, line);
        }
    }
    for (family, probe) in probe.iter().flat_map(|probe| probe.named()) {
        let (name, since) = (reach::name(probe, reach::path(peer, probe)), age(probe.since.age(look.now)));
        add(family, Cell::new(format!("{name} for {since}"), reach::style(&probe.verdict)));
        for text in reach::size(probe).iter().chain(&probe.evidence) {
            add("", text.as_str().into());
        }
        if let Some(remedy) = &probe.remedy {
            add("", Cell::new(format!("do: {remedy}"), Style::Fair));
        }
        add("", way("overlay", &probe.overlay, look).into());
        add("", way("underlay", &probe.underlay, look).into());
    }
    let mut text = sheet.lines(Look { height: None, ..look }).concat();
    if !objects.objects.is_empty() {
        text.push('\n');
        let show = |object: &crate::wire::PeerObject| {
            let (state, style) =
                if object.present { ("present", Style::Good) } else { ("missing", Style::Bad) };
            vec![Cell::new(state, style), object.command.as_str().into()]
        };
        // A command that is cut can't be pasted.
        text.push_str(&table(
            &objects.objects.iter().map(show).collect::<Vec<_>>(),
            Look { width: None, ..look },
        ));
    }
    text
}

/// One of the two ways to a peer: its target, the last answer, and what is lost.
fn way(name: &str, way: &WayProbe, look: Look) -> String {
    let last = way.last_answer.map_or_else(
        || "no answer yet".to_owned(),
        |last| {
            let rtt = way.rtt_us.map(|us| format!(" after {}", micros(us))).unwrap_or_default();
            format!("last answer {} ago{rtt}", age(last.age(look.now)))
        },
    );
    format!("{name} {}, {last}, {} % lost", way.target, way.loss_percent)
}
