//! What others, or earlier networks, left on this host.

use flannel_core::addr::{Family, PerFamily, Subnet};
use flannel_core::dataplane::{Object, ROUTE_PROTOCOL};
use flannel_core::kernel::Link;

use crate::facts::Facts;
use crate::finding::{Checked, Finding, Skip};

/// The beginnings of names of devices that other pod networks make, and whose they are.
const OTHERS: [(&str, &str); 8] = [
    ("cilium_", "Cilium"),
    ("cali", "Calico"),
    ("vxlan.calico", "Calico"),
    ("tunl0", "Calico (IPIP)"),
    ("weave", "Weave Net"),
    ("kube-bridge", "kube-router"),
    ("antrea-", "Antrea"),
    ("ovn-k8s-", "OVN-Kubernetes"),
];

const NO_NETWORK: &str = "neither state file, subnet file nor store names the network";

/// Devices with names of flannel's that the state file does not know.
pub(super) async fn devices(facts: &Facts) -> Checked {
    let state = facts.state()?;
    let own: Vec<_> = facts.overlay_links().map(|link| (link.index, link.name.as_str())).collect();
    let is_known = |link: &Link| {
        own.iter().any(|(index, _)| *index == link.index)
            || state.devices.iter().any(|device| device.name == link.name)
            || facts.other_with(link).is_some()
    };
    let old = facts.links()?.iter().filter(|link| facts.is_flannels(link) && !is_known(link));
    let found = old.map(|link| {
        let seen = format!(
            "{} is of another backend or network: the agent's are {}",
            link.name,
            names(own.iter().map(|(_, name)| *name))
        );
        let fix = format!(
            "`flanneld cleanup` with that agent's flags, or `ip link delete {}`, if no other agent uses it",
            link.name
        );
        of_whom(facts, seen, fix)
    });
    Ok(Finding::of_all(found, || "no device of another backend or network of flannel".to_owned()))
}

/// A leftover, unless an agent runs here whose files can't be read: it may be that one's.
fn of_whom(facts: &Facts, seen: String, fix: String) -> Finding {
    match facts.unknown_others() {
        None => Finding::warning(seen, fix),
        Some(pids) => {
            Finding::note(format!("{seen}; another agent runs here (pid {pids}), and may own it"), fix)
        }
    }
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names = names.collect::<Vec<_>>().join(", ");
    if names.is_empty() { "none".to_owned() } else { names }
}

/// Routes of our protocol to other networks.
pub(super) async fn routes(facts: &Facts) -> Checked {
    let networks = facts.all_networks().await;
    if networks.is_empty() {
        return Err(Skip::new(NO_NETWORK));
    }
    let mut kernel = facts.host.open_kernel()?;
    let mut found = Vec::new();
    for family in Family::ALL {
        for object in kernel.routes_by(family, ROUTE_PROTOCOL).await? {
            let Object::Route(route) = object else { continue };
            let covers = |networks: &PerFamily<Subnet>| {
                networks.get(family).is_some_and(|network| network.covers(route.dst))
            };
            if covers(&networks) || facts.others.iter().any(|other| covers(&other.networks)) {
                continue;
            }
            let seen = format!(
                "route {} has flannel's protocol {ROUTE_PROTOCOL}, and is outside of the network",
                route.dst
            );
            let six = if family == Family::V6 { "-6 " } else { "" };
            let fix = format!(
                "`ip {six}route delete {} proto {ROUTE_PROTOCOL}`, if no other agent uses it",
                route.dst
            );
            found.push(of_whom(facts, seen, fix));
        }
    }
    Ok(Finding::of_all(found, || "no route of flannel's leads out of the network".to_owned()))
}

/// Devices of other pod networks.
pub(super) async fn other_networks(facts: &Facts) -> Checked {
    // The kernel's module makes this one wherever it is used.
    let is_modules = |name: &str| {
        name == "tunl0" && facts.overlay_links().any(|link| link.kind.as_deref() == Some("ipip"))
    };
    let of = |name: &str| OTHERS.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, whose)| *whose);
    let links = facts.links()?.iter();
    let mut found: Vec<(&str, &str)> = links
        .filter(|link| !is_modules(&link.name))
        .filter_map(|link| Some((of(&link.name)?, link.name.as_str())))
        .collect();
    found.sort_unstable();
    found.dedup_by_key(|(whose, _)| *whose);
    let all = found.iter().map(|(whose, _)| *whose).collect::<Vec<_>>().join(", ");
    let canal =
        if all.contains("Calico") { "; Canal uses flannel with Calico's rules on purpose" } else { "" };
    let found = found.iter().map(|(whose, name)| {
        Finding::warning(
            format!("{name} looks like a device of {whose}"),
            format!("remove devices, routes and rules of what is not in use any more (of {all}; a reboot does it, as a rule, once the config is gone){canal}"),
        )
    });
    Ok(Finding::of_all(found.collect::<Vec<_>>(), || "no device of another pod network".to_owned()))
}

/// Addresses and routes of others that overlap with the network.
pub(super) async fn overlap(facts: &Facts) -> Checked {
    let networks = facts.all_networks().await;
    if networks.is_empty() {
        return Err(Skip::new(NO_NETWORK));
    }
    let (overlay, own) = (facts.overlay_links().map(|link| link.index).collect::<Vec<_>>(), facts.subnets());
    let mut found = Vec::new();
    for address in facts.addresses()? {
        let family = Family::of(address.addr.ip());
        let (Some(network), Some(link)) = (networks.get(family), facts.link(address.link)) else { continue };
        if overlay.contains(&link.index) || link.loopback {
            continue;
        }
        let Some(prefix) = Subnet::containing(address.addr.ip(), address.addr.prefix()) else { continue };
        let is_own = own.get(family).is_some_and(|own| own.covers(prefix));
        // The pods' bridge may have an address of an old lease, which is another check's.
        if prefix.overlaps(*network) && !is_own && !link.name.starts_with("cni") {
            found.push(Finding::failure(
                format!(
                    "{} has {}, which overlaps with the pods' network {network}",
                    link.name, address.addr
                ),
                "give one of them other addresses (Docker: bip and default-address-pools, docs/hosts.md)",
            ));
        }
    }
    Ok(Finding::of_all(found, || "no address of others is in the pods' network".to_owned()))
}
