//! Nodes with one VTEP MAC, however they came by it, end with one each and all pairs connected: several agents on fake
//! kernels and one store in memory.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;

use flannel_core::addr::Subnet;
use flannel_core::dataplane::{FdbEntry, ObjectKey};
use flannel_core::lease::LeaseAttrs;
use flannel_core::status::Subject;
use proptest::prelude::*;

use super::*;

const V4: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// Long enough for every patience and pause that honest nodes have with each other.
const LONG: Duration = Duration::from_mins(30);

fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

fn record(ip: Ipv4Addr, mac: MacAddr) -> String {
    format!(r#"{{"PublicIP":"{ip}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#)
}

/// One node: what stays over a restart, and the agent if it runs.
struct Node {
    host: Host,
    ip: Ipv4Addr,
    /// The MACs that it draws before it draws at random.
    draws: Arc<Mutex<VecDeque<u8>>>,
    agent: Option<NodeAgent>,
}

struct NodeAgent {
    running: Running,
    state: watch::Receiver<State>,
    hold: JoinHandle<()>,
}

impl Node {
    fn new(number: u8, store: &FakeStore, draws: &[u8]) -> Self {
        let ip = Ipv4Addr::new(192, 0, 2, 10 + number);
        let mut host = Host::new(true, V4);
        host.store = store.clone();
        let addr = PerFamily { v4: Some(IpAddr::V4(ip)), v6: None };
        host.kernel.remove_address([192, 0, 2, 1].into());
        give(&host.kernel, host.underlay.link, &format!("{ip}/24"));
        (host.underlay.local, host.underlay.published) = (addr, addr);
        Self { host, ip, draws: Arc::new(Mutex::new(draws.iter().copied().collect())), agent: None }
    }

    async fn start(&mut self) {
        let (kernel, draws) = (self.host.kernel.clone(), Arc::clone(&self.draws));
        let backend = VxlanBackend::with_kernel(move |_| Ok(Box::new(kernel.clone())))
            .draw_macs(move || draws.lock().unwrap().pop_front().map_or_else(MacAddr::random, mac));
        let Host { config, underlay, store: subnets, previous, .. } = &self.host;
        let netns = Netns::current().unwrap();
        let registration = Registration::new(&netns, config, underlay, subnets).previous(previous.as_ref());
        let network = backend.register(registration).await.unwrap();
        let (status, state, lease, attrs) =
            (network.status(), network.state(), network.lease().clone(), network.attrs());
        let cancel = CancellationToken::new();
        let task = tokio::spawn(network.run(subnets.watch_leases(), cancel.clone()));
        let store = subnets.clone();
        let hold = tokio::spawn(async move {
            let held = flannel_core::subnet::renew_and_publish(&store, lease, attrs).await;
            panic!("{held:?}");
        });
        self.agent = Some(NodeAgent { running: Running { status, cancel, task }, state, hold });
        settle().await;
    }

    /// Stops the agent. The state file goes through its wire form, or is lost.
    async fn stop(&mut self, keeps_state: bool) {
        let Some(NodeAgent { running, state, hold }) = self.agent.take() else { return };
        running.stop().await;
        hold.abort();
        let stored = State::decode(state.borrow().encode().as_bytes()).unwrap();
        self.host.previous = keeps_state.then_some(stored);
    }

    async fn restart(&mut self, keeps_state: bool) {
        self.stop(keeps_state).await;
        self.start().await;
    }

    fn status(&self) -> NetworkStatus {
        self.agent.as_ref().unwrap().running.status.borrow().clone()
    }

    /// The subnet and what was published with it.
    fn record(&self) -> (Subnet, LeaseAttrs) {
        let own = Some(IpAddr::V4(self.ip));
        let lease =
            self.host.store.leases().into_iter().find(|lease| lease.attrs.public_ips.v4 == own).unwrap();
        (lease.subnet(Family::V4).unwrap(), lease.attrs)
    }

    fn mac(&self) -> MacAddr {
        self.host.kernel.link_named("flannel.1").unwrap().mac.unwrap()
    }

    /// Whether packets from here reach the pods of another node: route, neighbour and FDB entry lead there, and its
    /// device takes them.
    fn reaches(&self, other: &Self) -> bool {
        let (link, (subnet, _)) = (self.host.kernel.link_named("flannel.1").unwrap().index, other.record());
        let objects = self.host.kernel.objects();
        let Some(Object::Neighbour(hop)) = objects.get(&ObjectKey::Neighbour(link, subnet.base())) else {
            return false;
        };
        let to = |object: &Object| matches!(object, Object::Fdb(FdbEntry { mac, dst, .. }) if *mac == hop.mac && *dst == other.ip);
        let route = |object: &Object| matches!(object, Object::Route(route) if route.dst == subnet);
        objects.iter().any(|it| to(&it)) && objects.iter().any(|it| route(&it)) && hop.mac == other.mac()
    }
}

fn unreachable(nodes: &[Node]) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    let pairs = nodes.iter().flat_map(|a| nodes.iter().map(move |b| (a, b))).filter(|(a, b)| a.ip != b.ip);
    pairs.filter(|(a, b)| !a.reaches(b)).map(|(a, b)| (a.ip, b.ip)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_node_that_draws_the_mac_of_another_takes_another_before_it_publishes() {
    let store = FakeStore::new(config(V4));
    store.refuse_claimed();
    let mut nodes = [Node::new(1, &store, &[1]), Node::new(2, &store, &[1, 1, 2])];
    for node in &mut nodes {
        node.start().await;
    }
    assert_eq!([nodes[0].mac(), nodes[1].mac()], [mac(1), mac(2)]);
    assert_eq!(unreachable(&nodes), []);
    assert!(nodes.iter().all(
        |node| node.status().problems.texts(&Subject::OwnLease).is_empty() && node.status().repairs == 0
    ));
}

/// Example A, in a store that does not look: a node is renumbered, and a new one comes by its MAC.
#[tokio::test(start_paused = true)]
async fn the_node_that_came_later_takes_another_mac_in_place() {
    let store = FakeStore::new(config(V4));
    let mut nodes: Vec<Node> = (1..=3).map(|n| Node::new(n, &store, &[n])).collect();
    for node in &mut nodes {
        node.start().await;
    }
    let objects = nodes[0].host.kernel.objects();
    nodes[0].host.kernel.take_ops();
    let mut late = Node::new(4, &store, &[1]);
    late.start().await;
    nodes.push(late);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(unreachable(&nodes), []);
    assert_eq!(nodes[0].mac(), mac(1), "who was there first keeps it");
    assert!(nodes.iter().all(|node| node.status().problems.texts(&Subject::OwnLease).is_empty()));
    let ops = nodes[0].host.kernel.take_ops();
    assert!(!ops.iter().any(|op| matches!(op, Op::Delete(_))), "{ops:?}");
    assert!(objects.iter().all(|object| nodes[0].host.kernel.objects().get(&object.key()) == Some(object)));
}

/// Example C: the agent of the older node is off, and its record gets the MAC of a younger node.
#[tokio::test(start_paused = true)]
async fn a_record_that_is_rewritten_cuts_nobody_but_its_node() {
    for keeps_state in [true, false] {
        let store = FakeStore::new(config(V4));
        let mut nodes: Vec<Node> = (1..=3).map(|n| Node::new(n, &store, &[n])).collect();
        for node in &mut nodes {
            node.start().await;
        }
        let (key, _) = nodes[0].record();
        nodes[0].stop(true).await;
        let key = key.to_string().replace('/', "-");
        store.put(&key, &record(nodes[0].ip, mac(2)));
        settle().await;
        assert!(nodes[2].reaches(&nodes[1]) && nodes[1].reaches(&nodes[2]), "the younger node keeps all");
        assert!(!nodes[2].reaches(&nodes[0]));
        let told = nodes[2].status().problems.leases.texts().join("|");
        assert!(
            told.contains("VtepMAC 02:00:00:00:00:02") && told.contains("which claimed it first"),
            "{told}"
        );
        assert_eq!((nodes[1].mac(), nodes[1].status().problems.texts(&Subject::OwnLease)), (mac(2), vec![]));
        nodes[2].restart(keeps_state).await;
        assert_eq!(nodes[2].reaches(&nodes[1]), keeps_state, "without ages the older record has precedence");
        // Nobody answers for the other record, which is the older one.
        tokio::time::sleep(Duration::from_secs(46)).await;
        assert_ne!(nodes[1].mac(), mac(2));
        assert!(nodes[2].reaches(&nodes[1]) && nodes[1].reaches(&nodes[2]));
        // Its own agent takes the record's word for what it published. Nobody else has that any more.
        nodes[0].start().await;
        tokio::time::sleep(LONG).await;
        assert_eq!(unreachable(&nodes), []);
    }
}

/// A record that takes whatever a node takes can't make it change all the time.
#[tokio::test(start_paused = true)]
async fn a_record_that_follows_costs_a_few_changes_an_hour() {
    let store = FakeStore::new(config(V4));
    let mut node = Node::new(1, &store, &[1]);
    store.put("10.5.99.0-24", &record([192, 0, 2, 99].into(), mac(1)));
    node.start().await;
    let (mut changes, mut last) = (0, node.mac());
    for _ in 0..3600 {
        store.put("10.5.99.0-24", &record([192, 0, 2, 99].into(), node.mac()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        changes += usize::from(node.mac() != last);
        last = node.mac();
    }
    assert!((1..=7).contains(&changes), "{changes} changes in an hour");
    assert!(node.agent.as_ref().is_some_and(|agent| !agent.running.task.is_finished()));
}

#[tokio::test(start_paused = true)]
async fn a_loser_says_so_until_the_conflict_ends() {
    let store = FakeStore::new(config(V4));
    let mut node = Node::new(1, &store, &[1]);
    // There before: the subnet around the one that this node will get, at its address.
    store.put("10.5.4.0-22", &record([10, 5, 0, 9].into(), mac(9)));
    node.start().await;
    assert_eq!(
        node.status().problems.texts(&Subject::OwnLease),
        Vec::<String>::new(),
        "the allocator passes by"
    );
    let (subnet, _) = node.record();
    let key = subnet.to_string().replace('/', "-");
    node.stop(false).await;
    store.put("10.5.0.0-22", &record([192, 0, 2, 98].into(), mac(8)));
    let wide = store.leases().into_iter().find(|lease| lease.key.to_string() == "10.5.0.0-22").unwrap();
    store.remove(&key);
    store.put(&key, &record(node.ip, mac(1)));
    node.start().await;
    let conflicts = node.status().problems.texts(&Subject::OwnLease);
    assert!(
        conflicts.len() == 1
            && conflicts[0].starts_with(&format!("this node's subnet {subnet} overlaps 10.5.0.0/22 of lease {wide}, whose record is older; peers do not program this node")),
        "{conflicts:?}"
    );
    store.remove("10.5.0.0-22");
    settle().await;
    assert_eq!(node.status().problems.texts(&Subject::OwnLease), Vec::<String>::new());
}

#[derive(Debug, Clone)]
enum Step {
    /// With its state file, or without.
    Restart(usize, bool),
    /// Somebody writes a MAC into its record while its agent is off, and starts it.
    Tamper(usize, u8, bool),
    /// Somebody deletes its record, or it ran out, while its agent is off.
    Expire(usize, bool),
    /// In milliseconds.
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..4_usize, any::<bool>()).prop_map(|(node, state)| Step::Restart(node, state)),
        2 => (0..4_usize, 1..4_u8, any::<bool>()).prop_map(|(node, mac, state)| Step::Tamper(node, mac, state)),
        1 => (0..4_usize, any::<bool>()).prop_map(|(node, state)| Step::Expire(node, state)),
        2 => prop::sample::select(vec![1, 2000, 40_000]).prop_map(Step::Wait),
    ]
}

async fn converge(draws: &[Vec<u8>], steps: &[Step], refuses_claimed: bool) -> Result<(), TestCaseError> {
    let store = FakeStore::new(config(V4));
    if refuses_claimed {
        store.refuse_claimed();
    }
    let mut nodes: Vec<Node> =
        (0_u8..).zip(draws).map(|(number, draws)| Node::new(number, &store, draws)).collect();
    // The first ones together.
    let (first, rest) = nodes.split_at_mut(2);
    futures::future::join_all(first.iter_mut().map(Node::start)).await;
    for node in rest {
        node.start().await;
    }
    for step in steps {
        match *step {
            Step::Restart(node, keeps_state) => nodes[node % draws.len()].restart(keeps_state).await,
            Step::Tamper(node, with, keeps_state) => {
                let node = &mut nodes[node % draws.len()];
                let key = node.record().0.to_string().replace('/', "-");
                node.stop(keeps_state).await;
                store.put(&key, &record(node.ip, mac(with)));
                node.start().await;
            }
            Step::Expire(node, keeps_state) => {
                let node = &mut nodes[node % draws.len()];
                let key = node.record().0.to_string().replace('/', "-");
                node.stop(keeps_state).await;
                store.remove(&key);
                node.start().await;
            }
            Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
    }
    tokio::time::sleep(LONG).await;
    prop_assert_eq!(unreachable(&nodes), vec![]);
    let told: Vec<_> = nodes
        .iter()
        .flat_map(|node| {
            [node.status().problems.texts(&Subject::OwnLease), node.status().problems.leases.texts()].concat()
        })
        .collect();
    prop_assert_eq!(told, Vec::<String>::new());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn honest_nodes_end_with_all_pairs_connected(
        draws in prop::collection::vec(prop::collection::vec(1..4_u8, 0..3), 2..5),
        steps in prop::collection::vec(step(), 0..8),
        refuses_claimed in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(converge(&draws, &steps, refuses_claimed))?;
    }
}
