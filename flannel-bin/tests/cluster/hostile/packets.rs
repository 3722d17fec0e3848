//! Malformed tunnel packets, from a host that is no node and from one that is.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use flannel_lab::cluster::Cluster;
use flannel_lab::pod::Pod;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::stranger::{Sink, Stranger, damaged, udp_packet, vxlan};
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, UDP, VXLAN};
use crate::harness::{Bed, Folder, SOON, Traffic, env_of, new_folder};

/// How many, and how many between two honest echoes: queues before a tunnel are honest pods' as well.
const MANY: usize = 90_000;
const BETWEEN: usize = 150;
/// What an agent may have resident beyond what it had before.
const MORE_MEMORY: u64 = 8 << 20;

#[test]
fn malformed_packets_for_vxlan_cost_no_ping() {
    in_sandbox(test_name!(), || cost_no_ping(&VXLAN, 8472));
}

#[test]
fn malformed_packets_for_udp_cost_no_ping() {
    in_sandbox(test_name!(), || cost_no_ping(&UDP, 8285));
}

fn cost_no_ping(case: &'static BackendCase, port: u16) {
    let mut cluster = Cluster::builder().nodes(3).families(case.widest()).build().unwrap();
    let host = cluster.add_node_on(&[0]).unwrap().number();
    let mut bed = Bed::new(cluster, new_folder(), case, case.widest());
    for number in 1..=3 {
        bed.start(number);
    }
    (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
    let pods = [bed.pod(1), bed.pod(2), bed.pod(3)];
    let traffic = Traffic::between(&pods[0], &pods[1]).and(Traffic::between(&pods[1], &pods[0]));
    let (state, memory) = (bed.state(1), bed.agent(1).rss().unwrap());
    let senders = [bed.netns(host), bed.netns(3)];
    let senders = senders.map(|netns| [false, true].map(|v6| Stranger::in_netns(netns, v6).unwrap()));
    let datagrams = [false, true].map(|v6| whole(&bed, v6));
    let mut sent = 0;
    for number in 0..MANY {
        let family = number % 2;
        let (to, datagram) = &datagrams[family];
        let datagram = damaged(datagram, number / 4);
        sent += usize::from(senders[number / 2 % 2][family].send(SocketAddr::new(*to, port), &datagram));
        if number % BETWEEN == 0 {
            traffic.go_on(1);
        }
    }
    assert!(sent > MANY / 10 * 9, "{sent} of {MANY} were sent");
    traffic.go_on(50);
    traffic.assert_no_loss();
    assert_eq!(bed.state(1), state);
    let more = bed.agent(1).rss().unwrap().saturating_sub(memory);
    assert!(more < MORE_MEMORY, "{} KiB more than before", more >> 10);
    bed.stop(1);
}

/// What a pod sends to another node's tunnel leaves as its node's, so senders can't be told apart there. The docs have a
/// rule for that.
#[test]
fn the_rule_of_the_docs_keeps_pods_from_vxlans_port() {
    in_sandbox(test_name!(), || keeps_pods_away(&VXLAN, 8472));
}

#[test]
fn the_rule_of_the_docs_keeps_pods_from_udps_port() {
    in_sandbox(test_name!(), || keeps_pods_away(&UDP, 8285));
}

fn keeps_pods_away(case: &'static BackendCase, port: u16) {
    let cluster = Cluster::builder().nodes(3).families(case.widest()).build().unwrap();
    let mut bed = Bed::new(cluster, new_folder(), case, case.widest());
    for number in 1..=3 {
        bed.spawn(number, &["--ip-masq"]);
        bed.wait_ready(number);
    }
    (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
    let pods = [1, 3].map(|number| Pod::attach_plain(bed.cluster.node(number), &env_of(number)).unwrap());
    let sink = Sink::open(pods[0].netns(), 7, b"noise").unwrap();
    let mouths = [false, true].map(|v6| Stranger::in_netns(pods[1].netns(), v6).unwrap());
    let datagrams = [false, true].map(|v6| whole(&bed, v6));
    let send = || {
        for (mouth, (to, datagram)) in mouths.iter().zip(&datagrams) {
            mouth.send(SocketAddr::new(*to, port), datagram);
        }
    };
    eventually(SOON, "a pod's datagrams to come out of another node's tunnel", || {
        send();
        sink.count() >= 4
    });
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/threat-model.md");
    let text = fs::read_to_string(docs).unwrap();
    let lines = text.lines().filter(|line| line.starts_with("nft ")).collect::<Vec<_>>();
    assert_eq!(lines.len(), 3, "{lines:?}");
    bed.netns(3).run("sh", &["-ec", &lines.join("\n")]).unwrap();
    // Honest packets come after those that are to be dropped, by the same way.
    let before = sink.count();
    let traffic = Traffic::between(&pods[1], &pods[0]);
    for _ in 0..20 {
        send();
        traffic.go_on(1);
    }
    traffic.assert_no_loss();
    assert_eq!(sink.count(), before);
}

/// What node 3 would send for its pod to node 1's, and where to.
fn whole(bed: &Bed<Folder>, v6: bool) -> (IpAddr, Vec<u8>) {
    let at = |number: u8| bed.remotes(number).swap_remove(usize::from(v6));
    let (one, three) = (at(1), at(3));
    let pod = |base: &str| -> IpAddr {
        let pod = if v6 { format!("{base}2") } else { base.replace(".0", ".2") };
        pod.parse().unwrap()
    };
    let packet =
        udp_packet(SocketAddr::new(pod(&three.base), 7), SocketAddr::new(pod(&one.base), 7), b"noise");
    let mut mac = [0; 6];
    for (byte, text) in mac.iter_mut().zip(one.mac.split(':')) {
        *byte = u8::from_str_radix(text, 16).unwrap_or_default();
    }
    let datagram = if one.mac.is_empty() { packet } else { vxlan(1, mac, &packet) };
    (one.underlay.parse().unwrap(), datagram)
}
