//! Decides what is ours and is removed, and what only looks like it and stays. Pure.

use super::known::Known;
use super::removal::{Action, Plan, Removal};
use super::seen::Seen;
use crate::addr::{LinkIndex, Subnet};
use crate::backend::DeviceKind;
use crate::dataplane::command::{deletion, word};
use crate::dataplane::{Object, ROUTE_PROTOCOL, Route};
use crate::kernel::Link;
use crate::ownership::Ownership;
use crate::state_file::State;

/// Plans which kernel objects to remove. With a device of ours the kernel removes everything on it (addresses,
/// neighbours, FDB entries, next-hop objects, routes).
pub(super) fn plan(known: &Known, seen: &Seen, kinds: &[DeviceKind]) -> Plan {
    let mut plan = Plan::default();
    let present = State { networks: known.subnets.networks, ..State::default() };
    let mut ownership = Ownership::new(&present, known.state.as_ref());
    ownership.locate(&seen.links);
    let mut links: Vec<&Link> = Vec::new();
    let named = seen.links.iter().filter_map(|link| Some((link, kind_by_name(link, kinds)?)));
    for (link, kind) in named {
        let stored = ownership.stale_links().iter().any(|stale| stale.index == link.index);
        match judge(link, kind, stored, known, seen) {
            Ok(()) => links.push(link),
            Err(why) => plan.notes.push(format!("link {} stays: {why}", link.name)),
        }
    }
    let goes_along = |route: &Route| links.iter().any(|link| Some(link.index) == route.link);
    let name = |index: LinkIndex| {
        let link = seen.links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("if{index}"), |link| link.name.clone())
    };
    let routes = seen.routes.iter().filter(|route| !goes_along(route));
    for route in routes.clone().filter(|route| ownership.owns(route)) {
        plan.removals.push(Removal {
            what: "routes to the overlay network".to_owned(),
            commands: deletion(&Object::Route(*route), name).into_iter().collect(),
            action: Action::Route(*route),
        });
    }
    let strange = routes.filter(|route| route.protocol == ROUTE_PROTOCOL && !ownership.owns(route)).count();
    if strange > 0 {
        let why = if known.networks().is_empty() {
            "neither subnet file nor state file is there to say which network was this agent's"
        } else {
            "they are not for a network of this agent"
        };
        plan.notes.push(format!("{strange} routes with protocol {ROUTE_PROTOCOL} stay: {why}"));
    }
    plan.removals.extend(links.into_iter().map(|link| Removal {
        what: "devices, with all that hangs on them".to_owned(),
        commands: vec![format!("ip link del {}", word(&link.name))],
        action: Action::Link(link.index),
    }));
    plan
}

/// The kind of device whose names have this form: the prefix of a backend and a number, or the name of an only device. A
/// backend may make devices of several kinds with one name; then the link's own is taken if it is among those.
fn kind_by_name(link: &Link, kinds: &[DeviceKind]) -> Option<DeviceKind> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_named =
        |kind: &DeviceKind, rest: &str| if kind.is_only { rest.is_empty() } else { is_number(rest) };
    let named = |kind: &DeviceKind| {
        let rest = link.name.strip_prefix(kind.prefix);
        rest.is_some_and(|rest| is_named(kind, rest))
    };
    let is_of_kind = |kind: &DeviceKind| link.kind.as_deref() == Some(kind.kind);
    let mut named = kinds.iter().copied().filter(named);
    named.clone().find(is_of_kind).or_else(|| named.next())
}

/// Whether a link with a name like ours is ours: the state file names it, or it has the attributes that an agent sets
/// and an address that only this agent gives it. An error says why not.
fn judge(link: &Link, ours: DeviceKind, stored: bool, known: &Known, seen: &Seen) -> Result<(), String> {
    let kind = link.kind.as_deref().unwrap_or("link of the hardware");
    let addresses = || seen.addresses.iter().filter(|address| address.link == link.index);
    if kind != ours.kind {
        return Err(format!("it is a {kind}, and ours of this name is a {}", ours.kind));
    }
    if stored {
        return Ok(());
    }
    let Some(vxlan) = &link.vxlan else {
        let own: Vec<Subnet> = known
            .key()
            .iter()
            .flat_map(|key| key.subnets().iter().map(|(_, it)| *it).collect::<Vec<_>>())
            .collect();
        let is_own = |addr| own.iter().any(|subnet| subnet.base() == addr);
        if addresses().any(|address| is_own(address.addr.ip())) {
            return Ok(());
        }
        return Err("nothing proves that this agent made it".to_owned());
    };
    let number = link.name.strip_prefix(ours.prefix).unwrap_or_default();
    if vxlan.vni.to_string() != number || vxlan.foreign || vxlan.local.is_none() || vxlan.lower.is_none() {
        return Err("it is not as an agent makes it".to_owned());
    }
    let networks = known.networks();
    if networks.is_empty() {
        let hint = word(&link.name);
        return Err(format!(
            "neither subnet file nor state file is there to prove whose it is; remove it by: ip link del {hint}"
        ));
    }
    if addresses().any(|address| networks.iter().any(|network| network.contains(address.addr.ip()))) {
        Ok(())
    } else {
        Err("it has no address in a network of this agent".to_owned())
    }
}

#[cfg(test)]
mod tests;
