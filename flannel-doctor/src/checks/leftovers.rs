//! What others, or earlier networks, left on this host.

use flannel_core::addr::{Family, Subnet};
use flannel_core::dataplane::{Object, ROUTE_PROTOCOL};

use crate::facts::{Facts, is_overlay_name};
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

/// Devices with names of flannel's that the state file does not know.
pub(super) async fn devices(facts: &Facts) -> Checked {
    let state = facts
        .recalled
        .state
        .as_ref()
        .ok_or_else(|| Skip::new("no state file that names the agent's devices"))?;
    // The udp backend's device is not in the file.
    let is_known = |name: &str| {
        state.devices.iter().any(|device| device.name == name)
            || state.backend == "udp" && name.starts_with("flannel") && !name.contains('.')
    };
    let old = facts.links()?.iter().filter(|link| is_overlay_name(&link.name) && !is_known(&link.name));
    let found = old.map(|link| {
        Finding::warning(
            format!("{} is of another backend or network: the agent's are {}", link.name, names(state.devices.iter().map(|device| device.name.as_str()))),
            format!("`flanneld cleanup` with that agent's flags, or `ip link delete {}`, if no other agent uses it", link.name),
        )
    });
    Ok(Finding::of_all(found, || "no device of another backend or network of flannel".to_owned()))
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names = names.collect::<Vec<_>>().join(", ");
    if names.is_empty() { "none".to_owned() } else { names }
}

/// Routes of our protocol to other networks.
pub(super) async fn routes(facts: &Facts) -> Checked {
    let networks = facts.networks();
    if networks.is_empty() {
        return Err(Skip::new("neither state file nor subnet file names the network"));
    }
    let mut kernel = facts.host.open_kernel()?;
    let mut found = Vec::new();
    for family in Family::ALL {
        for object in kernel.routes_by(family, ROUTE_PROTOCOL).await? {
            let Object::Route(route) = object else { continue };
            if networks.get(family).is_none_or(|network| !network.covers(route.dst)) {
                found.push(Finding::warning(
                    format!(
                        "route {} has flannel's protocol {ROUTE_PROTOCOL}, and is outside of the network",
                        route.dst
                    ),
                    format!(
                        "if no other agent runs here, `ip route delete {} proto {ROUTE_PROTOCOL}`",
                        route.dst
                    ),
                ));
            }
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
    let found = found.into_iter().map(|(whose, name)| {
        Finding::warning(
            format!("{name} looks like a device of {whose}"),
            format!("if {whose} is not in use any more, remove its devices, routes and rules (a reboot, as a rule, once its config is gone); Canal uses flannel with Calico's rules on purpose"),
        )
    });
    Ok(Finding::of_all(found.collect::<Vec<_>>(), || "no device of another pod network".to_owned()))
}

/// Addresses and routes of others that overlap with the network.
pub(super) async fn overlap(facts: &Facts) -> Checked {
    let networks = facts.networks();
    if networks.is_empty() {
        return Err(Skip::new("neither state file nor subnet file names the network"));
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
