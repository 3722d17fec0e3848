//! A node changes hands between Go flannel, which has the kernel's devices, and this agent.

use std::net::IpAddr;
use std::path::Path;

use flannel_lab::netns::Netns;
use flannel_lab::wait::eventually;

use super::{bed, sh};
use crate::backends::WIREGUARD;
use crate::harness::{Bed, Folder, SOON, Traffic, sides};

/// Node 1 as a Go agent that was killed left it: devices, peers, and a route for the whole network.
pub(super) fn from_go() {
    let mut bed = bed(&WIREGUARD, 2);
    let pods = [bed.pod(1), bed.pod(2)];
    let netns = bed.netns(1).clone();
    let of_ours = bed.state(1);
    bed.kill(1);
    std::fs::remove_file("/run/flannel/node1/subnet.env.state").unwrap();
    for line in ["route flush proto 102", "-6 route flush proto 102"] {
        netns.ip(line).unwrap();
    }
    lay_out(&bed, &netns);
    let traffic = Traffic::between(&pods[0], &pods[1]);
    traffic.go_on(20);
    let indexes = ["flannel-wg", "flannel-wg-v6"].map(|device| netns.link_index(device).unwrap());
    bed.start(1);
    bed.wait_for_state(1, "as ours has it", &of_ours);
    traffic.go_on(100);
    let now = ["flannel-wg", "flannel-wg-v6"].map(|device| netns.link_index(device).unwrap());
    assert_eq!(now, indexes, "the same devices, with their sessions");
    traffic.assert_no_loss();
    // And back: Go makes its devices again at each start, which ends all sessions.
    bed.stop(1);
    let back = Traffic::between(&pods[1], &pods[0]);
    lay_out(&bed, &netns);
    for addr in pods[1].addresses().iter().map(ipnetwork::IpNetwork::ip) {
        eventually(SOON, "packets again", || flannel_lab::ping::reaches(pods[0].netns(), addr).unwrap());
    }
    drop(back.stop());
}

/// What Go flannel does at a start on node 1, to devices that were there or not.
fn lay_out(bed: &Bed<Folder>, netns: &Netns) {
    let (key, value) = bed.record_of(1);
    let (theirs, value_of_two) = bed.record_of(2);
    let own = sides(bed.case, &key, &value);
    let peers = sides(bed.case, &theirs, &value_of_two);
    let key_file = Path::new("/run/flannel/node1/wgkey");
    let data = [("BackendData", 51820), ("BackendV6Data", 51821)];
    for (((own, _), (_, peer)), (data, port)) in own.iter().zip(&peers).zip(data) {
        let device = peer.device;
        let public = value_of_two[data]["PublicKey"].as_str().unwrap();
        let endpoint = match peer.underlay.parse().unwrap() {
            IpAddr::V4(addr) => format!("{addr}:{port}"),
            IpAddr::V6(addr) => format!("[{addr}]:{port}"),
        };
        sh(netns, &format!("ip link del {device} 2>/dev/null || true; ip link add {device} type wireguard"));
        sh(
            netns,
            &format!(
                "wg set {device} private-key {} listen-port {port} peer {public} endpoint {endpoint} allowed-ips {}",
                key_file.display(),
                peer.subnet
            ),
        );
        for command in (bed.case.as_go_leaves_it)(own, peer) {
            let v6 = own.base.contains(':');
            sh(netns, &if v6 { command.replace("ip route", "ip -6 route") } else { command });
        }
    }
}
