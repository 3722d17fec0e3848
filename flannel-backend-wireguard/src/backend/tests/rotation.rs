//! Nodes that change their keys while packets flow, on kernels, devices and a store in memory. The world here makes
//! handshakes and carries packets as WireGuard does: by the sessions of the two ends.

use std::fs::File;
use std::net::SocketAddr;

use flannel_core::inspect::{CommandError, InspectError, Inspector};
use flannel_core::kernel::Link;
use flannel_core::lease::{Lease, LeaseKey};
use flannel_core::subnet::{Identity, renew_and_publish};

use super::*;
use crate::device::DeviceState;

const DEVICES: [&str; 4] = ["flannel-wg", "flannel-wg-v6", "flannel-wg-r", "flannel-wg-v6-r"];
const TICK: Duration = Duration::from_millis(250);
/// More ticks than any rotation between nodes of ours takes.
const LONG: usize = 400;

struct Node {
    host: Host,
    number: u8,
    every: Option<Duration>,
    lease: LeaseKey,
    inspector: Inspector,
    running: Running,
    renewal: JoinHandle<()>,
}

impl Node {
    async fn start(mut host: Host, number: u8, every: Option<Duration>) -> Self {
        let link = host.kernel.link_named("eth0").unwrap().index;
        let local = PerFamily {
            v4: format!("192.0.2.{number}").parse().ok(),
            v6: format!("2001:db8::{number}").parse().ok(),
        };
        host.underlay = Underlay::new("eth0", link, Mtu(1500), local);
        let netns = Netns::current().unwrap();
        let registration = Registration::new(&netns, &host.config, &host.underlay, &host.store);
        let backend = host.backend().rotate_every(every);
        let network = backend.register(registration.previous(host.previous.as_ref())).await.unwrap();
        let lease: Lease = network.lease().clone();
        let (status, state, attrs) = (network.status(), network.state(), network.attrs());
        let (inspector, cancel) = (network.inspector().unwrap(), CancellationToken::new());
        let (store, published, key) = (host.store.clone(), attrs.clone(), lease.key);
        let renewal = tokio::spawn(async move {
            let ended = renew_and_publish(&store, lease, published).await;
            panic!("{ended:?}");
        });
        let task = tokio::spawn(network.run(host.store.watch_leases(), cancel.clone()));
        let running = Running { status, state, attrs, cancel, task };
        Self { host, number, every, lease: key, inspector, running, renewal }
    }

    /// Kills the agent. What it has stored is read by the next.
    fn kill(self) -> (Host, u8, Option<Duration>) {
        let Self { mut host, number, every, running, renewal, .. } = self;
        running.task.abort();
        renewal.abort();
        host.previous = Some(running.state.borrow().clone());
        (host, number, every)
    }

    async fn rotate(&self) -> String {
        self.inspector.command("rotate-key").await.unwrap()
    }

    fn device(&self, name: &str) -> Option<(Link, DeviceState)> {
        let link = self.host.kernel.link_named(name).filter(|link| link.up)?;
        let state = self.host.devices.state(link.index);
        Some((link, state))
    }

    fn next_file(&self) -> std::path::PathBuf {
        self.host.folder.path().join("wgkey.next")
    }

    /// The routes to a node, with the names of their devices.
    fn routes(&self, to: LeaseKey) -> Vec<(ipnetwork::IpNetwork, String)> {
        let objects = self.host.kernel.objects();
        let routes = objects.iter().filter_map(|object| match object {
            Object::Route(route) if to.subnets().iter().any(|(_, subnet)| *subnet == route.dst) => {
                let link = self.host.kernel.link_numbered(route.link?).expect("a route has a device");
                Some((ipnetwork::IpNetwork::from(route.dst), link.name))
            }
            _ => None,
        });
        routes.collect()
    }

    fn progress(&self) -> String {
        self.running.status.borrow().device_problem().unwrap_or_default()
    }
}

struct World {
    nodes: Vec<Node>,
    lost: usize,
}

impl World {
    /// Two nodes with sessions.
    async fn new(every: Option<Duration>) -> Self {
        let first = Host::new(DUAL);
        let mut second = Host::new(DUAL);
        second.store = first.store.of_node(Identity::default());
        let nodes = vec![Node::start(first, 1, every).await, Node::start(second, 2, None).await];
        let mut world = Self { nodes, lost: 0 };
        world.run(10).await;
        world.lost = 0;
        world
    }

    async fn run(&mut self, ticks: usize) {
        for _ in 0..ticks {
            tokio::time::sleep(TICK).await;
            for name in DEVICES {
                self.shake(name);
            }
            for (from, to) in [(0, 1), (1, 0)] {
                self.send(from, to);
            }
        }
    }

    /// Lets time pass until all rotations are over.
    async fn settle(&mut self) {
        for _ in 0..LONG {
            self.run(1).await;
            let is_over = |node: &Node| !node.next_file().exists() && node.device("flannel-wg-r").is_none();
            if self.nodes.iter().all(is_over) {
                return;
            }
        }
        panic!("not over: {:?}", self.nodes.iter().map(Node::progress).collect::<Vec<_>>());
    }

    /// Makes a session between the devices of both nodes if one of them begins and both know each other, and brings the
    /// keepalive packets.
    fn shake(&self, name: &str) {
        let [a, b] = &self.nodes[..] else { panic!("two nodes") };
        let (Some(at_a), Some(at_b)) = (a.device(name), b.device(name)) else { return };
        let of = |state: &DeviceState| state.private_key.as_ref().map(PrivateKey::public);
        let (Some(key_a), Some(key_b)) = (of(&at_a.1), of(&at_b.1)) else { return };
        let (Some(b_at_a), Some(a_at_b)) = (at_a.1.peers.get(&key_b), at_b.1.peers.get(&key_a)) else {
            return;
        };
        let uses =
            |node: &Node, other: &Node| node.routes(other.lease).iter().any(|(_, device)| device == name);
        let begins = |node: &Node, other: &Node, peer: &PeerState, port: u16| {
            let is_there = peer.endpoint.is_some_and(|at: SocketAddr| at.port() == port);
            is_there && (peer.keepalive > 0 || uses(node, other))
        };
        let begins = begins(a, b, b_at_a, at_b.1.listen_port) || begins(b, a, a_at_b, at_a.1.listen_port);
        let is_lacking = b_at_a.last_handshake.is_none() || b_at_a.last_handshake != a_at_b.last_handshake;
        let now = SystemTime::now();
        for (node, link, key, sender, other) in
            [(a, &at_a.0, key_b, a_at_b, b), (b, &at_b.0, key_a, b_at_a, a)]
        {
            let at = SocketAddr::new(
                other.host.underlay.local.v4.unwrap(),
                other.device(name).unwrap().1.listen_port,
            );
            node.host.devices.edit(link.index, |state| {
                let peer = state.peers.get_mut(&key).unwrap();
                if is_lacking && begins {
                    (peer.last_handshake, peer.endpoint) = (Some(now), peer.endpoint.or(Some(at)));
                    peer.rx_bytes += 148;
                }
                if sender.keepalive > 0 && peer.last_handshake.is_some() {
                    peer.rx_bytes += 32;
                }
            });
        }
    }

    /// Sends a packet to each subnet of the other node.
    fn send(&mut self, from: usize, to: usize) {
        let (from, to) = (&self.nodes[from], &self.nodes[to]);
        let routes = from.routes(to.lease);
        assert_eq!(routes.len(), 2, "there is a route in each family");
        for (subnet, device) in routes {
            if !carries(from, to, subnet, &device) {
                self.lost += 1;
            }
        }
    }
}

/// Whether a packet for a subnet that leaves by a device is accepted by the other node.
fn carries(from: &Node, to: &Node, subnet: ipnetwork::IpNetwork, device: &str) -> bool {
    let Some((link, sends)) = from.device(device) else { return false };
    // What the node itself sends has the address of that device.
    let has_address =
        |object: &Object| matches!(object, Object::Address(address) if address.link == link.index);
    assert!(from.host.kernel.objects().iter().any(|object| has_address(&object)), "{device} has an address");
    let Some((key, peer)) = sends.peers.iter().find(|(_, peer)| peer.allowed_ips.contains(&subnet)) else {
        return false;
    };
    let Some((link, receives)) = to.device(device) else { return false };
    let own = sends.private_key.as_ref().unwrap().public();
    let is_its_key = receives.private_key.as_ref().unwrap().public() == *key;
    let Some(sender) = receives.peers.get(&own).filter(|_| is_its_key) else { return false };
    let is_allowed =
        from.lease.subnets().iter().any(|(_, theirs)| sender.allowed_ips.contains(&(*theirs).into()));
    let is_accepted =
        is_allowed && peer.last_handshake.is_some() && peer.last_handshake == sender.last_handshake;
    if is_accepted {
        to.host.devices.edit(link.index, |state| state.peers.get_mut(&own).unwrap().rx_bytes += 128);
    }
    is_accepted
}

#[tokio::test(start_paused = true)]
async fn the_key_changes_three_times_and_no_packet_is_lost() {
    let mut world = World::new(None).await;
    let go_like = world.nodes[0].running.attrs.borrow().to_json();
    for round in 0..3 {
        let before = world.nodes[0].host.key();
        let answer = world.nodes[0].rotate().await;
        assert!(answer.contains(&before.public().to_string()), "{answer}");
        world.run(8).await;
        let published = world.nodes[0].running.attrs.borrow().to_json();
        assert!(published.contains(r#""Next":{"PublicKey":""#) && published.contains(r#""Port":51822}"#));
        assert!(published.contains(r#""Port":51823}"#), "{published}");
        let progress = world.nodes[0].progress();
        assert!(progress.contains("the next key is offered"), "{progress}");
        let again = world.nodes[0].rotate().await;
        assert!(again.contains("is being changed already"), "{again}");
        world.settle().await;
        assert_eq!(world.lost, 0, "round {round}");
        let after = world.nodes[0].host.key();
        assert_ne!(after, before);
        let published = world.nodes[0].running.attrs.borrow().to_json();
        let key = |json: &str| json.split('"').find(|it| it.len() == 44).unwrap().to_owned();
        assert_eq!(published, go_like.replace(&key(&go_like), &after.public().to_string()));
        for node in &world.nodes {
            assert_eq!(node.progress(), "", "the status is calm again");
            assert_eq!(node.running.status.borrow().repairs, 0, "nothing of it is drift");
            assert!(DEVICES[2..].iter().all(|name| node.host.kernel.link_named(name).is_none()));
        }
        assert_eq!(world.nodes[1].host.peers("flannel-wg")[0].0, after.public());
    }
    for node in &world.nodes {
        node.host.devices.take_changes();
    }
    world.run(LONG).await;
    assert!(world.nodes.iter().all(|node| node.host.devices.take_changes().is_empty()), "it is at rest");
}

/// It stays beside the other one: by their places they belong to the first devices.
#[tokio::test(start_paused = true)]
async fn a_second_device_that_the_kernel_keeps_does_for_the_next_change() {
    let mut world = World::new(None).await;
    world.nodes[0].rotate().await;
    world.run(8).await;
    let kept = world.nodes[0].host.link("flannel-wg-v6-r");
    let is_kept = move |op: &LinkOp| matches!(op, LinkOp::Delete(link) if *link == kept);
    world.nodes[0].host.kernel.refuse_link(move |op| is_kept(op).then_some(libc::EBUSY));
    for round in 0..2 {
        let before = world.nodes[0].host.key();
        if round > 0 {
            world.nodes[0].rotate().await;
        }
        for _ in 0..LONG {
            world.run(1).await;
            if world.nodes[0].host.key() != before && !world.nodes[0].next_file().exists() {
                break;
            }
        }
        assert_ne!(world.nodes[0].host.key(), before, "{round}: {}", world.nodes[0].progress());
        // Longer than until the next try to remove it.
        world.run(260).await;
        assert_eq!(world.nodes[0].host.link("flannel-wg-v6-r"), kept);
    }
    world.nodes[0].host.kernel.refuse_nothing();
    world.settle().await;
    assert_eq!(world.lost, 0);
    assert!(DEVICES[2..].iter().all(|name| world.nodes[0].host.kernel.link_named(name).is_none()));
}

#[tokio::test(start_paused = true)]
async fn two_nodes_that_begin_at_once_lose_nothing() {
    let mut world = World::new(None).await;
    let before = [0, 1].map(|at: usize| world.nodes[at].host.key());
    for node in &world.nodes {
        node.rotate().await;
    }
    world.settle().await;
    assert_eq!(world.lost, 0);
    assert!([0, 1].iter().all(|at| world.nodes[*at].host.key() != before[*at]));
    // One that asks while the other is at it waits for it.
    world.nodes[0].rotate().await;
    world.run(8).await;
    let before = world.nodes[1].host.key();
    let answer = world.nodes[1].rotate().await;
    assert!(answer.contains("it waits for node 10.5."), "{answer}");
    world.run(8).await;
    assert!(!world.nodes[1].next_file().exists());
    world.settle().await;
    world.run(8).await;
    world.settle().await;
    assert_eq!(world.lost, 0);
    assert_ne!(world.nodes[1].host.key(), before);
}

/// Each of them is killed and started again once, at every point of the rotation.
#[tokio::test(start_paused = true)]
async fn an_agent_that_is_killed_at_any_moment_goes_on_and_loses_nothing() {
    for victim in 0..2 {
        for ticks in (0..120).step_by(9) {
            let mut world = World::new(None).await;
            let before = world.nodes[0].host.key();
            world.nodes[0].rotate().await;
            world.run(ticks).await;
            let (host, number, every) = world.nodes.remove(victim).kill();
            let node = Node::start(host, number, every).await;
            world.nodes.insert(victim, node);
            world.run(4).await;
            world.settle().await;
            assert_eq!(world.lost, 0, "node {victim} killed after {ticks} ticks");
            assert_ne!(world.nodes[0].host.key(), before);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_store_it_stays_where_it_is_and_packets_flow() {
    let mut world = World::new(None).await;
    // Longer than peers are waited for, and then at later points of the rotation.
    for (ticks, away) in [(4, 4 * 320), (50, 100), (60, 100), (100, 100)] {
        let before = world.nodes[0].host.key();
        world.nodes[0].rotate().await;
        world.run(ticks).await;
        world.nodes[0].host.store.set_away(true);
        world.run(away).await;
        assert_eq!(world.lost, 0, "after {ticks} ticks");
        world.nodes[0].host.store.set_away(false);
        world.settle().await;
        assert_eq!(world.lost, 0, "after {ticks} ticks");
        assert_ne!(world.nodes[0].host.key(), before);
    }
}

/// A node of Go flannel never answers on the second device, and keeps its session for as long as a restart of an agent
/// takes.
#[tokio::test(start_paused = true)]
async fn a_node_that_knows_no_rotation_is_waited_for() {
    let mut world = World::new(None).await;
    world.nodes[0].host.store.put(PEER, &record(9));
    world.run(4).await;
    let before = world.nodes[0].host.key();
    let handshake = SystemTime::now();
    let link = world.nodes[0].host.link("flannel-wg");
    let roamed: SocketAddr = "203.0.113.7:4711".parse().unwrap();
    world.nodes[0].host.devices.edit(link, |state| {
        let peer = state.peers.get_mut(&key(9)).unwrap();
        (peer.last_handshake, peer.endpoint) = (Some(handshake), Some(roamed));
    });
    world.nodes[0].rotate().await;
    world.run(4 * 290).await;
    assert_eq!(world.nodes[0].host.key(), before);
    let peer = world.nodes[0].host.devices.state(link).peers[&key(9)].clone();
    assert_eq!((peer.last_handshake, peer.keepalive), (Some(handshake), 0), "its session is left alone");
    let second = world.nodes[0].host.link("flannel-wg-r");
    let there = world.nodes[0].host.devices.state(second).peers[&key(9)].clone();
    let by_config = Some(SocketAddr::new(there.endpoint.unwrap().ip(), 51822));
    assert_eq!((there.endpoint, there.allowed_ips), (by_config, peer.allowed_ips), "asked where it would be");
    let progress = world.nodes[0].progress();
    assert!(progress.contains("the second device; it waits for 10.5.99.0-24&fd00:5:0:99::-64"), "{progress}");
    assert!(
        !progress.contains("more") && !progress.contains("10.5.2.0-24"),
        "for that one alone: {progress}"
    );
    world.run(4 * 14).await;
    let now = world.nodes[0].host.key();
    assert_ne!(now, before);
    let state = world.nodes[0].host.devices.state(link);
    assert_eq!(state.private_key, Some(now));
    let peer = &state.peers[&key(9)];
    assert_eq!((peer.last_handshake, peer.endpoint), (None, Some(roamed)));
    assert!(peer.keepalive > 0, "this node begins the handshake");
    world.settle().await;
    assert_eq!(world.lost, 0);
}

/// The kernel would drop what arrives by the device that this node's routes don't take.
#[tokio::test(start_paused = true)]
async fn where_sources_are_checked_strictly_no_key_is_offered() {
    let mut world = World::new(None).await;
    world.nodes[0].host.kernel.keep_sysctls(true);
    let (before, published) = (world.nodes[0].host.key(), world.nodes[0].running.attrs.borrow().to_json());
    world.nodes[0].rotate().await;
    world.run(4 * 320).await;
    assert_eq!(world.nodes[0].running.attrs.borrow().to_json(), published);
    let progress = world.nodes[0].progress();
    for words in [
        "waits for its second devices",
        "packets flow as before",
        "rp_filter",
        "net.ipv4.conf.all.rp_filter=2",
    ] {
        assert!(progress.contains(words), "{progress}");
    }
    world.nodes[0].host.kernel.keep_sysctls(false);
    // The loop looks again at its resync.
    world.run(4 * 90).await;
    world.settle().await;
    assert_ne!(world.nodes[0].host.key(), before);
    assert_eq!((world.lost, world.nodes[0].progress()), (0, String::new()));
    // A node that serves another's rotation: it is as one of Go flannel.
    world.nodes[1].host.kernel.keep_sysctls(true);
    world.nodes[0].rotate().await;
    world.run(4 * 20).await;
    let second = world.nodes[1].host.link("flannel-wg-r");
    assert!(world.nodes[1].host.devices.state(second).peers.is_empty());
    assert!(world.nodes[0].progress().contains("it waits for 10.5."), "{}", world.nodes[0].progress());
    assert_eq!(world.lost, 0);
}

#[tokio::test(start_paused = true)]
async fn an_old_key_is_changed_by_itself() {
    let day = Duration::from_secs(24 * 3600);
    let mut world = World::new(Some(30 * day)).await;
    let before = world.nodes[0].host.key();
    let age = |days| {
        let file = File::options().read(true).open(world.nodes[0].host.folder.path().join("wgkey")).unwrap();
        file.set_modified(SystemTime::now().checked_sub(days * day).unwrap()).unwrap();
    };
    age(29);
    let other = world.nodes[1].host.key();
    world.run(4 * 300).await;
    assert_eq!(world.nodes[0].host.key(), before);
    let age = |days| {
        let file = File::options().read(true).open(world.nodes[0].host.folder.path().join("wgkey")).unwrap();
        file.set_modified(SystemTime::now().checked_sub(days * day).unwrap()).unwrap();
    };
    age(34);
    world.run(4 * 130).await;
    world.settle().await;
    assert_ne!(world.nodes[0].host.key(), before);
    assert_eq!((world.lost, world.nodes[1].host.key()), (0, other));
}

#[tokio::test(start_paused = true)]
async fn commands_that_fail_say_why() {
    let world = World::new(None).await;
    let unknown = world.nodes[0].inspector.command("dance").await;
    assert!(matches!(unknown, Err(InspectError::Command(CommandError::Unknown))));
    // No file can be put where a folder is.
    let next = world.nodes[0].next_file();
    std::fs::create_dir(&next).unwrap();
    std::fs::write(next.join("in-the-way"), "").unwrap();
    let failed = world.nodes[0].inspector.command("rotate-key").await.unwrap_err();
    assert!(failed.to_string().contains("can't write the WireGuard key file"), "{failed}");
    assert!(world.nodes[0].device("flannel-wg-r").is_none());
}
