//! A node's underlay address changes: the lease is published again, the subnet stays, and peers follow.

use std::net::IpAddr;
use std::time::Duration;

use flannel_lab::cluster::Cluster;
use flannel_lab::ping::reaches;
use flannel_lab::pod::Pod;
use flannel_lab::wait::eventually;
use serde_json::Value;

use crate::backends::{BackendCase, on_every_backend};
use crate::harness::{Bed, SOON, Store, Traffic, http_get, new_folder};

on_every_backend!(a_node_whose_address_changes_is_followed, a_node_without_an_address_waits_for_it);

fn a_node_whose_address_changes_is_followed(case: &'static BackendCase) {
    follows(case, |_| new_folder());
}

/// Renumbers a node one family after the other, and then anew with its NIC.
pub(crate) fn follows<S: Store>(case: &'static BackendCase, store: impl FnOnce(&Cluster) -> S) {
    let bed = Bed::of_three(case, store);
    let pods = [bed.pod(1), bed.pod(2), bed.pod(3)];
    let bystanders = Traffic::between(&pods[1], &pods[2]);
    let (key, before) = bed.record_of(1);
    let node = bed.cluster.node(1);
    let mut writes = 0;
    for new in addresses(node.addresses("eth0").unwrap().len(), 101) {
        node.change_address("eth0", new).unwrap();
        writes += 1;
        wait_for_record(&bed, &key, &before, &[new], writes);
        wait_until_pods_reach_each_other(&pods);
    }
    let new = addresses(node.addresses("eth0").unwrap().len(), 102);
    node.delete_nic("eth0").unwrap();
    node.restore_nic_at("eth0", &new).unwrap();
    wait_for_record(&bed, &key, &before, &new, writes + 1);
    wait_until_pods_reach_each_other(&pods);
    bed.wait_ready(1);
    (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
    bystanders.assert_no_loss();
}

/// Addresses that no node has, in each of so many families.
fn addresses(families: usize, host: u8) -> Vec<IpAddr> {
    let both = [format!("192.168.77.{host}"), format!("fd00:77::{host}")];
    both.iter().take(families).map(|addr| addr.parse().unwrap()).collect()
}

/// Waits until the record of a key names these addresses, and nothing else of it changed; it was published so
/// often since the start.
#[track_caller]
fn wait_for_record<S: Store>(bed: &Bed<S>, key: &str, before: &Value, new: &[IpAddr], writes: usize) {
    eventually(SOON, "the lease to be published again", || {
        let records = bed.store.records().unwrap();
        let record: Value = serde_json::from_str(&records[key]).unwrap();
        let said = [&record["PublicIP"], &record["PublicIPv6"]].map(|ip| ip.as_str().unwrap_or_default());
        let all = new.iter().all(|addr| said.contains(&addr.to_string().as_str()));
        let kept =
            ["BackendType", "BackendData", "BackendV6Data"].iter().all(|name| record[name] == before[name]);
        let count = records.len() == 3;
        if all && kept && count { Ok(()) } else { Err(format!("{records:?}")) }
    });
    let told = bed.agent(1).log().matches("lease published again").count();
    assert!(told <= writes, "{told} times instead of {writes}");
}

#[track_caller]
fn wait_until_pods_reach_each_other(pods: &[Pod]) {
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0)] {
        for dst in pods[to].addresses() {
            eventually(SOON, &format!("pod {from} to reach {dst}"), || {
                reaches(pods[from].netns(), dst.ip()).unwrap()
            });
        }
    }
}

fn a_node_without_an_address_waits_for_it(case: &'static BackendCase) {
    let bed = Bed::of_three(case, |_| new_folder());
    let pods = [bed.pod(1), bed.pod(2), bed.pod(3)];
    let want = bed.state(1);
    let records = bed.store.records().unwrap();
    let netns = bed.netns(1);
    let old = bed.cluster.node(1).addresses("eth0").unwrap();
    let set = |verb: &str| {
        for addr in &old {
            let nodad = if addr.is_ipv6() && verb == "add" { "nodad" } else { "" };
            netns.ip(&format!("address {verb} {addr} dev eth0 {nodad}")).unwrap();
        }
    };
    // Another one comes for a moment: it is published to nobody.
    set("del");
    netns.ip("address add 192.168.77.200/24 dev eth0").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    netns.ip("address del 192.168.77.200/24 dev eth0").unwrap();
    eventually(SOON, "a word about the address", || {
        let answer = http_get(netns, 8471, "/readyz");
        answer.starts_with("HTTP/1.1 503") && answer.contains(&old[0].ip().to_string())
    });
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(bed.state(1).links, want.links, "all stays as it is");
    set("add");
    bed.cluster.node(1).link_up("eth0").unwrap();
    bed.wait_ready(1);
    bed.wait_for_state(1, "all as it was", &want);
    assert_eq!(bed.store.records().unwrap(), records);
    assert!(!bed.agent(1).log().contains("lease published again"));
    wait_until_pods_reach_each_other(&pods);
}
