//! A cluster with its control plane: etcd and the API server on the fabric, and what a kubelet does on every node.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use flannel_lab::LabError;
use flannel_lab::agent::Agent;
use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::etcd::{Etcd, EtcdOptions};
use flannel_lab::flanneld::ready;
use flannel_lab::kube::real::{ApiServer, ApiServerOptions, Audited};
use flannel_lab::node::Node;
use flannel_lab::pod::Pod;
use flannel_lab::subnet_env::SubnetEnv;
use flannel_lab::wait::wait_for;
use serde_json::{Value, json};

use crate::Fallible;
use crate::kubelet::Kubelet;

/// The health server's port in the manifest.
const HEALTH_PORT: u16 = 8081;
/// The file that the agent writes for the CNI plugin.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// How long anything may take that takes a fraction of a second.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Everything there is.
#[derive(Debug)]
pub(crate) struct World {
    // In the order of their end: an agent needs its node, a pod its bridge.
    pub(crate) pods: BTreeMap<u8, Pod>,
    pub(crate) agents: BTreeMap<u8, Agent>,
    pub(crate) kubelets: BTreeMap<u8, Kubelet>,
    pub(crate) envs: BTreeMap<u8, SubnetEnv>,
    pub(crate) api: ApiServer,
    pub(crate) etcd: Etcd,
    pub(crate) cluster: Cluster,
    flanneld: PathBuf,
}

impl World {
    /// A control plane, and nodes that it knows nothing of yet.
    pub(crate) fn start(
        nodes: u8,
        families: Families,
        kube_apiserver: &Path,
        flanneld: &Path,
    ) -> Fallible<Self> {
        let cluster = Cluster::builder().nodes(nodes).families(families).build()?;
        let netns = cluster.fabric().clone();
        let etcd = Etcd::start(EtcdOptions { netns: Some(netns.clone()), ..EtcdOptions::default() })?;
        let api = ApiServer::start(ApiServerOptions {
            program: kube_apiserver.to_owned(),
            netns,
            listen: cluster.fabric_address(),
            etcd: etcd.endpoint().to_owned(),
            args: dual_stack_gate(kube_apiserver, families)?,
        })?;
        let kubelets = cluster.nodes().map(|node| (node.number(), Kubelet::of(node))).collect();
        let flanneld = flanneld.to_owned();
        let (pods, agents, envs) = Default::default();
        Ok(Self { pods, agents, kubelets, envs, api, etcd, cluster, flanneld })
    }

    /// One more node, which the control plane knows nothing of yet.
    pub(crate) fn add_node(&mut self) -> Fallible<u8> {
        let node = self.cluster.add_node()?;
        let number = node.number();
        self.kubelets.insert(number, Kubelet::of(node));
        Ok(number)
    }

    /// Tells the control plane of a node, as its kubelet and the controllers would: without a network so far.
    pub(crate) fn register(&self, number: u8, pod_cidrs: &[String]) -> Fallible<()> {
        let name = self.node(number).name();
        let mut node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
        if let Some(first) = pod_cidrs.first() {
            node["spec"] = json!({ "podCIDR": first, "podCIDRs": pod_cidrs });
        }
        self.api.create("/api/v1/nodes", &node)?;
        let condition = json!({ "type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated" });
        self.api.merge(
            &format!("{}/status", node_path(name)),
            &json!({ "status": { "conditions": [condition] } }),
        )?;
        Ok(())
    }

    /// The pod CIDRs that the controllers give a node.
    pub(crate) fn pod_cidrs(&self, number: u8) -> Vec<String> {
        let families = self.cluster.families();
        let v4 = families.v4().then(|| format!("10.244.{number}.0/24"));
        let v6 = families.v6().then(|| format!("fd00:10:244:{number}::/64"));
        v4.into_iter().chain(v6).collect()
    }

    /// A node's object.
    pub(crate) fn object(&self, number: u8) -> Fallible<Value> {
        Ok(self.api.get(&node_path(self.node(number).name()))?)
    }

    /// Deletes a node's object.
    pub(crate) fn unregister(&self, number: u8) -> Fallible<()> {
        self.api.delete(&node_path(self.node(number).name()))?;
        Ok(())
    }

    /// Starts a node's agent by the `DaemonSet`, and does not wait for it.
    pub(crate) fn start_agent(&mut self, number: u8) -> Fallible<()> {
        let kubelet = self.kubelets.get_mut(&number).ok_or("a node without a kubelet")?;
        let agent = kubelet.run(self.cluster.node(number), &self.api, &self.flanneld)?;
        self.agents.insert(number, agent);
        Ok(())
    }

    /// Kills a node's agent, and starts it again in the same pod.
    pub(crate) fn restart_agent(&mut self, number: u8) -> Fallible<()> {
        self.agents[&number].kill()?;
        let agent = self.kubelets[&number].run_again()?;
        self.agents.insert(number, agent);
        Ok(())
    }

    /// Waits until a node's agent wrote its subnet file and says that it is ready, and reads the file.
    pub(crate) fn wait_until_ready(&mut self, number: u8) -> Fallible<()> {
        self.wait_until_ready_within(SOON, number)
    }

    /// [`wait_until_ready`](Self::wait_until_ready) that may take longer.
    pub(crate) fn wait_until_ready_within(&mut self, deadline: Duration, number: u8) -> Fallible<()> {
        let file = self.subnet_file(number);
        let (agent, node) = (&self.agents[&number], self.node(number));
        let mut said = String::new();
        let what = format!("{} to be ready", agent.name());
        let waited = agent.wait_while_running(deadline, &what, || {
            file.exists() && ready(node.netns(), HEALTH_PORT).map_err(|answer| said = answer).is_ok()
        });
        waited.map_err(|error| format!("{error}\n{said}"))?;
        self.envs.insert(number, SubnetEnv::read(&file)?);
        Ok(())
    }

    /// What the agent's health server says if it isn't ready.
    pub(crate) fn readiness(&self, number: u8) -> Result<(), String> {
        ready(self.node(number).netns(), HEALTH_PORT)
    }

    /// Where a node's agent writes its subnets.
    pub(crate) fn subnet_file(&self, number: u8) -> PathBuf {
        self.kubelets[&number].host_path(SUBNET_FILE)
    }

    /// Attaches a pod to a node.
    pub(crate) fn attach_pod(&mut self, number: u8) -> Fallible<()> {
        let pod = Pod::attach_plain(self.node(number), &self.envs[&number])?;
        self.pods.insert(number, pod);
        Ok(())
    }

    /// Waits until a node has, or has not, a route to each of another's pod CIDRs; returns how long that took.
    pub(crate) fn wait_for_route(&self, from: u8, to: u8, is_wanted: bool) -> Fallible<Duration> {
        self.wait_for_route_within(SOON, from, to, is_wanted)
    }

    /// Waits until every other node with an agent has, or has not, its routes to a node.
    pub(crate) fn wait_for_everybody(&self, deadline: Duration, to: u8, is_wanted: bool) -> Fallible<()> {
        for from in self.agents.keys().filter(|from| **from != to) {
            self.wait_for_route_within(deadline, *from, to, is_wanted)?;
        }
        Ok(())
    }

    /// [`wait_for_route`](Self::wait_for_route) that may take longer.
    pub(crate) fn wait_for_route_within(
        &self,
        deadline: Duration,
        from: u8,
        to: u8,
        is_wanted: bool,
    ) -> Fallible<Duration> {
        let start = Instant::now();
        let node = self.node(from).netns();
        let verb = if is_wanted { "learn" } else { "forget" };
        wait_for(deadline, &format!("node{from} to {verb} node{to}"), || {
            let routes = [node.ip("-4 route show")?, node.ip("-6 route show")?].concat();
            let known = routes.lines().filter_map(|line| line.split_whitespace().next()).collect::<Vec<_>>();
            let mut cidrs = self.pod_cidrs(to).into_iter();
            let wrong = cidrs.find(|cidr| known.contains(&cidr.as_str()) != is_wanted);
            wrong.map_or(Ok(()), |cidr| Err(LabError::Invalid(cidr)))
        })?;
        Ok(start.elapsed())
    }

    /// What a node's agent asked the API server so far.
    pub(crate) fn audited(&self, number: u8) -> Fallible<Vec<Audited>> {
        let address = self.node(number).address();
        let all = self.api.audited()?;
        Ok(all.into_iter().filter(|request| request.from == Some(address)).collect())
    }

    /// A node.
    pub(crate) fn node(&self, number: u8) -> &Node {
        self.cluster.node(number)
    }
}

/// The path of a node's object.
pub(crate) fn node_path(name: &str) -> String {
    format!("/api/v1/nodes/{name}")
}

/// Before 1.21 two families a node had to be asked for; servers of later versions know no such gate.
fn dual_stack_gate(kube_apiserver: &Path, families: Families) -> Fallible<Vec<String>> {
    let output = Command::new(kube_apiserver).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let minor = minor_version(&text)
        .ok_or_else(|| format!("{} --version said {text:?}", kube_apiserver.display()))?;
    let is_needed = families == Families::Dual && minor < 21;
    Ok(is_needed.then(|| "--feature-gates=IPv6DualStack=true".to_owned()).into_iter().collect())
}

/// 20 of `Kubernetes v1.20.2`.
fn minor_version(text: &str) -> Option<u32> {
    text.split_once("v1.")?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(minor_version("Kubernetes v1.20.2\n"), Some(20));
        assert_eq!(minor_version("Kubernetes v1.33.0-rc.1"), Some(33));
        assert_eq!(minor_version("Kubernetes"), None);
    }
}
