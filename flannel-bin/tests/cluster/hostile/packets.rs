//! Malformed tunnel packets, from a host that is no node and from one that is.

use std::net::{IpAddr, SocketAddr};

use flannel_lab::cluster::Cluster;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::stranger::{Stranger, damaged, udp_packet, vxlan};
use flannel_lab::test_name;

use crate::backends::{BackendCase, UDP, VXLAN};
use crate::harness::{Bed, LocalFolder, Traffic};

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
    let mut bed = Bed::new(cluster, LocalFolder::new(), case, case.widest());
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

/// What node 3 would send for its pod to node 1's, and where to.
fn whole(bed: &Bed<LocalFolder>, v6: bool) -> (IpAddr, Vec<u8>) {
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
