//! What the kernel of a node should contain, and what it does contain, as comparable facts. Pure.
//!
//! This shares nothing with the agent: it knows records as upstream writes them, and the kernel as `ip` and
//! `bridge` print it. A mistake in the agent's idea of a lease does not repeat itself here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use clap::ValueEnum;
use flannel_lab::kernel_state::KernelState;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

/// The pods' network in each family.
pub(crate) const NETWORKS: [&str; 2] = ["10.42.0.0/16", "fd00:42::/48"];

/// The bridge of the pods, which belongs to no agent.
pub(crate) const POD_BRIDGE: &str = "cni0";

/// The backends that are churned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// A VXLAN device a family
    Vxlan,
    /// Routes on the underlay
    HostGw,
    /// A TUN, and the agent itself carries the packets
    Udp,
    /// A TUN a family, and the agent itself encrypts the packets (`--wireguard=userspace`)
    Wireguard,
    /// An IPIP device, with IPv4 alone; needs a kernel with its module
    Ipip,
}

impl Backend {
    /// Its name in configs and records.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::Udp => "udp",
            Self::Wireguard => "wireguard",
            Self::Ipip => "ipip",
        }
    }

    /// Whether packets go through the agent, and so not without it, nor through the device that goes with it.
    pub(crate) fn is_in_agent(self) -> bool {
        matches!(self, Self::Udp | Self::Wireguard)
    }

    /// The member of a family's data that says who a tunnel's end is, which only one node can be.
    pub(crate) fn identity(self) -> Option<&'static str> {
        match self {
            Self::Vxlan => Some("VtepMAC"),
            Self::Wireguard => Some("PublicKey"),
            Self::HostGw | Self::Udp | Self::Ipip => None,
        }
    }

    /// The link that a family's routes lead through.
    pub(crate) fn link(self, v6: bool) -> &'static str {
        match self {
            Self::Vxlan if v6 => "flannel-v6.1",
            Self::Vxlan => "flannel.1",
            Self::HostGw => "eth0",
            Self::Udp => "flannel0",
            Self::Wireguard if v6 => "flannel-wg-v6",
            Self::Wireguard => "flannel-wg",
            Self::Ipip => "flannel.ipip",
        }
    }
}

/// One family of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Side {
    /// The node's pods.
    pub(crate) subnet: IpNetwork,
    /// The node on the underlay.
    pub(crate) underlay: IpAddr,
    /// What its tunnel's end is known by, for backends that have such: an inner MAC, or a public key.
    pub(crate) mac: Option<String>,
}

impl Side {
    /// The tunnel end's address: the first of the subnet.
    pub(crate) fn base(&self) -> IpAddr {
        self.subnet.network()
    }
}

/// A lease: its sides, IPv4 first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Lease(pub(crate) Vec<Side>);

impl Lease {
    /// The side of one family.
    pub(crate) fn side(&self, v6: bool) -> Option<&Side> {
        self.0.iter().find(|side| side.subnet.is_ipv6() == v6)
    }

    /// A value that both leases have though only one node can have it.
    pub(crate) fn shared_with(&self, other: &Self) -> Option<String> {
        self.0.iter().flat_map(|one| other.0.iter().map(move |two| (one, two))).find_map(|(one, two)| {
            let Side { subnet, underlay, mac } = one;
            if mac.is_some() && *mac == two.mac {
                return Some(format!("{subnet} and {} have one tunnel end, {mac:?}", two.subnet));
            }
            let is_one = *underlay == two.underlay || subnet == &two.subnet;
            is_one.then(|| format!("{one:?} and {two:?} contradict each other"))
        })
    }

    /// Reads a record as upstream writes it; `None` if it is none.
    pub(crate) fn parse(key: &str, value: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(value).ok()?;
        let (v4, v6) = key.split_once('&').unwrap_or((key, ""));
        let mut sides = Vec::new();
        for (subnet, address, data) in [(v4, "PublicIP", "BackendData"), (v6, "PublicIPv6", "BackendV6Data")]
        {
            // IPv6 alone has an IPv4 part of zeroes.
            let Some((base, length)) = subnet.rsplit_once('-').filter(|(_, length)| *length != "0") else {
                continue;
            };
            sides.push(Side {
                subnet: format!("{base}/{length}").parse().ok()?,
                underlay: value[address].as_str()?.parse().ok()?,
                mac: ["VtepMAC", "PublicKey"]
                    .iter()
                    .find_map(|it| value[data][it].as_str())
                    .map(str::to_owned),
            });
        }
        (!sides.is_empty()).then_some(Self(sides))
    }

    /// The lease's key in the store.
    pub(crate) fn key(&self) -> String {
        let part = |v6| self.side(v6).map(|side| format!("{}-{}", side.base(), side.subnet.prefix()));
        match (part(false), part(true)) {
            (Some(v4), Some(v6)) => format!("{v4}&{v6}"),
            (v4, v6) => v4.unwrap_or_else(|| format!("0.0.0.0-0&{}", v6.unwrap_or_default())),
        }
    }

    /// The lease's record.
    pub(crate) fn value(&self, backend: Backend) -> String {
        let mut record = json!({ "BackendType": if backend == Backend::Udp { "" } else { backend.name() } });
        for side in &self.0 {
            let v6 = side.subnet.is_ipv6();
            record[if v6 { "PublicIPv6" } else { "PublicIP" }] = side.underlay.to_string().into();
            let data = match backend {
                Backend::Vxlan => json!({ "VNI": 1, "VtepMAC": side.mac }),
                // By this a node says that it speaks udp over IPv6, which Go's can't.
                Backend::Udp if v6 => json!({ "Port": 8285 }),
                Backend::Wireguard => {
                    json!({ "PublicKey": side.mac, "Port": if v6 { 51821 } else { 51820 } })
                }
                _ => continue,
            };
            record[if v6 { "BackendV6Data" } else { "BackendData" }] = data;
        }
        record.to_string()
    }
}

/// What should be on the node of lease `own` if these are the others.
pub(crate) fn wanted<'a>(
    backend: Backend,
    own: &Lease,
    others: impl Iterator<Item = &'a Lease>,
) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    for side in &own.0 {
        let v6 = side.subnet.is_ipv6();
        let (link, base, metric) = (backend.link(v6), side.base(), metric(v6));
        let (host, mac) = (if v6 { 128 } else { 32 }, side.mac.as_deref().unwrap_or("-"));
        match backend {
            // 50 and 70 bytes of headers on an underlay of 1500.
            Backend::Vxlan => {
                let (mtu, underlay) = (if v6 { 1430 } else { 1450 }, side.underlay);
                facts.insert(format!("link {link} up mtu {mtu} mac {mac} id 1 local {underlay}"));
            }
            Backend::HostGw => continue,
            // One TUN for both: 48 bytes of headers, or 28 where there is IPv4 alone.
            Backend::Udp => {
                let mtu = if own.side(true).is_some() { 1452 } else { 1472 };
                let network = NETWORKS[usize::from(v6)];
                facts.insert(format!("link {link} up mtu {mtu}"));
                facts.insert(format!("route {network} dev {link} proto 102 metric {metric}"));
            }
            // 80 bytes of headers, whatever the family.
            Backend::Wireguard => {
                facts.insert(format!("link {link} up mtu 1420"));
                facts.insert(format!("blackhole {}", NETWORKS[usize::from(v6)]));
            }
            Backend::Ipip => _ = facts.insert(format!("link {link} up mtu 1480")),
        }
        facts.insert(format!("address {base}/{host} dev {link}"));
    }
    for side in others.flat_map(|lease| &lease.0) {
        let v6 = side.subnet.is_ipv6();
        if own.side(v6).is_none() {
            continue;
        }
        let Side { subnet, underlay, mac } = side;
        let (link, base, metric) = (backend.link(v6), side.base(), metric(v6));
        match backend {
            Backend::Vxlan => {
                let mac = mac.as_deref().unwrap_or("-");
                facts
                    .insert(format!("route {subnet} via {base} dev {link} proto 102 metric {metric} onlink"));
                facts.insert(format!("neighbour {base} dev {link} lladdr {mac}"));
                facts.insert(format!("fdb {mac} dev {link} dst {underlay}"));
            }
            Backend::HostGw => {
                facts.insert(format!("route {subnet} via {underlay} dev {link} proto 102 metric {metric}"));
            }
            Backend::Udp => {}
            Backend::Wireguard => {
                facts.insert(format!("route {subnet} dev {link} proto 102 metric {metric}"));
            }
            Backend::Ipip => {
                facts.insert(format!(
                    "route {subnet} via {underlay} dev {link} proto 102 metric {metric} onlink"
                ));
            }
        }
    }
    facts
}

/// The kernel's own default for IPv6, where 0 can't be.
fn metric(v6: bool) -> u32 {
    if v6 { 1024 } else { 0 }
}

/// The state of a node that belongs to the agent: routes to the pods' network, and everything on its devices.
pub(crate) fn observed(backend: Backend, state: &KernelState) -> BTreeSet<String> {
    let links = [false, true].map(|v6| backend.link(v6));
    let has_devices = backend != Backend::HostGw;
    let is_ours = |link: &str| has_devices && links.contains(&link);
    let routes = state.routes.iter().chain(&state.routes6).filter_map(|line| route(line));
    let mut facts: BTreeSet<String> = routes.collect();
    let printed = state.routes.iter().chain(&state.routes6);
    facts.extend(printed.filter_map(|line| blackhole(line)));
    for line in &state.neighbours {
        let (Some(addr), Some(link), Some(mac)) =
            (line.split(' ').next(), after(line, "dev"), after(line, "lladdr"))
        else {
            continue;
        };
        if is_ours(link) && addr.parse().is_ok_and(in_network) {
            facts.insert(format!("neighbour {addr} dev {link} lladdr {mac}"));
        }
    }
    for line in &state.fdb {
        let (Some(mac), Some(link), Some(dst)) =
            (line.split(' ').next(), after(line, "dev"), after(line, "dst"))
        else {
            continue;
        };
        if is_ours(link) {
            facts.insert(format!("fdb {mac} dev {link} dst {dst}"));
        }
    }
    for line in &state.addresses {
        // "flannel.1 10.42.200.0/32 scope global"
        if let [link, addr, .., "global"] = line.split(' ').collect::<Vec<_>>()[..]
            && is_ours(link)
        {
            facts.insert(format!("address {addr} dev {link}"));
        }
    }
    for line in &state.links {
        // "flannel.1 vxlan mtu 1450 up oper UNKNOWN 0a:.. id 1 .."
        let [name, _, "mtu", mtu, up, "oper", _, mac, ..] = line.split(' ').collect::<Vec<_>>()[..] else {
            continue;
        };
        if !is_ours(name) {
            continue;
        }
        let local = after(line, "local").or(after(line, "local6")).unwrap_or("-");
        let id = after(line, "id").unwrap_or("-");
        facts.insert(match backend {
            Backend::Vxlan => format!("link {name} {up} mtu {mtu} mac {mac} id {id} local {local}"),
            _ => format!("link {name} {up} mtu {mtu}"),
        });
    }
    facts
}

/// A route to our network, but the kernel's own and those to the node's own pods. Whether it names its gateway
/// itself or by a next hop (`nhid`), and what state its link is in, makes no difference.
fn route(line: &str) -> Option<String> {
    let dst = line.split_whitespace().find(|word| *word != "unicast")?;
    let net = dst.parse::<IpNetwork>().ok()?;
    if !in_network(net.ip())
        || after(line, "proto") == Some("kernel")
        || after(line, "dev") == Some(POD_BRIDGE)
    {
        return None;
    }
    let mut words = vec!["route".to_owned(), net.to_string()];
    for key in ["via", "dev", "proto"] {
        words.extend(after(line, key).map(|value| format!("{key} {value}")));
    }
    words.push(format!("metric {}", after(line, "metric").unwrap_or("0")));
    words.extend(line.split_whitespace().find(|word| *word == "onlink").map(str::to_owned));
    words.extend(after(line, "mtu").map(|value| format!("mtu {value}")));
    Some(words.join(" "))
}

/// A route of an agent that takes what is for no peer.
fn blackhole(line: &str) -> Option<String> {
    let net = line.strip_prefix("blackhole ")?.split_whitespace().next()?.parse::<IpNetwork>().ok()?;
    (in_network(net.ip()) && after(line, "proto") == Some("102")).then(|| format!("blackhole {net}"))
}

/// Next-hop objects on the backend's devices that no route uses, those that are there twice, and routes whose
/// object is not listed. Whether routes have any is the agent's choice.
pub(crate) fn next_hop_deviation(backend: Backend, state: &KernelState) -> Option<String> {
    let hop = |line: &String| {
        let (via, link) = (after(line, "via")?, after(line, "dev")?);
        let is_ours = backend != Backend::HostGw && [false, true].map(|v6| backend.link(v6)).contains(&link);
        (is_ours && via.parse().is_ok_and(in_network)).then(|| format!("next hop via {via} dev {link}"))
    };
    let routes = state.routes.iter().chain(&state.routes6).filter(|line| after(line, "nhid").is_some());
    let want: BTreeSet<String> = routes.filter_map(hop).collect();
    let mut have = BTreeSet::new();
    for hop in state.next_hops.iter().filter_map(hop) {
        let twice = format!("{hop}, once more");
        if !have.insert(hop) {
            have.insert(twice);
        }
    }
    difference(&want, &have)
}

fn in_network(addr: IpAddr) -> bool {
    NETWORKS.iter().any(|network| network.parse::<IpNetwork>().is_ok_and(|network| network.contains(addr)))
}

/// The word after `key`.
fn after<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let mut words = line.split_whitespace();
    words.find(|word| *word == key)?;
    words.next()
}

/// What one has and the other lacks, one a line; `None` if they are equal.
pub(crate) fn difference(want: &BTreeSet<String>, have: &BTreeSet<String>) -> Option<String> {
    const MOST: usize = 30;
    let missing = want.difference(have).map(|fact| format!("missing: {fact}"));
    let surplus = have.difference(want).map(|fact| format!("surplus: {fact}"));
    let mut lines = missing.chain(surplus).collect::<Vec<_>>();
    if lines.len() > MOST {
        let more = lines.len() - MOST;
        lines.truncate(MOST);
        lines.push(format!("... and {more} more"));
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests;
