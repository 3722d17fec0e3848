//! The kernel's devices and those in user space in one cluster, and one after the other on a node.

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::netns::Netns;

use super::plain::Plain;
use crate::backends::WIREGUARD;
use crate::harness::{Bed, Folder, Traffic, assert_all_reach_all, new_folder};

/// Two nodes, the second with its devices in user space.
fn bed_of_both() -> Bed<Folder> {
    let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
    let mut bed = Bed::new(cluster, new_folder(), &WIREGUARD, Families::Dual);
    bed.start(1);
    bed.spawn(2, &["--wireguard=userspace"]);
    bed.wait_ready(2);
    (1..=2).for_each(|number| bed.wait_for_peers(number, 1));
    bed
}

fn kind(netns: &Netns) -> String {
    let shown = netns.ip_json("-d link show flannel-wg").unwrap();
    shown[0]["linkinfo"]["info_kind"].as_str().unwrap().to_owned()
}

pub(super) fn both_ways() {
    let mut bed = bed_of_both();
    assert_eq!([1, 2].map(|number| kind(bed.netns(number))), ["wireguard", "tun"]);
    let pods = [bed.pod(1), bed.pod(2)];
    assert_all_reach_all(&pods, WIREGUARD.mtu(Families::Dual, 1500));
    for (from, to) in [(0, 1), (1, 0)] {
        let traffic = Traffic::between(&pods[from], &pods[to]);
        bed.kill(2);
        bed.spawn(2, &["--wireguard=userspace"]);
        bed.wait_ready(2);
        traffic.go_on(100);
        bed.kill(1);
        bed.start(1);
        traffic.go_on(100);
        drop(traffic.stop());
    }
    assert_all_reach_all(&pods, WIREGUARD.mtu(Families::Dual, 1500));
}

/// Node 1, under traffic of which nothing leaves as it is.
pub(super) fn there_and_back() {
    let mut bed = bed_of_both();
    let pods = [bed.pod(1), bed.pod(2)];
    let netns = [bed.netns(1).clone(), bed.netns(2).clone()];
    let plain = Plain::count(&netns);
    let traffic = [Traffic::between(&pods[0], &pods[1]), Traffic::between(&pods[1], &pods[0])];
    for (flag, want) in [("userspace", "tun"), ("kernel", "wireguard"), ("userspace", "tun")] {
        bed.stop(1);
        if want == "tun" {
            // A Go agent would have left the kernel's devices, and no blackhole.
            let flush = "ip route flush type blackhole; ip -6 route flush type blackhole";
            netns[0].run("sh", &["-c", flush]).unwrap();
        }
        bed.spawn(1, &[&format!("--wireguard={flag}")]);
        bed.wait_ready(1);
        bed.wait_for_peers(1, 1);
        assert_eq!(kind(&netns[0]), want);
        for traffic in &traffic {
            traffic.go_on(100);
        }
    }
    for traffic in traffic {
        drop(traffic.stop());
    }
    assert_eq!(plain.seen(), Vec::<String>::new());
    assert_all_reach_all(&pods, WIREGUARD.mtu(Families::Dual, 1500));
}
