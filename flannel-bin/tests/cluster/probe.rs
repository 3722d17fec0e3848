//! Probes name faults: each one is made on a cluster of real nodes, and the agent's verdict is compared with it.
//!
//! `PROBE_FAULTS=20` repeats each fault so many times and fails if one takes longer than five seconds to be named.

use std::env;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use flannel_lab::bed::HEALTH_PORT;
use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::netns::Netns;
use flannel_lab::ping::system_ping;
use flannel_lab::sandbox::{DEADLINE, in_sandbox, in_sandbox_within};
use flannel_lab::test_name;
use flannel_lab::wait::{eventually, wait_for};

use crate::backends::{BackendCase, HOST_GW, Remote, UDP, VXLAN};
use crate::harness::{Bed, FLANNELD, Folder, SOON, full_payload, http_get, new_folder};

/// Within which time a fault is to be named on an idle machine.
const NAMED: Duration = Duration::from_secs(5);

/// How often each fault is made, and how long it may take to be named.
fn repeats() -> (usize, Duration) {
    match env::var("PROBE_FAULTS").ok().and_then(|times| times.parse().ok()) {
        Some(times) => (times, NAMED),
        None => (1, SOON),
    }
}

/// Runs a test that makes faults, with time for all of them.
fn in_time(test: &str, body: impl FnOnce()) {
    in_sandbox_within(DEADLINE * u32::try_from(repeats().0).unwrap(), test, body);
}

/// Three nodes that know and reach each other, and verdicts of one family: IPv6 where there are both. Node 1 is the one that judges, node 2 the one that something happens to.
struct Stage {
    bed: Bed<Folder>,
    family: &'static str,
}

impl Stage {
    fn new(case: &'static BackendCase, families: Families) -> Self {
        Self::with(case, families, |_| {})
    }

    /// The same with agents of its own.
    fn with(case: &'static BackendCase, families: Families, edit: impl FnOnce(&mut Bed<Folder>)) -> Self {
        let cluster = Cluster::builder().nodes(3).families(families).build().unwrap();
        let mut bed = Bed::new(cluster, new_folder(), case, families);
        // An agent is ready once its peers have answered.
        bed.flags.push("--ready-peers=100%,60s".to_owned());
        edit(&mut bed);
        bed.start_all();
        let family = if families == Families::Dual { "IPv6" } else { "IPv4" };
        Self { bed, family }
    }

    fn netns(&self, number: u8) -> &Netns {
        self.bed.netns(number)
    }

    /// What node 1 has said of a peer since its log had this length, the last first.
    fn verdicts(&self, since: usize, peer: u8) -> Vec<String> {
        let subnet = self.subnet(peer);
        let log = self.bed.agent(1).log();
        let lines = log.get(since..).unwrap_or_default().lines();
        let about =
            |line: &&str| line.contains("verdict=") && line.contains(&subnet) && line.contains(self.family);
        let mut lines: Vec<String> = lines.filter(about).map(str::to_owned).collect();
        lines.reverse();
        lines
    }

    /// A node as node 1 sees it.
    fn remote(&self, number: u8) -> Remote {
        self.bed.remotes(number).into_iter().nth(usize::from(self.family == "IPv6")).unwrap()
    }

    fn subnet(&self, number: u8) -> String {
        let (key, _) = self.bed.record_of(number);
        format!("subnet={key}")
    }

    fn mark(&self) -> usize {
        self.bed.agent(1).log().len()
    }

    /// Waits until the last verdict of node 1 about a peer has this text in it, and returns how long that took.
    #[track_caller]
    fn wait_for(&self, since: usize, peer: u8, verdict: &str, deadline: Duration) -> Duration {
        let start = Instant::now();
        let is_said = || {
            let said = self.verdicts(since, peer);
            match said.first() {
                Some(last) if last.contains(verdict) => Ok(()),
                _ => Err(said),
            }
        };
        if let Err(error) = wait_for(deadline, &format!("the verdict {verdict:?} about node {peer}"), is_said)
        {
            panic!("{error}\n{}", self.bed.agent(1).last_lines());
        }
        start.elapsed()
    }
}

/// A fault that happens to node 2, or on the way to it.
struct Fault {
    what: &'static str,
    make: fn(&mut Stage) -> Undo,
    verdict: &'static str,
}

/// What ends a fault.
type Undo = Box<dyn FnOnce(&mut Stage)>;

fn undo(undo: impl FnOnce(&mut Stage) + 'static) -> Undo {
    Box::new(undo)
}

/// Drops packets on node 2 by these rules of `nft`, until that is undone.
fn rules(stage: &Stage, lines: &[&str]) -> Undo {
    let chain =
        |hook: &str| format!("add chain inet fault {hook} {{ type filter hook {hook} priority -300; }}");
    let mut batch = vec!["add table inet fault".to_owned(), chain("input"), chain("output")];
    batch.extend(lines.iter().map(|line| format!("add rule inet fault {line}")));
    stage.netns(2).run("nft", &[&batch.join("; ")]).unwrap();
    undo(|stage| _ = stage.netns(2).run("nft", &["delete table inet fault"]).unwrap())
}

const AGENT_AND_DEVICE_GONE: Fault = Fault {
    what: "the agent is killed and its device gone",
    make: |stage| {
        stage.bed.kill(2);
        stage.netns(2).ip("link del flannel.1").unwrap();
        undo(|stage| stage.bed.start(2))
    },
    verdict: "its tunnel is closed",
};

const NODE_DEAD: Fault = Fault {
    what: "the node is dead",
    make: |stage| {
        stage.bed.node(2).partition().unwrap();
        undo(|stage| stage.bed.node(2).heal().unwrap())
    },
    verdict: "peer dead",
};

const BLOCKED_THERE: Fault = Fault {
    what: "UDP 8472 to the node is dropped",
    make: |stage| rules(stage, &["input udp dport 8472 ip saddr 192.168.77.11 drop"]),
    verdict: "the tunnel to it is blocked",
};

const BLOCKED_BACK: Fault = Fault {
    what: "UDP 8472 from the node is dropped",
    make: |stage| rules(stage, &["output udp dport 8472 ip daddr 192.168.77.11 drop"]),
    verdict: "return path",
};

const BLOCKED_BOTH_WAYS: Fault = Fault {
    what: "UDP 8472 is dropped both ways",
    make: |stage| {
        let [there, back] = [
            "input udp dport 8472 ip saddr 192.168.77.11 drop",
            "output udp dport 8472 ip daddr 192.168.77.11 drop",
        ];
        rules(stage, &[there, back])
    },
    verdict: "the tunnel to it is blocked",
};

const MTU_HOLE: Fault = Fault {
    what: "the path has a hole of 1400 bytes",
    make: |stage| {
        stage.bed.node(2).set_port_mtu("eth0", 1400).unwrap();
        undo(|stage| stage.bed.node(2).set_port_mtu("eth0", 1500).unwrap())
    },
    verdict: "MTU hole, at most ",
};

const ICMP_FILTERED: Fault = Fault {
    what: "ICMP is filtered",
    make: |stage| {
        rules(
            stage,
            &["input meta l4proto { icmp, icmpv6 } drop", "output meta l4proto { icmp, icmpv6 } drop"],
        )
    },
    verdict: "ICMP is filtered",
};

const ALL_BUT_THE_TUNNEL_DROPPED: Fault = Fault {
    what: "a firewall drops all but the tunnel",
    make: |stage| {
        let discovery = "input icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept";
        rules(stage, &["input iifname lo accept", "input udp dport 8472 accept", discovery, "input drop"])
    },
    verdict: "unknown",
};

const OFFLOAD_BROKEN: Fault = Fault {
    what: "the NIC does not complete checksums",
    make: |stage| {
        let broken = stage.bed.node(1).break_checksum_offload("eth0").unwrap();
        undo(|_| drop(broken))
    },
    verdict: "checksum offload is broken",
};

const WRONG_FDB_ENTRY: Fault = Fault {
    what: "a node that nobody repairs has a wrong FDB entry",
    make: |stage| {
        let mac = stage.remote(1).mac;
        // The kernel's state stays, as that of a Go node does, which never looks at it again.
        stage.bed.stop(2);
        let netns = stage.netns(2);
        netns.bridge(&format!("fdb replace {mac} dev flannel.1 dst 192.168.77.99 self permanent")).unwrap();
        undo(|stage| stage.bed.start(2))
    },
    verdict: "return path",
};

const OTHER_MAC: Fault = Fault {
    what: "the device has another MAC than the record says",
    make: |stage| {
        stage.bed.stop(2);
        stage.netns(2).ip("link set flannel.1 address 02:00:00:00:00:99").unwrap();
        undo(|stage| stage.bed.start(2))
    },
    verdict: "its record is stale",
};

/// Makes faults one after the other and sees each named, its end too, and nothing said of the node that is fine.
fn name_each(mut stage: Stage, faults: &[Fault]) {
    let (times, deadline) = repeats();
    for Fault { what, make, verdict } in faults {
        let mut took = Vec::new();
        for _ in 0..times {
            let mark = stage.mark();
            let undo = make(&mut stage);
            took.push(stage.wait_for(mark, 2, verdict, deadline));
            if *what == MTU_HOLE.what {
                assert_mtu_hole_is_measured(&stage, mark);
            }
            let named = stage.mark();
            undo(&mut stage);
            stage.wait_for(named, 2, "verdict=reachable ", SOON);
            if *what != OFFLOAD_BROKEN.what {
                assert_eq!(stage.verdicts(0, 3), Vec::<String>::new(), "{what}: node 3 is fine");
            }
        }
        let longest = took.iter().max().unwrap();
        println!("{what}: {verdict:?}, {times} of {times}, after {longest:?} at most");
    }
}

/// The number in the verdict is that of `ping`.
#[track_caller]
fn assert_mtu_hole_is_measured(stage: &Stage, since: usize) {
    let said = stage.verdicts(since, 2).remove(0);
    let number = said.split("at most ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    let at_most: u32 = number.parse().unwrap();
    let dst: IpAddr = stage.remote(2).base.parse().unwrap();
    let answered = |size: u32| system_ping(stage.netns(1), dst, full_payload(size, dst), 1).unwrap().received;
    assert_eq!((answered(at_most), answered(at_most + 1)), (1, 0), "{said}");
}

#[test]
fn faults_of_the_tunnel_are_named() {
    in_time(test_name!(), || {
        let faults = [AGENT_AND_DEVICE_GONE, BLOCKED_THERE, BLOCKED_BACK, BLOCKED_BOTH_WAYS];
        name_each(Stage::new(&VXLAN, Families::V4), &faults);
    });
}

#[test]
fn faults_of_the_path_are_named() {
    in_time(test_name!(), || {
        name_each(
            Stage::new(&VXLAN, Families::V4),
            &[NODE_DEAD, MTU_HOLE, ICMP_FILTERED, ALL_BUT_THE_TUNNEL_DROPPED, OFFLOAD_BROKEN],
        );
    });
}

#[test]
fn faults_of_a_peer_that_nobody_repairs_are_named() {
    in_time(test_name!(), || {
        name_each(Stage::new(&VXLAN, Families::V4), &[WRONG_FDB_ENTRY, OTHER_MAC]);
    });
}

/// In a cluster with both families what happens to one is said of that one.
#[test]
fn faults_over_ipv6_are_named() {
    const BLOCKED: Fault = Fault {
        what: "UDP 8472 to the node is dropped, over IPv6",
        make: |stage| rules(stage, &["input meta nfproto ipv6 udp dport 8472 drop"]),
        verdict: "the tunnel to it is blocked",
    };
    in_time(test_name!(), || {
        name_each(
            Stage::new(&VXLAN, Families::Dual),
            &[BLOCKED, MTU_HOLE, ALL_BUT_THE_TUNNEL_DROPPED, OFFLOAD_BROKEN],
        );
    });
}

/// Without a tunnel a node answers for addresses that its pods don't have.
#[test]
fn faults_of_routed_peers_are_named() {
    const NOT_FORWARDED: Fault = Fault {
        what: "the node does not forward",
        make: |stage| {
            stage.netns(2).sysctl("net.ipv4.conf.eth0.forwarding", "0").unwrap();
            undo(|stage| stage.netns(2).sysctl("net.ipv4.conf.eth0.forwarding", "1").unwrap())
        },
        verdict: "the way to its pods is blocked",
    };
    in_time(test_name!(), || name_each(Stage::new(&HOST_GW, Families::V4), &[NODE_DEAD, NOT_FORWARDED]));
}

#[test]
fn faults_of_the_udp_backend_are_named() {
    const AGENT_GONE: Fault = Fault {
        what: "the agent is killed, and its datapath with it",
        make: |stage| {
            stage.bed.kill(2);
            undo(|stage| stage.bed.start(2))
        },
        verdict: "its tunnel is closed",
    };
    in_time(test_name!(), || name_each(Stage::new(&UDP, Families::V4), &[AGENT_GONE, NODE_DEAD]));
}

/// Neither a ping socket nor a raw one can be had: UDP is enough to see peers and what is wrong with them.
#[test]
fn an_agent_that_may_not_send_icmp_says_so_and_goes_on() {
    in_time(test_name!(), || {
        let stage = Stage::with(&VXLAN, Families::V4, |bed| {
            let capabilities = ["--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin"];
            bed.launcher =
                ["setpriv"].into_iter().chain(capabilities).chain([FLANNELD]).map(str::to_owned).collect();
        });
        let readyz = http_get(stage.netns(1), HEALTH_PORT, "/readyz");
        assert!(readyz.contains("200 OK") && readyz.contains("ICMP echo can't be sent"), "{readyz}");
        name_each(stage, &[BLOCKED_THERE, NODE_DEAD]);
    });
}

/// Whether node 1's device completes checksums.
fn completes_checksums(stage: &Stage) -> bool {
    let shown = stage.netns(1).run("ethtool", &["-k", "flannel.1"]).unwrap();
    let line = shown.lines().find(|line| line.contains("tx-checksum-ip-generic")).unwrap();
    line.contains("on")
}

#[test]
fn a_proven_checksum_fault_is_cured_where_that_was_asked_for_and_stays_so() {
    in_sandbox(test_name!(), || {
        let mut stage =
            Stage::with(&VXLAN, Families::V4, |bed| bed.flags.push("--vxlan-tx-checksum=auto".to_owned()));
        assert!(completes_checksums(&stage), "nothing is proven");
        let broken = stage.bed.node(1).break_checksum_offload("eth0").unwrap();
        // It is this node's fault, and cured with the first verdict, so perhaps only one peer ever gets one.
        let says = |verdict: &str| stage.bed.agent(1).log().contains(&format!("verdict={verdict} "));
        eventually(SOON, "the fault to be named", || says("checksum offload is broken"));
        eventually(SOON, "the cure to be proven", || says("reachable"));
        assert!(!completes_checksums(&stage));
        // It is held: against somebody who switches it on again, and on a new device.
        stage.netns(1).run("ethtool", &["-K", "flannel.1", "tx", "on"]).unwrap();
        eventually(SOON, "the offload to be off again", || !completes_checksums(&stage));
        stage.netns(1).ip("link del flannel.1").unwrap();
        let is_held = || stage.netns(1).ip("link show flannel.1").is_ok() && !completes_checksums(&stage);
        eventually(SOON, "the offload of the new device to be off", is_held);
        // The others have nothing to cure.
        drop(broken);
        let shown = stage.netns(2).run("ethtool", &["-k", "flannel.1"]).unwrap();
        assert!(shown.contains("tx-checksum-ip-generic: on"), "{shown}");
        // Without being asked, nothing is done.
        stage.bed.flags.retain(|flag| !flag.contains("checksum"));
        stage.bed.stop(1);
        stage.netns(1).run("ethtool", &["-K", "flannel.1", "tx", "on"]).unwrap();
        stage.bed.start(1);
        let broken = stage.bed.node(1).break_checksum_offload("eth0").unwrap();
        stage.wait_for(0, 2, "checksum offload is broken", SOON);
        assert!(completes_checksums(&stage));
        drop(broken);
    });
}

#[test]
fn readiness_waits_for_peers_and_never_for_ever() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(2).build().unwrap();
        let mut bed = Bed::new(cluster, new_folder(), &VXLAN, Families::V4);
        let look = |bed: &Bed<Folder>| http_get(bed.netns(1), HEALTH_PORT, "/readyz");
        // The other node has a lease, and is cut off.
        bed.start(2);
        bed.cluster.node(2).partition().unwrap();
        bed.spawn(1, &["--ready-peers=100%,1h"]);
        let waits = "waiting for 1 of 1 peers to answer through the overlay";
        eventually(SOON, "readiness to wait for the peer", || {
            let readyz = look(&bed);
            if readyz.contains(waits) && readyz.contains("503") { Ok(()) } else { Err(readyz) }
        });
        bed.cluster.node(2).heal().unwrap();
        bed.wait_ready(1);
        // From then on the peer is no reason any more.
        bed.cluster.node(2).partition().unwrap();
        let noted = wait_for(SOON, "a note about the dead peer", || {
            let readyz = look(&bed);
            if readyz.contains("peer dead") { Ok(readyz) } else { Err(readyz) }
        });
        assert!(noted.is_ok_and(|readyz| readyz.contains("200 OK")), "a note is no reason");
        // A cluster that starts cold is ready when the time is over.
        bed.kill(1);
        bed.spawn(1, &["--ready-peers=100%,3s"]);
        bed.wait_ready(1);
    });
}
