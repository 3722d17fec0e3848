//! A cluster with a store and an agent a node.

use std::fs;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flannel_lab::agent::Agent;
use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::kernel_state::KernelState;
use flannel_lab::netns::Netns;
use flannel_lab::node::Node;
use flannel_lab::ping::{PingOptions, PingReport, Pinger, system_ping};
use flannel_lab::pod::{CniOptions, Pod};
#[cfg(any(feature = "etcd", feature = "kube"))]
pub(crate) use flannel_lab::store::Server;
pub(crate) use flannel_lab::store::{Folder, Store};
use flannel_lab::subnet_env::SubnetEnv;
use flannel_lab::wait::{eventually, patiently};
use flannel_lab::{bed, flanneld};
use serde_json::Value;

use crate::backends::{BackendCase, Own, Remote};

/// How long anything may take that should be done in milliseconds: this is no benchmark.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The binary under test.
pub(crate) const FLANNELD: &str = env!("CARGO_BIN_EXE_flanneld");

/// Takes the table of vxlan's gate out of a listing by `nft`: it keeps no pod's rules.
pub(crate) const WITHOUT_GATE: &str = "sed '/^table [a-z]* flannel-underlay/,/^}/d'";

/// An empty local store.
pub(crate) fn new_folder() -> Folder {
    Folder::new("/run/flannel-store").unwrap()
}

/// A bed whose agents are the binary under test, with the flags of a backend's case.
pub(crate) struct Bed<S> {
    pub(crate) case: &'static BackendCase,
    lab: bed::Bed<S>,
}

impl<S> Deref for Bed<S> {
    type Target = bed::Bed<S>;

    fn deref(&self) -> &Self::Target {
        &self.lab
    }
}

impl<S> DerefMut for Bed<S> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.lab
    }
}

impl<S: Store> Bed<S> {
    /// A cluster whose agents are not started yet.
    pub(crate) fn new(cluster: Cluster, store: S, case: &'static BackendCase, families: Families) -> Self {
        Self::with_config(cluster, store, case, &case.config(families))
    }

    /// A cluster with a config of its own.
    pub(crate) fn with_config(cluster: Cluster, store: S, case: &'static BackendCase, config: &str) -> Self {
        store.put_config(config).unwrap();
        let flags = ["-v=1"].iter().chain(case.flags).copied();
        Self { case, lab: bed::Bed::new(cluster, store, Path::new(FLANNELD)).flags(flags) }
    }

    /// Three nodes whose agents know each other.
    pub(crate) fn of_three(case: &'static BackendCase, store: impl FnOnce(&Cluster) -> S) -> Self {
        let cluster = Cluster::builder().nodes(3).families(case.widest()).build().unwrap();
        let store = store(&cluster);
        let mut bed = Self::new(cluster, store, case, case.widest());
        bed.start_all();
        (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
        bed
    }

    /// Starts the agents of all nodes and waits until each has its subnet.
    pub(crate) fn start_all(&mut self) {
        let numbers: Vec<u8> = self.cluster.nodes().map(Node::number).collect();
        for number in &numbers {
            self.spawn(*number, &[]);
        }
        for number in &numbers {
            self.wait_ready(*number);
        }
    }

    /// Starts one agent.
    pub(crate) fn start(&mut self, number: u8) {
        self.spawn(number, &[]);
        self.wait_ready(number);
    }

    /// Starts one agent without waiting.
    pub(crate) fn spawn(&mut self, number: u8, more: &[&str]) {
        self.spawn_on(number, "eth0", more);
    }

    /// Starts one agent on another interface without waiting.
    pub(crate) fn spawn_on(&mut self, number: u8, iface: &str, more: &[&str]) {
        self.spawn_by(number, &[&format!("--iface={iface}")], more);
    }

    /// Starts one agent that finds its underlay by these flags, without waiting.
    pub(crate) fn spawn_by(&mut self, number: u8, iface: &[&str], more: &[&str]) {
        self.keep(number, &self.flanneld(number).args(iface).args(more)).unwrap();
    }

    /// Waits until an agent says that it is ready.
    #[track_caller]
    pub(crate) fn wait_ready(&self, number: u8) {
        // A start may have much to list while other tests start as much.
        if let Err(error) = self.lab.wait_ready(number, 3 * SOON) {
            panic!("{error}");
        }
    }

    /// Ends an agent without a chance to clean up.
    pub(crate) fn kill(&mut self, number: u8) {
        self.agent(number).kill().unwrap();
    }

    /// Ends an agent as a supervisor would.
    pub(crate) fn stop(&mut self, number: u8) {
        let status = self.agent(number).terminate().unwrap();
        assert!(status.success(), "{status}");
    }

    /// A pod by the real CNI plugins.
    pub(crate) fn pod(&self, number: u8) -> Pod {
        Pod::attach_cni(self.cluster.node(number), &env_of(number), &CniOptions::default()).unwrap()
    }

    /// How many operations an agent sent to the kernel.
    pub(crate) fn operations(&self, number: u8) -> usize {
        self.agent(number).log().matches("execute op=").count()
    }

    /// Waits until an agent has sent nothing to the kernel for a while.
    #[track_caller]
    pub(crate) fn wait_until_still(&self, number: u8) {
        let still = Duration::from_secs(1);
        let mut last = (self.operations(number), Instant::now());
        eventually(2 * SOON, &format!("agent {number} to have nothing to do"), || {
            let now = self.operations(number);
            if now != last.0 {
                last = (now, Instant::now());
            }
            last.1.elapsed() > still
        });
    }

    /// The record of a node.
    pub(crate) fn record_of(&self, number: u8) -> (String, Value) {
        let ip = self.cluster.node(number).ipv4().unwrap().to_string();
        let records = self.store.records().unwrap().into_iter();
        let mut records = records.map(|(key, value)| (key, serde_json::from_str::<Value>(&value).unwrap()));
        records.find(|(_, value)| value["PublicIP"] == ip.as_str()).unwrap()
    }

    /// A node as another sees it, in each family.
    pub(crate) fn remotes(&self, number: u8) -> Vec<Remote> {
        let (key, value) = self.record_of(number);
        sides(self.case, &key, &value).into_iter().map(|(_, remote)| remote).collect()
    }

    /// The flannel devices of a node and the routes to pods, without what the kernel makes by itself.
    pub(crate) fn state(&self, number: u8) -> KernelState {
        let mut state = KernelState::of(self.netns(number)).unwrap();
        let lists = [
            &mut state.links,
            &mut state.addresses,
            &mut state.routes,
            &mut state.routes6,
            &mut state.next_hops,
            &mut state.neighbours,
            &mut state.fdb,
        ];
        for lines in lists {
            lines.retain(|line| is_flannels(line));
        }
        state
    }

    /// Waits until a node's flannel devices are in this state.
    #[track_caller]
    pub(crate) fn wait_for_state(&self, number: u8, what: &str, want: &KernelState) {
        eventually(SOON, what, || {
            let have = self.state(number);
            if have == *want { Ok(()) } else { Err(format!("\nhave {have}\nwant {want}")) }
        });
    }

    /// Waits until a node has routes to this many peers in each family that it has.
    #[track_caller]
    pub(crate) fn wait_for_peers(&self, number: u8, peers: usize) {
        if !self.case.routes_peers {
            // The state file names them once they are in use.
            let path = subnet_file(number).with_extension("env.state");
            eventually(SOON, &format!("{peers} peers in use on node {number}"), || {
                let text = fs::read_to_string(&path).unwrap_or_default();
                let state: Value = serde_json::from_str(&text).unwrap_or_default();
                let nodes = state["state"]["leases"].as_object().map(serde_json::Map::len);
                if nodes == Some(peers) { Ok(()) } else { Err(text) }
            });
            return;
        }
        eventually(SOON, &format!("{peers} peers on node {number}"), || {
            let state = self.state(number);
            let routes = state.routes.iter().chain(&state.routes6);
            let routes = routes.filter(|line| (self.case.is_peer_route)(line)).count();
            if routes == peers * env_of(number).families().len() { Ok(()) } else { Err(state.to_string()) }
        });
    }
}

/// Whether a line of `ip` is about a flannel device, or a route to the pods of another node.
pub(crate) fn is_flannels(line: &str) -> bool {
    let to_pods = line.contains("10.244.") || line.contains("fd00:10:244:");
    let on_bridge = line.contains("cni0") || line.contains("veth");
    (line.contains("flannel") || to_pods && !on_bridge) && !line.contains("fe80")
}

/// The two sides of a record in each family: as its node has it, and as others see it.
pub(crate) fn sides(case: &BackendCase, key: &str, value: &Value) -> Vec<(Own, Remote)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pair = case.sides().into_iter().zip(key.split('&'));
    pair.map(|((device, ip, data), subnet)| {
        let (underlay, mac) = (text(&value[ip]), text(&value[data]["VtepMAC"]));
        let base = subnet.rsplit_once('-').unwrap().0.to_owned();
        let own = Own { base: base.clone(), mac: mac.clone(), underlay: underlay.clone() };
        (own, Remote { device, subnet: subnet.replace('-', "/"), base, mac, underlay })
    })
    .collect()
}

/// The subnet file of a node.
pub(crate) fn subnet_file(number: u8) -> PathBuf {
    Path::new(bed::FOLDER).join(format!("node{number}/subnet.env"))
}

/// What an agent wrote for the CNI plugin.
pub(crate) fn env_of(number: u8) -> SubnetEnv {
    SubnetEnv::read(&subnet_file(number)).unwrap()
}

/// A GET over loopback in a namespace; the whole answer, or why there is none.
pub(crate) fn http_get(netns: &Netns, port: u16, path: &str) -> String {
    flanneld::get(netns, port, path).unwrap_or_else(|error| error.to_string())
}

/// The largest payload of an echo that fits the pods' MTU.
pub(crate) fn full_payload(mtu: u32, dst: IpAddr) -> u32 {
    mtu - if dst.is_ipv4() { 28 } else { 48 }
}

/// Every pod pings every other at every address, with packets that fill the MTU and may not be cut, by the
/// real `ping`.
#[track_caller]
pub(crate) fn assert_all_reach_all(pods: &[Pod], mtu: u32) {
    for (at, from) in pods.iter().enumerate() {
        for to in pods.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, pod)| pod) {
            for dst in to.addresses().iter().map(ipnetwork::IpNetwork::ip) {
                let report = system_ping(from.netns(), dst, full_payload(mtu, dst), 2).unwrap();
                assert_eq!(report.sent, report.received, "{dst}: {}", report.output);
            }
        }
    }
}

/// Pings every two milliseconds from pod to pod, in each family, until it is asked whether one was lost. On a slow machine more
/// seldom: the kernel drops what piles up.
pub(crate) struct Traffic(Vec<(IpAddr, Pinger)>);

impl Traffic {
    pub(crate) fn between(from: &Pod, to: &Pod) -> Self {
        let to = to.addresses().iter().map(ipnetwork::IpNetwork::ip);
        Self::to(from, to, patiently(Duration::from_millis(2)))
    }

    /// From a pod to any addresses, once an interval.
    pub(crate) fn to(from: &Pod, to: impl IntoIterator<Item = IpAddr>, interval: Duration) -> Self {
        let options = PingOptions { interval, ..PingOptions::default() };
        let start = |dst: IpAddr| {
            // New pods have no neighbours yet. On a busy machine a solicitation gets lost now and then, and
            // the next comes after a second.
            eventually(SOON, "the first reply", || flannel_lab::ping::reaches(from.netns(), dst).unwrap());
            (dst, Pinger::start(from.netns(), dst, options.clone()).unwrap())
        };
        let traffic = Self(to.into_iter().map(start).collect());
        traffic.go_on(10);
        traffic
    }

    /// Both as one.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Waits for more replies.
    pub(crate) fn go_on(&self, more: u64) {
        for (_, pinger) in &self.0 {
            pinger.wait_for_replies(more, SOON).unwrap();
        }
    }

    /// Ends it; not one packet may be lost.
    #[track_caller]
    pub(crate) fn assert_no_loss(self) {
        for (dst, report) in self.stop() {
            assert_eq!(report.lost, 0, "{dst}: {report:?}");
        }
    }

    /// Ends it.
    pub(crate) fn stop(self) -> Vec<(IpAddr, PingReport)> {
        self.0.into_iter().map(|(dst, pinger)| (dst, pinger.stop())).collect()
    }
}

/// What `ip monitor` sees of flannel's from now on: every write to the kernel, but also what the
/// kernel does by itself.
pub(crate) struct Monitor(Agent);

impl Monitor {
    pub(crate) fn start(netns: &Netns) -> Self {
        let tool = flannel_lab::agent::AgentBuilder::new("monitor", "ip").netns(netns);
        let monitor = Self(
            tool.args(["-timestamp", "monitor", "link", "address", "route", "nexthop", "neigh"])
                .start()
                .unwrap(),
        );
        // It says nothing when it is ready; a change of our own tells.
        netns.ip("link set lo txqueuelen 999").unwrap();
        eventually(SOON, "the monitor to listen", || {
            netns.ip("link set lo txqueuelen 1000").unwrap();
            netns.ip("link set lo txqueuelen 999").unwrap();
            monitor.0.log().contains("lo:")
        });
        monitor
    }

    /// All notifications that name a flannel device or a route to the pods of another node.
    pub(crate) fn seen(&self) -> Vec<String> {
        let log = self.0.log();
        // The kernel drops neighbours of multicast groups when it likes.
        // It also has neighbours of its own, as long as packets go to them or come from them: ours are permanent.
        let is_learned = |line: &str| line.contains(" lladdr ") && !line.contains("PERMANENT");
        let written = |line: &&str| is_flannels(line) && !line.contains("ff02::") && !is_learned(line);
        log.lines().filter(written).map(str::to_owned).collect()
    }
}
