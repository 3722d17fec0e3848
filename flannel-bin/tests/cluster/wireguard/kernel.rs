//! What only the kernel's devices have: others than the agent can change what is inside.

use flannel_lab::cluster::Families;
use flannel_lab::netns::Netns;
use flannel_lab::wait::eventually;

use super::{bed, sh};
use crate::backends::WIREGUARD;
use crate::harness::{SOON, Traffic, assert_all_reach_all};

/// What `wg` tells of a device: the lines of the device, and those of each peer.
fn content(netns: &Netns, device: &str) -> Vec<String> {
    let text = sh(netns, &format!("wg showconf {device}"));
    let mut blocks: Vec<String> = text.split("\n\n").map(|block| block.trim().to_owned()).collect();
    blocks.sort_unstable();
    blocks
}

/// The kernel tells nobody of such damage: errors that packets meet tell sooner than the resync.
pub(super) fn damage_inside() {
    let bed = bed(&WIREGUARD, 2);
    let netns = bed.netns(1);
    let pods = [bed.pod(1), bed.pod(2)];
    Traffic::between(&pods[0], &pods[1]).assert_no_loss();
    let devices = ["flannel-wg", "flannel-wg-v6"];
    let want = devices.map(|device| content(netns, device));
    // It would have repaired the first damage before the last is done.
    bed.agent(1).pause().unwrap();
    for (port, device) in (4711..).zip(devices) {
        let peer = sh(netns, &format!("wg show {device} peers")).trim().to_owned();
        let damages = [
            format!("wg set {device} peer {peer} remove"),
            format!("wg set {device} peer {peer} allowed-ips ''"),
            format!("wg set {device} peer {peer} persistent-keepalive 7"),
            format!("wg set {device} listen-port {port}"),
            format!("wg genkey >/run/key; wg set {device} private-key /run/key"),
            format!("wg set {device} peer $(wg genkey | wg pubkey) allowed-ips 10.244.250.0/24"),
        ];
        for damage in damages {
            sh(netns, &damage);
        }
    }
    assert_ne!(devices.map(|device| content(netns, device)), want);
    bed.agent(1).resume().unwrap();
    eventually(4 * SOON, "the devices as they were", || {
        let have = devices.map(|device| content(netns, device));
        if have == want { Ok(()) } else { Err(format!("{have:?}")) }
    });
    // With the private key the sessions went.
    for addr in pods[1].addresses() {
        eventually(SOON, "packets again", || flannel_lab::ping::reaches(pods[0].netns(), addr.ip()).unwrap());
    }
    assert_all_reach_all(&pods, WIREGUARD.mtu(Families::Dual, 1500));
}
