//! Packets meet the rules: what leaves under which address, and what is let through, by every manager.

mod around;
mod first_process;
mod keeping;
mod lacking;
mod packets;

use std::net::IpAddr;
use std::time::Duration;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::netns::Netns;
use flannel_lab::pod::Pod;
use flannel_lab::sandbox::in_sandbox_within;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use self::packets::{Ear, Mouth};
use crate::backends::{BackendCase, HOST_GW, VXLAN};
use crate::harness::{Bed, Folder, SOON, WITHOUT_GATE, env_of, http_get, new_folder};

/// What keeps the rules, as an operator chooses it and as the host has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manager {
    Nftables,
    IptablesNft,
    /// Chosen because the host has rules of it.
    IptablesLegacy,
}

const MANAGERS: [Manager; 3] = [Manager::Nftables, Manager::IptablesNft, Manager::IptablesLegacy];

impl Manager {
    fn config(self, case: &BackendCase) -> String {
        let nftables = self == Self::Nftables;
        case.config(Families::Dual).replacen('{', &format!("{{\"EnableNFTables\":{nftables},"), 1)
    }

    /// The programs of both families.
    fn iptables(self) -> [&'static str; 2] {
        match self {
            Self::Nftables | Self::IptablesNft => ["iptables-nft", "ip6tables-nft"],
            Self::IptablesLegacy => ["iptables-legacy", "ip6tables-legacy"],
        }
    }

    /// Rules of others, of every kind that this host has.
    fn lay_foreign_rules(self, node: &Netns) {
        for (program, net) in self.iptables().into_iter().zip(["192.0.2.0/24", "2001:db8:9::/64"]) {
            for rule in [
                format!("-t nat -A POSTROUTING -s {net} -m comment --comment before -j MASQUERADE"),
                format!("-A FORWARD -s {net} -m comment --comment before -j ACCEPT"),
                "-t mangle -N THEIRS".to_owned(),
                format!("-t mangle -A THEIRS -d {net} -j MARK --set-mark 0x7"),
            ] {
                sh(node, &format!("{program} -w 5 {rule}"));
            }
        }
        sh(
            node,
            "nft add table inet theirs; nft add chain inet theirs c; nft add rule inet theirs c counter drop",
        );
    }

    fn rules(self, node: &Netns) -> String {
        // Without the counters, which count.
        if self == Self::Nftables {
            return sh(node, &format!("nft --stateless list ruleset | {WITHOUT_GATE}"));
        }
        let save = |program| sh(node, &format!("{program}-save | sed 's/\\[[0-9:]*\\]//; /^#/d'"));
        self.iptables().map(save).concat()
    }
}

/// Runs a line of shell.
fn sh(netns: &Netns, line: &str) -> String {
    netns.run("sh", &["-c", line]).unwrap()
}

/// Two nodes with two pods each, and the rest of the world.
struct World {
    bed: Bed<Folder>,
    manager: Manager,
    pods: Vec<Pod>,
}

impl World {
    fn new(case: &'static BackendCase, manager: Manager, flags: &[&str]) -> Self {
        let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
        let mut bed = Bed::with_config(cluster, new_folder(), case, &manager.config(case));
        for number in 1..=2 {
            manager.lay_foreign_rules(bed.netns(number));
            bed.spawn(number, flags);
        }
        for number in 1..=2 {
            bed.wait_ready(number);
            bed.wait_for_peers(number, 1);
        }
        let pods = [1, 1, 2].map(|node| Pod::attach_plain(bed.cluster.node(node), &env_of(node)).unwrap());
        Self { bed, manager, pods: pods.into() }
    }

    fn node(&self, number: u8) -> &Netns {
        self.bed.netns(number)
    }

    fn underlay(&self, number: u8, v6: bool) -> IpAddr {
        let node = self.bed.cluster.node(number);
        if v6 { node.ipv6() } else { node.ipv4() }.unwrap()
    }

    fn outside(&self, v6: bool) -> IpAddr {
        *self.bed.cluster.fabric_addresses().iter().find(|addr| addr.is_ipv6() == v6).unwrap()
    }

    fn pod(&self, number: usize, v6: bool) -> IpAddr {
        let pod = &self.pods[number];
        if v6 { pod.ipv6() } else { pod.ipv4() }.unwrap()
    }

    /// The overlay address of a node, by which it reaches pods of others.
    fn overlay(number: u8, v6: bool) -> IpAddr {
        let env = env_of(number);
        env.families().iter().map(|family| family.gateway.network()).find(|it| it.is_ipv6() == v6).unwrap()
    }

    fn readyz(&self, number: u8) -> String {
        http_get(self.node(number), 8471, "/readyz")
    }
}

/// The table: who speaks to whom, and under which address he is heard. Words name what a rule is for.
fn cases(world: &World, v6: bool) {
    let fabric = world.bed.cluster.fabric();
    let [pod1, pod2, pod3] = [0, 1, 2].map(|number| world.pod(number, v6));
    let [in1, _, in3] = [0, 1, 2].map(|number| world.pods[number].netns());
    let (node1, node2, outside) = (world.underlay(1, v6), world.underlay(2, v6), world.outside(v6));
    // The world knows the way to the pods through node 1, which is right for those of node 1 only.
    let network = if v6 { "fd00:10:244::/56" } else { "10.244.0.0/16" };
    fabric.ip(&format!("route replace {network} via {node1}")).unwrap();
    let masqueraded = match world.bed.case.kind {
        "vxlan" => World::overlay(1, v6),
        _ => node1,
    };
    let own = Mouth::default();
    let as_node = Mouth { from: Some(node1), mark: 0 };
    for (what, from, mouth, to, dst, want) in [
        ("pod to the world", in1, own, fabric, outside, node1),
        ("pod to another node", in1, own, world.node(2), node2, node1),
        ("pod to its own node", in1, own, world.node(1), node1, pod1),
        ("pod to pod on another node", in1, own, in3, pod3, pod1),
        ("pod to pod on the same node", in1, own, world.pods[1].netns(), pod2, pod1),
        ("host to a pod of its own", world.node(1), as_node, in1, pod1, node1),
        ("host to a pod of another node", world.node(1), as_node, in3, pod3, masqueraded),
        (
            "marked packets are others' business",
            world.node(1),
            Mouth { mark: 0x4000, ..as_node },
            in3,
            pod3,
            node1,
        ),
        ("other bits of the mark", world.node(1), Mouth { mark: 0x4001, ..as_node }, in3, pod3, node1),
        (
            "a mark of something else",
            world.node(1),
            Mouth { mark: 0x8001, ..as_node },
            in3,
            pod3,
            masqueraded,
        ),
        ("the world to a pod here", fabric, own, in1, pod1, outside),
        ("the world to a pod elsewhere", fabric, own, in3, pod3, masqueraded),
    ] {
        let heard = packets::heard(from, mouth, to, dst);
        assert_eq!(heard, Some(want), "{what} ({:?})", world.manager);
    }
    // What the bridge's own address is rewritten to comes back to the pod that sent it.
    let program = world.manager.iptables()[usize::from(v6)];
    let to = if v6 { format!("[{pod2}]:{}", packets::PORT) } else { format!("{pod2}:{}", packets::PORT) };
    let dnat = format!("-t nat -A PREROUTING -d {node1} -p udp --dport 7777 -j DNAT --to-destination {to}");
    sh(world.node(1), &format!("{program} -w 5 {dnat}"));
    let heard = packets::heard_at_port(in1, own, world.pods[1].netns(), node1, 7777);
    assert_eq!(heard, Some(pod1), "hairpin through a port of the node ({:?})", world.manager);
    // Multicast keeps its source although that is in the network.
    let source = World::overlay(1, v6);
    if world.bed.case.kind == "vxlan" {
        let heard = packets::heard_in_group(world.node(1), source, fabric, outside);
        assert_eq!(heard, Some(source), "multicast ({:?})", world.manager);
    }
    fabric.ip(&format!("route del {network} via {node1}")).unwrap();
}

fn packets_leave_as_they_should(case: &'static BackendCase) {
    for manager in MANAGERS {
        let world = World::new(case, manager, &["--ip-masq"]);
        cases(&world, false);
        cases(&world, true);
    }
}

#[test]
fn packets_leave_as_they_should_with_vxlan() {
    in_sandbox_within(Duration::from_mins(4), test_name!(), || packets_leave_as_they_should(&VXLAN));
}

#[test]
fn packets_leave_as_they_should_with_host_gw() {
    in_sandbox_within(Duration::from_mins(4), test_name!(), || packets_leave_as_they_should(&HOST_GW));
}

/// Where Docker or a firewall drops what is forwarded.
#[test]
fn pods_reach_each_other_where_forwarding_is_dropped() {
    in_sandbox_within(Duration::from_mins(4), test_name!(), || {
        for manager in MANAGERS {
            for (flag, lets_through) in [
                ("--iptables-forward-rules=false", false),
                ("--iptables-forward-rules", manager != Manager::Nftables),
            ] {
                let world = World::new(&VXLAN, manager, &[flag]);
                for (program, v6) in manager.iptables().into_iter().zip([false, true]) {
                    sh(world.node(1), &format!("{program} -w 5 -P FORWARD DROP"));
                    let (from, to) = (world.pods[0].netns(), world.pods[2].netns());
                    let heard = packets::heard(from, Mouth::default(), to, world.pod(2, v6));
                    assert_eq!(heard.is_some(), lets_through, "{manager:?} {flag} {v6}");
                }
                if manager == Manager::Nftables && flag == "--iptables-forward-rules" {
                    // No table can undo another's drop, so pods are cut off, and that is told.
                    eventually(SOON, "the chain to be named", || {
                        let said = world.readyz(1);
                        let named = ["ip", "ip6"].map(|family| {
                            said.contains(&format!("chain FORWARD of table {family} filter drops"))
                        });
                        if named == [true; 2] && said.starts_with("HTTP/1.1 503") {
                            Ok(())
                        } else {
                            Err(said)
                        }
                    });
                }
            }
        }
    });
}

#[test]
fn packets_are_heard_at_all() {
    in_sandbox_within(Duration::from_mins(1), test_name!(), || {
        let cluster = Cluster::builder().nodes(1).families(Families::Dual).build().unwrap();
        let node = cluster.node(1);
        for dst in cluster.fabric_addresses() {
            let own = if dst.is_ipv6() { node.ipv6() } else { node.ipv4() };
            assert_eq!(packets::heard(node.netns(), Mouth::default(), cluster.fabric(), dst), own);
        }
        drop(Ear::open(cluster.fabric(), false, 7));
    });
}
