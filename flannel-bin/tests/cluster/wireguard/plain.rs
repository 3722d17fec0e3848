//! No packet of a pod leaves a node unencrypted.

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::netns::Netns;
use flannel_lab::ping::system_ping;
use flannel_lab::pod::Pod;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, VXLAN};
use crate::harness::{Bed, Folder, SOON, Store, Traffic, assert_all_reach_all, new_folder};

/// Counts what leaves a node by its NIC and is from a pod or for one, as it is or in a VXLAN tunnel: the outer
/// packets of WireGuard have the addresses of nodes.
pub(super) struct Plain<'a>(Vec<&'a Netns>);

impl<'a> Plain<'a> {
    pub(super) fn count(on: impl IntoIterator<Item = &'a Netns>) -> Self {
        let nodes: Vec<_> = on.into_iter().collect();
        for netns in &nodes {
            let rules = [
                "add table inet plain",
                "add chain inet plain out { type filter hook postrouting priority 300; }",
                "add rule inet plain out oifname eth0 ip daddr 10.244.0.0/16 counter",
                "add rule inet plain out oifname eth0 ip6 daddr fd00:10:244::/56 counter",
                "add rule inet plain out oifname eth0 udp dport 8472 counter",
            ];
            for rule in rules {
                netns.run("nft", &[rule]).unwrap();
            }
        }
        Self(nodes)
    }

    /// The lines with a counter that is not zero.
    pub(super) fn seen(&self) -> Vec<String> {
        let lists = self.0.iter().map(|netns| netns.run("nft", &["list table inet plain"]).unwrap());
        let is_counted = |line: &&str| line.contains("counter") && !line.contains("packets 0 ");
        lists
            .flat_map(|list| list.lines().filter(is_counted).map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }
}

pub(super) fn nothing_leaves(case: &'static BackendCase) {
    let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
    let mut bed = Bed::new(cluster, new_folder(), case, Families::Dual);
    // Node 2 is a gateway for all that has no other way, so that what is not held back leaves.
    for (number, other) in [(1, 2), (2, 1)] {
        let to = bed.node(other).addresses("eth0").unwrap();
        for addr in
            to.iter().map(ipnetwork::IpNetwork::ip).filter(|addr| !addr.to_string().starts_with("fe80"))
        {
            let family = if addr.is_ipv4() { "-4" } else { "-6" };
            bed.netns(number).ip(&format!("{family} route replace default via {addr} dev eth0")).unwrap();
        }
    }
    bed.start(1);
    let here = bed.pod(1);
    let netns = [bed.netns(1).clone(), bed.netns(2).clone()];
    let plain = Plain::count(&netns);
    let send = |to: &str| _ = system_ping(here.netns(), to.parse().unwrap(), 100, 3).unwrap();
    // A peer that is not known yet, one with another backend, one without a key.
    let (key, value) = VXLAN.record(80);
    bed.store.put(&key, &value).unwrap();
    let (key, value) = case.record(81);
    bed.store.put(&key, &value.replace("PublicKey", "NoKey")).unwrap();
    ["10.244.41.2", "10.244.80.2", "10.244.81.2", "fd00:10:244:50::2"].into_iter().for_each(send);
    bed.start(2);
    let there = bed.pod(2);
    (1..=2).for_each(|number| bed.wait_for_peers(number, 1));
    let pods = [here, there];
    Traffic::between(&pods[0], &pods[1]).assert_no_loss();
    // The device goes while packets flow, with and without an agent.
    let traffic = Traffic::between(&pods[0], &pods[1]);
    for _ in 0..3 {
        netns[0].ip("link del flannel-wg").unwrap();
        bed.wait_for_peers(1, 1);
        traffic.go_on(20);
    }
    bed.kill(1);
    // A TUN goes with its agent.
    for device in ["flannel-wg", "flannel-wg-v6"].iter().filter(|_| case.in_kernel) {
        netns[0].ip(&format!("link del {device}")).unwrap();
    }
    for addr in pods[1].addresses() {
        let report = system_ping(pods[0].netns(), addr.ip(), 100, 3).unwrap();
        assert_eq!(report.received, 0, "{}", report.output);
    }
    bed.start(1);
    bed.wait_for_peers(1, 1);
    traffic.go_on(20);
    drop(traffic.stop());
    assert_eq!(plain.seen(), Vec::<String>::new());
    // It would have been seen.
    let via = bed.node(2).ipv4().unwrap();
    netns[0].ip(&format!("route add 10.244.250.0/24 via {via} dev eth0")).unwrap();
    _ = system_ping(pods[0].netns(), "10.244.250.1".parse().unwrap(), 100, 1).unwrap();
    assert_eq!(plain.seen().len(), 1);
}

pub(super) fn from_vxlan(case: &'static BackendCase) {
    let cluster = Cluster::builder().nodes(3).families(Families::Dual).build().unwrap();
    let mut bed = Bed::with_config(cluster, new_folder(), case, &VXLAN.config(Families::Dual));
    bed.case = &VXLAN;
    bed.start_all();
    (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
    let pods: Vec<Pod> = (1..=3).map(|number| bed.pod(number)).collect();
    switch(&mut bed, case, "");
    let netns: Vec<Netns> = (1..=3).map(|number| bed.netns(number).clone()).collect();
    {
        let plain = Plain::count(&netns);
        for number in 1..=3 {
            eventually(SOON, "the devices of vxlan to go", || {
                let state = bed.state(number).to_string();
                let is_done = !state.contains("flannel.1 ") && state.contains("flannel-wg");
                if is_done { Ok(()) } else { Err(state) }
            });
        }
        assert_all_reach_all(&pods, case.mtu(Families::Dual, 1500));
        assert_eq!(plain.seen(), Vec::<String>::new());
    }
    switch(&mut bed, &VXLAN, r#","LeaveEncryption":true"#);
    for number in 1..=3 {
        eventually(SOON, "the devices of WireGuard to go", || {
            let state = bed.state(number).to_string();
            let is_done = !state.contains("flannel-wg") && !state.contains("blackhole");
            if is_done { Ok(()) } else { Err(state) }
        });
    }
    assert_all_reach_all(&pods, case.mtu(Families::Dual, 1500));
}

fn switch(bed: &mut Bed<Folder>, to: &'static BackendCase, keys: &str) {
    bed.store.put_config(&to.config_with(Families::Dual, keys)).unwrap();
    for number in 1..=3 {
        bed.stop(number);
        bed.start(number);
    }
    bed.case = to;
    (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
}
