//! Whatever was done to the kernel by hand or while the agent was away, it is exactly right again.

use std::net::IpAddr;
use std::time::Duration;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::kernel_state::KernelState;
use flannel_lab::wait::eventually;
use serde_json::Value;

use crate::backends::{BackendCase, Remote, on_every_backend};
use crate::crowd::{crowded, join_the_crowd, wait_for_state};
use crate::harness::{Bed, Folder, SOON, Store, Traffic, env_of, new_folder, sides};

on_every_backend!(
    every_damage_by_hand_is_repaired_in_a_crowd,
    every_fault_of_the_host_is_repaired_in_a_crowd,
    what_is_not_ours_stays,
    peers_that_left_joined_or_changed_while_the_agent_was_down,
    the_underlay_nic_goes_and_comes_back,
    the_mtu_follows_the_underlay,
);

fn bed(case: &'static BackendCase) -> Bed<Folder> {
    Bed::of_three(case, |_| new_folder())
}

fn every_damage_by_hand_is_repaired_in_a_crowd(case: &'static BackendCase) {
    every_damage_by_hand_is_repaired(&crowded(case));
}

/// The same among three nodes on a store that is a process.
pub(crate) fn damaged_by_hand<S: Store>(case: &'static BackendCase, store: impl FnOnce(&Cluster) -> S) {
    every_damage_by_hand_is_repaired(&Bed::of_three(case, store));
}

/// Damages whatever the agent of node 1 has in the kernel, one thing after the other.
fn every_damage_by_hand_is_repaired<S: Store>(bed: &Bed<S>) {
    let case = bed.case;
    let netns = bed.netns(1);
    let want = bed.state(1);
    let env = env_of(1);
    let own: Vec<String> = env.families().iter().map(|family| family.gateway.network().to_string()).collect();
    for ((two, three), own) in bed.remotes(2).iter().zip(&bed.remotes(3)).zip(&own) {
        for (name, command) in (case.damages)(two, three, own) {
            let v6 = if two.base.contains(':') {
                command.replace("ip route", "ip -6 route")
            } else {
                command.clone()
            };
            netns.run("sh", &["-c", &v6]).unwrap_or_else(|error| panic!("{name}: {error}"));
            wait_for_state(bed, 1, &format!("{} {name}", two.subnet), &want);
        }
    }
    // What the agent would prevent if it were quicker than the next command.
    let devices = if case.kind == "vxlan" { &["flannel.1", "flannel-v6.1"][..] } else { &[] };
    for device in devices {
        bed.agent(1).pause().unwrap();
        netns.ip(&format!("link del {device}")).unwrap();
        netns.ip(&format!("link add {device} type vxlan id 77 dstport 4789 dev eth0")).unwrap();
        bed.agent(1).resume().unwrap();
        wait_for_state(bed, 1, "replaced by another VNI", &want);
    }
    let pods = [bed.pod(1), bed.pod(2)];
    Traffic::between(&pods[0], &pods[1]).assert_no_loss();
}

/// A fault of the host and its end.
type Fault = fn(&Bed<Folder>);

/// What happens to the underlay, and to the notifications about it.
const FAULTS: [(&str, Fault); 6] = [
    ("underlay NIC down and up", |bed| {
        let node = bed.cluster.node(1);
        node.link_down("eth0").unwrap();
        wait_until_red(bed);
        node.link_up("eth0").unwrap();
        join_the_crowd(bed, 1);
    }),
    ("carrier lost and back", |bed| {
        let node = bed.cluster.node(1);
        node.carrier_off("eth0").unwrap();
        std::thread::sleep(Duration::from_millis(500));
        node.carrier_on("eth0").unwrap();
    }),
    ("underlay NIC deleted and made anew", |bed| {
        let node = bed.cluster.node(1);
        node.delete_nic("eth0").unwrap();
        wait_until_red(bed);
        node.restore_nic("eth0").unwrap();
        join_the_crowd(bed, 1);
    }),
    ("underlay MTU changed and back", |bed| {
        bed.cluster.node(1).set_mtu("eth0", 1400).unwrap();
        let small = bed.case.mtu(bed.case.widest(), 1400);
        eventually(SOON, "the subnet file to follow", || env_of(1).mtu == small);
        bed.cluster.node(1).set_mtu("eth0", 1500).unwrap();
    }),
    ("underlay address changed and back", |bed| {
        let node = bed.cluster.node(1);
        let [old, new] = [node.ipv4().unwrap(), IpAddr::from([192, 168, 77, 150])];
        for addr in [new, old] {
            node.change_address("eth0", addr).unwrap();
            join_the_crowd(bed, 1);
            eventually(SOON, &format!("{addr} to be published"), || {
                bed.store.records().unwrap().values().any(|value| value.contains(&format!("\"{addr}\"")))
            });
        }
    }),
    ("more announcements than the agent can take, and damage among them", |bed| {
        let netns = bed.netns(1);
        bed.agent(1).pause().unwrap();
        let storm = |verb: &str| {
            let line = |n: u32| format!("route {verb} 10.9.{}.{}/32 dev lo", n >> 8, n & 0xff);
            netns.ip_batch(&(0..20_000).map(line).collect::<Vec<_>>()).unwrap();
        };
        for _ in 0..2 {
            storm("add");
            storm("del");
        }
        for (two, three) in bed.remotes(2).iter().zip(&bed.remotes(3)) {
            let (name, command) = (bed.case.damages)(two, three, "").swap_remove(0);
            let command =
                if two.base.contains(':') { command.replace("ip route", "ip -6 route") } else { command };
            netns.run("sh", &["-c", &command]).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let sockets = netns.run("cat", &["/proc/net/netlink"]).unwrap();
        let drops = |line: &str| line.split_whitespace().nth(8)?.parse::<u64>().ok();
        assert!(sockets.lines().filter_map(drops).any(|drops| drops > 0), "{sockets}");
        bed.agent(1).resume().unwrap();
    }),
];

fn wait_until_red(bed: &Bed<Folder>) {
    eventually(SOON, "not ready without the underlay", || {
        crate::harness::http_get(bed.netns(1), 8471, "/readyz").starts_with("HTTP/1.1 503")
    });
}

fn every_fault_of_the_host_is_repaired_in_a_crowd(case: &'static BackendCase) {
    let bed = crowded(case);
    let want = bed.state(1);
    for (name, fault) in FAULTS {
        fault(&bed);
        wait_for_state(&bed, 1, name, &want);
        bed.wait_ready(1);
    }
    let pods = [bed.pod(1), bed.pod(2)];
    Traffic::between(&pods[0], &pods[1]).assert_no_loss();
}

pub(crate) fn what_is_not_ours_stays(case: &'static BackendCase) {
    let mut bed = bed(case);
    let netns = bed.netns(1).clone();
    for command in case.foreign {
        netns.run("sh", &["-c", command]).unwrap();
    }
    // In our network and on a link of another: a stale bridge, say.
    netns.ip("route add 10.244.201.0/24 dev eth0").unwrap();
    netns.ip("route add 10.244.202.0/24 dev eth0 metric 50").unwrap();
    let state = bed.state(1);
    let whole = KernelState::of(&netns).unwrap();
    // A peer arrives whose subnet somebody else's route holds.
    let (key, value) = case.record(201);
    bed.store.put(&key, &value).unwrap();
    if case.routes_peers {
        if case.widest() == Families::Dual {
            eventually(SOON, "the peer's IPv6 side", || {
                netns.ip("-6 route show").unwrap().contains("fd00:10:244:c9::/64")
            });
        }
        eventually(SOON, "a word about the holder", || {
            bed.agent(1).log().contains("10.244.201.0/24 is in the way")
        });
    } else {
        // It has no route of its own.
        bed.wait_for_peers(1, 3);
        assert_eq!(bed.state(1), state);
    }
    assert!(netns.ip("route show 10.244.201.0/24").unwrap().contains("dev eth0"));
    if case.routes_peers {
        let holder = || netns.ip("route show 10.244.201.0/24").unwrap();
        netns.ip("route del 10.244.201.0/24 dev eth0").unwrap();
        eventually(SOON, "ours in its place", || holder().contains(" proto 102"));
        bed.store.delete(&key).unwrap();
        eventually(SOON, "ours to go with the lease", || holder().is_empty());
        netns.ip("route add 10.244.201.0/24 dev eth0").unwrap();
    } else {
        bed.store.delete(&key).unwrap();
    }
    bed.wait_for_state(1, "the peer to be gone", &state);
    if !case.in_kernel {
        bed.wait_for_peers(1, 2);
        assert_eq!(KernelState::of(&netns).unwrap(), whole);
        return;
    }
    bed.kill(1);
    bed.start(1);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(KernelState::of(&netns).unwrap(), whole);
}

fn peers_that_left_joined_or_changed_while_the_agent_was_down(case: &'static BackendCase) {
    let mut bed = bed(case);
    let pods = [bed.pod(1), bed.pod(2)];
    let traffic = Traffic::between(&pods[0], &pods[1]);
    bed.kill(1);
    bed.stop(3);
    // Node 3 comes back with what node 33 would publish: other MACs, or else other addresses.
    let (key, mut value) = bed.record_of(3);
    let before = words_of(case, &key, &value);
    let other: Value = serde_json::from_str(&case.record(33).1).unwrap();
    let members = if before[0].contains("192.") {
        ["PublicIP", "PublicIPv6"]
    } else {
        ["BackendData", "BackendV6Data"]
    };
    for member in members {
        value[member] = other[member].clone();
    }
    let after = words_of(case, &key, &value);
    bed.store.put(&key, &value.to_string()).unwrap();
    let (joined, joined_value) = case.record(240);
    bed.store.put(&joined, &joined_value).unwrap();
    bed.start(1);
    bed.wait_for_peers(1, 3);
    let lines = |bed: &Bed<Folder>, word: &str| {
        bed.state(1).to_string().lines().filter(|line| line.contains(word)).count()
    };
    for (before, after) in before.iter().zip(&after).filter(|_| case.routes_peers) {
        assert_eq!(lines(&bed, before), 0, "{before}: {}", bed.state(1));
        assert!(lines(&bed, after) > 0, "{after}: {}", bed.state(1));
    }

    bed.kill(1);
    bed.store.delete(&joined).unwrap();
    bed.store.delete(&key).unwrap();
    bed.start(1);
    bed.wait_for_peers(1, 1);
    let joined_value: Value = serde_json::from_str(&joined_value).unwrap();
    let gone =
        after.into_iter().chain(words_of(case, &joined, &joined_value)).chain(["10.244.240.".to_owned()]);
    for gone in gone {
        assert_eq!(lines(&bed, &gone), 0, "{gone}: {}", bed.state(1));
    }
    traffic.go_on(100);
    if case.in_kernel {
        traffic.assert_no_loss();
    }
}

/// The words by which a peer's lines are known in each family: its MAC, or else its address.
fn words_of(case: &BackendCase, key: &str, value: &Value) -> Vec<String> {
    let word =
        |remote: Remote| if remote.mac.is_empty() { format!(" {} ", remote.underlay) } else { remote.mac };
    sides(case, key, value).into_iter().map(|(_, remote)| word(remote)).collect()
}

pub(crate) fn the_underlay_nic_goes_and_comes_back(case: &'static BackendCase) {
    let bed = bed(case);
    let pods = [bed.pod(1), bed.pod(2)];
    let want = bed.state(1);
    let node = bed.cluster.node(1);
    node.delete_nic("eth0").unwrap();
    eventually(SOON, "not ready without the underlay", || {
        let answer = crate::harness::http_get(bed.netns(1), 8471, "/readyz");
        answer.starts_with("HTTP/1.1 503") && answer.contains("eth0")
    });
    node.restore_nic("eth0").unwrap();
    bed.wait_ready(1);
    bed.wait_for_state(1, "all back on new devices", &want);
    let to: Vec<IpAddr> = pods[1].addresses().iter().map(ipnetwork::IpNetwork::ip).collect();
    for dst in to {
        eventually(SOON, "pods to reach each other", || {
            flannel_lab::ping::reaches(pods[0].netns(), dst).unwrap()
        });
    }
}

pub(crate) fn the_mtu_follows_the_underlay(case: &'static BackendCase) {
    let bed = bed(case);
    let want = bed.state(1);
    let node = bed.cluster.node(1);
    let before = bed.agent(1).log().len();
    node.set_mtu("eth0", 1400).unwrap();
    let small = case.mtu(case.widest(), 1400);
    eventually(SOON, "the devices and the subnet file to follow", || {
        let links = bed.state(1).links;
        let sizes = [1350, 1330, small].map(|mtu| format!("mtu {mtu} "));
        let smaller = |link: &String| sizes.iter().any(|size| link.contains(size));
        links.iter().all(smaller) && env_of(1).mtu == small
    });
    node.set_mtu("eth0", 1500).unwrap();
    bed.wait_for_state(1, "the devices to come back", &want);
    let mtu = case.mtu(case.widest(), 1500);
    eventually(SOON, "the subnet file to come back", || env_of(1).mtu == mtu);
    let log = bed.agent(1).log().split_off(before);
    assert!(!log.contains("drift repaired"), "what follows the underlay was no drift: {log}");
}
