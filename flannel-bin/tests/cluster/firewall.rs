//! Packets meet the rules: what leaves under which address, and what is let through, by every manager.

mod packets;

use std::net::IpAddr;
use std::time::Duration;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::netns::Netns;
use flannel_lab::pod::Pod;
use flannel_lab::sandbox::in_sandbox_within;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use self::packets::{Ear, Mouth, Stream};
use crate::backends::{BackendCase, HOST_GW, VXLAN};
use crate::harness::{Bed, LocalFolder, SOON, env_of, http_get};

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
            return sh(node, "nft --stateless list ruleset");
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
    bed: Bed<LocalFolder>,
    manager: Manager,
    pods: Vec<Pod>,
}

impl World {
    fn new(case: &'static BackendCase, manager: Manager, flags: &[&str]) -> Self {
        let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
        let mut bed = Bed::with_config(cluster, LocalFolder::new(), case, &manager.config(case));
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
                    // No table can undo another's drop, so it is told.
                    eventually(SOON, "the chain to be named", || {
                        let said = world.readyz(1);
                        let named = ["ip", "ip6"].map(|family| {
                            said.contains(&format!("chain FORWARD of table {family} filter drops"))
                        });
                        if named == [true; 2] && said.contains("200 OK") { Ok(()) } else { Err(said) }
                    });
                }
            }
        }
    });
}

/// The rules of others are, byte for byte, what they were, whatever we do to ours.
#[test]
fn rules_of_others_stay_byte_for_byte() {
    in_sandbox_within(Duration::from_mins(4), test_name!(), || {
        for manager in MANAGERS {
            let mut world = World::new(&VXLAN, manager, &["--ip-masq"]);
            let theirs = |rules: &str| {
                let mut lines: Vec<_> = rules.lines().map(str::to_owned).collect();
                let mut ours = false;
                lines.retain(|line| {
                    ours |= line.starts_with("table ip flannel-ipv4")
                        || line.starts_with("table ip6 flannel-ipv6");
                    let keep = !ours && !line.contains("FLANNEL") && !line.contains("flanneld");
                    ours &= line != "}";
                    keep
                });
                lines.join("\n")
            };
            // Rules that come after ours, and one among them.
            for (program, chain) in manager.iptables().into_iter().zip(["POSTROUTING"; 2]) {
                sh(
                    world.node(1),
                    &format!("{program} -w 5 -t nat -A {chain} -m comment --comment after -j RETURN"),
                );
                if manager != Manager::Nftables {
                    sh(
                        world.node(1),
                        &format!("{program} -w 5 -t nat -I FLANNEL-POSTRTG 3 -m comment --comment between"),
                    );
                }
            }
            let all = manager.rules(world.node(1));
            world.bed.stop(1);
            world.bed.spawn(1, &["--ip-masq"]);
            world.bed.wait_ready(1);
            assert_eq!(
                manager.rules(world.node(1)),
                all,
                "{manager:?}: a start that finds all as it should be"
            );
            world.bed.stop(1);
            world.bed.spawn(1, &["--iptables-forward-rules=false"]);
            world.bed.wait_ready(1);
            let between = |rules: &str| rules.lines().filter(|line| line.contains("between")).count();
            eventually(SOON, "our rules to be gone", || {
                let left = manager.rules(world.node(1));
                let gone = !left.contains("10.244.") && !left.contains("fd00:10:244");
                // One of theirs is in our chain, so that has to stay, but with nothing of ours.
                let right = gone && theirs(&left) == theirs(&all) && between(&left) == between(&all);
                if right { Ok(()) } else { Err(format!("{manager:?}\n{left}\ninstead of\n{all}")) }
            });
        }
    });
}

/// All of a host's rules are flushed while pods speak to the world.
#[test]
fn flushed_rules_come_back_under_traffic() {
    in_sandbox_within(Duration::from_mins(4), test_name!(), || {
        for manager in MANAGERS {
            let world = World::new(&VXLAN, manager, &["--ip-masq", "--iptables-resync=1"]);
            let stream =
                Stream::start(world.pods[0].netns(), world.bed.cluster.fabric(), world.outside(false));
            stream.wait_for(20);
            let before = manager.rules(world.node(1));
            let flush = match manager {
                Manager::Nftables => "nft flush ruleset".to_owned(),
                // As a firewall that starts anew: all rules of all, then its own.
                _ => manager
                    .iptables()
                    .map(|it| {
                        format!("{it} -w 5 -t nat -F; {it} -w 5 -t nat -X; {it} -w 5 -F; {it} -w 5 -X;")
                    })
                    .concat(),
            };
            for round in 1..=3 {
                sh(world.node(1), &flush);
                eventually(SOON, "the rules to be back", || {
                    let log = world.bed.agent(1).log();
                    if log.matches("firewall rules repaired").count() == round { Ok(()) } else { Err(log) }
                });
                let ours = |rules: String| rules.lines().filter(|line| line.contains("10.244")).count();
                assert_eq!(ours(manager.rules(world.node(1))), ours(before.clone()));
            }
            let heard = stream.stop();
            let node = world.underlay(1, false);
            println!(
                "{manager:?}: {} packets as they should be, {} with the address of the pod while the rules were away; {}",
                heard.iter().filter(|source| **source == node).count(),
                heard.iter().filter(|source| **source != node).count(),
                world
                    .bed
                    .agent(1)
                    .log()
                    .lines()
                    .filter(|line| line.contains("repaired"))
                    .collect::<Vec<_>>()
                    .join("; "),
            );
            assert_eq!(heard.last(), Some(&node));
        }
    });
}

/// New connections all the while, and old ones that go on.
#[test]
fn a_restart_is_invisible_to_traffic_to_the_world() {
    in_sandbox_within(Duration::from_mins(4), test_name!(), || {
        for manager in MANAGERS {
            let mut world = World::new(&VXLAN, manager, &["--ip-masq"]);
            let (pod, fabric) = (world.pods[0].netns().clone(), world.bed.cluster.fabric().clone());
            let streams = [false, true].map(|v6| Stream::start(&pod, &fabric, world.outside(v6)));
            let talk = [false, true].map(|v6| packets::Talk::start(&pod, &fabric, world.outside(v6)));
            for round in 0..4 {
                if round % 2 == 0 {
                    world.bed.stop(1);
                } else {
                    world.bed.kill(1);
                }
                for stream in &streams {
                    stream.wait_for(50);
                }
                world.bed.spawn(1, &["--ip-masq"]);
                world.bed.wait_ready(1);
                for stream in &streams {
                    stream.wait_for(50);
                }
            }
            for (stream, v6) in streams.into_iter().zip([false, true]) {
                let sent = stream.sent();
                let heard = stream.stop();
                assert!(heard.len() as u64 >= sent, "{manager:?}: {sent} sent, {} heard", heard.len());
                assert!(heard.iter().all(|source| *source == world.underlay(1, v6)), "{manager:?} {v6}");
            }
            talk.into_iter().for_each(packets::Talk::finish);
        }
    });
}

/// From one manager to the other, and to none: nothing stays of the one before.
#[test]
fn switching_leaves_no_residue() {
    in_sandbox_within(Duration::from_mins(4), test_name!(), || {
        let mut world = World::new(&VXLAN, Manager::Nftables, &["--ip-masq"]);
        let dump = |world: &World| {
            let programs =
                ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"];
            let dumps = programs.map(|program| sh(world.node(1), program));
            dumps.concat() + &sh(world.node(1), "nft list ruleset")
        };
        let stream = Stream::start(world.pods[0].netns(), world.bed.cluster.fabric(), world.outside(false));
        for (manager, flags, want) in [
            (Manager::IptablesNft, &["--ip-masq"][..], [false, true]),
            (Manager::Nftables, &["--ip-masq"], [true, false]),
            (Manager::IptablesNft, &["--ip-masq", "--iptables-forward-rules=false"], [false, true]),
        ] {
            stream.wait_for(20);
            world.bed.stop(1);
            flannel_config(&world, manager);
            world.bed.spawn(1, flags);
            world.bed.wait_ready(1);
            eventually(SOON, "the other's rules to be gone", || {
                let all = dump(&world);
                let has = [all.contains("table ip flannel-ipv4"), all.contains("FLANNEL-POSTRTG")];
                let forward = all.contains("FLANNEL-FWD");
                let right = has == want && (forward == (want[1] && flags.len() == 1));
                if right { Ok(()) } else { Err(format!("{manager:?} {flags:?}: {all}")) }
            });
        }
        stream.wait_for(20);
        let heard = stream.stop();
        let node = world.underlay(1, false);
        assert!(heard.iter().all(|source| *source == node), "none left with the address of its pod");
        world.bed.stop(1);
        world.bed.spawn(1, &["--iptables-forward-rules=false"]);
        world.bed.wait_ready(1);
        eventually(SOON, "all our rules to be gone", || {
            let all = dump(&world).to_lowercase();
            if all.contains("flannel") { Err(all) } else { Ok(()) }
        });
    });
}

fn flannel_config(world: &World, manager: Manager) {
    use crate::harness::Store;
    world.bed.store.put_config(&manager.config(world.bed.case));
}

/// Masquerading that was asked for must not be missed in silence; the default must not hinder anybody.
#[test]
fn a_host_without_the_programs() {
    in_sandbox_within(Duration::from_mins(1), test_name!(), || {
        let cluster = Cluster::builder().nodes(1).families(Families::Dual).build().unwrap();
        for (config, package) in [
            (VXLAN.config(Families::Dual), "iptables and nftables"),
            (Manager::Nftables.config(&VXLAN), "nftables"),
            (Manager::IptablesNft.config(&VXLAN), "iptables"),
        ] {
            let store = LocalFolder::new();
            crate::harness::Store::put_config(&store, &config);
            let flanneld = |more: &[&str]| {
                let agent =
                    cluster.node(1).agent("flanneld", crate::harness::FLANNELD).env("PATH", "/nowhere");
                agent
                    .arg("--iface=eth0")
                    .arg("--healthz-port=8471")
                    .args(more)
                    .args(crate::harness::Store::flags(&store))
            };
            for asked in ["--ip-masq", "--iptables-forward-rules"] {
                let agent = flanneld(&[asked]).start().unwrap();
                let status = agent.wait(SOON).unwrap();
                assert_eq!(status.code(), Some(1), "{}", agent.log());
                let log = agent.log();
                assert!(log.contains(asked) && log.contains("installed") && log.contains(package), "{log}");
                assert!(crate::harness::Store::records(&store).is_empty(), "nothing was touched before");
            }
            let agent = flanneld(&[]).start().unwrap();
            eventually(SOON, "an agent that is ready and says what it misses", || {
                let said = http_get(cluster.node(1).netns(), 8471, "/readyz");
                let right = said.contains("200 OK") && said.contains("installed") && said.contains(package);
                if right { Ok(()) } else { Err(format!("{said}\n{}", agent.log())) }
            });
            agent.terminate().unwrap();
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
