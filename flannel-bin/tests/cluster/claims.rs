//! What only one node can have, in whole clusters: an address that is handed on brings nobody's VTEP MAC along, and a
//! record that changes later cuts nobody off who was there first.

use std::fs;
use std::net::IpAddr;

use flannel_lab::cluster::Cluster;
use flannel_lab::ping::reaches;
use flannel_lab::pod::Pod;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use serde_json::{Value, json};

use crate::backends::{BackendCase, HOST_GW, VXLAN, on_every_backend};
use crate::harness::{Bed, SOON, Store, Traffic, http_get, new_folder, subnet_file};

on_every_backend!(an_address_that_is_handed_on_cuts_nobody);

fn an_address_that_is_handed_on_cuts_nobody(case: &'static BackendCase) {
    handed_on(case, |_| new_folder());
}

/// Node 1 is renumbered while its agent runs, and a new node gets its address.
pub(crate) fn handed_on<S: Store>(case: &'static BackendCase, store: impl FnOnce(&Cluster) -> S) {
    let cluster = Cluster::builder().nodes(4).families(case.widest()).build().unwrap();
    let store = store(&cluster);
    let mut bed = Bed::new(cluster, store, case, case.widest());
    (1..=3).for_each(|number| bed.start(number));
    (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
    let addresses = |number: u8| bed.cluster.node(number).addresses("eth0").unwrap();
    let (old, keys) = (addresses(1), bed.store.records().unwrap().into_keys().collect::<Vec<_>>());
    for addr in &old {
        let new = if addr.is_ipv4() { "192.168.77.51" } else { "fd00:77::51" };
        bed.cluster.node(1).change_address("eth0", new.parse().unwrap()).unwrap();
        eventually(SOON, "the record to say so", || {
            bed.store.records().unwrap().values().any(|value| value.contains(&format!("\"{new}\"")))
        });
    }
    assert_eq!(bed.store.records().unwrap().into_keys().collect::<Vec<_>>(), keys, "no subnet changed");
    for addr in old {
        bed.cluster.node(4).change_address("eth0", addr.ip()).unwrap();
    }
    bed.start(4);
    (1..=4).for_each(|number| bed.wait_for_peers(number, 3));
    let pods: Vec<Pod> = (1..=4).map(|number| bed.pod(number)).collect();
    for (from, to) in (0..4).flat_map(|from| (0..4).map(move |to| (from, to))).filter(|(from, to)| from != to)
    {
        for dst in pods[to].addresses() {
            eventually(SOON, &format!("pod {from} to reach {dst}"), || {
                reaches(pods[from].netns(), dst.ip()).unwrap()
            });
        }
    }
    let data: Vec<String> = bed.store.records().unwrap().values().flat_map(|value| macs(value)).collect();
    let different: std::collections::BTreeSet<&String> = data.iter().collect();
    assert_eq!((different.len(), bed.store.records().unwrap().len()), (data.len(), 4), "{data:?}");
    (1..=4).for_each(|number| bed.wait_ready(number));
}

/// The VTEP MACs of a record.
fn macs(value: &str) -> Vec<String> {
    let record: Value = serde_json::from_str(value).unwrap();
    let data = ["BackendData", "BackendV6Data"].into_iter();
    data.filter_map(|name| record[name]["VtepMAC"].as_str().map(str::to_owned)).collect()
}

/// What somebody makes of the record of node 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tampering {
    /// The VTEP MACs of node 3.
    Mac,
    /// An underlay address inside the subnet of node 3.
    PublicIp,
}

impl Tampering {
    fn of(self, record: &Value, victim: &(String, Value)) -> Value {
        let mut record = record.clone();
        match self {
            Self::Mac => {
                for name in ["BackendData", "BackendV6Data"] {
                    if record[name].is_object() {
                        record[name] = victim.1[name].clone();
                    }
                }
            }
            Self::PublicIp => {
                for (subnet, name) in victim.0.split('&').zip(["PublicIP", "PublicIPv6"]) {
                    record[name] = json!(inside(subnet).to_string());
                }
            }
        }
        record
    }
}

/// The fifth address of a subnet as a lease key has it.
fn inside(subnet: &str) -> IpAddr {
    match subnet.rsplit_once('-').unwrap().0.parse().unwrap() {
        IpAddr::V4(base) => IpAddr::V4((base.to_bits() + 5).into()),
        IpAddr::V6(base) => IpAddr::V6((base.to_bits() + 5).into()),
    }
}

#[test]
fn vxlan_a_record_that_changes_later_cuts_nobody_else() {
    in_sandbox(test_name!(), || changes_later(&VXLAN, |_| new_folder()));
}

#[test]
fn host_gw_a_record_that_changes_later_cuts_nobody_else() {
    in_sandbox(test_name!(), || changes_later(&HOST_GW, |_| new_folder()));
}

#[test]
fn a_running_node_puts_its_record_right() {
    in_sandbox(test_name!(), || puts_right(|_| new_folder()));
}

/// The oldest record, whose agent is away, gets what the youngest node has: that one keeps its traffic, also when a
/// peer restarts in between, and each says who is in conflict.
pub(crate) fn changes_later<S: Store>(case: &'static BackendCase, store: impl FnOnce(&Cluster) -> S) {
    let mut bed = Bed::of_three_in_turn(case, store);
    let pods = [bed.pod(2), bed.pod(3)];
    let (key, record) = bed.record_of(1);
    let victim = bed.record_of(3);
    bed.stop(1);
    let traffic = Traffic::between(&pods[0], &pods[1]).and(Traffic::between(&pods[1], &pods[0]));
    let has_macs = !macs(&record.to_string()).is_empty();
    for how in [Tampering::Mac, Tampering::PublicIp] {
        if how == Tampering::Mac && !has_macs {
            continue;
        }
        bed.store.put(&key, &how.of(&record, &victim).to_string()).unwrap();
        wait_until_named(&bed, &key, how);
        traffic.go_on(100);
        // What was first stays so over a restart; an address in a subnet of somebody else's never wins.
        for forgets in [false, true] {
            if forgets && how == Tampering::Mac {
                continue;
            }
            wait_for_stored(&key);
            bed.stop(2);
            if forgets {
                fs::remove_file(subnet_file(2).with_extension("env.state")).unwrap();
            }
            bed.start(2);
            wait_until_named(&bed, &key, how);
            traffic.go_on(100);
        }
        bed.store.put(&key, &record.to_string()).unwrap();
        bed.wait_for_peers(2, 2);
    }
    traffic.assert_no_loss();
}

/// The state file of node 2 has the record of node 1, and with it its ages.
fn wait_for_stored(key: &str) {
    eventually(SOON, "the state file", || {
        let text = fs::read_to_string(subnet_file(2).with_extension("env.state"));
        text.is_ok_and(|text| text.contains(key))
    });
}

/// Node 2 names the record, and what is wrong with it.
#[track_caller]
fn wait_until_named<S: Store>(bed: &Bed<S>, key: &str, how: Tampering) {
    let field = if how == Tampering::Mac { "VtepMAC" } else { "PublicIP" };
    eventually(SOON, &format!("{how:?} to be named"), || {
        let answer = http_get(bed.netns(2), 8471, "/readyz");
        let told = |line: &str| line.starts_with(&format!("lease {key}: {field}"));
        let named = answer.starts_with("HTTP/1.1 200") && answer.lines().any(told);
        if named { Ok(()) } else { Err(answer) }
    });
}

/// A node that runs has its record as it was before anybody is cut off, whatever was made of it.
pub(crate) fn puts_right<S: Store>(store: impl FnOnce(&Cluster) -> S) {
    let bed = Bed::of_three_in_turn(&VXLAN, store);
    let pods = [bed.pod(1), bed.pod(2), bed.pod(3)];
    let (key, record) = bed.record_of(1);
    let victim = bed.record_of(3);
    let traffic = Traffic::between(&pods[1], &pods[2]).and(Traffic::between(&pods[2], &pods[1]));
    for how in [Tampering::Mac, Tampering::PublicIp] {
        bed.store.put(&key, &how.of(&record, &victim).to_string()).unwrap();
        eventually(SOON, &format!("the record to be put right after {how:?}"), || {
            let now: Value = serde_json::from_str(&bed.store.records().unwrap()[&key]).unwrap();
            if now == record { Ok(()) } else { Err(now) }
        });
        traffic.go_on(100);
        (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
        for dst in pods[0].addresses() {
            eventually(SOON, "node 1 to be reached", || reaches(pods[1].netns(), dst.ip()).unwrap());
        }
    }
    assert_eq!(bed.record_of(3), victim);
    (1..=3).for_each(|number| bed.wait_ready(number));
    traffic.assert_no_loss();
}

impl<S: Store> Bed<S> {
    /// Three nodes of which each is older than the next.
    fn of_three_in_turn(case: &'static BackendCase, store: impl FnOnce(&Cluster) -> S) -> Self {
        let cluster = Cluster::builder().nodes(3).families(case.widest()).build().unwrap();
        let store = store(&cluster);
        let mut bed = Self::new(cluster, store, case, case.widest());
        (1..=3).for_each(|number| bed.start(number));
        (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
        bed
    }
}
