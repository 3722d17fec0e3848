//! A host that is no node sends VXLAN to a node: what it gets by that in each mode, and what honest nodes notice.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::netns::Netns;
use flannel_lab::pod::Pod;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, HOST_GW, UDP, VXLAN, VXLAN_DIRECT, VXLAN_PLAIN};
use crate::harness::{
    Bed, FLANNELD, Folder, SOON, Store, Traffic, assert_all_reach_all, env_of, http_get, new_folder, sides,
};

/// Where listeners are.
const PORT: u16 = 7171;
/// How long a packet may take on one host.
const PATIENCE: Duration = Duration::from_millis(500);
/// The metrics of packets that the gate counts, in `enforce` and in `observe`.
const DROPPED: &str = "flannel_gate_dropped_packets_total";
const LET_IN: &str = "flannel_gate_let_in_packets_total";
/// What a cloud tells about a machine, and the gateway of the network it is in.
const METADATA: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];
const METADATA_GATEWAY: [&str; 2] = ["169.254.169.1/24", "fd00:ec2::1/64"];

fn metadata(v6: bool) -> IpAddr {
    METADATA[usize::from(v6)].parse().unwrap()
}

/// Whether a packet from one namespace is heard at an address in another.
fn is_heard(from: &Netns, at: &Netns, dst: IpAddr) -> bool {
    let any = if dst.is_ipv6() { "::" } else { "0.0.0.0" };
    let ear = at.enter(|| UdpSocket::bind((any, PORT))).unwrap().unwrap();
    ear.set_read_timeout(Some(PATIENCE)).unwrap();
    let mouth = from.enter(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
    mouth.send_to(b"let me in", (dst, PORT)).unwrap();
    ear.recv_from(&mut [0; 64]).is_ok()
}

/// Nodes 1 and 2 with a pod each; node 3 is a host without an agent; and a metadata service that only node 1 reaches.
struct World<S> {
    bed: Bed<S>,
    pods: [Pod; 2],
    metadata: Netns,
}

impl<S: Store> World<S> {
    fn new(case: &'static BackendCase, store: impl FnOnce(&Cluster) -> S, flags: &[&str]) -> Self {
        let cluster = Cluster::builder().nodes(3).families(Families::Dual).build().unwrap();
        let store = store(&cluster);
        let mut bed = Bed::new(cluster, store, case, Families::Dual);
        for number in [1, 2] {
            bed.spawn(number, &[flags, &["--ip-masq"]].concat());
        }
        for number in [1, 2] {
            bed.wait_ready(number);
            bed.wait_for_peers(number, 1);
        }
        // With a default route, as pods of a cluster have it.
        let pods = [1, 2].map(|it| Pod::attach_plain(bed.cluster.node(it), &env_of(it)).unwrap());
        let metadata = Netns::add("metadata").unwrap();
        let node = bed.netns(1);
        node.ip("link add meta0 type veth peer name eth0 netns metadata").unwrap();
        node.ip("link set meta0 up").unwrap();
        metadata.ip("link set eth0 up").unwrap();
        for (addr, gateway) in METADATA.into_iter().zip(METADATA_GATEWAY) {
            let (v6, nodad) = if addr.contains(':') { ("-6 ", " nodad") } else { ("", "") };
            let prefix = gateway.rsplit_once('/').unwrap().1;
            node.ip(&format!("{v6}address add {gateway} dev meta0{nodad}")).unwrap();
            metadata.ip(&format!("{v6}address add {addr}/{prefix} dev eth0{nodad}")).unwrap();
        }
        node.sysctl("net.ipv4.ip_forward", "1").unwrap();
        node.sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
        let world = Self { bed, pods, metadata };
        world.arm_stranger();
        world
    }

    /// Node 3 knows the VTEP MACs of node 1 and sends it what it likes, from addresses of no pod.
    fn arm_stranger(&self) {
        let (key, value) = self.bed.record_of(1);
        let stranger = self.bed.netns(3);
        for (at, (own, remote)) in sides(self.bed.case, &key, &value).into_iter().enumerate() {
            let (device, mac, underlay, base) = (remote.device, remote.mac, own.underlay, own.base);
            let node = self.bed.cluster.node(3);
            let (v6, bits, source, local) = if at == 0 {
                ("", 32, "10.244.201.1", node.ipv4())
            } else {
                ("-6 ", 128, "fd00:10:244:c9::1", node.ipv6())
            };
            let local = local.unwrap();
            stranger
                .ip(&format!(
                    "link add {device} type vxlan id 1 dev eth0 local {local} dstport 8472 nolearning"
                ))
                .unwrap();
            stranger.ip(&format!("link set {device} up")).unwrap();
            let nodad = if at == 0 { "" } else { " nodad" };
            stranger.ip(&format!("{v6}address add {source}/{bits} dev {device}{nodad}")).unwrap();
            stranger.ip(&format!("neigh replace {base} dev {device} lladdr {mac} nud permanent")).unwrap();
            stranger
                .bridge(&format!("fdb replace {mac} dev {device} dst {underlay} self permanent"))
                .unwrap();
            for dst in [remote.subnet.as_str(), METADATA[at]] {
                stranger
                    .ip(&format!("{v6}route add {dst} via {base} dev {device} src {source} onlink"))
                    .unwrap();
            }
        }
    }

    /// What the stranger reaches by its packets: pod, node, metadata service.
    fn reached(&self, v6: bool) -> [bool; 3] {
        let (stranger, node) = (self.bed.netns(3), self.bed.netns(1));
        let pod = &self.pods[0];
        let base = &self.bed.remotes(1)[usize::from(v6)].base;
        [
            is_heard(stranger, pod.netns(), if v6 { pod.ipv6() } else { pod.ipv4() }.unwrap()),
            is_heard(stranger, node, base.parse().unwrap()),
            is_heard(stranger, &self.metadata, metadata(v6)),
        ]
    }

    fn underlay(&self, number: u8, v6: bool) -> IpAddr {
        let node = self.bed.cluster.node(number);
        if v6 { node.ipv6() } else { node.ipv4() }.unwrap()
    }

    fn readyz(&self) -> String {
        http_get(self.bed.netns(1), 8471, "/readyz")
    }

    /// Waits until node 1 is ready and names all of these.
    #[track_caller]
    fn wait_until_named(&self, what: &[String]) {
        eventually(SOON, &format!("{what:?} in the status"), || {
            let answer = self.readyz();
            let named = answer.starts_with("HTTP/1.1 200") && what.iter().all(|it| answer.contains(it));
            if named { Ok(()) } else { Err(answer) }
        });
    }

    /// What a counter of node 1's gate says.
    #[track_caller]
    fn counted(&self, metric: &str, reason: &str) -> u64 {
        let answer = http_get(self.bed.netns(1), 8471, "/metrics");
        let series = format!("{metric}{{reason=\"{reason}\"}} ");
        let value = answer.lines().find_map(|line| line.strip_prefix(&series));
        value.unwrap_or_else(|| panic!("{series} in {answer}")).parse().unwrap()
    }

    /// The gate's line of `flanneld status` on node 1.
    fn shown(&self) -> String {
        let file = format!("--subnet-file={}", self.bed.subnet_file(1).display());
        let output = self.bed.netns(1).command(FLANNELD).args(["status", &file]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        said.lines().find(|line| line.starts_with("gate ")).unwrap_or_default().to_owned()
    }

    /// Starts node 1's agent anew in another mode, and waits until it is in force.
    fn restart(&mut self, mode: &str) {
        self.bed.kill(1);
        self.bed.spawn(1, &["--ip-masq", &format!("--strict-underlay={mode}")]);
        self.bed.wait_ready(1);
        let log = format!("underlay gate is in force mode={mode}");
        eventually(SOON, "the mode to be in force", || {
            mode == "off" || self.bed.agent(1).log().contains(&log)
        });
    }

    fn has_table(&self) -> bool {
        self.bed.netns(1).run("nft", &["list", "tables"]).unwrap().contains("flannel-underlay-1")
    }
}

fn folder(_: &Cluster) -> Folder {
    new_folder()
}

/// In observe, which is the default, all is as ever, but counted and named. In enforce a stranger reaches nothing.
/// Honest pods notice none of it, nor the changes from one to the other.
fn strangers_reach_nothing(case: &'static BackendCase) {
    let mut world = World::new(case, folder, &[]);
    let there_and_back = |world: &World<Folder>| {
        let [a, b] = &world.pods;
        Traffic::between(a, b).and(Traffic::between(b, a))
    };
    let traffic = there_and_back(&world);
    nodes_and_pods_reach_each_other(&world);
    for v6 in [false, true] {
        assert_eq!(world.reached(v6), [true; 3], "v6 {v6}: observing drops nothing");
    }
    let named = [false, true].map(|v6| {
        let (stranger, there) = (world.underlay(3, v6), metadata(v6));
        [
            format!("{stranger} has no lease and sent 3 VXLAN packets"),
            format!(" for {there} came out of the overlay"),
        ]
    });
    world.wait_until_named(&named.concat());
    assert_eq!(world.bed.agent(1).log().matches("packets from strangers").count(), 1, "one line of the log");
    assert_eq!(world.counted(LET_IN, "no_lease"), 6);
    assert!(world.counted(LET_IN, "not_own_subnet") >= 2, "the metadata service of each family");
    assert_eq!(world.counted(DROPPED, "no_lease") + world.counted(DROPPED, "not_own_subnet"), 0);
    assert!(
        world.shown().starts_with("gate      observe, would have dropped 6 no_lease, "),
        "{}",
        world.shown()
    );
    traffic.go_on(100);

    world.restart("enforce");
    for v6 in [false, true] {
        assert_eq!(world.reached(v6), [false; 3], "v6 {v6}");
    }
    // The rules are others, and so are their counters.
    assert_eq!((world.counted(DROPPED, "no_lease"), world.counted(LET_IN, "no_lease")), (6, 0));
    assert!(world.shown().starts_with("gate      enforce, dropped 6 no_lease, "), "{}", world.shown());
    traffic.go_on(100);
    assert_all_reach_all(&world.pods, case.mtu(Families::Dual, 1500));
    nodes_and_pods_reach_each_other(&world);
    // Killed or not, the rules stay.
    world.bed.kill(1);
    for v6 in [false, true] {
        assert_eq!(world.reached(v6), [false; 3], "v6 {v6}: without an agent");
    }
    world.bed.spawn(1, &["--ip-masq", "--strict-underlay=enforce"]);
    world.bed.wait_ready(1);
    traffic.go_on(100);
    eventually(SOON, "the rules that stayed to be counted from", || world.counted(DROPPED, "no_lease") == 12);
    // Somebody flushes all rules there are.
    world.bed.netns(1).run("nft", &["flush", "ruleset"]).unwrap();
    eventually(SOON, "the gate to be put back", || {
        world.bed.agent(1).log().contains("underlay gate repaired")
    });
    for v6 in [false, true] {
        assert_eq!(world.reached(v6), [false; 3], "v6 {v6}: after the repair");
    }
    assert_eq!(world.counted(DROPPED, "no_lease"), 6, "since the rules were put");
    world.restart("off");
    eventually(SOON, "the table to be gone", || !world.has_table());
    assert_eq!(world.reached(false), [true; 3], "off is as it was before");
    traffic.go_on(100);
    traffic.assert_no_loss();
}

/// Traffic between a node and pods of another goes on, and so does what comes back to a host that is masqueraded.
fn nodes_and_pods_reach_each_other<S: Store>(world: &World<S>) {
    for v6 in [false, true] {
        let pod_of = |at: usize| {
            let pod = &world.pods[at];
            if v6 { pod.ipv6() } else { pod.ipv4() }.unwrap()
        };
        let base = |number: u8| world.bed.remotes(number)[usize::from(v6)].base.parse().unwrap();
        let reaches = |from: &Netns, to: IpAddr, what: &str| {
            eventually(SOON, &format!("{what}, v6 {v6}"), || flannel_lab::ping::reaches(from, to).unwrap());
        };
        reaches(world.bed.netns(2), pod_of(0), "node to pod");
        reaches(world.pods[1].netns(), base(1), "pod to node");
        reaches(world.bed.netns(1), pod_of(1), "the reply to what this node asked");
        // A host behind node 1 asks a pod of node 2; its reply is for the node until its address is put back.
        let gateway = METADATA_GATEWAY[usize::from(v6)].rsplit_once('/').unwrap().0;
        let family = if v6 { "-6 " } else { "" };
        world.metadata.ip(&format!("{family}route replace default via {gateway}")).unwrap();
        reaches(&world.metadata, pod_of(1), "a host behind a node to a pod");
    }
}

/// A node that joins is let in before its routes are there, and one that goes is kept out.
pub(crate) fn lets_in_who_has_a_lease<S: Store>(
    case: &'static BackendCase,
    store: impl FnOnce(&Cluster) -> S,
) {
    let world = World::new(case, store, &["--strict-underlay=enforce"]);
    eventually(SOON, "the gate to be in force", || {
        world.bed.agent(1).log().contains("underlay gate is in force mode=enforce")
    });
    let pod = &world.pods[0];
    let to_pod = || is_heard(world.bed.netns(3), pod.netns(), pod.ipv4().unwrap());
    assert!(!to_pod(), "no lease, no entry");
    let (key, value) = case.record(13);
    world.bed.store.put(&key, &value).unwrap();
    let route = format!("{}/24", key.split('-').next().unwrap());
    eventually(SOON, "the route to the new node", || {
        world.bed.netns(1).ip("route show").unwrap().contains(&route)
    });
    assert!(to_pod(), "its first packet once there is a route to it");
    let log = world.bed.agent(1).log();
    let log = &log[log.find(&format!("peer added subnet={key}")).unwrap()..];
    let at = |what: &str| log.find(what).unwrap_or_else(|| panic!("{what} in {log}"));
    assert!(
        at("underlay addresses of nodes changed added=2") < at("execute op=Create"),
        "let in first: {log}"
    );
    world.bed.store.delete(&key).unwrap();
    eventually(SOON, "the node to be kept out", || !to_pod());
    assert_all_reach_all(&world.pods, case.mtu(Families::Dual, 1500));
}

/// Without an agent to answer for it, the mode has nothing to do, and says so.
fn nothing_is_kept(case: &'static BackendCase, says: &str) {
    let cluster = Cluster::builder().nodes(1).families(case.widest()).build().unwrap();
    let mut bed = Bed::new(cluster, new_folder(), case, case.widest());
    bed.spawn(1, &["--strict-underlay=enforce"]);
    bed.wait_ready(1);
    eventually(SOON, "the log to say it", || bed.agent(1).log().contains(says));
    let tables = bed.netns(1).run("nft", &["list", "tables"]).unwrap();
    assert!(!tables.contains("flannel-underlay"), "{tables}");
}

#[test]
fn strangers_reach_nothing_by_vxlan() {
    in_sandbox(test_name!(), || strangers_reach_nothing(&VXLAN));
}

#[test]
fn strangers_reach_nothing_without_next_hop_objects() {
    in_sandbox(test_name!(), || strangers_reach_nothing(&VXLAN_PLAIN));
}

#[test]
fn strangers_reach_nothing_with_direct_routing() {
    in_sandbox(test_name!(), || strangers_reach_nothing(&VXLAN_DIRECT));
}

#[test]
fn who_has_a_lease_in_a_folder_is_let_in() {
    in_sandbox(test_name!(), || lets_in_who_has_a_lease(&VXLAN, folder));
}

#[test]
fn host_gw_has_no_tunnel_to_close() {
    in_sandbox(test_name!(), || nothing_is_kept(&HOST_GW, "it has no tunnel"));
}

#[test]
fn udp_checks_senders_by_itself() {
    in_sandbox(test_name!(), || nothing_is_kept(&UDP, "it checks senders always"));
}

/// The table of an earlier vxlan run goes with its devices.
#[test]
fn another_backend_removes_the_gate() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(1).families(Families::V4).build().unwrap();
        let mut bed = Bed::new(cluster, new_folder(), &VXLAN, Families::V4);
        bed.spawn(1, &["--strict-underlay=enforce"]);
        bed.wait_ready(1);
        let tables = |bed: &Bed<Folder>| bed.netns(1).run("nft", &["list", "tables"]).unwrap();
        eventually(SOON, "the table", || tables(&bed).contains("flannel-underlay-1"));
        eventually(SOON, "the state file", || {
            std::fs::read_to_string("/run/flannel/node1/subnet.env.state")
                .is_ok_and(|it| it.contains("flannel.1"))
        });
        bed.stop(1);
        bed.store.put_config(&HOST_GW.config(Families::V4)).unwrap();
        bed.case = &HOST_GW;
        bed.start(1);
        eventually(SOON, "the table to be gone", || !tables(&bed).contains("flannel-underlay-1"));
        bed.stop(1);
    });
}
