//! The status of the node itself: a line for each part.

use std::time::Duration;

use super::paint::Style;
use super::peers::subnets;
use super::reach::grade;
use super::sessions;
use super::sheet::{Sheet, Weight};
use super::table::Cell;
use super::units::{age, bytes, count, left, micros, plural};
use super::{Detail, Look};
use crate::wire::{
    Condition, Counters, Device, Families, Firewall, Gate, Network, Node, Probes, Status, Store, Underlay,
};

/// How many reasons and notes a table shows.
const MOST_LINES: usize = 8;

/// What is said of the node, in the order in which it is shown.
pub(super) fn overview(status: &Status, detail: Detail, look: Look) -> Sheet {
    let mut sheet = Sheet::default();
    sheet.add(Weight::Head, "agent", phase(status));
    // Without a name it is about what was added last.
    let mut add = |weight: Weight, name: &str, cell: Cell| {
        let weight = if cell.style == Style::Bad { weight.min(Weight::Trouble) } else { weight };
        if name.is_empty() { sheet.more(weight, cell) } else { sheet.add(weight, name, cell) }
    };
    if let Some(store) = &status.store {
        add(Weight::Useful, "store", self::store(store, status.store_place.as_deref(), look));
        for problem in store.lease_lost.iter().chain(&store.lease_unkept).chain(&store.clock) {
            add(Weight::Trouble, "", Cell::new(problem, Style::Bad));
        }
    }
    if let Some(node) = &status.node {
        add(Weight::Fine, "lease", lease(node, status.store.as_ref(), look));
        add(Weight::Fine, "underlay", underlay(node));
        add(Weight::Fine, "backend", backend(node, status.network.as_ref()));
    }
    if let Some(network) = &status.network {
        for (number, device) in network.devices.iter().enumerate() {
            let counters = network.counters.iter().find(|counters| counters.of == device.name);
            let name = if number == 0 { "devices" } else { "" };
            add(Weight::Figures, name, self::device(device, counters));
        }
        let is_datapath = |it: &&Counters| network.devices.iter().all(|of| of.name != it.of);
        let datapaths: Vec<_> = network.counters.iter().filter(is_datapath).collect();
        for (number, counters) in datapaths.iter().enumerate() {
            let name = if number == 0 { "datapath" } else { "" };
            let of = if datapaths.len() > 1 { format!("{} ", counters.of) } else { String::new() };
            add(Weight::Figures, name, Cell::new(of + &traffic(counters), Style::Plain));
        }
        if let Some(gate) = &network.gate {
            add(Weight::Figures, "gate", self::gate(gate));
        }
        if let Some(sessions) = sessions::summary(network) {
            add(Weight::Figures, "sessions", sessions);
        }
        add(Weight::Figures, "repairs", repairs(network));
    }
    if let Some(firewall) = &status.firewall {
        add(Weight::Fine, "rules", rules(firewall));
    }
    if let Some(probes) = &status.probes {
        add(Weight::Useful, "probes", self::probes(probes));
        for note in &probes.notes {
            add(Weight::Note, "", Cell::new(note, Style::Fair));
        }
    }
    let most = if detail == Detail::Wide { usize::MAX } else { MOST_LINES };
    let notes = notes(status);
    let lists: [(_, Vec<&Condition>, _, _); 2] = [
        ("reason", status.reasons.iter().collect(), Style::Bad, Weight::Reason),
        ("note", notes, Style::Fair, Weight::Note),
    ];
    for (name, list, style, weight) in lists {
        for condition in list.iter().take(most) {
            add(weight, name, Cell::new(&condition.text, style));
        }
        if list.len() > most {
            let more = format!("and {} more; --output wide shows all", list.len() - most);
            add(weight, name, Cell::new(more, Style::Dim));
        }
    }
    sheet
}

/// The notes, those about peers and packets before those about the rules of others, which are many on some hosts. What is
/// shown beside the results of probes is not said again.
fn notes(status: &Status) -> Vec<&Condition> {
    let is_shown = |text: &String| status.probes.as_ref().is_some_and(|probes| probes.notes.contains(text));
    let mut notes: Vec<_> = status.notes.iter().filter(|note| !is_shown(&note.text)).collect();
    notes.sort_by_key(|note| match note.kind.as_str() {
        "network" => 0,
        "probes" => 1,
        "firewall" => 3,
        "remark" => 4,
        _ => 2,
    });
    notes
}

fn phase(status: &Status) -> Cell {
    let phase = &status.phase;
    let why = phase.waiting_for.as_ref().or(phase.why.as_ref()).or(phase.error.as_ref());
    let (text, style) = match (phase.name.as_str(), status.ready) {
        ("running", true) => ("ready".to_owned(), Style::Good),
        ("running", false) => ("not ready".to_owned(), Style::Bad),
        (name, _) => {
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            (format!("{}{why}", name.replace('-', " ")), Style::Bad)
        }
    };
    Cell::new(text, style)
}

fn store(store: &Store, place: Option<&str>, look: Look) -> Cell {
    let place = place.map(|place| format!("{place}, ")).unwrap_or_default();
    let since = age(store.since.age(look.now));
    let (mut text, mut style) = if store.connected {
        (format!("{place}connected for {since}"), Style::Plain)
    } else {
        let why = store.problem.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        (format!("{place}away for {since}{why}"), Style::Bad)
    };
    text.extend(store.confirmed.map(|time| format!(", confirmed {} ago", age(time.age(look.now)))));
    for (number, one, many) in [
        (store.unreadable.count, "unreadable record", "unreadable records"),
        (store.missing_count, "missing lease", "missing leases"),
    ] {
        if number > 0 {
            text.extend([format!(", {}", plural(number as u64, one, many))]);
            if style == Style::Plain {
                style = Style::Fair;
            }
        }
    }
    Cell::new(text, style)
}

fn lease(node: &Node, store: Option<&Store>, look: Look) -> Cell {
    let Some(term) = store.and_then(|store| store.lease_term.as_ref()) else {
        return Cell::new(subnets(&node.lease), Style::Plain);
    };
    let is_over = term.expires.0 <= look.now;
    let rest = term.expires.0.duration_since(look.now).unwrap_or_default();
    let ends = if is_over { "expired".to_owned() } else { format!("{} left", left(rest)) };
    let text = format!("{}, renewed {} ago, {ends}", subnets(&node.lease), age(term.renewed.age(look.now)));
    Cell::new(text, if is_over { Style::Bad } else { Style::Plain })
}

fn underlay(node: &Node) -> Cell {
    let Underlay { name, mtu, local, published, reason } = &node.underlay;
    let join = |both: &Families<std::net::IpAddr>| {
        both.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let mut text = format!("{name} {}", join(local));
    if published != local {
        text.extend([format!(", published as {}", join(published))]);
    }
    text.extend([format!(", MTU {mtu}")]);
    if !reason.is_empty() {
        text.extend([format!("; {reason}")]);
    }
    Cell::new(text, Style::Plain)
}

fn backend(node: &Node, network: Option<&Network>) -> Cell {
    let datapath = network.and_then(|network| network.datapath.as_ref());
    let datapath = datapath.map(|datapath| format!(", {datapath}")).unwrap_or_default();
    let mtu = network.and_then(|network| network.overlay_mtu).unwrap_or(node.overlay_mtu);
    let beside = network.and_then(|network| network.backends.get(1..)).filter(|beside| !beside.is_empty());
    let beside = beside.map(|beside| format!(", beside it {}", beside.join(" and "))).unwrap_or_default();
    Cell::new(format!("{}{datapath}, pod MTU {mtu}{beside}", node.backend), Style::Plain)
}

fn device(device: &Device, counters: Option<&Counters>) -> Cell {
    let state = if device.usable { "up" } else { "missing or down" };
    let traffic = counters.map(|counters| format!(", {}", traffic(counters))).unwrap_or_default();
    let checksums = match device.tx_checksum {
        Some(false) => ", tx-checksum-ip-generic off (the kernel computes checksums)",
        Some(true) | None => "",
    };
    let text = format!("{} {state}, MTU {}{checksums}{traffic}", device.name, device.mtu);
    let style = match (device.usable, checksums) {
        (false, _) => Style::Bad,
        (true, "") => Style::Plain,
        (true, _) => Style::Fair,
    };
    Cell::new(text, style)
}

fn traffic(counters: &Counters) -> String {
    let Counters { of: _, sent, received, dropped } = counters;
    let mut text = format!("sent {}, received {}", bytes(sent.bytes), bytes(received.bytes));
    if !dropped.is_empty() {
        let each: Vec<_> = dropped.iter().map(|it| format!("{} {}", count(it.packets), it.reason)).collect();
        text.extend([format!(", dropped {}", each.join(", "))]);
    }
    text
}

fn gate(gate: &Gate) -> Cell {
    let fate = if gate.mode == "enforce" { "dropped" } else { "would have dropped" };
    let each: Vec<_> = gate.counted.iter().map(|it| format!("{} {}", count(it.packets), it.reason)).collect();
    Cell::new(format!("{}, {fate} {}", gate.mode, each.join(", ")), Style::Plain)
}

fn repairs(network: &Network) -> Cell {
    let last = network.last_repair_us.map(|us| format!(", the last took {}", micros(us)));
    Cell::new(format!("{}{}", count(network.repairs), last.unwrap_or_default()), Style::Plain)
}

fn probes(probes: &Probes) -> Cell {
    let mut counts: Vec<_> = probes.counts.iter().filter(|(_, number)| **number > 0).collect();
    counts.sort_by_key(|(verdict, _)| grade(verdict));
    let counts = counts.into_iter().map(|(verdict, number)| format!("{} {verdict}", count(*number)));
    let counts: Vec<_> = counts.collect();
    let found = if counts.is_empty() { "nothing yet".to_owned() } else { counts.join(", ") };
    let every = left(Duration::from_millis(probes.interval_ms));
    Cell::new(format!("{found}; each peer within {every}"), Style::Plain)
}

fn rules(firewall: &Firewall) -> Cell {
    if firewall.manager.is_none() {
        return Cell::new("none to keep", Style::Dim);
    }
    let place = if firewall.in_place { "in place" } else { "not in place" };
    let masquerade = if firewall.masquerades { ", masquerading" } else { "" };
    let repairs = match firewall.repairs {
        0 => String::new(),
        repairs => format!(
            ", repaired {}",
            if repairs == 1 { "once".to_owned() } else { format!("{} times", count(repairs)) }
        ),
    };
    let is_good = firewall.in_place && firewall.problem.is_none();
    Cell::new(
        format!("{place}{masquerade}{repairs}; {}", firewall.choice),
        if is_good { Style::Plain } else { Style::Bad },
    )
}
