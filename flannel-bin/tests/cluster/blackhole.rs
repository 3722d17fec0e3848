//! `--ip-blackhole-route`: packets to addresses of the own subnet that no pod has end on their node.

use flannel_lab::cluster::Cluster;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, on_every_backend};
use crate::harness::{Bed, SOON, assert_all_reach_all, env_of, new_folder};

on_every_backend!(blackholes_are_held_beside_a_bridge_and_go_with_the_option);

fn blackholes_are_held_beside_a_bridge_and_go_with_the_option(case: &'static BackendCase) {
    let families = case.widest();
    let cluster = Cluster::builder().nodes(2).families(families).build().unwrap();
    let mut bed = Bed::new(cluster, new_folder(), case, families);
    bed.spawn(1, &["--ip-blackhole-route"]);
    bed.start(2);
    bed.wait_ready(1);
    for number in [1, 2] {
        bed.wait_for_peers(number, 1);
    }
    let node = bed.netns(1).clone();
    let blackholes = || {
        let lists =
            ["-4", "-6"].map(|family| node.ip(&format!("{family} route show type blackhole")).unwrap());
        lists.concat()
    };
    let own: Vec<String> = bed.record_of(1).0.split('&').map(|subnet| subnet.replace('-', "/")).collect();
    assert_eq!(own.len(), env_of(1).families().len());
    let held = blackholes();
    assert_eq!(held.lines().count(), own.len(), "{held}");
    assert!(own.iter().all(|subnet| held.contains(&format!("blackhole {subnet}"))), "{held}");
    assert_eq!(held.matches("proto 102").count(), own.len(), "{held}");

    // The bridge of the pods comes later than the blackhole, and has its traffic.
    let pods = [bed.pod(1), bed.pod(2)];
    assert_all_reach_all(&pods, case.mtu(families, 1500));
    for subnet in &own {
        node.ip(&format!("route del blackhole {subnet} proto 102")).unwrap();
    }
    eventually(SOON, "the blackholes to come back", || blackholes() == held);
    assert_all_reach_all(&pods, case.mtu(families, 1500));

    bed.stop(1);
    assert_eq!(blackholes(), held, "what is in the kernel stays");
    // As Go writes it, before the bridge came: it swallows what is for pods.
    node.ip(&format!("route prepend blackhole {} proto boot", own[0])).unwrap();
    bed.spawn(1, &["--ip-blackhole-route"]);
    bed.wait_ready(1);
    eventually(SOON, "Go's blackhole to be replaced by ours", || blackholes() == held);
    assert_all_reach_all(&pods, case.mtu(families, 1500));
    bed.kill(1);
    bed.start(1);
    eventually(SOON, "the blackholes to go with the option", || blackholes().is_empty());
}
