//! Packets of full size to one node vanish: the routes to it get the MTU that passes, and lose it again.

use std::time::Duration;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::pod::Pod;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, HOST_GW, VXLAN, rows};
use crate::harness::{Bed, Folder, SOON, assert_all_reach_all, full_payload, new_folder};

/// What passes of packets on the underlay, in bytes.
const HOLE: u32 = 1400;
const FLAGS: [&str; 1] = ["--ready-peers=100%,60s"];

rows! {
    vxlan: follows(&VXLAN);
    host_gw: follows(&HOST_GW);
}

struct Stage {
    bed: Bed<Folder>,
    pods: Vec<Pod>,
}

impl Stage {
    /// The routes of a node to the pods of another one, which have this MTU, or none.
    #[track_caller]
    fn wait_for_mtu(&self, from: u8, to: u8, is_limited: bool) {
        let subnets = self.bed.record_of(to).0;
        eventually(4 * SOON, &format!("node {from} to limit packets to node {to}: {is_limited}"), || {
            for subnet in subnets.split('&').map(|subnet| subnet.replace('-', "/")) {
                let family = if subnet.contains(':') { "-6 " } else { "" };
                let route = self.bed.netns(from).ip(&format!("{family}route show {subnet}")).unwrap();
                if route.contains("mtu lock ") != is_limited || route.lines().count() != 1 {
                    return Err(route);
                }
            }
            Ok(())
        });
    }

    /// Whether a ping as large as pods' packets may be gets from one pod to another one and back. Who sends it may learn that it
    /// must be sent in pieces.
    #[track_caller]
    fn passes(&self, from: usize, to: usize, mtu: u32) {
        for dst in self.pods[to].addresses().iter().map(ipnetwork::IpNetwork::ip) {
            let size = full_payload(mtu, dst).to_string();
            let target = dst.to_string();
            let mode = if dst.is_ipv4() { "dont" } else { "want" };
            let arguments = ["-c", "4", "-i", "0.2", "-W", "1", "-M", mode, "-s", &size, &target];
            let answer = self.pods[from].netns().run("ping", &arguments);
            let is_answered = answer.as_ref().is_ok_and(|answer| !answer.contains(" 0 received"));
            assert!(is_answered, "from node {} to {dst}: {answer:?}", from + 1);
        }
    }
}

fn follows(case: &'static BackendCase) {
    let cluster = Cluster::builder().nodes(3).families(Families::Dual).build().unwrap();
    let mut bed = Bed::new(cluster, new_folder(), case, Families::Dual);
    (1..=3).for_each(|number| bed.spawn(number, &FLAGS));
    for number in 1..=3 {
        bed.wait_ready(number);
        bed.wait_for_peers(number, 2);
    }
    let pods: Vec<Pod> = (1..=3).map(|number| bed.pod(number)).collect();
    let stage = Stage { bed, pods };
    let mtu = case.mtu(Families::Dual, 1500);
    assert_all_reach_all(&stage.pods, mtu);

    stage.bed.node(2).set_port_mtu("eth0", HOLE).unwrap();
    for (from, to) in [(1, 2), (2, 1), (3, 2)] {
        stage.wait_for_mtu(from, to, true);
    }
    // Pods are told, and send pieces.
    stage.passes(0, 1, mtu);
    stage.passes(1, 2, mtu);
    stage.wait_for_mtu(1, 3, false);
    let operations = stage.bed.operations(1);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(stage.bed.operations(1), operations, "the routes are as desired");

    stage.bed.node(2).set_port_mtu("eth0", 1500).unwrap();
    for (from, to) in [(1, 2), (2, 1), (3, 2)] {
        stage.wait_for_mtu(from, to, false);
    }
}
