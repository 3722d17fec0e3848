//! What a device in the agent's process means: it ends with that, and others may have its port.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::netns::Netns;
use flannel_lab::wait::eventually;

use super::bed;
use crate::backends::WIREGUARD_USERSPACE;
use crate::harness::{Bed, FLANNELD, SOON, Traffic, assert_all_reach_all, http_get, new_folder};

/// A second opinion on what the kernel has is to make a device.
pub(super) fn chosen() {
    let cluster = Cluster::builder().nodes(1).families(Families::V4).build().unwrap();
    let config = WIREGUARD_USERSPACE.config(Families::V4);
    let mut bed = Bed::with_config(cluster, new_folder(), &WIREGUARD_USERSPACE, &config);
    let netns = bed.netns(1).clone();
    let kernel_has_it = netns.ip("link add trial type wireguard").is_ok();
    let kind = |netns: &Netns| netns.ip("-d link show flannel-wg").unwrap().contains("wireguard");
    bed.spawn(1, &["--wireguard=auto"]);
    bed.wait_ready(1);
    assert_eq!(kind(&netns), kernel_has_it);
    let status = ["status", "--subnet-file", "/run/flannel/node1/subnet.env", "--output=json"];
    let status = netns.run(FLANNELD, &status).unwrap();
    for (text, why) in
        [(&status, "the kernel has none"), (&bed.agent(1).log(), "the kernel has no WireGuard")]
    {
        assert_eq!(text.contains(why), !kernel_has_it, "{text}");
    }
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let path = status["network"]["datapath"].as_str().unwrap();
    assert!(path.starts_with("WireGuard in ") && path.len() < 120, "{path}");
    bed.stop(1);
    bed.spawn(1, &["--wireguard=kernel"]);
    if kernel_has_it {
        bed.wait_ready(1);
        return;
    }
    assert_eq!(bed.agent(1).wait(SOON).unwrap().code(), Some(1));
    let log = bed.agent(1).log();
    assert!(log.contains("modprobe wireguard") && log.contains("--wireguard=userspace"), "{log}");
}

/// The other nodes go on with sessions that a restarted node does not have. Of that they would know 15 s after its last
/// packet (paper section 6.2 and 6.5); it begins new ones itself, at once.
pub(super) const WITHOUT_GREETING: Duration = Duration::from_secs(15);

/// Under traffic in one direction at a time, since that into the restarted node is the one that can't help itself.
pub(super) fn restart_costs_a_handshake() {
    let mut bed = bed(&WIREGUARD_USERSPACE, 3);
    let pods = [bed.pod(1), bed.pod(2), bed.pod(3)];
    for (from, to) in [(1, 0), (0, 1)] {
        let traffic = Traffic::between(&pods[from], &pods[to]);
        for kills in [true, false] {
            if kills {
                bed.kill(1);
            } else {
                bed.stop(1);
            }
            let began = Instant::now();
            bed.start(1);
            let ready = Instant::now();
            traffic.go_on(1);
            let (all, since) = (began.elapsed(), ready.elapsed());
            println!(
                "packets again {all:?} after the end of the last agent, {since:?} after the next was ready"
            );
            assert!(all < WITHOUT_GREETING, "{all:?}, {since:?} of it when ready");
        }
        for (dst, report) in traffic.stop() {
            println!("to {dst}: {report:?}");
        }
    }
    // A node that had no packets in either direction has its session, too.
    assert_all_reach_all(&pods, WIREGUARD_USERSPACE.mtu(Families::Dual, 1500));
}

/// The agent lets go of the port with its TUN. While another link has that one's name, somebody else takes it.
pub(super) fn port_taken() {
    let bed = bed(&WIREGUARD_USERSPACE, 2);
    let pods = [bed.pod(1), bed.pod(2)];
    let netns = bed.netns(1).clone();
    bed.agent(1).pause().unwrap();
    netns.ip("link del flannel-wg").unwrap();
    netns.ip("link add flannel-wg type bridge").unwrap();
    bed.agent(1).resume().unwrap();
    let mut holder = None;
    eventually(SOON, "the port to be free", || {
        holder = netns.enter(|| UdpSocket::bind(("0.0.0.0", 51820))).unwrap().ok();
        holder.is_some()
    });
    netns.ip("link del flannel-wg").unwrap();
    let named = format!("(pid {}) has UDP port 51820", std::process::id());
    eventually(SOON, "a word about who has the port", || {
        let answer = http_get(&netns, 8471, "/readyz");
        let is_named = answer.contains(&named) && answer.contains("Backend.ListenPort");
        if answer.starts_with("HTTP/1.1 503") && is_named { Ok(()) } else { Err(answer) }
    });
    drop(holder);
    bed.wait_ready(1);
    bed.wait_for_peers(1, 1);
    assert_all_reach_all(&pods, WIREGUARD_USERSPACE.mtu(Families::Dual, 1500));
}
