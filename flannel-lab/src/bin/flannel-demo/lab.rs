//! The cluster of the demo: nodes, the store in a folder, an agent and a pod on every node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flannel_lab::LabError;
use flannel_lab::bed::Bed;
use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::node::Node;
use flannel_lab::pod::Pod;
use flannel_lab::store::{Folder, Store as _};
use flannel_lab::subnet_env::SubnetEnv;
use flannel_lab::wait::wait_for;
use serde_json::Value;

use crate::Fallible;
use crate::status::Status;

/// Everything the demo puts on disk. `/run` is the sandbox's own.
const FOLDER: &str = "/run/flannel-demo";
/// Flags of all agents.
const FLAGS: [&str; 3] = ["--iface=eth0", "--log-format=text", "--healthz-ip=127.0.0.1"];
/// How long an agent may take to be ready. It is done in a fraction of a second.
const DEADLINE: Duration = Duration::from_secs(20);
/// Up to here nodes resolve each other on the underlay as they do anywhere.
const SMALL: usize = 20;

/// A cluster with flannel on it.
#[derive(Debug)]
pub(crate) struct Lab {
    // In the order of their end: a pod needs its bridge.
    pub(crate) pods: BTreeMap<u8, Pod>,
    pub(crate) envs: BTreeMap<u8, SubnetEnv>,
    pub(crate) bed: Bed<Folder>,
    flanneld: PathBuf,
    backend: String,
}

/// What is said of packets that udp loses while its agent is away.
pub(crate) const OF_UDP: &str = "udp carries packets in the agent";

impl Lab {
    /// Nodes on an underlay, without agents.
    pub(crate) fn new(nodes: u8, families: Families, backend: &str, flanneld: &Path) -> Fallible<Self> {
        let cluster = Cluster::builder().nodes(nodes).families(families).build()?;
        let bed = Bed::new(cluster, Folder::new(store())?, flanneld).folder(FOLDER).flags(FLAGS);
        let (pods, envs) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { pods, envs, bed, flanneld: flanneld.to_owned(), backend: backend.to_owned() })
    }

    /// Puts the network config into the store and returns it.
    pub(crate) fn write_config(&self) -> Fallible<String> {
        let config = network_config(self.bed.cluster.families(), &self.backend);
        self.bed.store.put_config(&config)?;
        Ok(config)
    }

    /// Waits until a node's agent says that it is ready, and reads what it wrote for the CNI plugin.
    pub(crate) fn wait_until_ready(&mut self, number: u8) -> Fallible<()> {
        self.bed.wait_ready(number, DEADLINE)?;
        self.envs.insert(number, self.bed.env(number)?);
        Ok(())
    }

    /// Whether the agents carry the packets themselves.
    pub(crate) fn is_udp(&self) -> bool {
        self.backend == "udp"
    }

    /// Asks node1's agent, as an operator would.
    pub(crate) fn status(&self) -> Status {
        Status::of(&self.flanneld, self.node(1).netns(), &self.bed.subnet_file(1))
    }

    /// Waits until every node has a route to every other node's pods, in each family.
    pub(crate) fn wait_for_routes(&self) -> Result<(), LabError> {
        wait_for(DEADLINE, "all nodes to have routes to all others", || {
            self.envs.keys().try_for_each(|number| self.knows_all(*number))
        })
    }

    /// Whether a node has a route to every other node's pods. One route of udp leads to all nodes, so there its agent is
    /// asked.
    pub(crate) fn knows_all(&self, number: u8) -> Result<(), String> {
        if self.is_udp() {
            let status = Status::of(&self.flanneld, self.node(number).netns(), &self.bed.subnet_file(number));
            let (peers, others) = (status.peers(), self.envs.len() as u64 - 1);
            return if peers >= others {
                Ok(())
            } else {
                Err(format!("node{number} knows {peers} of {others}"))
            };
        }
        match self.missing_route(number) {
            Ok(None) => Ok(()),
            Ok(Some(missing)) => Err(format!("node{number} has none to {missing}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// A subnet of another node to which this one has no route.
    pub(crate) fn missing_route(&self, number: u8) -> Result<Option<String>, LabError> {
        let node = self.node(number).netns();
        let routes = [node.ip("-4 route show")?, node.ip("-6 route show")?].concat();
        let known = routes.lines().filter_map(|line| line.split_whitespace().next()).collect::<Vec<_>>();
        let others = self.envs.iter().filter(|(other, _)| **other != number);
        let mut subnets = others.flat_map(|(_, env)| env.families());
        let missing = subnets.find_map(|family| {
            let subnet = format!("{}/{}", family.gateway.network(), family.gateway.prefix());
            (!known.contains(&subnet.as_str())).then_some(subnet)
        });
        Ok(missing)
    }

    /// Attaches a pod to a node.
    pub(crate) fn attach_pod(&mut self, number: u8) -> Fallible<()> {
        let pod = Pod::attach_plain(self.node(number), &self.envs[&number])?;
        self.pods.insert(number, pod);
        Ok(())
    }

    /// Tells all nodes each other's MAC on the underlay, in a cluster so large that it needs that.
    ///
    /// All namespaces of a machine share one table of 1024 resolved neighbours a family
    /// (`net.ipv4.neigh.default.gc_thresh3`), which a namespace can't change. Pings between all pods of thirty
    /// nodes would fill it; entries that were put there for good don't count.
    pub(crate) fn pin_underlay(&self) -> Fallible<()> {
        if self.envs.len() <= SMALL {
            return Ok(());
        }
        let mut entries = Vec::new();
        for node in self.bed.cluster.nodes() {
            let link = node.netns().ip_json("link show dev eth0")?;
            let mac = link[0]["address"].as_str().ok_or("eth0 has no address")?.to_owned();
            let addresses = node.ipv4().into_iter().chain(node.ipv6());
            entries.extend(addresses.map(|address| {
                (node.number(), format!("neigh replace {address} lladdr {mac} dev eth0 nud permanent"))
            }));
        }
        for node in self.bed.cluster.nodes() {
            let others = entries.iter().filter(|(number, _)| *number != node.number());
            node.netns().ip_batch(&others.map(|(_, line)| line.clone()).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// A node.
    pub(crate) fn node(&self, number: u8) -> &Node {
        self.bed.cluster.node(number)
    }

    /// A pod's address.
    pub(crate) fn pod_address(&self, number: u8, v6: bool) -> Option<IpAddr> {
        let pod = self.pods.get(&number)?;
        if v6 { pod.ipv6() } else { pod.ipv4() }
    }

    /// The families in use, IPv4 first: false for IPv4, true for IPv6.
    pub(crate) fn families(&self) -> Vec<bool> {
        self.bed.cluster.families().list()
    }
}

/// The name of a family.
pub(crate) fn family_name(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}

/// The folder that all agents share as their store.
pub(crate) fn store() -> PathBuf {
    Path::new(FOLDER).join("store")
}

/// The network of all pods in a family.
pub(crate) fn network(v6: bool) -> &'static str {
    if v6 { "fd00:42::/48" } else { "10.42.0.0/16" }
}

fn network_config(families: Families, backend: &str) -> String {
    let (net4, net6) = (network(false), network(true));
    let v4 =
        if families.v4() { format!(r#""Network": "{net4}""#) } else { r#""EnableIPv4": false"#.to_owned() };
    let v6 = if families.v6() {
        format!(r#", "EnableIPv6": true, "IPv6Network": "{net6}""#)
    } else {
        String::new()
    };
    // Quoted by the JSON library, whatever the user wrote.
    format!("{{ {v4}{v6},\n  \"Backend\": {{ \"Type\": {} }} }}\n", Value::from(backend))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_config_has_the_families_asked_for() {
        for (families, want) in [
            (Families::V4, json!({ "Network": "10.42.0.0/16" })),
            (Families::V6, json!({ "EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:42::/48" })),
            (
                Families::Dual,
                json!({ "Network": "10.42.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:42::/48" }),
            ),
        ] {
            let mut config: Value = serde_json::from_str(&network_config(families, "a\"b")).unwrap();
            let backend = config.as_object_mut().unwrap().remove("Backend").unwrap();
            assert_eq!((backend, config), (json!({ "Type": "a\"b" }), want));
        }
    }
}
