//! A node with an agent, one beside it, and an API server full of nodes.

use std::ops::Deref;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use flannel_benches::leases::{FREE, config, mac, subnet, underlay};
use flannel_benches::{Fallible, wait_ready};
use flannel_lab::agent::Agent;
use flannel_lab::bed;
use flannel_lab::cluster::Cluster;
use flannel_lab::kube::fake::{KubeApi, KubeApiOptions, MetadataOnly, full_node, kubelet_node};
use flannel_lab::kube::store::KubeStore;
use flannel_lab::netns::Netns;
use flannel_lab::store::Store as _;
use serde_json::{Value, json};

/// What a node object has, with the annotations, in bytes.
const NODE: usize = 3000;
const ANNOTATIONS: usize = 300;
/// Until a start has settled.
pub(crate) const SETTLE: Duration = Duration::from_secs(5);
/// Tells how many changes were sent to the kernel, in the log.
pub(crate) const COUNT_WRITES: &str = "--vmodule=batch=1";

pub(crate) struct Bed {
    lab: bed::Bed<KubeStore>,
    pub(crate) nodes: u32,
}

impl Deref for Bed {
    type Target = bed::Bed<KubeStore>;

    fn deref(&self) -> &Self::Target {
        &self.lab
    }
}

impl Bed {
    /// The server with the own node and so many others, which all have published; no agent yet.
    pub(crate) fn build(flanneld: &Path, flags: &[String], nodes: u32, watch_list: bool) -> Fallible<Self> {
        let cluster = Cluster::builder().nodes(2).build()?;
        let options = KubeApiOptions::at(cluster.fabric(), cluster.fabric_address());
        let store = KubeStore::with_options(&cluster, KubeApiOptions { watch_list, ..options })?;
        store.api().put_node(kubelet_node("n0", &[FREE], NODE));
        (0..nodes).for_each(|n| store.api().put_node(peer(n)));
        store.put_config(&config("vxlan"))?;
        Ok(Self { lab: flannel_benches::bed(cluster, store, flanneld, flags), nodes })
    }

    /// The same with nodes of their real size, on a server that sends metadata alone, or does not know that.
    pub(crate) fn full(
        flanneld: &Path,
        flags: &[String],
        nodes: u32,
        metadata: MetadataOnly,
    ) -> Fallible<Self> {
        let cluster = Cluster::builder().nodes(2).build()?;
        let options = KubeApiOptions::at(cluster.fabric(), cluster.fabric_address());
        let store = KubeStore::with_options(&cluster, KubeApiOptions { metadata_only: metadata, ..options })?;
        store.api().put_node(full_node("n0", &[FREE]));
        let peers = (0..nodes).map(|n| published(full_node(&name(n), &[&subnet(n)]), n));
        peers.for_each(|node| store.api().put_node(node));
        store.put_config(&config("vxlan"))?;
        Ok(Self { lab: flannel_benches::bed(cluster, store, flanneld, flags), nodes })
    }

    /// The server.
    pub(crate) fn api(&self) -> &KubeApi {
        self.store.api()
    }

    /// Starts the agent on node 1.
    pub(crate) fn start(&self, flags: &[&str]) -> Fallible<Agent> {
        Ok(self.flanneld(1).env("NODE_NAME", "n0").args(flags).start()?)
    }

    /// Starts the agent and waits until it has nothing to do any more.
    pub(crate) fn start_settled(&self) -> Fallible<Agent> {
        let agent = self.start(&[COUNT_WRITES])?;
        self.wait_ready()?;
        sleep(SETTLE);
        Ok(agent)
    }

    /// The agent's namespace.
    pub(crate) fn netns(&self) -> &Netns {
        self.lab.netns(1)
    }

    /// Seconds until the agent says that all peers are in the kernel.
    pub(crate) fn wait_ready(&self) -> Fallible<f64> {
        wait_ready(self.netns())
    }

    /// Bytes that came to the agent's node so far.
    pub(crate) fn received(&self) -> Fallible<u64> {
        let count = self.netns().run("cat", &["/sys/class/net/eth0/statistics/rx_bytes"])?;
        Ok(count.trim().parse()?)
    }

    /// Changes an annotation of ours.
    pub(crate) fn annotate(&self, n: u32, suffix: &str, value: &str) {
        self.api().edit_node(&name(n), |node| node["metadata"]["annotations"][full(suffix)] = json!(value));
    }
}

/// The name of another node.
pub(crate) fn name(n: u32) -> String {
    format!("p{n:05}")
}

/// Another node, whose agent has published.
pub(crate) fn peer(n: u32) -> Value {
    published(kubelet_node(&name(n), &[&subnet(n)], NODE - ANNOTATIONS), n)
}

fn published(mut node: Value, n: u32) -> Value {
    let annotations = &mut node["metadata"]["annotations"];
    annotations[full("kube-subnet-manager")] = json!("true");
    annotations[full("backend-type")] = json!("vxlan");
    annotations[full("backend-data")] = json!(backend_data(&mac(n)));
    annotations[full("public-ip")] = json!(underlay("vxlan", n));
    node
}

pub(crate) fn backend_data(mac: &str) -> String {
    format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)
}

fn full(suffix: &str) -> String {
    format!("flannel.alpha.coreos.com/{suffix}")
}

/// The changes that an agent sent to the kernel so far, if it was told to count them.
pub(crate) fn writes(agent: &Agent) -> u64 {
    let log = agent.log();
    let lines = log.lines().filter(|line| line.contains("operations carried out"));
    lines.filter_map(|line| line.split_once("ops=")?.1.split(' ').next()?.parse::<u64>().ok()).sum()
}

/// Does something `count` times, `rate` times a second.
pub(crate) fn pace(count: u32, rate: u32, mut act: impl FnMut(u32)) {
    let start = Instant::now();
    for n in 0..count {
        let due = start + Duration::from_secs(1) * n / rate;
        sleep(due.saturating_duration_since(Instant::now()));
        act(n);
    }
}

pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
