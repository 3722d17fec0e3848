//! A node of ours takes over from a Go node: state, subnet and traffic.

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::golden::Golden;
use flannel_lab::netns::Netns;
use flannel_lab::pod::{CniOptions, Pod};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::subnet_env::SubnetEnv;
use flannel_lab::test_name;
use serde_json::Value;

use crate::harness::{Bed, LocalFolder, Monitor, Store, Traffic, subnet_file};

/// One family's side of a node as Go leaves it: device, base address, and the one peer.
struct GoSide {
    device: &'static str,
    local: String,
    mac: String,
    base: String,
    peer_subnet: String,
    peer_base: String,
    peer_mac: String,
    peer_underlay: String,
}

/// Makes the kernel state that the golden files show, with the commands of an operator.
fn lay_out(netns: &Netns, side: &GoSide) {
    let GoSide { device, local, mac, base, peer_subnet, peer_base, peer_mac, peer_underlay } = side;
    let (mtu, bits) = if local.contains(':') { (1430, 128) } else { (1450, 32) };
    for command in [
        format!(
            "link add {device} address {mac} mtu {mtu} type vxlan id 1 dev eth0 local {local} dstport 8472 nolearning"
        ),
        format!("link set {device} txqueuelen 0 up"),
        format!("address add {base}/{bits} dev {device}"),
        format!("neigh replace {peer_base} dev {device} lladdr {peer_mac} nud permanent"),
        format!("route replace {peer_subnet} via {peer_base} dev {device} onlink proto boot"),
    ] {
        netns.ip(&command).unwrap();
    }
    netns.bridge(&format!("fdb replace {peer_mac} dev {device} dst {peer_underlay} self permanent")).unwrap();
}

/// The sides of node `number` (1 or 2), read from the records.
fn sides(golden: &Golden, number: usize) -> Vec<GoSide> {
    let mut records: Vec<(String, Value)> = golden
        .records()
        .into_iter()
        .map(|(key, value)| (key, serde_json::from_str(&value).unwrap()))
        .collect();
    records.sort_by_key(|(_, value)| value["PublicIP"].to_string());
    let (own, peer) = (&records[number - 1], &records[2 - number]);
    let families =
        [("flannel.1", "PublicIP", "BackendData"), ("flannel-v6.1", "PublicIPv6", "BackendV6Data")];
    let subnets = own.0.split('&').zip(peer.0.split('&'));
    families
        .into_iter()
        .zip(subnets)
        .map(|((device, ip, data), (own_subnet, peer_subnet))| {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let base = |subnet: &str| subnet.rsplit_once('-').unwrap().0.to_owned();
            GoSide {
                device,
                local: text(&own.1[ip]),
                mac: text(&own.1[data]["VtepMAC"]),
                base: base(own_subnet),
                peer_subnet: peer_subnet.replace('-', "/"),
                peer_base: base(peer_subnet),
                peer_mac: text(&peer.1[data]["VtepMAC"]),
                peer_underlay: text(&peer.1[ip]),
            }
        })
        .collect()
}

fn take_over(case: &str) {
    let golden = Golden::named(case);
    let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
    let mut bed = Bed::new(cluster, LocalFolder::new(), &golden.config().unwrap());
    let mut pods = Vec::new();
    for number in [1_u8, 2] {
        for side in sides(&golden, usize::from(number)) {
            lay_out(bed.netns(number), &side);
        }
        let env = golden.subnet_env(&format!("node{number}")).unwrap();
        std::fs::create_dir_all(subnet_file(number).parent().unwrap()).unwrap();
        std::fs::write(subnet_file(number), env).unwrap();
        let env: SubnetEnv = env.parse().unwrap();
        pods.push(Pod::attach_cni(bed.cluster.node(number), &env, &CniOptions::default()).unwrap());
    }
    for (key, value) in golden.records() {
        bed.store.put(&key, &value);
    }
    let before = bed.state(1);
    assert!(!before.routes.is_empty() && !before.fdb.is_empty(), "{before}");
    let traffic = Traffic::between(&pods[0], &pods[1]);
    let monitor = Monitor::start(bed.netns(1));
    bed.start(1);
    traffic.go_on(300);
    bed.start(2);
    traffic.go_on(300);
    traffic.assert_no_loss();
    assert_eq!(bed.state(1), before, "what fits is adopted as it is");
    assert_eq!(monitor.seen(), Vec::<String>::new(), "nothing is written where nothing differs");
    assert_eq!(bed.store.records(), golden.records().into_iter().collect());
}

#[test]
fn an_ipv4_node_without_a_lost_ping() {
    in_sandbox(test_name!(), || take_over("vxlan"));
}

#[test]
fn a_dual_stack_node_without_a_lost_ping() {
    in_sandbox(test_name!(), || take_over("vxlan-dual"));
}
