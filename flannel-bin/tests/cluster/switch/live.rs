//! The operator changes `Backend.Type`, and nothing is restarted: all pods reach each other at every moment.
//!
//! `SWITCH_KHZ=1` lets each pod ping every other one a thousand times a second, for a machine that has nothing else to do.

use std::env;
use std::time::Duration;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::pod::Pod;
use flannel_lab::wait::{eventually, patiently};

use crate::backends::{BackendCase, HOST_GW, IPIP, UDP, VXLAN, WIREGUARD, WIREGUARD_USERSPACE, rows};
use crate::harness::{Bed, Folder, SOON, Store, Traffic, assert_all_reach_all, env_of, http_get, new_folder};

/// How long a change takes at most: devices, one round of records, ten seconds without a packet by the former backend.
const LONG: Duration = Duration::from_secs(60);
/// Only the agents of WireGuard cases look at these flags.
const FLAGS: [&str; 1] = ["--wireguard=userspace"];
const IN_KERNEL: [&str; 1] = ["--wireguard=kernel"];

rows! {
    vxlan_to_host_gw: between(&VXLAN, &HOST_GW, "");
    host_gw_to_vxlan: between(&HOST_GW, &VXLAN, "");
    vxlan_to_udp: between(&VXLAN, &UDP, "");
    udp_to_vxlan: between(&UDP, &VXLAN, "");
    host_gw_to_udp: between(&HOST_GW, &UDP, "");
    udp_to_host_gw: between(&UDP, &HOST_GW, "");
    vxlan_to_wireguard: between(&VXLAN, &WIREGUARD_USERSPACE, "");
    host_gw_to_wireguard: between(&HOST_GW, &WIREGUARD_USERSPACE, "");
    udp_to_wireguard: between(&UDP, &WIREGUARD_USERSPACE, "");
    wireguard_to_vxlan: between(&WIREGUARD_USERSPACE, &VXLAN, r#","LeaveEncryption":true"#);
    wireguard_to_udp: between(&WIREGUARD_USERSPACE, &UDP, r#","LeaveEncryption":true"#);
    vxlan_to_udp_on_strict_hosts: on_strict_hosts(&VXLAN, &UDP);
    host_gw_on_strict_hosts_is_named: named(&VXLAN, &HOST_GW);
    a_node_of_another_backend_is_accepted: accepted(&VXLAN, &HOST_GW);
    taken_back_at_once: back(&VXLAN, &UDP);
    encryption_is_not_left_by_accident: refused(&WIREGUARD_USERSPACE, &VXLAN);
}

/// The other stores, with one family each.
#[cfg(all(feature = "etcd", feature = "kube"))]
mod stores {
    use super::*;
    use crate::etcd::start as etcd;
    use crate::kube::kube;

    rows! {
        vxlan_to_host_gw_on_etcd: in_store(etcd, Families::V4, &VXLAN, &HOST_GW, "");
        udp_to_vxlan_on_kubernetes: in_store(kube, Families::V6, &UDP, &VXLAN, "");
    }
}

mod vm {
    use super::*;

    rows! {
        #[ignore = "needs a kernel with ipip and wireguard; .ci/vm --all runs it in a VM"]
        vxlan_to_ipip: in_store(|_| new_folder(), Families::V4, &VXLAN, &IPIP, "");
        ipip_to_udp: in_store(|_| new_folder(), Families::V4, &IPIP, &UDP, "");
        vxlan_to_wireguard: between(&VXLAN, &WIREGUARD, "");
        ipip_to_wireguard: in_store(|_| new_folder(), Families::V4, &IPIP, &WIREGUARD, "");
        wireguard_to_host_gw: between(&WIREGUARD, &HOST_GW, r#","LeaveEncryption":true"#);
    }
}

/// Nodes, their pods, and the traffic between these.
type Scene<S> = (Bed<S>, Vec<Pod>, Vec<Traffic>);

/// Nodes with a backend, and traffic between their pods, all around.
fn bed(nodes: u8, case: &'static BackendCase) -> Scene<Folder> {
    let cluster = Cluster::builder().nodes(nodes).families(Families::Dual).build().unwrap();
    bed_of(cluster, |_| new_folder(), nodes, case, FLAGS)
}

/// The same on hosts that demand that packets come by the link of the route to their source.
fn strict_bed(nodes: u8, case: &'static BackendCase) -> Scene<Folder> {
    let cluster = Cluster::builder().nodes(nodes).families(Families::Dual).build().unwrap();
    for node in cluster.nodes() {
        for conf in ["all", "default"] {
            node.netns().sysctl(&format!("net.ipv4.conf.{conf}.rp_filter"), "1").unwrap();
        }
    }
    bed_of(cluster, |_| new_folder(), nodes, case, FLAGS)
}

fn bed_of<S: Store>(
    cluster: Cluster,
    store: impl FnOnce(&Cluster) -> S,
    nodes: u8,
    case: &'static BackendCase,
    flags: [&str; 1],
) -> Scene<S> {
    let (store, families) = (store(&cluster), cluster.families());
    let mut bed = Bed::new(cluster, store, case, families);
    for number in 1..=nodes {
        bed.spawn(number, &flags);
    }
    for number in 1..=nodes {
        bed.wait_ready(number);
        bed.wait_for_peers(number, usize::from(nodes) - 1);
    }
    let pods: Vec<Pod> = (1..=nodes).map(|number| bed.pod(number)).collect();
    let flow = |(from, to): (&Pod, &Pod), interval| {
        let to = to.addresses().iter().map(ipnetwork::IpNetwork::ip);
        Traffic::to(from, to, interval)
    };
    let traffic = if env::var_os("SWITCH_KHZ").is_some() {
        let all = pods.iter().enumerate().flat_map(|from| pods.iter().enumerate().map(move |to| (from, to)));
        let others = all.filter(|((from, _), (to, _))| from != to);
        others.map(|((_, from), (_, to))| flow((from, to), Duration::from_millis(1))).collect()
    } else {
        // Each sends to the next one, so that a busy machine can carry it.
        let next = pods.iter().cycle().skip(1);
        pods.iter().zip(next).map(|pair| flow(pair, patiently(Duration::from_millis(20)))).collect()
    };
    (bed, pods, traffic)
}

/// Waits until all records name this backend and no other, and no device of the other one is left.
fn wait_for<S: Store>(bed: &Bed<S>, nodes: u8, case: &BackendCase, former: &BackendCase) {
    eventually(LONG, "all nodes to publish the other backend, and nothing else", || {
        let records = bed.store.records().unwrap();
        let kind =
            if case.kind == "udp" { String::new() } else { format!(r#""BackendType":"{}""#, case.kind) };
        let is_done = |value: &String| {
            !value.contains("Receives")
                && value.contains(&kind)
                && (case.kind != "udp" || !value.contains("BackendType"))
        };
        if records.values().all(is_done) { Ok(()) } else { Err(format!("{records:#?}")) }
    });
    for number in 1..=nodes {
        for (device, ..) in former.sides().into_iter().filter(|(device, ..)| *device != "eth0") {
            eventually(SOON, "the device of the former backend to go", || {
                bed.netns(number).link_index(device).unwrap().is_none()
            });
        }
    }
}

fn between(from: &'static BackendCase, to: &'static BackendCase, keys: &str) {
    in_store(|_| new_folder(), Families::Dual, from, to, keys);
}

fn on_strict_hosts(from: &'static BackendCase, to: &'static BackendCase) {
    switch(strict_bed(3, from), from, to, "");
}

fn in_store<S: Store>(
    store: impl FnOnce(&Cluster) -> S,
    families: Families,
    from: &'static BackendCase,
    to: &'static BackendCase,
    keys: &str,
) {
    let cluster = Cluster::builder().nodes(3).families(families).build().unwrap();
    let is_in_kernel = [from, to].iter().any(|case| case.kind == WIREGUARD.kind && case.in_kernel);
    let flags = if is_in_kernel { IN_KERNEL } else { FLAGS };
    switch(bed_of(cluster, store, 3, from, flags), from, to, keys);
}

fn switch<S: Store>(scene: Scene<S>, from: &'static BackendCase, to: &'static BackendCase, keys: &str) {
    let (mut bed, pods, traffic) = scene;
    let families = bed.cluster.families();
    bed.store.put_config(&to.config_with(families, keys)).unwrap();
    wait_for(&bed, 3, to, from);
    for traffic in &traffic {
        traffic.go_on(25);
    }
    for traffic in traffic {
        traffic.assert_no_loss();
    }
    bed.case = to;
    (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
    // Pods keep the MTU that they were made with.
    let smallest = from.mtu(families, 1500).min(to.mtu(families, 1500));
    assert_all_reach_all(&pods, smallest);
    for number in 1..=3 {
        let log = bed.agent(number).log();
        assert!(log.contains("this node publishes another backend now"), "{log}");
        assert_eq!(env_of(number).mtu, to.mtu(families, 1500));
    }
}

fn back(from: &'static BackendCase, to: &'static BackendCase) {
    let (bed, pods, traffic) = bed(3, from);
    for pause in [0, 30, 200, 1_000, 5_000] {
        bed.store.put_config(&to.config(Families::Dual)).unwrap();
        // Wherever the change is by then, it is taken back.
        std::thread::sleep(Duration::from_millis(pause));
        bed.store.put_config(&from.config(Families::Dual)).unwrap();
    }
    wait_for(&bed, 3, from, to);
    for traffic in traffic {
        traffic.assert_no_loss();
    }
    assert_all_reach_all(&pods, from.mtu(Families::Dual, 1500));
}

fn refused(from: &'static BackendCase, to: &'static BackendCase) {
    let (mut bed, pods, traffic) = bed(2, from);
    let records = bed.store.records().unwrap();
    bed.store.put_config(&to.config(Families::Dual)).unwrap();
    (1..=2).for_each(|number| refuses(&bed, number));
    for traffic in &traffic {
        traffic.go_on(25);
    }
    for traffic in traffic {
        traffic.assert_no_loss();
    }
    assert_eq!(bed.store.records().unwrap(), records, "nothing has changed");
    // A restart is no word of the operator's.
    bed.stop(1);
    bed.spawn(1, &FLAGS);
    bed.wait_ready(1);
    refuses(&bed, 1);
    bed.wait_for_peers(1, 1);
    assert_all_reach_all(&pods, from.mtu(Families::Dual, 1500));
    assert_eq!(bed.store.records().unwrap(), records, "nothing has changed");
}

/// A node without this agent, as one of Go flannel with another config, whose lease names a backend that the config accepts.
fn accepted(own: &'static BackendCase, other: &'static BackendCase) {
    let cluster = Cluster::builder().nodes(3).families(Families::V4).build().unwrap();
    let keys = format!(r#","Accept":["{}"]"#, other.kind);
    let mut bed = Bed::with_config(cluster, new_folder(), own, &own.config_with(Families::V4, &keys));
    (1..=2).for_each(|number| bed.spawn(number, &FLAGS));
    for number in 1..=2 {
        bed.wait_ready(number);
        bed.wait_for_peers(number, 1);
    }
    let pod = bed.pod(1);
    let (address, stranger) = (bed.node(1).address(), bed.node(3).address());
    let value = format!(r#"{{"PublicIP":"{stranger}","PublicIPv6":null,"BackendType":"{}"}}"#, other.kind);
    bed.store.put("10.244.200.0-24", &value).unwrap();
    let subnet = bed.record_of(1).0.replace('-', "/");
    let there = bed.netns(3);
    there.ip("link add pods type bridge").unwrap();
    there.ip("address add 10.244.200.1/24 dev pods").unwrap();
    there.ip("link set pods up").unwrap();
    there.ip(&format!("route add {subnet} via {address}")).unwrap();
    Traffic::to(&pod, ["10.244.200.1".parse().unwrap()], patiently(Duration::from_millis(20)))
        .assert_no_loss();
    let way = bed.netns(1).ip("route get 10.244.200.1").unwrap();
    assert!(way.contains(&format!("via {stranger} dev eth0")), "{way}");
    bed.wait_for_peers(1, 1);
}

fn named(from: &'static BackendCase, to: &'static BackendCase) {
    let (bed, _pods, traffic) = strict_bed(2, from);
    bed.store.put_config(&to.config(Families::Dual)).unwrap();
    eventually(SOON, "the strict underlay to be named", || {
        let answer = http_get(bed.netns(1), 8471, "/readyz");
        if answer.contains("net.ipv4.conf.eth0.rp_filter=2") { Ok(()) } else { Err(answer) }
    });
    drop(traffic);
}

fn refuses(bed: &Bed<Folder>, number: u8) {
    eventually(SOON, "the agent to refuse the config", || {
        let log = bed.agent(number).log();
        if log.contains("set Backend.LeaveEncryption to true") { Ok(()) } else { Err(log) }
    });
}
