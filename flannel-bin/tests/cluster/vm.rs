//! What a backend asks of a kernel, in one short story, which every kernel that `.ci/vm` boots has to tell, too: packets of full
//! size pass in both families, a damage is repaired, and traffic outlives the agent.
//!
//! A backend whose module a tester's kernel may lack has its row here, ignored for that reason; the VMs run it.

use flannel_lab::cluster::Cluster;
use flannel_lab::ping::reaches;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, on_every_kind};
use crate::harness::{Bed, SOON, Traffic, assert_all_reach_all, env_of, new_folder};

on_every_kind!(a_kernel_carries_packets_and_keeps_them);

/// Two nodes and a pod on each.
fn a_kernel_carries_packets_and_keeps_them(case: &'static BackendCase) {
    let families = case.widest();
    let cluster = Cluster::builder().nodes(2).families(families).build().unwrap();
    let mut bed = Bed::new(cluster, new_folder(), case, families);
    bed.start_all();
    (1..=2).for_each(|number| bed.wait_for_peers(number, 1));
    let pods: Vec<_> = (1..=2).map(|number| bed.pod(number)).collect();
    // On a slow machine a new pod's first packet may find no neighbour in time.
    for (from, to) in [(0, 1), (1, 0)] {
        for dst in pods[to].addresses() {
            eventually(SOON, "the first reply", || reaches(pods[from].netns(), dst.ip()).unwrap());
        }
    }
    assert_all_reach_all(&pods, case.mtu(families, 1500));

    let want = bed.state(1);
    let own: Vec<String> =
        env_of(1).families().iter().map(|family| family.gateway.network().to_string()).collect();
    for (two, own) in bed.remotes(2).iter().zip(&own) {
        let (name, command) = (case.damages)(two, two, own).swap_remove(0);
        let ip = if two.base.contains(':') { "ip -6 route" } else { "ip route" };
        bed.netns(1).run("sh", &["-c", &command.replace("ip route", ip)]).unwrap();
        bed.wait_for_state(1, name, &want);
    }

    let traffic = Traffic::between(&pods[0], &pods[1]);
    bed.kill(1);
    bed.start(1);
    traffic.go_on(10);
    if case.in_kernel {
        traffic.assert_no_loss();
    }
    bed.wait_for_state(1, "the same after a restart", &want);
}
