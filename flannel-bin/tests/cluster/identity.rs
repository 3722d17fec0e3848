//! Who a node is between two runs: its address or its interface changed, and it keeps its subnet; an old lease of its
//! own goes; a copy of its disk takes nothing from it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use flannel_lab::cluster::Cluster;
use flannel_lab::ping::reaches;
use flannel_lab::pod::Pod;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, on_every_kind};
use crate::harness::{Bed, SOON, Store, new_folder, subnet_file};

on_every_kind!(
    addresses_that_changed_between_two_runs_cost_no_subnet,
    an_interface_that_is_corrected_costs_no_subnet,
    a_published_address_that_is_corrected_costs_no_subnet,
    a_second_lease_of_an_older_version_goes,
    a_second_lease_with_an_address_of_long_ago_disarms_nobody,
    a_copied_disk_takes_nothing_from_the_machine_it_was_copied_from,
);

/// What a start finds of the run before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Files {
    Both,
    SubnetFile,
}

fn state_file(number: u8) -> PathBuf {
    subnet_file(number).with_extension("env.state")
}

/// Nodes with two NICs, their agents on one of them.
fn bed<S: Store>(
    case: &'static BackendCase,
    store: impl FnOnce(&Cluster) -> S,
    iface: &str,
    more: &dyn Fn(u8) -> Vec<String>,
) -> Bed<S> {
    let cluster = Cluster::builder().nodes(3).families(case.widest()).segments(&[0, 1]).build().unwrap();
    let store = store(&cluster);
    let mut bed = Bed::new(cluster, store, case, case.widest());
    for number in 1..=3 {
        let more = more(number);
        bed.spawn_on(number, iface, &more.iter().map(String::as_str).collect::<Vec<_>>());
    }
    (1..=3).for_each(|number| bed.wait_ready(number));
    bed
}

fn pods<S: Store>(bed: &Bed<S>) -> Vec<Pod> {
    let numbers: Vec<u8> = bed.cluster.nodes().map(flannel_lab::node::Node::number).collect();
    numbers.into_iter().map(|number| bed.pod(number)).collect()
}

#[track_caller]
fn wait_until_all_reach_all(pods: &[Pod]) {
    for (at, from) in pods.iter().enumerate() {
        for to in pods.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, pod)| pod) {
            for dst in to.addresses() {
                eventually(SOON, &format!("pod {at} to reach {dst}"), || {
                    reaches(from.netns(), dst.ip()).unwrap()
                });
            }
        }
    }
}

/// Waits until the state file says what it should: it is written a moment after the kernel has it.
fn wait_for_state_file(number: u8) {
    eventually(SOON, "the state file", || {
        fs::read_to_string(state_file(number)).is_ok_and(|it| it.contains("own"))
    });
}

fn keys<S: Store>(bed: &Bed<S>) -> Vec<String> {
    bed.store.records().unwrap().into_keys().collect()
}

/// Each of three nodes in turn ends, changes something and starts again: all have their subnets, and there is one record
/// a node.
fn each_in_turn<S: Store>(bed: &mut Bed<S>, pods: &[Pod], change: &dyn Fn(&mut Bed<S>, u8)) {
    let before = keys(bed);
    for number in 1..=3 {
        let file = fs::read_to_string(subnet_file(number)).unwrap();
        wait_for_state_file(number);
        bed.stop(number);
        change(bed, number);
        let log = |bed: &Bed<S>| bed.agent(number).log();
        eventually(SOON, "the agent to be up", || log(bed).contains("subnet file is in place"));
        assert_eq!(fs::read_to_string(subnet_file(number)).unwrap(), file, "node {number}");
        assert_eq!(keys(bed), before, "node {number}");
    }
    (1..=3).for_each(|number| bed.wait_ready(number));
    (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
    wait_until_all_reach_all(pods);
    assert_eq!(keys(bed), before);
    for number in 1..=3 {
        let ip = bed.cluster.node(number).ipv4().unwrap().to_string();
        let said =
            bed.store.records().unwrap().into_values().filter(|value| value.contains(&format!("\"{ip}\"")));
        assert_eq!(said.count(), 1, "one record of node {number}");
    }
}

fn addresses_that_changed_between_two_runs_cost_no_subnet(case: &'static BackendCase) {
    cost_no_subnet(case, |_| new_folder());
}

/// Every node comes up at other addresses than those it had.
pub(crate) fn cost_no_subnet<S: Store>(case: &'static BackendCase, store: impl FnOnce(&Cluster) -> S) {
    let mut bed = bed(case, store, "eth0", &|_| Vec::new());
    let pods = pods(&bed);
    // Without data in the record nothing but the state file proves whose it is; a node object needs no proof.
    let is_by_name = !bed.store.env("node1").is_empty();
    let has_proof = is_by_name || case.kind == "vxlan";
    let rounds = [Some((Files::Both, 101)), has_proof.then_some((Files::SubnetFile, 111))];
    for (files, first) in rounds.into_iter().flatten() {
        each_in_turn(&mut bed, &pods, &|bed, number| {
            let node = bed.cluster.node(number);
            for old in node.addresses("eth0").unwrap() {
                let host = first + number;
                let new =
                    if old.is_ipv4() { format!("192.168.77.{host}") } else { format!("fd00:77::{host}") };
                node.change_address("eth0", new.parse().unwrap()).unwrap();
            }
            if files == Files::SubnetFile {
                fs::remove_file(state_file(number)).unwrap();
            }
            bed.spawn(number, &[]);
        });
    }
}

/// The operator corrects `--iface` on three nodes, one after the other.
fn an_interface_that_is_corrected_costs_no_subnet(case: &'static BackendCase) {
    corrected_interface(case, |_| new_folder());
}

pub(crate) fn corrected_interface<S: Store>(case: &'static BackendCase, store: impl FnOnce(&Cluster) -> S) {
    let mut bed = bed(case, store, "eth1", &|_| Vec::new());
    let pods = pods(&bed);
    wait_until_all_reach_all(&pods);
    each_in_turn(&mut bed, &pods, &|bed, number| bed.spawn(number, &[]));
    // And once more without the state file: the address is on another interface of the host.
    (1..=3).for_each(|number| bed.stop(number));
    (1..=3).for_each(|number| bed.spawn_on(number, "eth1", &[]));
    (1..=3).for_each(|number| bed.wait_ready(number));
    wait_until_all_reach_all(&pods);
    each_in_turn(&mut bed, &pods, &|bed, number| {
        fs::remove_file(state_file(number)).unwrap();
        bed.spawn(number, &[]);
    });
}

/// The operator corrects `--public-ip` on three nodes, one after the other.
fn a_published_address_that_is_corrected_costs_no_subnet(case: &'static BackendCase) {
    if case.kind == "host-gw" || case.keys.contains("DirectRouting") {
        // host-gw refuses to publish what its link has not, and direct routes lead where such an address is.
        return corrected_interface(case, |_| new_folder());
    }
    let wrong = |number: u8| vec![format!("--public-ip=192.168.78.{}", 10 + number)];
    let mut bed = bed(case, |_| new_folder(), "eth0", &wrong);
    let pods = pods(&bed);
    each_in_turn(&mut bed, &pods, &|bed, number| bed.spawn(number, &[]));
}

/// What the version before left after such a correction: two leases of one node with one MAC, of which the older won.
fn a_second_lease_of_an_older_version_goes(case: &'static BackendCase) {
    let mut bed = bed(case, |_| new_folder(), "eth0", &|_| Vec::new());
    let pods = pods(&bed);
    let before = keys(&bed);
    let (own, _) = bed.record_of(1);
    wait_for_state_file(1);
    bed.stop(1);
    let value = bed.store.records().unwrap()[&own].clone();
    let old = value.replace("192.168.77.11", "192.168.78.11").replace("fd00:77::11", "fd00:78::11");
    let left = case.record(230).0;
    bed.store.put(&left, &old).unwrap();
    bed.store.put(&own, &value).unwrap();
    bed.start(1);
    if case.kind == "vxlan" {
        assert_eq!(keys(&bed), before, "the former lease is gone");
        (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
        assert!(bed.agent(1).log().contains("former lease of this node deleted"));
    } else {
        // Nothing proves that it is not another node's.
        assert!(keys(&bed).contains(&left));
    }
    wait_until_all_reach_all(&pods);
}

/// The same, with an address that nothing here remembers: the lease may be another node's, and stays until it ends. A
/// node that knows what it published keeps that, since its peers know it by that; one that finds nothing but the subnet
/// file, as after an older version, goes by the age of the records, and takes another MAC.
fn a_second_lease_with_an_address_of_long_ago_disarms_nobody(case: &'static BackendCase) {
    let mut bed = bed(case, |_| new_folder(), "eth0", &|_| Vec::new());
    let pods = pods(&bed);
    let (own, before) = bed.record_of(1);
    let left = case.record(230).0;
    wait_for_state_file(1);
    for files in [Files::Both, Files::SubnetFile] {
        bed.stop(1);
        if files == Files::SubnetFile {
            fs::remove_file(state_file(1)).unwrap();
        }
        let value = bed.store.records().unwrap()[&own].clone();
        let old = value.replace("192.168.77.11", "192.168.77.99").replace("fd00:77::11", "fd00:77::99");
        bed.store.put(&left, &old).unwrap();
        // The clock of files moves in steps.
        std::thread::sleep(Duration::from_millis(100));
        bed.store.put(&own, &value).unwrap();
        bed.start(1);
        wait_until_all_reach_all(&pods);
        let (now, after) = bed.record_of(1);
        assert_eq!((&now, bed.store.records().unwrap().get(&left)), (&own, Some(&old)), "{files:?}");
        if case.kind == "vxlan" && files == Files::SubnetFile {
            for data in ["BackendData", "BackendV6Data"] {
                assert_ne!(after[data]["VtepMAC"], before[data]["VtepMAC"], "{data}");
            }
        } else {
            assert_eq!(after, before, "{files:?}");
        }
    }
}

fn a_copied_disk_takes_nothing_from_the_machine_it_was_copied_from(case: &'static BackendCase) {
    let mut bed = bed(case, |_| new_folder(), "eth0", &|_| Vec::new());
    let before = bed.store.records().unwrap();
    wait_for_state_file(1);
    bed.cluster.add_node().unwrap();
    fs::create_dir_all(subnet_file(4).parent().unwrap()).unwrap();
    fs::copy(subnet_file(1), subnet_file(4)).unwrap();
    fs::copy(state_file(1), state_file(4)).unwrap();
    bed.start(4);
    assert!(bed.agent(4).log().contains("the state file was stored on a host with other NICs"));
    let after = bed.store.records().unwrap();
    assert_eq!(after.len(), 4);
    assert!(before.iter().all(|(key, value)| after.get(key) == Some(value)), "{before:?} {after:?}");
    (1..=4).for_each(|number| bed.wait_for_peers(number, 3));
    wait_until_all_reach_all(&pods(&bed));
    // The machine itself does not mind.
    bed.stop(1);
    bed.start(1);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(bed.store.records().unwrap(), after);
}
