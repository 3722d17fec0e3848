//! Nodes, agents and pods of every method.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use flannel_benches::Fallible;
use flannel_lab::agent::{Agent, AgentBuilder};
use flannel_lab::bed::{self, HEALTH_PORT};
use flannel_lab::cluster::Cluster;
use flannel_lab::flanneld;
use flannel_lab::netns::Netns;
use flannel_lab::pod::Pod;
use flannel_lab::store::{Folder, Store as _};
use flannel_lab::subnet_env::SubnetEnv;

use crate::wireguard;

/// A way for packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Method {
    /// From node to node, without pods.
    Underlay,
    /// The host-gw backend: plain routes.
    HostGw,
    /// The vxlan backend as it is by default: strangers are counted.
    Vxlan,
    /// The vxlan backend with `--strict-underlay=off`.
    VxlanOff,
    /// The vxlan backend with `--strict-underlay=enforce`.
    VxlanEnforce,
    /// The udp backend as it is by default: a second thread under load.
    Udp,
    /// The udp backend, one thread.
    #[value(name = "udp-1")]
    Udp1,
    /// The udp backend, a thread for each direction.
    #[value(name = "udp-2")]
    Udp2,
    /// WireGuard in user space: ours.
    WireguardUser,
    /// Debian's `wireguard-go`.
    WireguardGo,
    /// The naive forwarder.
    Naive,
    /// From a node of ours (udp) to one with the naive forwarder.
    ToNaive,
    /// From a node with the naive forwarder to one of ours (udp).
    FromNaive,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("no method is skipped");
        f.pad(value.get_name())
    }
}

/// An underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lab {
    /// veth as it is.
    A,
    /// Like a wire.
    B,
    /// The worst case.
    C,
}

impl fmt::Display for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "a",
            Self::B => "b",
            Self::C => "c",
        })
    }
}

impl Lab {
    /// What it stands for.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::A => {
                "veth defaults: 64 KiB super-packets cross the underlay (VMs or containers on one host)"
            }
            Self::B => "no TSO on the underlay, GRO on: real 1500-byte frames, as on a wire",
            Self::C => "neither TSO nor GRO on the underlay: the worst case",
        }
    }

    /// The offloads of both ends of every underlay link, as `ethtool -K` has them.
    fn features(self) -> &'static [&'static str] {
        match self {
            Self::A => &[
                "tso",
                "on",
                "gso",
                "on",
                "gro",
                "off",
                "tx-udp-segmentation",
                "on",
                "tx-udp_tnl-segmentation",
                "on",
            ],
            Self::B => &[
                "tso",
                "off",
                "gso",
                "on",
                "gro",
                "on",
                "tx-udp-segmentation",
                "off",
                "tx-udp_tnl-segmentation",
                "off",
            ],
            Self::C => &[
                "tso",
                "off",
                "gso",
                "off",
                "gro",
                "off",
                "tx-udp-segmentation",
                "off",
                "tx-udp_tnl-segmentation",
                "off",
            ],
        }
    }
}

/// One method's ends.
pub(crate) struct Ends {
    pub(crate) from: Netns,
    pub(crate) to: Netns,
    pub(crate) dst: IpAddr,
    /// The processes on the way.
    pub(crate) carriers: Vec<Agent>,
    _pods: Vec<Pod>,
    _server: Agent,
}

/// All of them.
pub(crate) struct Bed {
    cluster: Cluster,
    pub(crate) ends: BTreeMap<Method, Ends>,
}

impl Bed {
    /// Builds everything and waits until it works.
    ///
    /// The stores of vxlan have `leases` more nodes, which do not exist.
    pub(crate) fn build(methods: &[Method], flanneld: &Path, naive: &Path, leases: u32) -> Fallible<Self> {
        let nodes = u8::try_from(methods.len() * 2)?;
        let cluster = Cluster::builder().nodes(nodes).build()?;
        for first in (1..=nodes).step_by(2) {
            join(&cluster, first)?;
        }
        let mut ends = BTreeMap::new();
        for (at, method) in methods.iter().enumerate() {
            let first = u8::try_from(at * 2 + 1)?;
            ends.insert(*method, build(&cluster, first, *method, flanneld, naive, leases)?);
        }
        Ok(Self { cluster, ends })
    }

    /// Gives the underlay its offloads.
    pub(crate) fn shape(&self, lab: Lab) -> Fallible<()> {
        let set = |netns: &Netns, link: &str| {
            let mut args = vec!["-K", link];
            args.extend(lab.features());
            netns.run("ethtool", &args).map(drop)
        };
        for node in self.cluster.nodes() {
            set(node.netns(), "eth0")?;
        }
        Ok(())
    }
}

/// Puts one veth pair in the place of the way over the lab's bridge, whose work would blur all ratios.
fn join(cluster: &Cluster, first: u8) -> Fallible<()> {
    let nodes = [first, first + 1].map(|number| cluster.node(number));
    let addresses = nodes.map(flannel_lab::node::Node::address);
    for node in nodes {
        node.delete_nic("eth0")?;
    }
    let peer = nodes[1].netns().name();
    nodes[0].netns().ip(&format!("link add eth0 type veth peer name eth0 netns {peer}"))?;
    for (node, address) in nodes.iter().zip(addresses) {
        node.netns().ip(&format!("address add {address}/24 dev eth0"))?;
        node.netns().ip("link set eth0 up")?;
    }
    Ok(())
}

fn build(
    cluster: &Cluster,
    first: u8,
    method: Method,
    flanneld: &Path,
    naive: &Path,
    leases: u32,
) -> Fallible<Ends> {
    let numbers = [first, first + 1];
    let (mut carriers, mut pods) = (Vec::new(), Vec::new());
    let [from, to] = numbers.map(|number| cluster.node(number).netns().clone());
    let (from, to, dst) = match method {
        Method::Underlay => (from, to, cluster.node(first + 1).address()),
        Method::Naive => {
            for (number, other) in [(first, first + 1), (first + 1, first)] {
                carriers.push(start_naive(cluster, number, other, naive)?);
                pods.push(Pod::attach_plain(cluster.node(number), &naive_env(number)?)?);
            }
            ends_of(&pods)?
        }
        Method::WireguardUser | Method::WireguardGo => {
            for number in numbers {
                let start =
                    if method == Method::WireguardGo { wireguard::start_go } else { wireguard::start_ours };
                carriers.push(start(cluster, number, first + first + 1 - number, naive)?);
                pods.push(Pod::attach_plain(cluster.node(number), &wireguard::env(number)?)?);
            }
            ends_of(&pods)?
        }
        Method::ToNaive => mixed(cluster, first, first + 1, flanneld, naive, &mut carriers, &mut pods)?,
        Method::FromNaive => {
            let (ours, theirs, _) =
                mixed(cluster, first + 1, first, flanneld, naive, &mut carriers, &mut pods)?;
            (theirs, ours, pods[0].ipv4().ok_or("the pod has no IPv4 address")?)
        }
        Method::HostGw
        | Method::Vxlan
        | Method::VxlanOff
        | Method::VxlanEnforce
        | Method::Udp
        | Method::Udp1
        | Method::Udp2 => {
            let (store, flag) = store_for(first, method, leases)?;
            for number in numbers {
                carriers.push(run_flanneld(cluster, number, &store, flanneld, flag)?);
            }
            for number in numbers {
                wait_ready(cluster.node(number).netns(), &carriers)?;
                let env = SubnetEnv::read(&env_file(number))?;
                pods.push(Pod::attach_plain(cluster.node(number), &env)?);
            }
            ends_of(&pods)?
        }
    };
    let server = AgentBuilder::new(&format!("iperf{first}"), "iperf3").args(["-s"]).netns(&to).start()?;
    Ok(Ends { from, to, dst, carriers, _pods: pods, _server: server })
}

/// A node of ours, which knows the other by a record in its store, and one with the naive forwarder. Returns
/// our pod's namespace, the other's, and the other's address.
fn mixed(
    cluster: &Cluster,
    ours: u8,
    theirs: u8,
    flanneld: &Path,
    naive: &Path,
    carriers: &mut Vec<Agent>,
    pods: &mut Vec<Pod>,
) -> Fallible<(Netns, Netns, IpAddr)> {
    let store = store_of(ours)?;
    let value = format!(r#"{{"PublicIP":"{}","PublicIPv6":null}}"#, cluster.node(theirs).address());
    store.put(&format!("10.99.{theirs}.0-24"), &value)?;
    store.put_config(r#"{"Network":"10.99.0.0/16","Backend":{"Type":"udp"}}"#)?;
    carriers.push(run_flanneld(cluster, ours, &store, flanneld, Some("--udp-threads=1"))?);
    wait_ready(cluster.node(ours).netns(), carriers)?;
    pods.push(Pod::attach_plain(cluster.node(ours), &SubnetEnv::read(&env_file(ours))?)?);
    carriers.push(start_naive(cluster, theirs, ours, naive)?);
    pods.push(Pod::attach_plain(cluster.node(theirs), &naive_env(theirs)?)?);
    ends_of(pods)
}

fn ends_of(pods: &[Pod]) -> Fallible<(Netns, Netns, IpAddr)> {
    let dst = pods[1].ipv4().ok_or("the pod has no IPv4 address")?;
    Ok((pods[0].netns().clone(), pods[1].netns().clone(), dst))
}

fn env_file(number: u8) -> std::path::PathBuf {
    format!("/run/bench-{number}.env").into()
}

/// The store of a pair of nodes with a method's config, and the flag of their agents.
fn store_for(first: u8, method: Method, leases: u32) -> Fallible<(Folder, Option<&'static str>)> {
    let (kind, flag) = match method {
        Method::HostGw => ("host-gw", None),
        Method::Udp => ("udp", None),
        Method::Udp1 => ("udp", Some("--udp-threads=1")),
        Method::Udp2 => ("udp", Some("--udp-threads=2")),
        Method::VxlanOff => ("vxlan", Some("--strict-underlay=off")),
        Method::VxlanEnforce => ("vxlan", Some("--strict-underlay=enforce")),
        _ => ("vxlan", None),
    };
    let store = store_of(first)?;
    if kind == "vxlan" {
        store
            .put_config(r#"{"Network":"10.0.0.0/8","SubnetMin":"10.200.0.0","Backend":{"Type":"vxlan"}}"#)?;
        crowd(&store, leases)?;
    } else {
        let network = 100 + first;
        store.put_config(&format!(r#"{{"Network":"10.{network}.0.0/16","Backend":{{"Type":"{kind}"}}}}"#))?;
    }
    Ok((store, flag))
}

/// An empty store for a pair of nodes.
fn store_of(first: u8) -> Fallible<Folder> {
    Ok(Folder::new(format!("/run/bench-store-{first}"))?)
}

/// Records of nodes that do not exist.
fn crowd(store: &Folder, leases: u32) -> Fallible<()> {
    for n in 0..leases {
        let [_, _, high, low] = n.to_be_bytes();
        let value = format!(
            r#"{{"PublicIP":"198.18.{high}.{low}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0a:01:00:00:{high:02x}:{low:02x}"}}}}"#
        );
        store.put(&format!("10.{high}.{low}.0-24"), &value)?;
    }
    Ok(())
}

fn run_flanneld(
    cluster: &Cluster,
    number: u8,
    store: &Folder,
    flanneld: &Path,
    flag: Option<&str>,
) -> Fallible<Agent> {
    let program = flanneld.display().to_string();
    let agent = bed::flanneld(cluster.node(number), &[&program], store, &env_file(number));
    Ok(agent.arg("--iface=eth0").args(flag).start()?)
}

fn wait_ready(netns: &Netns, agents: &[Agent]) -> Fallible<()> {
    let start = Instant::now();
    while flanneld::ready(netns, HEALTH_PORT).is_err() {
        if start.elapsed() > Duration::from_secs(20) {
            let logs: Vec<_> = agents.iter().map(Agent::last_lines).collect();
            return Err(format!("an agent did not become ready\n{}", logs.join("\n")).into());
        }
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn naive_env(number: u8) -> Fallible<SubnetEnv> {
    let (network, rest) = ("FLANNEL_NETWORK=10.99.0.0/16", "FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false");
    Ok(format!("{network}\nFLANNEL_SUBNET=10.99.{number}.1/24\n{rest}\n").parse()?)
}

fn start_naive(cluster: &Cluster, number: u8, other: u8, naive: &Path) -> Fallible<Agent> {
    let node = cluster.node(number);
    let agent = node
        .agent(&format!("naive{number}"), naive)
        .args(["--tun", "naive0"])
        .arg(format!("--local={}:8285", node.address()))
        .arg(format!("--peer={}:8285", cluster.node(other).address()))
        .start()?;
    agent.wait_for_log("up", Duration::from_secs(5))?;
    node.netns().ip("link set naive0 mtu 1472 up")?;
    node.netns().ip(&format!("address add 10.99.{number}.0/32 dev naive0"))?;
    node.netns().ip("route add 10.99.0.0/16 dev naive0")?;
    Ok(agent)
}
