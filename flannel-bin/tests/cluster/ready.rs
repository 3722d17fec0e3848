//! Whoever's pods are cut is told: what `/readyz` says, and that it says so no more once they are not.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::ping::reaches;
use flannel_lab::pod::Pod;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, HOST_GW, UDP, VXLAN};
use crate::harness::{Bed, Folder, SOON, Traffic, env_of, http_get, new_folder};

fn bed_of(case: &'static BackendCase, cluster: Cluster, families: Families) -> Bed<Folder> {
    Bed::new(cluster, new_folder(), case, families)
}

fn bed(case: &'static BackendCase, nodes: u8) -> Bed<Folder> {
    bed_of(case, Cluster::builder().nodes(nodes).families(Families::Dual).build().unwrap(), Families::Dual)
}

/// Waits until a node says all of this with this status.
#[track_caller]
fn wait_for(bed: &Bed<Folder>, number: u8, status: u16, words: &[&str]) {
    eventually(SOON, &format!("{status} with {words:?} on node {number}"), || {
        let answer = http_get(bed.netns(number), 8471, "/readyz");
        let fits = answer.starts_with(&format!("HTTP/1.1 {status}"));
        if fits && words.iter().all(|word| answer.contains(word)) { Ok(()) } else { Err(answer) }
    });
}

/// Waits until a node is ready without a word.
#[track_caller]
fn wait_for_green(bed: &Bed<Folder>, number: u8) {
    eventually(SOON, &format!("node {number} to be ready without a word"), || {
        let answer = http_get(bed.netns(number), 8471, "/readyz");
        if answer.ends_with("flanneld is ready") { Ok(()) } else { Err(answer) }
    });
}

fn addresses_of(pod: &Pod) -> Vec<IpAddr> {
    pod.addresses().iter().map(ipnetwork::IpNetwork::ip).collect()
}

#[track_caller]
fn assert_reach(from: &Pod, to: &Pod) {
    for dst in addresses_of(to) {
        eventually(SOON, &format!("{dst} to be reached"), || reaches(from.netns(), dst).unwrap());
    }
}

/// Gives a node a bridge with the subnets of another, as a node of before leaves one.
fn leave_bridge(bed: &Bed<Folder>, on: u8, name: &str, of: u8) {
    bed.netns(on).ip(&format!("link add {name} type bridge")).unwrap();
    bed.netns(on).ip(&format!("link set {name} up")).unwrap();
    for remote in bed.remotes(of) {
        let (base, length) = remote.subnet.split_once('/').unwrap();
        let (base, nodad) = match base.strip_suffix("::") {
            Some(base) => (format!("{base}::"), "nodad"),
            None => (base.strip_suffix('0').unwrap().to_owned(), ""),
        };
        bed.netns(on).ip(&format!("address add {base}1/{length} dev {name} {nodad}")).unwrap();
    }
}

fn bridges_in_the_way(case: &'static BackendCase, devices: &[&str]) {
    let mut bed = bed(case, 3);
    for number in [2, 3] {
        bed.start(number);
    }
    leave_bridge(&bed, 1, "old0", 2);
    bed.start(1);
    let subnet = bed.remotes(2)[0].subnet.clone();
    wait_for(&bed, 1, 200, &[&format!("route {subnet} is in the way"), "of link old0 is in the way"]);
    let pods = [bed.pod(1), bed.pod(2), bed.pod(3)];
    assert_reach(&pods[0], &pods[2]);
    assert!(!reaches(pods[0].netns(), pods[1].ipv6().unwrap()).unwrap(), "that one is cut");
    // All are.
    bed.kill(1);
    for device in devices {
        bed.netns(1).ip(device).unwrap();
    }
    leave_bridge(&bed, 1, "old1", 3);
    bed.spawn(1, &[]);
    let none = |family| format!("{family}: pods reach none of the other nodes (2)");
    wait_for(&bed, 1, 503, &[&none("IPv4"), &none("IPv6"), "of link old1 is in the way"]);
    wait_for_green(&bed, 2);
    for bridge in ["old0", "old1"] {
        bed.netns(1).ip(&format!("link del {bridge}")).unwrap();
    }
    wait_for_green(&bed, 1);
    assert_reach(&pods[0], &pods[1]);
    assert_reach(&pods[0], &pods[2]);
}

#[test]
fn a_stale_bridge_cuts_a_peer_and_more_of_them_all_on_vxlan() {
    in_sandbox(test_name!(), || bridges_in_the_way(&VXLAN, &["link del flannel.1", "link del flannel-v6.1"]));
}

#[test]
fn a_stale_bridge_cuts_a_peer_and_more_of_them_all_on_host_gw() {
    in_sandbox(test_name!(), || {
        bridges_in_the_way(&HOST_GW, &["route flush proto 102", "-6 route flush proto 102"]);
    });
}

/// Forwarding of each family, switched off and on while the agent runs.
fn forwarding_off_and_on(case: &'static BackendCase) {
    let mut bed = bed(case, 2);
    bed.start_all();
    bed.wait_for_peers(1, 1);
    let pods = [bed.pod(1), bed.pod(2)];
    assert_reach(&pods[0], &pods[1]);
    for (sysctl, to) in [
        ("net.ipv4.ip_forward", pods[1].ipv4().unwrap()),
        ("net.ipv6.conf.all.forwarding", pods[1].ipv6().unwrap()),
    ] {
        let operations = bed.operations(1);
        bed.netns(1).sysctl(sysctl, "0").unwrap();
        wait_for(&bed, 1, 503, &[&format!("{sysctl} is 0"), &format!("run sysctl -w {sysctl}=1")]);
        assert!(!reaches(pods[0].netns(), to).unwrap(), "{sysctl} means what is said of it");
        bed.netns(1).sysctl(sysctl, "1").unwrap();
        wait_for_green(&bed, 1);
        assert_reach(&pods[0], &pods[1]);
        assert_eq!(bed.operations(1), operations, "sysctls of the host are not ours");
    }
}

#[test]
fn forwarding_that_is_switched_off_is_red_on_vxlan() {
    in_sandbox(test_name!(), || forwarding_off_and_on(&VXLAN));
}

#[test]
fn forwarding_that_is_switched_off_is_red_on_host_gw() {
    in_sandbox(test_name!(), || forwarding_off_and_on(&HOST_GW));
}

#[test]
fn forwarding_that_is_switched_off_is_red_on_udp() {
    in_sandbox(test_name!(), || forwarding_off_and_on(&UDP));
}

/// Before the first pod CNI's bridge plugin has had no reason to switch it on; IPv6 is not in use at all.
#[test]
fn forwarding_that_is_off_before_the_first_pod_is_a_line() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(1).families(Families::V4).build().unwrap();
        let mut bed = bed_of(&VXLAN, cluster, Families::V4);
        bed.netns(1).sysctl("net.ipv4.ip_forward", "0").unwrap();
        bed.netns(1).sysctl("net.ipv6.conf.all.forwarding", "0").unwrap();
        bed.start(1);
        wait_for(&bed, 1, 200, &["net.ipv4.ip_forward is 0: no pod has its gateway on this node yet"]);
        let _pod = bed.pod(1);
        wait_for_green(&bed, 1);
    });
}

const TOO_SMALL: [&str; 2] =
    ["IPv6 is out of service on this node: the MTU of eth0 is 1300", "set the MTU of eth0 to"];

/// The underlay's MTU falls below what IPv6 needs and comes back, under IPv4 traffic.
fn mtu_down_and_up(case: &'static BackendCase) {
    let mut bed = bed(case, 2);
    bed.start_all();
    bed.wait_for_peers(1, 1);
    bed.wait_for_peers(2, 1);
    let pods = [bed.pod(1), bed.pod(2)];
    assert_reach(&pods[0], &pods[1]);
    let traffic = Traffic::to(&pods[0], pods[1].ipv4(), Duration::from_millis(2));
    let before = bed.state(1);
    for number in [1, 2] {
        bed.cluster.node(number).set_mtu("eth0", 1300).unwrap();
        wait_for(&bed, number, 200, &TOO_SMALL);
    }
    assert_reach(&pods[0], &pods[1]);
    for number in [1, 2] {
        bed.cluster.node(number).set_mtu("eth0", 1500).unwrap();
        wait_for_green(&bed, number);
    }
    bed.wait_for_state(1, "all as before", &before);
    assert_reach(&pods[0], &pods[1]);
    traffic.assert_no_loss();
}

#[test]
fn ipv6_goes_out_of_service_and_ipv4_loses_no_packet_on_vxlan() {
    in_sandbox(test_name!(), || mtu_down_and_up(&VXLAN));
}

#[test]
fn ipv6_goes_out_of_service_and_ipv4_loses_no_packet_on_udp() {
    in_sandbox(test_name!(), || mtu_down_and_up(&UDP));
}

/// It starts on an underlay that is too small: pods start, IPv4 works, and IPv6 does once the MTU is there.
fn start_below(case: &'static BackendCase) {
    let cluster = Cluster::builder().nodes(2).families(Families::Dual).mtu(1300).build().unwrap();
    let mut bed = bed_of(case, cluster, Families::Dual);
    bed.start_all();
    for number in [1, 2] {
        wait_for(&bed, number, 200, &TOO_SMALL);
        let log = bed.agent(number).log();
        assert!(!log.contains("Invalid argument"), "{log}");
    }
    let pods = [bed.pod(1), bed.pod(2)];
    let v4 = pods[1].ipv4().unwrap();
    eventually(SOON, "IPv4 to work", || reaches(pods[0].netns(), v4).unwrap());
    for number in [1, 2] {
        bed.cluster.node(number).set_mtu("eth0", 1500).unwrap();
        wait_for_green(&bed, number);
    }
    assert_reach(&pods[0], &pods[1]);
    eventually(SOON, "the pods' MTU to follow", || env_of(1).mtu == case.mtu(Families::Dual, 1500));
}

#[test]
fn a_start_below_the_mtu_of_ipv6_serves_ipv4_on_vxlan() {
    in_sandbox(test_name!(), || start_below(&VXLAN));
}

#[test]
fn a_start_below_the_mtu_of_ipv6_serves_ipv4_on_udp() {
    in_sandbox(test_name!(), || start_below(&UDP));
}

#[test]
fn ipv6_alone_below_its_mtu_is_red_and_heals() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(2).families(Families::V6).mtu(1300).build().unwrap();
        let mut bed = bed_of(&VXLAN, cluster, Families::V6);
        for number in [1, 2] {
            bed.spawn(number, &[]);
            wait_for(&bed, number, 503, &TOO_SMALL);
        }
        for number in [1, 2] {
            bed.cluster.node(number).set_mtu("eth0", 1500).unwrap();
            wait_for_green(&bed, number);
        }
        let pods = [bed.pod(1), bed.pod(2)];
        assert_reach(&pods[0], &pods[1]);
    });
}

/// New devices without IPv6, as a hardened host has them.
#[test]
fn ipv6_that_is_switched_off_is_named_by_device_and_sysctl() {
    in_sandbox(test_name!(), || {
        for (case, device) in [(&VXLAN, "flannel-v6.1"), (&UDP, "flannel0")] {
            let mut bed = bed(case, 2);
            bed.start(2);
            let sysctl = format!("net/ipv6/conf/{device}/disable_ipv6");
            bed.netns(1).sysctl("net.ipv6.conf.default.disable_ipv6", "1").unwrap();
            bed.start(1);
            wait_for(
                &bed,
                1,
                200,
                &[&format!("device {device} can't have"), &format!("run sysctl -w {sysctl}=0")],
            );
            bed.netns(1).sysctl("net.ipv6.conf.default.disable_ipv6", "0").unwrap();
            let pods = [bed.pod(1), bed.pod(2)];
            let v4 = pods[1].ipv4().unwrap();
            eventually(SOON, "IPv4 to work", || reaches(pods[0].netns(), v4).unwrap());
            bed.netns(1).sysctl(&sysctl, "0").unwrap();
            wait_for_green(&bed, 1);
            assert_reach(&pods[0], &pods[1]);
            // And at run time.
            bed.netns(1).sysctl(&sysctl, "1").unwrap();
            wait_for(&bed, 1, 200, &[&format!("run sysctl -w {sysctl}=0")]);
            bed.netns(1).sysctl(&sysctl, "0").unwrap();
            wait_for_green(&bed, 1);
            assert_reach(&pods[0], &pods[1]);
        }
    });
}

/// A port that is taken: by a device of somebody else, and by a process.
#[test]
fn whose_the_port_of_vxlan_is_is_said() {
    in_sandbox(test_name!(), || {
        let mut bed = bed(&VXLAN, 1);
        let netns = bed.netns(1).clone();
        netns.ip("link add other0 type vxlan id 1 dstport 8472 local 192.168.77.11 dev eth0").unwrap();
        netns.ip("link set other0 up").unwrap();
        assert_refused(&mut bed, "device other0 has VNI 1 on UDP port 8472");
        netns.ip("link del other0").unwrap();
        refused_for_our_socket(&mut bed, 8472);
    });
}

#[test]
fn whose_the_port_of_udp_is_is_said() {
    in_sandbox(test_name!(), || refused_for_our_socket(&mut bed(&UDP, 1), 8285));
}

/// The agent must name this process, which has the port.
fn refused_for_our_socket(bed: &mut Bed<Folder>, port: u16) {
    let netns = bed.netns(1).clone();
    let _socket = netns.enter(|| UdpSocket::bind(("0.0.0.0", port)).unwrap()).unwrap();
    assert_refused(bed, &format!("(pid {}) has UDP port {port}", std::process::id()));
}

fn assert_refused(bed: &mut Bed<Folder>, why: &str) {
    bed.spawn(1, &[]);
    let status = bed.agent(1).wait(SOON).unwrap();
    let log = bed.agent(1).log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(why), "{why}: {log}");
}
