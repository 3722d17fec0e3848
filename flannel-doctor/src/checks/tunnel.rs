//! The tunnel between nodes: its devices, its port, and whether peers are reached through it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use flannel_core::addr::{Family, LinkIndex, MacAddr};
use flannel_core::dataplane::{Object, ObjectKey, Route};
use flannel_core::kernel::Link;
use flannel_core::lease::Lease;
use flannel_core::port_holder::{PortHolder, udp_port_holder};

use crate::facts::{Facts, TunnelPort, vtep_mac};
use crate::finding::{Checked, Finding, Skip, Verdict, sample};
use crate::host::echo;

/// The most peers that are asked.
const PEERS: usize = 3;
/// How long a peer has for an answer.
const PATIENCE: Duration = Duration::from_secs(1);
pub(super) async fn device(facts: &Facts) -> Checked {
    let state = facts.state()?;
    if state.devices.is_empty() {
        return Err(Skip::new(format!("the backend {} has no device of the kernel's", state.backend)));
    }
    let links = facts.links()?;
    let found = state.devices.iter().filter_map(|device| {
        let fix = if facts.agents.is_empty() {
            "start the agent, which makes it"
        } else {
            "see the agent's log for what keeps it from making it"
        };
        match links.iter().find(|link| link.name == device.name) {
            None => Some(Finding::failure(
                format!("there is no device {}, which carries the overlay", device.name),
                fix,
            )),
            Some(link) if !link.up => Some(Finding::failure(
                format!("device {} is down", device.name),
                format!("`ip link set {} up`; the agent does it, too", device.name),
            )),
            Some(_) => None,
        }
    });
    let names = state.devices.iter().map(|device| device.name.as_str()).collect::<Vec<_>>().join(", ");
    Ok(Finding::of_all(found.collect::<Vec<_>>(), || format!("up: {names}")))
}

pub(super) async fn port(facts: &Facts) -> Checked {
    let ports = facts.tunnel_ports();
    if ports.is_empty() {
        return Err(Skip::new("the backend has no tunnel port, or is not known"));
    }
    let (mut seen, mut found) = (Vec::new(), Vec::new());
    for port in ports {
        match held(facts, port).await? {
            good if good.verdict == Verdict::Ok => seen.extend(good.evidence),
            bad => found.push(bad),
        }
    }
    Ok(Finding::of_all(found, || seen.join("; ")))
}

/// Who has a port of the tunnel.
async fn held(facts: &Facts, TunnelPort { port, key, device }: TunnelPort) -> Checked {
    let netns = facts.host.netns().clone();
    let holder = facts.host.blocking(move || udp_port_holder(&netns, port)).await?;
    let is_vxlan = facts.backend() == Some("vxlan");
    let has_port = |link: &&Link| link.up && link.vxlan.as_ref().is_some_and(|vxlan| vxlan.port == port);
    // A WireGuard device that is up has its port.
    let is_it = |link: &&Link| {
        link.up && device == Some(link.name.as_str()) && link.kind.as_deref() == Some("wireguard")
    };
    let name = |link: &Link| link.name.clone();
    let in_kernel = facts.overlay_links().find(is_it).map(name);
    let is_kernels = is_vxlan || in_kernel.is_some();
    let ours = facts.overlay_links().find(has_port).map(name).or(in_kernel);
    let others = facts.links()?.iter().find(has_port).map(name);
    let is_other = |pid: u32| facts.others.iter().any(|other| other.process.pid == pid);
    Ok(match (holder, ours) {
        (Some(PortHolder::Kernel | PortHolder::Unseen), Some(device)) if is_kernels => {
            Finding::ok(format!("UDP port {port} belongs to {device}"))
        }
        // All VXLAN devices of a host with one port have it together.
        (Some(PortHolder::Kernel | PortHolder::Unseen), None) if is_vxlan && others.is_some() => {
            Finding::note(
                format!(
                    "UDP port {port} belongs to {}, and flannel's device, which can share it, does not have it",
                    others.unwrap_or_default()
                ),
                "start the agent, which makes its device and sets it up (see overlay-device)",
            )
        }
        (Some(PortHolder::Unseen), _) if !is_kernels => {
            return Err(Skip::denied(format!("who has UDP port {port} can't be seen by this user")));
        }
        (Some(ref who @ PortHolder::Process { ref name, pid }), _)
            if !is_kernels && name == "flanneld" && !is_other(pid) =>
        {
            Finding::ok(format!("UDP port {port} belongs to {who}"))
        }
        (Some(who), _) => Finding::failure(
            format!("UDP port {port} belongs to {who}, so the tunnel can't be opened"),
            format!("end that process, or give the cluster another Backend.{key} in the network config"),
        ),
        (None, _) if facts.agents.is_empty() => {
            Finding::note(format!("nobody has UDP port {port}"), "start the agent, which opens it")
        }
        (None, _) => Finding::failure(
            format!("an agent runs, but nobody has UDP port {port}: this node receives nothing"),
            "see the agent's log for what keeps it from opening the port",
        ),
    })
}

/// Another device that takes the packets of our VNI, or all of our port.
pub(super) async fn other_vxlan(facts: &Facts) -> Checked {
    if let Some(kind) = facts.backend().filter(|kind| *kind != "vxlan") {
        return Err(Skip::new(format!("the backend {kind} has no VXLAN device")));
    }
    let ours: Vec<_> = facts.overlay_links().filter_map(|link| Some((link, link.vxlan.as_ref()?))).collect();
    let port = ours.first().map(|(_, vxlan)| vxlan.port).or_else(|| facts.tunnel_port(Family::V4));
    let port = port.ok_or_else(|| Skip::new("the port of the tunnel is not known"))?;
    let is_ours = |index: LinkIndex| ours.iter().any(|(link, _)| link.index == index);
    let others = facts.links()?.iter().filter(|link| !is_ours(link.index));
    let found = others.filter_map(|link| {
        let vxlan = link.vxlan.as_ref().filter(|vxlan| vxlan.port == port)?;
        let name = &link.name;
        let rival = ours.iter().find(|(_, own)| own.vni == vxlan.vni);
        // Agents with VNIs of their own share the port without harm.
        if rival.is_none() && facts.other_with(link).is_some() {
            return None;
        }
        Some(match rival {
            Some((own, _)) => Finding::failure(
                format!("{name} has the VNI {} and the port {port} of {}: which of them gets a packet is chance", vxlan.vni, own.name),
                format!("remove what is not needed (`ip link delete {name}`), or give one another VNI"),
            ),
            None => Finding::note(
                format!("{name} (VNI {}) shares UDP port {port} with flannel", vxlan.vni),
                format!("if nobody needs it, `ip link delete {name}`; another network (Cilium uses 8472, too) should have another port"),
            ),
        })
    });
    Ok(Finding::of_all(found.collect::<Vec<_>>(), || format!("no other VXLAN device uses port {port}")))
}

pub(super) async fn vtep_mac_kept(facts: &Facts) -> Checked {
    let own = facts.needed_own()?;
    facts.links()?;
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for family in Family::ALL {
        let Some(published) = vtep_mac(own, family) else { continue };
        let Some(link) = facts.vtep(family) else { continue };
        if link.mac == Some(published) {
            seen.push(format!("{} has the published MAC {published}", link.name));
        } else {
            let mac = link.mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string());
            found.push(Finding::failure(
                format!("the MAC of {} is {mac}, and the lease publishes {published}: packets of other nodes are dropped", link.name),
                format!("`ip link set {} address {published}`; the agent does it, too: find out who changes it (see udev-mac-policy)", link.name),
            ));
        }
    }
    if seen.is_empty() && found.is_empty() {
        return Err(Skip::new("the lease publishes no MAC, or there is no device for it"));
    }
    Ok(Finding::of_all(found, || seen.join("; ")))
}

pub(super) async fn duplicate_mac(facts: &Facts) -> Checked {
    let stored: Vec<Lease> = facts.own().into_iter().chain(facts.peers()).cloned().collect();
    let listed = match facts.answered().await {
        Ok(answers) => answers.leases.as_ref().map(|listing| listing.leases.clone()).unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    // What the store lists is newer than what the state file has.
    let leases = if listed.is_empty() { stored } else { listed };
    if leases.is_empty() {
        let why = facts.state().err().map_or_else(String::new, |why| format!(" ({})", why.0));
        return Err(Skip::new(format!("neither state file nor store has a lease{why}")));
    }
    let mut owners: BTreeMap<(Family, MacAddr), Vec<String>> = BTreeMap::new();
    for lease in &leases {
        for family in Family::ALL {
            if let Some(mac) = vtep_mac(lease, family) {
                owners.entry((family, mac)).or_default().push(lease.key.to_string());
            }
        }
    }
    if owners.is_empty() {
        return Err(Skip::new(format!("{} leases publish no MAC: their backends have none", leases.len())));
    }
    let twice = owners.iter().filter(|(_, leases)| leases.len() > 1).map(|((family, mac), leases)| {
        // All nodes of a network have one VNI, by which the devices are named.
        let device = facts.vtep(*family).map_or("flannel.VNI", |link| link.name.as_str());
        Finding::failure(
            format!("leases {} publish one {family} VTEP MAC {mac}: packets go to the wrong node", sample(leases)),
            format!("on the younger node, stop the agent, delete the device (`ip link delete {device}`), the state file and its lease, and start it again"),
        )
    });
    Ok(Finding::of_all(twice, || {
        format!("{} leases publish {} MACs, each its own", leases.len(), owners.len())
    }))
}

pub(super) async fn underlay(facts: &Facts) -> Checked {
    let own = facts.needed_own()?;
    facts.links()?;
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for (family, ip) in own.attrs.public_ips.iter() {
        match facts.underlay_link(family) {
            // A published address may be that of a NAT in front of this host.
            None => found.push(Finding::warning(
                format!("the published {family} address {ip} is on no link of this host"),
                match family {
                    Family::V4 => "if no NAT in front of this host has it, restart the agent, or name the interface by --iface or --public-ip",
                    Family::V6 => "if no NAT in front of this host has it: is IPv6 off on that link (see ipv6-disabled)? Else restart the agent, or name the interface by --iface or --public-ipv6",
                },
            )),
            Some(link) if !link.up || !link.carrier => {
                let state = if link.up { "has no carrier" } else { "is down" };
                found.push(Finding::failure(format!("the underlay {} with {ip} {state}", link.name), format!("check cable and switch; `ip link set {} up`", link.name)));
            }
            Some(link) => seen.push(format!("{ip} is on {}, which is up (MTU {})", link.name, link.mtu)),
        }
    }
    Ok(Finding::of_all(found, || seen.join("; ")))
}

/// The routes to all peers of the state file.
pub(super) async fn peer_routes(facts: &Facts) -> Checked {
    if facts.recalled.state.as_ref().is_some_and(|state| state.routes_of_others) {
        return Err(Skip::new("with this backend others put the routes to peers"));
    }
    let mut kernel = facts.host.open_kernel()?;
    let networks = facts.networks();
    let mut missing = Vec::new();
    let mut count = 0;
    for family in Family::ALL {
        let key = |subnet| {
            let node = family.unspecified();
            Object::Route(Route::by_node(subnet, node, LinkIndex(0))).key()
        };
        // The udp backend has one route, to its TUN, for the subnets of all nodes.
        let network = networks.get(family).filter(|_| facts.backend() == Some("udp"));
        let wanted: Vec<(ObjectKey, String)> = facts
            .peers()
            .filter_map(|lease| {
                let subnet = lease.subnet(family)?;
                Some((key(network.copied().unwrap_or(subnet)), lease.key.to_string()))
            })
            .collect();
        if wanted.is_empty() {
            continue;
        }
        count += wanted.len();
        let keys: BTreeSet<ObjectKey> = wanted.iter().map(|(key, _)| *key).collect();
        let there: BTreeSet<ObjectKey> = kernel
            .routes_at(family, &keys)
            .await?
            .into_iter()
            .map(|route| Object::Route(route).key())
            .collect();
        missing.extend(wanted.into_iter().filter(|(key, _)| !there.contains(key)).map(|(_, lease)| lease));
    }
    if count == 0 {
        return Err(facts.no_peer());
    }
    let text = || {
        // A lease may lack the routes of both families.
        let mut leases = missing.clone();
        leases.sort_unstable();
        leases.dedup();
        format!("{} of {count} subnets of other nodes have no route here: {}", missing.len(), sample(&leases))
    };
    Ok(match (missing.is_empty(), facts.agents.is_empty()) {
        (true, _) => Finding::ok(format!("each of {count} subnets of other nodes has a route")),
        (false, true) => Finding::failure(text(), "start the agent, which puts them"),
        (false, false) => Finding::warning(
            text(),
            "see the agent's log and status for why: refused by the kernel, conflicting, or gone from the store",
        ),
    })
}

/// Whether a few peers answer on the underlay and through the tunnel.
pub(super) async fn reach(facts: &Facts) -> Checked {
    if facts.tunnel_ports().is_empty() {
        return Err(Skip::new("the backend has no tunnel, or is not known"));
    }
    let pairs = facts.peers().flat_map(|lease| {
        let pair = |family| Some((*lease.attrs.public_ips.get(family)?, lease.subnet(family)?.base()));
        Family::ALL.into_iter().filter_map(pair)
    });
    let pairs: Vec<(IpAddr, IpAddr)> = pairs.take(PEERS).collect();
    if pairs.is_empty() {
        return Err(facts.no_peer());
    }
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for (under, over) in pairs {
        let ask = move || Ok::<_, std::io::Error>((answers(under)?, answers(over)?));
        let asked = facts.host.blocking(ask).await?;
        let (by_underlay, by_overlay) = asked.map_err(|error| {
            Skip::new(format!("can't send ICMP echoes, which takes CAP_NET_RAW: {error}"))
        })?;
        match (by_underlay, by_overlay) {
            (_, true) => seen.push(format!("{over} of node {under} answers through the tunnel")),
            (true, false) => found.push(Finding::failure(
                format!("node {under} answers on the underlay, but {over} does not through the tunnel"),
                format!("let UDP port {} pass between nodes in both directions (firewalls, security groups), and see whether the agent there runs", facts.tunnel_port(Family::of(over)).unwrap_or_default()),
            )),
            (false, false) => found.push(Finding::note(
                format!("node {under} answers neither on the underlay nor through the tunnel"),
                "see whether that node lives, and whether ICMP is filtered on the way",
            )),
        }
    }
    Ok(Finding::of_all(found, || seen.join("; ")))
}

fn answers(to: IpAddr) -> std::io::Result<bool> {
    // The first packet may be lost to address resolution.
    Ok(echo(to, None, PATIENCE / 2)?.is_answer() || echo(to, None, PATIENCE)?.is_answer())
}
