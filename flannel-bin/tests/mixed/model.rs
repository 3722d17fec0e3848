//! The cluster: nodes with kernels of their own and one store, and who reaches whom by what.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use flannel_backend_hostgw::HostGwBackend;
use flannel_backend_ipip::IpipBackend;
use flannel_backend_vxlan::VxlanBackend;
use flannel_core::addr::{Family, Mtu, PerFamily, Subnet};
use flannel_core::backend::{Backend, PathFact, PathProofs, Registration, Underlay};
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::dataplane::{Object, Route};
use flannel_core::kernel::LinkAddress;
use flannel_core::lease::{Lease, LeaseKey};
use flannel_core::netns::Netns;
use flannel_core::state_file::State;
use flannel_core::subnet::{Identity, SubnetManager, renew_and_publish};
use flannel_core::testing::{FakeKernel, FakeStore};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A backend of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Vxlan,
    HostGw,
    Ipip,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Vxlan, Self::HostGw, Self::Ipip];

    fn device(self) -> &'static str {
        match self {
            Self::Vxlan => "flannel.1",
            Self::HostGw => "eth0",
            Self::Ipip => "flannel.ipip",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::Ipip => "ipip",
        })
    }
}

fn config(kind: Kind, keys: &str) -> NetworkConfig {
    let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"{kind}"{keys}}}}}"#);
    NetworkConfig::parse(&text, LeaseSource::Store).unwrap()
}

struct Node {
    kernel: FakeKernel,
    store: FakeStore,
    underlay: Underlay,
    backends: Vec<Arc<dyn Backend>>,
    lease: Option<Lease>,
    /// What is stored, and what the agent that runs has to store since.
    stored: Option<State>,
    state: Option<watch::Receiver<State>>,
    running: Option<Running>,
    /// Where its prober tells what it has proven.
    proofs: Option<PathProofs>,
    /// When it joined, and when its agent was stopped last.
    joined: Instant,
    stopped: Instant,
}

struct Running {
    cancel: CancellationToken,
    tasks: [JoinHandle<()>; 2],
}

pub(crate) struct Cluster {
    store: FakeStore,
    nodes: Vec<Node>,
    /// The lease of a node of Go, and the backend that it names.
    go: Option<(LeaseKey, Kind)>,
    /// By what packets from one node to another one are lost.
    blocked: BTreeSet<(usize, usize, Kind)>,
}

impl Cluster {
    pub(crate) async fn start(nodes: usize, kind: Kind) -> Self {
        let (store, blocked) = (FakeStore::new(config(kind, "")), BTreeSet::new());
        let mut cluster = Self { store, nodes: Vec::new(), go: None, blocked };
        for _ in 0..nodes {
            cluster.join().await;
        }
        cluster
    }

    /// Adds a node and starts its agent.
    pub(crate) async fn join(&mut self) {
        let number = u8::try_from(self.nodes.len() + 1).unwrap();
        let addr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, number));
        let kernel = FakeKernel::default();
        let link = kernel.add_link("eth0", 1500);
        let (global, deprecated, permanent, temporary, tentative) = (true, false, false, false, false);
        let own = format!("{addr}/24").parse().unwrap();
        kernel.add_address(LinkAddress {
            link,
            addr: own,
            global,
            deprecated,
            permanent,
            temporary,
            tentative,
        });
        let addrs = PerFamily { v4: Some(addr), v6: None };
        let open = || {
            let kernel = kernel.clone();
            move |_: &Netns| Ok(Box::new(kernel.clone()) as Box<_>)
        };
        let backends: Vec<Arc<dyn Backend>> = vec![
            Arc::new(VxlanBackend::with_kernel(open())),
            Arc::new(HostGwBackend::with_kernel(open())),
            Arc::new(IpipBackend::with_kernel(open())),
        ];
        let store = self.store.of_node(Identity::default());
        let underlay = Underlay::new("eth0", link, Mtu(1500), addrs);
        let mut node = Node {
            kernel,
            store,
            underlay,
            backends,
            lease: None,
            stored: None,
            state: None,
            running: None,
            proofs: None,
            joined: Instant::now(),
            stopped: Instant::now(),
        };
        node.start().await;
        self.nodes.push(node);
    }

    /// A node of which there is only a lease: without a word about further backends.
    pub(crate) fn add_go_node(&mut self, kind: Kind) {
        let lease = self.store.put(
            "10.5.200.0-24",
            &match kind {
                Kind::Vxlan => r#"{"PublicIP":"192.0.2.200","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:c8"}}"#.to_owned(),
                _ => format!(r#"{{"PublicIP":"192.0.2.200","PublicIPv6":null,"BackendType":"{kind}"}}"#),
            },
        );
        self.go = Some((lease.key, kind));
    }

    pub(crate) fn remove_go_node(&mut self) {
        if let Some(go) = self.go.take() {
            self.store.remove(&go.0.to_string());
        }
    }

    pub(crate) fn set_type(&mut self, kind: Kind, keys: &str) {
        self.store.set_config(config(kind, keys));
    }

    /// Changes the config without those that run hearing of it.
    pub(crate) fn set_type_for_new_nodes(&mut self, kind: Kind, keys: &str) {
        let others = self.store.of_node(Identity::default());
        others.set_config_silently(config(kind, keys));
    }

    pub(crate) async fn stop(&mut self, node: usize) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.stop().await;
        }
    }

    pub(crate) async fn restart(&mut self, node: usize) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.stop().await;
            if node.lease.is_some() {
                node.start().await;
            }
        }
    }

    pub(crate) async fn restart_all(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].running.is_none() {
                self.restart(node).await;
            }
        }
    }

    /// Ends a node's agent for good, and takes its lease.
    pub(crate) async fn leave(&mut self, node: usize) {
        let Some(node) = self.nodes.get_mut(node) else { return };
        node.stop().await;
        if let Some(lease) = node.lease.take() {
            self.store.remove(&lease.key.to_string());
        }
    }

    /// Deletes a route to another node behind the agent's back.
    pub(crate) fn damage(&mut self, node: usize) {
        let Some(node) = self.nodes.get(node) else { return };
        let objects = node.kernel.objects();
        let route = objects.iter().find(|object| matches!(object, Object::Route(_)));
        if let Some(route) = route {
            node.kernel.delete(&route.key(), true);
        }
    }

    /// Lets packets from one node to another one be lost, or arrive again.
    pub(crate) fn block(&mut self, from: usize, to: usize, by: Kind, is_blocked: bool) {
        if is_blocked {
            self.blocked.insert((from, to, by));
        } else {
            self.blocked.remove(&(from, to, by));
        }
    }

    pub(crate) fn unblock_all(&mut self) {
        self.blocked.clear();
    }

    /// Lets time pass in which each node's prober visits all peers once a second.
    pub(crate) async fn probe_for(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            tokio::time::sleep(Duration::from_secs(1).min(until - Instant::now())).await;
            self.probe();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    /// What the prober of each node tells of the peers whose leases name its own backend.
    fn probe(&self) {
        let live =
            || self.nodes.iter().enumerate().filter_map(|(at, it)| Some((at, it, it.lease.as_ref()?.key)));
        let types: BTreeMap<LeaseKey, String> =
            self.store.leases().iter().map(|lease| (lease.key, lease.attrs.backend_type.clone())).collect();
        for (from, node, own) in live().filter(|(_, node, _)| node.running.is_some()) {
            let Some(proofs) = &node.proofs else { continue };
            for (to, _, key) in live().filter(|(_, _, key)| *key != own && types.get(key) == types.get(&own))
            {
                let Some(kind) =
                    Kind::ALL.into_iter().find(|kind| types.get(&own) == Some(&kind.to_string()))
                else {
                    continue;
                };
                let Some(way) = self.way(from, to) else { continue };
                let is_blocked = |by: Kind| self.blocked.contains(&(from, to, by));
                let tell = |fact| proofs.tell(key, Family::V4, &fact, Instant::now());
                if is_blocked(way) {
                    tell(PathFact::Blocked { by: (way != kind).then(|| way.to_string()) });
                }
                if way != kind || !is_blocked(way) {
                    tell(PathFact::Tunnel { is_open: Some(!is_blocked(kind)) });
                }
            }
        }
    }

    /// Of each pair of live nodes that has a way by which packets arrive, one is taken.
    pub(crate) fn no_packet_is_lost_that_could_arrive(&self, when: &str) {
        let live: Vec<usize> = (0..self.nodes.len()).filter(|at| self.nodes[*at].lease.is_some()).collect();
        for from in &live {
            for to in live.iter().filter(|to| *to != from) {
                let arrives = |by: &Kind| !self.blocked.contains(&(*from, *to, *by));
                let way = self.way(*from, *to).unwrap();
                assert!(
                    arrives(&way) || !Kind::ALL.iter().any(arrives),
                    "{when}: from {from} to {to} by {way}, {:?} are blocked",
                    self.blocked
                );
            }
        }
    }

    pub(crate) async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(3)).await;
    }

    /// Looks at all ways each millisecond, and each time something may have happened, until the condition holds.
    pub(crate) async fn watch_until(&self, limit: Duration, is_done: impl Fn(&Self) -> bool) {
        let until = Instant::now() + limit;
        while !is_done(self) {
            assert!(Instant::now() < until, "not within {limit:?}: {:?}", self.published());
            self.watch_for(Duration::from_millis(100)).await;
        }
    }

    /// Looks at all ways for this time.
    pub(crate) async fn watch_for(&self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            // Each yield lets every task take one turn, so that no moment between two turns is missed.
            let looks = if self.nodes.len() > 10 { 1 } else { 8 };
            for _ in 0..looks {
                tokio::task::yield_now().await;
                self.must_be_connected("on the way");
            }
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep(Duration::from_millis(
                if self.nodes.len() > 10 || time > Duration::from_secs(5) { 100 } else { 5 },
            ))
            .await;
        }
    }

    /// Every live node has a way to every other one, by which that one receives.
    pub(crate) fn must_be_connected(&self, when: &str) {
        let live = || {
            self.nodes.iter().enumerate().filter_map(|(at, node)| Some((at, node, node.lease.as_ref()?.key)))
        };
        let received: Vec<_> = live().map(|(_, node, _)| Kind::ALL.map(|kind| node.has(kind))).collect();
        for (from, node, own) in live() {
            let ways = node.ways();
            let way = |to: LeaseKey| to.subnet(Family::V4).and_then(|subnet| ways.get(&subnet).copied());
            for ((to, peer, key), received) in live().zip(&received).filter(|((_, _, key), _)| *key != own) {
                // A node whose agent is down knows nobody who came later, and others need a moment.
                let is_new = peer.joined.elapsed() < Duration::from_millis(100);
                if is_new || node.running.is_none() && peer.joined >= node.stopped {
                    continue;
                }
                let arrives = way(key).is_some_and(|way| received[way as usize]);
                assert!(arrives, "{when}: from {from} to {to} by {:?}: {:?}", way(key), self.published());
            }
            if let Some((go, kind)) = self.go {
                assert_eq!(way(go), Some(kind), "{when}: from {from} to the node of Go");
            }
        }
    }

    /// By what a node sends to another one.
    pub(crate) fn way(&self, from: usize, to: usize) -> Option<Kind> {
        let subnet = self.nodes[to].lease.as_ref()?.key.subnet(Family::V4)?;
        self.nodes[from].ways().get(&subnet).copied()
    }

    /// The names of a node's links.
    pub(crate) fn devices(&self, node: usize) -> Vec<&'static str> {
        let mut names: Vec<_> =
            Kind::ALL.into_iter().filter(|kind| self.nodes[node].has(*kind)).map(Kind::device).collect();
        names.sort_unstable();
        names
    }

    /// The MTUs of the nodes' devices of a backend.
    pub(crate) fn mtus(&self, kind: Kind) -> Vec<u32> {
        self.nodes.iter().filter_map(|node| Some(node.kernel.link_named(kind.device())?.mtu.0)).collect()
    }

    pub(crate) fn published(&self) -> Vec<String> {
        self.store.leases().iter().map(|lease| lease.attrs.to_json()).collect()
    }

    pub(crate) fn all_publish(&self, kind: Kind) -> bool {
        let leases = self.store.leases();
        let mut ours = leases.iter().filter(|lease| self.go.is_none_or(|(go, _)| lease.key != go));
        ours.all(|lease| lease.attrs.backend_type == kind.to_string())
    }

    /// Whether nodes have no device of another backend, and say so.
    pub(crate) fn all_run_only(&self, kind: Kind) -> bool {
        let others = || Kind::ALL.into_iter().filter(|other| *other != kind && *other != Kind::HostGw);
        self.nodes
            .iter()
            .filter(|node| node.lease.is_some())
            .all(|node| others().all(|other| !node.has(other)))
            && self.store.leases().iter().all(|lease| lease.attrs.receives.is_empty())
    }
}

impl Node {
    async fn start(&mut self) {
        let config = self.store.network_config().await.unwrap();
        let netns = Netns::current().unwrap();
        let backend = self.backends.iter().find(|it| it.kind() == config.backend.kind).unwrap();
        let registration = Registration::new(&netns, &config, &self.underlay, &self.store)
            .previous(self.stored.as_ref())
            .beside(&self.backends);
        let network = backend.register(registration).await.unwrap();
        let (lease, attrs) = (network.lease().clone(), network.attrs());
        self.lease = Some(lease.clone());
        self.state = Some(network.state());
        self.proofs = network.probing().and_then(|probing| probing.proofs);
        let (cancel, store) = (CancellationToken::new(), self.store.clone());
        let run = network.run(store.watch_leases(), cancel.clone());
        let run = tokio::spawn(async move { run.await.unwrap() });
        let renew = tokio::spawn(async move {
            let ended = renew_and_publish(&store, lease, attrs).await;
            panic!("the lease is lost: {ended:?}");
        });
        self.running = Some(Running { cancel, tasks: [run, renew] });
    }

    async fn stop(&mut self) {
        let Some(Running { cancel, tasks: [run, renew] }) = self.running.take() else { return };
        // What was there first is not to be stored.
        if let Some(state) = self.state.take().filter(|state| state.has_changed().unwrap_or(false)) {
            self.stored = Some(state.borrow().clone());
        }
        self.stopped = Instant::now();
        cancel.cancel();
        run.await.unwrap();
        renew.abort();
    }

    /// By what this node sends to each subnet.
    fn ways(&self) -> BTreeMap<Subnet, Kind> {
        let links =
            Kind::ALL.map(|kind| (self.kernel.link_named(kind.device()).map(|link| link.index), kind));
        let way = |object: Object| match object {
            Object::Route(Route { dst, link, .. }) => {
                Some((dst, links.iter().find(|(of, _)| link.is_some() && *of == link)?.1))
            }
            _ => None,
        };
        self.kernel.objects().iter().filter_map(way).collect()
    }

    /// Whether packets that come by this backend arrive.
    fn has(&self, kind: Kind) -> bool {
        self.kernel.link_named(kind.device()).is_some_and(|link| link.up)
    }
}
