//! Upstream's end-to-end tests: the daemon set is rolled out, carries packets, survives what Kubernetes does to pods,
//! and is uninstalled.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;

use flannel_lab::kube::store::KubeStore;
use flannel_lab::ping::reaches;
use flannel_lab::pod::Pod;
use flannel_lab::wait::eventually;
use serde_json::json;

use super::{Row, on_every_row, pod, rules, sh};
use crate::harness::{Bed, FLANNELD, SOON, Store, Traffic, assert_all_reach_all, env_of, subnet_file};

on_every_row!(rolled_out_and_pods_reach_each_other, pods_and_agents_come_again_and_all_is_uninstalled);

fn rolled_out_and_pods_reach_each_other(row: Row) {
    let mut bed = row.cluster(2);
    for node in bed.cluster.nodes() {
        bed.store.api().edit_node(node.name(), |object| {
            // As a cloud's controller has it until somebody says that there is a network.
            let condition =
                json!({ "type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated" });
            object["status"]["conditions"].as_array_mut().unwrap().push(condition);
        });
    }
    (1..=2).for_each(|number| bed.spawn(number, &["--ip-masq"]));
    for number in 1..=2 {
        bed.wait_ready(number);
        bed.wait_for_peers(number, 1);
        assert_rolled_out(&bed, number);
    }
    rules::assert_listed(row, &bed);
    let pods = [pod(&bed, 1), pod(&bed, 2)];
    assert_all_reach_all(&pods, env_of(1).mtu);
    for (from, to) in [(0, 1), (1, 0)] {
        for address in pods[to].addresses() {
            transfer(&pods[from], &pods[to], address.ip());
        }
    }
    // Nothing that came meanwhile moved a rule.
    rules::assert_listed(row, &bed);
}

/// A node says what upstream's test waits for: `subnet.env` in the subnets of the node, and the node ready.
fn assert_rolled_out(bed: &Bed<KubeStore>, number: u8) {
    let node = bed.store.api().node(&format!("node{number}")).unwrap();
    let env = env_of(number);
    let gateways = env.families().into_iter().map(|family| family.gateway);
    let subnets = gateways.map(|gateway| format!("{}/{}", gateway.network(), gateway.prefix()));
    assert_eq!(json!(subnets.collect::<Vec<_>>()), node["spec"]["podCIDRs"]);
    assert!(env.ipmasq);
    eventually(SOON, &format!("node{number} to be ready"), || {
        let node = bed.store.api().node(&format!("node{number}")).unwrap();
        let conditions = node["status"]["conditions"].as_array().unwrap().clone();
        let ours = conditions.iter().filter(|condition| condition["type"] == "NetworkUnavailable");
        let ours = ours.map(|it| (it["status"].clone(), it["reason"].clone())).collect::<Vec<_>>();
        if ours == [(json!("False"), json!("FlannelIsUp"))] { Ok(()) } else { Err(conditions) }
    });
}

/// As much as arrives in a moment, over one connection. Upstream runs iperf3 and looks whether it ends well.
#[track_caller]
fn transfer(from: &Pod, to: &Pod, dst: IpAddr) {
    const SIZE: usize = 32 << 20;
    let dst = SocketAddr::new(dst, 5201);
    let listener = to.netns().enter(|| TcpListener::bind(dst)).unwrap().unwrap();
    let received = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let (mut buffer, mut count) = (vec![0; 1 << 16], 0);
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => return count,
                more => count += more,
            }
        }
    });
    let mut stream = from.netns().enter(|| TcpStream::connect_timeout(&dst, SOON)).unwrap().unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream.write_all(&vec![7; SIZE]).unwrap();
    drop(stream);
    assert_eq!(received.join().unwrap(), SIZE, "{dst}");
}

fn pods_and_agents_come_again_and_all_is_uninstalled(row: Row) {
    let mut bed = row.cluster(2);
    let before = [1, 2].map(|number| rules_of(&bed, number));
    (1..=2).for_each(|number| bed.spawn(number, &["--ip-masq"]));
    for number in 1..=2 {
        bed.wait_ready(number);
        bed.wait_for_peers(number, 1);
    }
    let mut pods = [pod(&bed, 1), pod(&bed, 2)];
    a_pod_comes_again(&bed, &mut pods);
    agents_come_again(&mut bed, &pods);
    let [one, two] = pods;
    one.delete().unwrap();
    two.delete().unwrap();
    for (number, before) in (1..=2).zip(before) {
        bed.stop(number);
        uninstalled(&bed, number);
        assert_eq!(rules_of(&bed, number), before, "the rules of others");
    }
}

/// A pod is deleted and made again, on each node.
fn a_pod_comes_again(bed: &Bed<KubeStore>, pods: &mut [Pod; 2]) {
    assert_reach(pods);
    for at in 0..2 {
        let number = u8::try_from(at).unwrap() + 1;
        let old = std::mem::replace(&mut pods[at], pod(bed, number));
        let gone = old.addresses().to_vec();
        old.delete().unwrap();
        assert_reach(pods);
        for address in gone {
            assert!(!reaches(pods[1 - at].netns(), address.ip()).unwrap(), "{address} is gone");
        }
    }
}

/// Every pod reaches the other before long.
#[track_caller]
fn assert_reach(pods: &[Pod; 2]) {
    for (from, to) in [(0, 1), (1, 0)] {
        for address in pods[to].addresses() {
            eventually(SOON, &format!("pod {from} to reach {address}"), || {
                reaches(pods[from].netns(), address.ip()).unwrap()
            });
        }
    }
}

/// The agent's pod on one node is deleted and made again; then the daemon set is restarted, node by node. Subnets stay,
/// and no ping is lost where the kernel carries the packets.
fn agents_come_again(bed: &mut Bed<KubeStore>, pods: &[Pod; 2]) {
    let env = [env_of(1), env_of(2)];
    let traffic = [Traffic::between(&pods[0], &pods[1]), Traffic::between(&pods[1], &pods[0])];
    let annotations = bed.store.records().unwrap();
    for number in [1, 1, 2] {
        bed.stop(number);
        bed.spawn(number, &["--ip-masq"]);
        bed.wait_ready(number);
        bed.wait_for_peers(number, 1);
        for traffic in &traffic {
            traffic.go_on(100);
        }
        assert_eq!([env_of(1), env_of(2)], env, "FLANNEL_SUBNET stays");
        assert_eq!(bed.store.records().unwrap(), annotations);
    }
    for traffic in traffic {
        if bed.case.in_kernel {
            traffic.assert_no_loss();
        } else {
            // In udp the agent is the datapath: what is lost is what was sent while there was none.
            drop(traffic.stop());
        }
    }
    assert_reach(pods);
}

/// All rules but ours, and ours if there are any.
fn rules_of(bed: &Bed<KubeStore>, number: u8) -> String {
    sh(bed.netns(number), "nft --stateless list ruleset")
}

/// What is left on a node when the daemon set is deleted goes by `flanneld cleanup`.
fn uninstalled(bed: &Bed<KubeStore>, number: u8) {
    let netns = bed.netns(number);
    let mut cleanup = netns.command(FLANNELD);
    cleanup.arg("cleanup").arg(format!("--subnet-file={}", subnet_file(number).display()));
    let output = cleanup.args(bed.store.flags()).env("NODE_NAME", format!("node{number}")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let links = netns.ip("-brief link").unwrap();
    assert!(!links.contains("flannel"), "{links}");
    for show in ["-4 route show table all", "-6 route show table all", "nexthop"] {
        let left = netns.ip(show).unwrap();
        assert!(!left.contains("proto 102") && !left.contains("flannel"), "{left}");
    }
    let dir = subnet_file(number);
    let left = fs::read_dir(dir.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(left.collect::<Vec<_>>(), Vec::<std::path::PathBuf>::new());
}
