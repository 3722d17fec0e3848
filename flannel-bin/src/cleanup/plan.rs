//! What is ours and goes, and what looks like it and stays. Pure.

use std::path::PathBuf;

use flannel_core::addr::{LinkIndex, Subnet, Vni};
use flannel_core::dataplane::command::{deletion, word};
use flannel_core::dataplane::{Object, ROUTE_PROTOCOL, Route};
use flannel_core::firewall::Step;
use flannel_core::kernel::Link;
use flannel_core::lease::Lease;
use flannel_core::ownership::Ownership;
use flannel_core::state_file::State;

use super::known::Known;
use super::seen::Seen;

/// Something that goes.
#[derive(Debug, Clone)]
pub(super) struct Removal {
    /// What it is. It is said once for those that follow each other.
    pub(super) what: String,
    /// Commands of a shell that do the same.
    pub(super) commands: Vec<String>,
    /// How it is done.
    pub(super) action: Action,
}

/// How something is removed.
#[derive(Debug, Clone)]
pub(super) enum Action {
    /// By netlink.
    Route(Route),
    /// By netlink, with all that hangs on it.
    Link(LinkIndex),
    /// By netlink: the table of the underlay gate.
    Gate(Vni),
    /// By a program.
    Rules(Step),
    /// From the store.
    Lease(Lease),
    /// From a disk.
    File(PathBuf),
}

/// What is to be done.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    /// In this order.
    pub(super) removals: Vec<Removal>,
    /// What stays although it looks like ours, and why.
    pub(super) notes: Vec<String>,
    /// What could not be looked at, and may have to go.
    pub(super) problems: Vec<String>,
}

impl Plan {
    /// Adds what comes after all that.
    pub(super) fn add(&mut self, mut other: Self) {
        self.removals.append(&mut other.removals);
        self.notes.append(&mut other.notes);
        self.problems.append(&mut other.problems);
    }
}

/// Says what of the kernel's state goes. What hangs on a device of ours (addresses, neighbours, FDB entries,
/// next-hop objects, routes) goes with it.
pub(super) fn plan(known: &Known, seen: &Seen) -> Plan {
    let mut plan = Plan::default();
    let present = State { networks: known.subnets.networks, ..State::default() };
    let mut ownership = Ownership::new(&present, known.state.as_ref());
    ownership.locate(&seen.links);
    let mut links: Vec<&Link> = Vec::new();
    for link in seen.links.iter().filter(|link| is_named_like_ours(&link.name)) {
        let stored = ownership.stale_links().iter().any(|stale| stale.index == link.index);
        match judge(link, stored, known, seen) {
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

/// Whether a name is one that agents give: `flannel.<VNI>`, `flannel-v6.<VNI>`, and `flannel<N>` for a TUN.
fn is_named_like_ours(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    ["flannel.", "flannel-v6.", "flannel"]
        .iter()
        .any(|prefix| name.strip_prefix(prefix).is_some_and(is_number))
}

/// Whether a link that is named like one of ours is one: the state file names it, or it is what an agent makes
/// and has an address that only this agent gives it. An error says why not.
fn judge(link: &Link, stored: bool, known: &Known, seen: &Seen) -> Result<(), String> {
    let kind = link.kind.as_deref().unwrap_or("link of the hardware");
    let addresses = || seen.addresses.iter().filter(|address| address.link == link.index);
    let Some(number) = link.name.rsplit_once('.').map(|(_, number)| number) else {
        if kind != "tun" {
            return Err(format!("it is a {kind}, and ours of this name is a TUN"));
        }
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
    let Some(vxlan) = &link.vxlan else {
        return Err(format!("it is a {kind}, and ours of this name is a VXLAN device"));
    };
    if stored {
        return Ok(());
    }
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
