//! Nodes behind NATs: two of them join without further configuration, and a relay carries what can't go straight.

use std::time::{Duration, Instant};

use flannel_lab::bed::HEALTH_PORT;
use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::nat::{NatBox, NatKind};
use flannel_lab::netns::Netns;
use flannel_lab::ping::reaches;
use flannel_lab::pod::Pod;
use flannel_lab::transfer::tcp;
use flannel_lab::wait::{eventually, patiently};
use serde_json::Value;

use super::plain::Plain;
use crate::backends::BackendCase;
use crate::harness::{Bed, FLANNELD, Folder, SOON, Traffic, http_get, new_folder};

/// How soon two nodes behind NATs reach each other.
const JOINED: Duration = Duration::from_secs(10);
/// How soon packets flow again after a relay or a mapping of a NAT is gone.
const BACK: Duration = Duration::from_secs(5);

/// Public nodes, and nodes behind a NAT each.
struct Site {
    bed: Bed<Folder>,
    nats: Vec<NatBox>,
    public: u8,
}

impl Site {
    /// The agents of the public nodes run, with these flags.
    fn new(case: &'static BackendCase, public: u8, flags: &[&str], kinds: &[NatKind]) -> Self {
        let mut cluster = Cluster::builder().nodes(public).families(Families::V4).build().unwrap();
        let nats = (1..).zip(kinds).map(|(segment, kind)| cluster.add_node_behind(segment, *kind).unwrap());
        let nats = nats.collect();
        let mut bed = Bed::with_config(cluster, new_folder(), case, &case.config(Families::V4));
        for number in 1..=public {
            bed.spawn(number, flags);
            bed.wait_ready(number);
        }
        Self { bed, nats, public }
    }

    fn all(&self) -> Vec<Netns> {
        self.bed.cluster.nodes().map(|node| node.netns().clone()).collect()
    }

    /// The number of the node behind a NAT; they count from 0.
    fn behind(&self, at: usize) -> u8 {
        self.nats[at].number()
    }

    /// Starts the nodes behind NATs one after the other. Returns their pods, and how long the last one took to reach the one
    /// before it.
    fn join(&mut self) -> (Vec<Pod>, Duration) {
        let mut pods = Vec::new();
        let mut took = Duration::MAX;
        for at in 0..self.nats.len() {
            let (number, began) = (self.behind(at), Instant::now());
            self.bed.start(number);
            pods.push(self.bed.pod(number));
            self.reached_by(&pods[at], self.public);
            if at > 0 {
                reached(&pods[at], &pods[at - 1]);
                took = began.elapsed();
            }
        }
        (pods, took)
    }

    /// Waits until a pod reaches a public node.
    fn reached_by(&self, from: &Pod, number: u8) {
        let base = self.bed.env(number).unwrap().v4.unwrap().gateway.network().into();
        eventually(SOON, "an answer of the public node", || reaches(from.netns(), base).unwrap());
    }

    /// The session of a node with another one, in its status.
    fn session(&self, number: u8, with: u8) -> Value {
        let file = self.bed.subnet_file(number).display().to_string();
        let status =
            self.bed.netns(number).run(FLANNELD, &["status", "--subnet-file", &file, "--output=json"]);
        let status: Value = serde_json::from_str(&status.unwrap()).unwrap();
        let (key, _) = self.bed.record_of(with);
        let sessions = status["network"]["sessions"].as_array().unwrap();
        sessions.iter().find(|session| session["lease"] == key.as_str()).unwrap_or(&Value::Null).clone()
    }

    /// How many sessions of a node go which way, as its metrics count them.
    fn paths(&self, number: u8) -> [u64; 3] {
        let metrics = http_get(self.bed.netns(number), HEALTH_PORT, "/metrics");
        ["direct", "nat", "relay"].map(|path| {
            let series = format!("flannel_session_paths{{device=\"flannel-wg\",path=\"{path}\"}} ");
            let value = metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok());
            value.unwrap_or_else(|| panic!("no {series}in {metrics}"))
        })
    }

    /// The node that relays between two.
    fn relay(&self, number: u8, with: u8) -> Option<u8> {
        let session = self.session(number, with);
        let lease = session["path"]["relay"].as_str()?.to_owned();
        (1..=self.public).find(|relay| self.bed.record_of(*relay).0 == lease)
    }

    fn logs(&self) -> String {
        let agents = self.bed.agents();
        let logs = agents.iter().map(|agent| format!("--- {}\n{}", agent.name(), agent.last_lines()));
        logs.collect::<Vec<_>>().join("\n")
    }
}

/// Waits until a pod reaches another one.
fn reached(from: &Pod, to: &Pod) {
    let to = to.addresses()[0].ip();
    eventually(2 * SOON, &format!("{to} to answer"), || reaches(from.netns(), to).unwrap());
}

/// Slow enough that a NAT that forgets a mapping is found out by the agents, not by the next packet of the other end.
fn slow_traffic(from: &Pod, to: &Pod) -> Traffic {
    Traffic::to(from, [to.addresses()[0].ip()], Duration::from_millis(100))
}

pub(super) fn port_restricted_pair(case: &'static BackendCase) {
    let mut site = Site::new(case, 1, &[], &[NatKind::PortRestricted, NatKind::PortRestricted]);
    let netns = site.all();
    let plain = Plain::count(&netns);
    let (pods, took) = site.join();
    println!("two nodes behind port-restricted NATs joined in {took:?}");
    assert!(took < patiently(JOINED), "{took:?}\n{}", site.logs());
    let (a, b) = (site.behind(0), site.behind(1));
    for (of, with, at) in [(a, b, 1), (b, a, 0)] {
        let session = site.session(of, with);
        assert_eq!(session["endpoint"], format!("{}:51820", site.nats[at].outside()), "{session}");
        assert_eq!(session["path"], "nat", "{session}");
        assert_eq!(site.bed.record_of(of).1["BackendData"]["Nat"]["Behind"], true);
    }
    let seen = site.bed.record_of(1).1["BackendData"]["Nat"]["Seen"].clone();
    assert_eq!(seen.as_object().unwrap().len(), 2, "{seen}");
    for at in [0, 1] {
        let traffic = slow_traffic(&pods[0], &pods[1]);
        let began = Instant::now();
        site.nats[at].restart().unwrap();
        traffic.go_on(10);
        let took = began.elapsed();
        println!("packets again {took:?} after NAT {at} forgot its mappings");
        assert!(took < patiently(BACK), "{took:?}\n{}", site.logs());
        drop(traffic.stop());
    }
    // The public node has no session after its restart, and knows where the others were.
    site.bed.kill(1);
    site.bed.start(1);
    let began = Instant::now();
    let here = site.bed.pod(1);
    reached(&here, &pods[0]);
    println!("a restarted public node reaches a node behind a NAT after {:?}", began.elapsed());
    assert_eq!(plain.seen(), Vec::<String>::new());
}

pub(super) fn full_cone_and_symmetric(case: &'static BackendCase) {
    let mut site = Site::new(case, 1, &[], &[NatKind::FullCone, NatKind::Symmetric]);
    let (_, took) = site.join();
    println!("nodes behind a full-cone and a symmetric NAT joined in {took:?}");
    assert!(took < patiently(JOINED), "{took:?}\n{}", site.logs());
}

pub(super) fn relayed(case: &'static BackendCase) {
    let mut site = Site::new(case, 2, &["--relay"], &[NatKind::Symmetric, NatKind::Symmetric]);
    let netns = site.all();
    let plain = Plain::count(&netns);
    let (pods, took) = site.join();
    println!("two nodes behind symmetric NATs joined by a relay in {took:?}");
    assert!(took < patiently(JOINED), "{took:?}\n{}", site.logs());
    let (a, b) = (site.behind(0), site.behind(1));
    let relay = site.relay(a, b).unwrap_or_else(|| panic!("{}", site.session(a, b)));
    assert_eq!(site.relay(b, a), Some(relay));
    // Two public nodes see each other as they are, and two nodes behind NATs.
    eventually(SOON, "the ways to be counted", || {
        let paths = [a, b, 1, 2].map(|number| site.paths(number));
        if paths == [[0, 2, 1], [0, 2, 1], [1, 2, 0], [1, 2, 0]] { Ok(()) } else { Err(format!("{paths:?}")) }
    });
    let traffic = slow_traffic(&pods[0], &pods[1]);
    traffic.go_on(20);
    let began = Instant::now();
    if case.in_kernel {
        // The kernel would go on without the agent.
        site.bed.node(relay).partition().unwrap();
    } else {
        site.bed.kill(relay);
    }
    traffic.go_on(10);
    let took = began.elapsed();
    println!("packets again {took:?} after the relay was gone");
    assert!(took < patiently(BACK), "{took:?}\n{}", site.logs());
    let next = site.relay(a, b).unwrap_or_else(|| panic!("{}", site.session(a, b)));
    assert_ne!(next, relay);
    let began = Instant::now();
    site.nats[0].restart().unwrap();
    traffic.go_on(10);
    let took = began.elapsed();
    println!("packets again {took:?} after a NAT before the relay forgot its mappings");
    assert!(took < patiently(BACK), "{took:?}\n{}", site.logs());
    drop(traffic.stop());
    assert_eq!(plain.seen(), Vec::<String>::new());
}

/// Both ends leave the relay at the same moment, so what is lost is what is on its way then.
pub(super) fn straight_again(case: &'static BackendCase) {
    let mut site = Site::new(case, 1, &["--relay"], &[NatKind::Symmetric, NatKind::Symmetric]);
    let (pods, _) = site.join();
    let (a, b) = (site.behind(0), site.behind(1));
    assert_eq!(site.relay(a, b), Some(1));
    for nat in &mut site.nats {
        nat.exchange(NatKind::PortRestricted).unwrap();
    }
    reached(&pods[0], &pods[1]);
    assert_eq!(site.relay(a, b), Some(1));
    let traffic = Traffic::to(&pods[0], [pods[1].addresses()[0].ip()], Duration::from_millis(20));
    let began = Instant::now();
    // They try once a minute.
    eventually(8 * SOON, "the pair to go straight", || {
        let session = site.session(a, b);
        if session["path"] == "nat" { Ok(()) } else { Err(session) }
    });
    let took = began.elapsed();
    traffic.go_on(100);
    for (dst, report) in traffic.stop() {
        println!("straight after {took:?}: to {dst} {} of {} packets were lost", report.lost, report.sent);
        assert!(report.lost < 50, "{report:?}\n{}", site.logs());
    }
}

/// What a relay's agent costs for what it forwards, beside what it costs for packets of its own pods: each byte comes by one
/// session and leaves by another in both cases.
pub(super) fn relay_carries(case: &'static BackendCase) {
    const BYTES: usize = 32 << 20;
    let mut site = Site::new(case, 1, &["--relay"], &[NatKind::Symmetric, NatKind::Symmetric]);
    let (pods, _) = site.join();
    let here = site.bed.pod(1);
    reached(&here, &pods[0]);
    reached(&here, &pods[1]);
    let cpu = |what: &dyn Fn()| {
        let before = site.bed.agent(1).cpu_time().unwrap();
        let began = Instant::now();
        what();
        (site.bed.agent(1).cpu_time().unwrap().saturating_sub(before), began.elapsed())
    };
    let send = |from: &Pod, to: &Pod| tcp(from.netns(), to.netns(), to.addresses()[0].ip(), BYTES);
    let (own, own_time) = cpu(&|| {
        send(&pods[0], &here);
        send(&here, &pods[1]);
    });
    let (relayed, relayed_time) = cpu(&|| send(&pods[0], &pods[1]));
    let share = own.as_secs_f64() / relayed.as_secs_f64();
    println!(
        "{} MiB: {own:?} of the relay's processor in {own_time:?} for its own pods, {relayed:?} in {relayed_time:?} relayed: \
         it carries {share:.2} of what it carries for itself",
        BYTES >> 20
    );
    assert!(share > 0.5, "{share}");
}
