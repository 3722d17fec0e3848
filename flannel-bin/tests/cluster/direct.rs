//! `DirectRouting` of vxlan: on-link peers without encapsulation, the others with, and the way from one to the other.

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::netns::Netns;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, VXLAN, VXLAN_DIRECT, VXLAN_DIRECT_PLAIN};
use crate::harness::{Bed, Folder, Monitor, SOON, Traffic, assert_all_reach_all, new_folder};

/// Nodes 1 and 2 on one segment, and node 3 behind a router.
fn bed(case: &'static BackendCase) -> Bed<Folder> {
    let mut cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
    cluster.add_node_on(&[1]).unwrap();
    let mut bed = Bed::new(cluster, new_folder(), case, Families::Dual);
    bed.start_all();
    bed
}

/// Waits until a node has routes to another, in both families, through this device.
#[track_caller]
fn wait_for_routes(bed: &Bed<Folder>, from: u8, to: u8, devices: [&str; 2]) {
    for (remote, device) in bed.remotes(to).iter().zip(devices) {
        let what = format!("the route from node {from} to {} through {device}", remote.subnet);
        eventually(SOON, &what, || {
            let state = bed.state(from);
            let to_peer = |line: &&String| line.contains(&format!("{} ", remote.subnet));
            let routes: Vec<_> = state.routes.iter().chain(&state.routes6).filter(to_peer).collect();
            let fits = routes.len() == 1 && routes[0].contains(&format!("dev {device} "));
            if fits { Ok(()) } else { Err(state.to_string()) }
        });
    }
}

const DIRECT: [&str; 2] = ["eth0", "eth0"];
const ENCAPSULATED: [&str; 2] = ["flannel.1", "flannel-v6.1"];

#[test]
fn on_link_nodes_are_reached_directly_and_others_encapsulated() {
    in_sandbox(test_name!(), || switch_to_and_fro(&VXLAN_DIRECT, 4));
}

#[test]
fn plain_routes_move_as_well() {
    in_sandbox(test_name!(), || switch_to_and_fro(&VXLAN_DIRECT_PLAIN, 0));
}

fn switch_to_and_fro(case: &'static BackendCase, next_hops: usize) {
    let mut bed = bed(case);
    for (from, to, devices) in [
        (1, 2, DIRECT),
        (2, 1, DIRECT),
        (1, 3, ENCAPSULATED),
        (2, 3, ENCAPSULATED),
        (3, 1, ENCAPSULATED),
        (3, 2, ENCAPSULATED),
    ] {
        wait_for_routes(&bed, from, to, devices);
    }
    let pods = [bed.pod(1), bed.pod(2), bed.pod(3)];
    assert_all_reach_all(&pods, VXLAN.mtu(Families::Dual, 1500));
    let want = bed.state(1);
    assert_eq!((want.neighbours.len(), want.fdb.len(), want.next_hops.len()), (4, 4, next_hops), "{want}");

    let traffic = [(0, 1), (1, 0), (0, 2)].map(|(from, to)| Traffic::between(&pods[from], &pods[to]));
    let go_on = || traffic.iter().for_each(|traffic| traffic.go_on(200));
    // A restart writes nothing.
    let monitor = Monitor::start(bed.netns(1));
    bed.kill(1);
    bed.start(1);
    go_on();
    assert_eq!(monitor.seen(), Vec::<String>::new());
    // The underlay's routes decide: node 2 is behind the router, and again on-link.
    for _ in 0..2 {
        host_routes(bed.netns(1), "add");
        wait_for_routes(&bed, 1, 2, ENCAPSULATED);
        go_on();
        host_routes(bed.netns(1), "del");
        wait_for_routes(&bed, 1, 2, DIRECT);
        go_on();
    }
    // Every switch is one written route a family, and nothing else.
    let to_two: Vec<String> = bed.remotes(2).into_iter().map(|remote| remote.subnet).collect();
    let seen = monitor.seen();
    assert_eq!(seen.len(), 8, "{seen:#?}");
    assert!(seen.iter().all(|line| to_two.iter().any(|subnet| line.contains(subnet))), "{seen:#?}");
    for traffic in traffic {
        traffic.assert_no_loss();
    }
    assert_eq!(bed.state(1), want);
}

/// Without next-hop objects, and with direct routes that stand in the way of making them in IPv6.
#[test]
fn what_a_go_node_left_is_taken_over_whatever_the_decision() {
    in_sandbox(test_name!(), || {
        let mut bed = bed(&VXLAN_DIRECT);
        wait_for_routes(&bed, 1, 2, DIRECT);
        let pods = [bed.pod(1), bed.pod(2)];
        let want = bed.state(1);
        // Nodes are noted in the state file within a second.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        let traffic = Traffic::between(&pods[0], &pods[1]);
        for encapsulated in [false, true] {
            bed.kill(1);
            let netns = bed.netns(1).clone();
            netns.ip("nexthop flush proto 102").unwrap();
            for remote in bed.remotes(2) {
                let (subnet, underlay) = (&remote.subnet, &remote.underlay);
                netns.ip(&format!("route replace {subnet} via {underlay} dev eth0 proto boot")).unwrap();
                if remote.base.contains(':') {
                    netns.ip(&format!("-6 route del {}/128 dev {}", remote.base, remote.device)).unwrap();
                }
            }
            if encapsulated {
                host_routes(&netns, "add");
            }
            bed.start(1);
            wait_for_routes(&bed, 1, 2, if encapsulated { ENCAPSULATED } else { DIRECT });
            traffic.go_on(200);
        }
        host_routes(bed.netns(1), "del");
        bed.wait_for_state(1, "all as before", &want);
        traffic.assert_no_loss();
    });
}

/// Puts or deletes routes that lead to node 2 through the router, although it is on the segment.
fn host_routes(netns: &Netns, verb: &str) {
    netns.ip(&format!("route {verb} 192.168.77.12/32 via 192.168.77.1 dev eth0")).unwrap();
    netns.ip(&format!("-6 route {verb} fd00:77::12/128 via fd00:77::1 dev eth0")).unwrap();
}

#[test]
fn an_address_on_another_segment_brings_its_nodes_on_link() {
    in_sandbox(test_name!(), || {
        let bed = bed(&VXLAN_DIRECT);
        wait_for_routes(&bed, 1, 3, ENCAPSULATED);
        let pods = [bed.pod(1), bed.pod(3)];
        let want = bed.state(1);
        // A route without a gateway is enough: the segments are taken for one. Nobody answers there, so the
        // traffic must not follow before it is taken back; only the decision counts.
        let netns = bed.netns(1);
        netns.ip("address add 192.168.78.250/24 dev eth0").unwrap();
        netns.ip("address add fd00:78::250/64 dev eth0 nodad").unwrap();
        wait_for_routes(&bed, 1, 3, DIRECT);
        netns.ip("address del 192.168.78.250/24 dev eth0").unwrap();
        netns.ip("address del fd00:78::250/64 dev eth0").unwrap();
        wait_for_routes(&bed, 1, 3, ENCAPSULATED);
        bed.wait_for_state(1, "all as before", &want);
        assert_all_reach_all(&pods, VXLAN.mtu(Families::Dual, 1500));
        // A link that flaps loses who is on-link, and finds it again.
        bed.cluster.node(1).link_down("eth0").unwrap();
        bed.cluster.node(1).link_up("eth0").unwrap();
        wait_for_routes(&bed, 1, 2, DIRECT);
        bed.wait_for_state(1, "all as before the flap", &want);
    });
}

#[test]
fn the_key_is_switched_on_and_off_under_traffic() {
    in_sandbox(test_name!(), || {
        let mut bed = bed(&VXLAN_DIRECT);
        let pods = [bed.pod(1), bed.pod(2)];
        wait_for_routes(&bed, 1, 2, DIRECT);
        let traffic = Traffic::between(&pods[0], &pods[1]);
        let want = bed.state(1);
        for (config, devices) in
            [(VXLAN.config(Families::Dual), ENCAPSULATED), (VXLAN_DIRECT.config(Families::Dual), DIRECT)]
        {
            crate::harness::Store::put_config(&bed.store, &config).unwrap();
            bed.stop(1);
            bed.start(1);
            wait_for_routes(&bed, 1, 2, devices);
            traffic.go_on(200);
        }
        traffic.assert_no_loss();
        assert_eq!(bed.state(1), want);
    });
}
