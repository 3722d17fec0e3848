//! What is particular to host-gw: gateways that are not on-link, foreign routes on the same link, NAT, and an
//! underlay that goes and comes back.

use std::net::IpAddr;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::kernel_state::KernelState;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, HOST_GW, on_every_backend};
use crate::harness::{
    Bed, Folder, Monitor, SOON, Store, Traffic, assert_all_reach_all, http_get, new_folder,
};

fn bed(nodes: u8) -> Bed<Folder> {
    let cluster = Cluster::builder().nodes(nodes).families(Families::Dual).build().unwrap();
    Bed::new(cluster, new_folder(), &HOST_GW, Families::Dual)
}

fn up(mut bed: Bed<Folder>, peers: usize) -> Bed<Folder> {
    bed.start_all();
    bed.cluster.nodes().for_each(|node| bed.wait_for_peers(node.number(), peers));
    bed
}

on_every_backend!(a_replaced_route_is_put_back_thrice_a_minute_and_then_reported);

/// The routes that a backend has to a peer, and where somebody else leads them: to a node that is not there.
fn replacements(bed: &Bed<Folder>, case: &BackendCase) -> Vec<(String, String)> {
    let subnets: Vec<String> = if case.in_kernel {
        bed.remotes(2).into_iter().map(|remote| remote.subnet).collect()
    } else {
        ["10.244.0.0/16", "fd00:10:244::/56"].map(str::to_owned).into()
    };
    assert_eq!(subnets.len(), 2);
    let with = |subnet: String| {
        let via = if subnet.contains(':') { "fd00:77::99" } else { "192.168.77.99" };
        let theirs = format!("{subnet} via {via} dev eth0");
        (subnet, theirs)
    };
    subnets.into_iter().map(with).collect()
}

fn a_replaced_route_is_put_back_thrice_a_minute_and_then_reported(case: &'static BackendCase) {
    let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
    let bed = up(Bed::new(cluster, new_folder(), case, Families::Dual), 1);
    let (want, netns) = (bed.state(1), bed.netns(1));
    let pods = [bed.pod(1), bed.pod(2)];
    let traffic = Traffic::between(&pods[0], &pods[1]);
    let routes = replacements(&bed, case);
    for _ in 0..3 {
        for (_, theirs) in &routes {
            netns.ip(&format!("route replace {theirs}")).unwrap();
            bed.wait_for_state(1, "ours to come back", &want);
        }
        traffic.go_on(50);
    }
    for (subnet, theirs) in &routes {
        netns.ip(&format!("route replace {theirs}")).unwrap();
        let told = format!(
            "route {subnet} of ours was replaced by somebody else's, {}",
            theirs.replacen(&format!("{subnet} "), "", 1)
        );
        eventually(SOON, "a word about it", || {
            let log = bed.agent(1).log();
            if log.contains(&told) { Ok(()) } else { Err(log) }
        });
    }
    let is_theirs = |(subnet, theirs): &(String, String)| {
        let family = if subnet.contains(':') { "-6" } else { "-4" };
        netns.ip(&format!("{family} route show {subnet}")).unwrap().contains(theirs.as_str())
    };
    // The agent has had time for a try of its own.
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(routes.iter().all(is_theirs), "they stay");
    for (_, theirs) in &routes {
        netns.ip(&format!("route del {theirs}")).unwrap();
    }
    bed.wait_for_state(1, "ours to take the place that is free", &want);
    traffic.go_on(50);
    eventually(SOON, "nothing to be told any more", || {
        !http_get(netns, 8471, "/readyz").contains("replaced")
    });
}

#[test]
fn a_node_that_is_not_on_link_is_refused_until_it_is() {
    in_sandbox(test_name!(), || {
        let mut bed = bed(2);
        bed.cluster.add_node_on(&[1]).unwrap();
        bed.start(1);
        bed.start(2);
        // It reaches nobody, and the others all but it.
        bed.spawn(3, &[]);
        let says = |number: u8, status: &str, word: &str| {
            eventually(SOON, &format!("{status} with {word} on node {number}"), || {
                let answer = http_get(bed.netns(number), 8471, "/readyz");
                if answer.starts_with(status) && answer.contains(word) { Ok(()) } else { Err(answer) }
            });
        };
        says(3, "HTTP/1.1 503", "IPv4: pods reach none of the other nodes (2)\nIPv6: pods reach none");
        for number in [1, 2] {
            says(number, "HTTP/1.1 200", "its node 192.168.78.13 is not on-link on eth0");
        }
        // Nodes 1 and 2 are not held up by the third.
        for number in [1, 2] {
            bed.wait_for_peers(number, 1);
            eventually(SOON, "a word about the node on another segment", || {
                let log = bed.agent(number).log();
                ["192.168.78.13", "fd00:78::13"]
                    .iter()
                    .all(|ip| log.contains(&format!("its node {ip} is not on-link on eth0")))
            });
        }
        let subnets = bed.record_of(3).0;
        let v4 = subnets.split('&').next().unwrap().replace('-', "/");
        assert!(bed.agent(1).log().contains(&format!("subnet {v4}: its node 192.168.78.13")));
        let pods = [bed.pod(1), bed.pod(2)];
        let traffic = Traffic::between(&pods[0], &pods[1]);
        // The segments are joined, and node 1 gets an address on the other one.
        for (number, host) in [(1, 11), (2, 12)] {
            let netns = bed.netns(number);
            netns.ip(&format!("address add 192.168.78.{host}/24 dev eth0")).unwrap();
            netns.ip(&format!("address add fd00:78::{host}/64 dev eth0 nodad")).unwrap();
        }
        for number in [1, 2] {
            bed.wait_for_peers(number, 2);
        }
        bed.netns(1).ip("address del 192.168.78.11/24 dev eth0").unwrap();
        // The kernel keeps the route; it is the host that took the address away.
        traffic.go_on(100);
        traffic.assert_no_loss();
    });
}

#[test]
fn leftovers_go_and_foreign_routes_stay() {
    in_sandbox(test_name!(), || {
        let mut bed = up(bed(2), 1);
        let netns = bed.netns(1).clone();
        let want = bed.state(1);
        bed.kill(1);
        // What a crashed agent or departed peers leave, on any link and with any metric.
        for leftover in [
            "route add 10.244.201.0/24 via 192.168.77.99 dev eth0 proto 102",
            "route add 10.244.202.0/24 via 192.168.77.99 dev eth0 metric 7 proto 102",
            "route add 10.244.203.0/24 dev lo proto 102",
            "route add blackhole 10.244.204.0/24 proto 102",
            "-6 route add fd00:10:244:c9::/64 via fd00:77::99 dev eth0 proto 102",
            "-6 route add fd00:10:244:ca::/64 dev lo proto 102",
        ] {
            netns.ip(leftover).unwrap();
        }
        bed.start(1);
        bed.wait_for_state(1, "leftovers to go", &want);

        for foreign in [
            // In our network, but not marked, and nothing says that we or Go wrote them.
            "route add 10.244.210.0/24 via 192.168.77.99 dev eth0",
            "route add 10.244.211.0/24 dev eth0",
            "route add 10.244.212.0/24 via 192.168.77.12 dev eth0 metric 50",
            "route add 10.244.213.0/24 via 192.168.77.12 dev eth0 proto 186",
            "-6 route add fd00:10:244:d2::/64 via fd00:77::99 dev eth0",
            // Marked, but of another instance.
            "route add 10.99.1.0/24 via 192.168.77.12 dev eth0 proto 102",
            "-6 route add fd00:99:1::/64 via fd00:77::12 dev eth0 proto 102",
        ] {
            netns.ip(foreign).unwrap();
        }
        let whole = KernelState::of(&netns).unwrap();
        // A peer arrives whose subnet somebody else's route holds.
        let (key, value) = HOST_GW.record(210);
        bed.store.put(&key, &value).unwrap();
        eventually(SOON, "a word about the holder", || {
            let log = bed.agent(1).log();
            log.contains("10.244.210.0/24 is in the way") && log.contains("fd00:10:244:d2::/64 is in the way")
        });
        assert_eq!(KernelState::of(&netns).unwrap(), whole);
        bed.store.delete(&key).unwrap();
        bed.kill(1);
        bed.start(1);
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert_eq!(KernelState::of(&netns).unwrap(), whole);
    });
}

#[test]
fn an_unmarked_leftover_goes_if_the_stored_state_knows_its_node() {
    in_sandbox(test_name!(), || {
        let mut bed = up(bed(2), 1);
        let netns = bed.netns(1).clone();
        let want = bed.state(1);
        let (key, value) = HOST_GW.record(220);
        bed.store.put(&key, &value).unwrap();
        bed.wait_for_peers(1, 2);
        // The state is stored at once, at the latest a second later.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        bed.kill(1);
        // As if a Go agent had run meanwhile; then the node left.
        netns.ip("route replace 10.244.220.0/24 via 192.168.77.220 dev eth0 proto boot").unwrap();
        netns.ip("route add 10.244.221.0/24 via 192.168.77.220 dev eth0 proto boot").unwrap();
        bed.store.delete(&key).unwrap();
        bed.start(1);
        eventually(SOON, "the leftover to go", || !netns.ip("route show").unwrap().contains("10.244.220.0"));
        assert!(netns.ip("route show").unwrap().contains("10.244.221.0"), "nothing proves that to be ours");
        netns.ip("route del 10.244.221.0/24").unwrap();
        bed.wait_for_state(1, "the rest to be as before", &want);

        // A damaged file is as good as none, and no reason not to start.
        bed.kill(1);
        std::fs::write("/run/flannel/node1/subnet.env.state", "garbage").unwrap();
        bed.start(1);
        assert!(bed.agent(1).log().contains("state file can't be used"));
        assert_eq!(bed.state(1), want);
    });
}

#[test]
fn behind_nat_it_refuses_to_start() {
    in_sandbox(test_name!(), || {
        let mut bed = bed(1);
        for flag in ["--public-ip=203.0.113.5", "--public-ipv6=2001:db8::5"] {
            bed.spawn(1, &[flag]);
            let status = bed.agent(1).wait(SOON).unwrap();
            let log = bed.agent(1).log();
            assert_eq!(status.code(), Some(1), "{log}");
            let address = flag.split_once('=').unwrap().1;
            assert!(log.contains(&format!("address {address} is not")) && log.contains("NAT"), "{log}");
            assert!(bed.store.records().unwrap().is_empty(), "nothing is published that can't work");
        }
    });
}

#[test]
fn an_underlay_that_flaps_has_its_routes_back() {
    in_sandbox(test_name!(), || {
        let bed = up(bed(2), 1);
        let want = bed.state(1);
        let node = bed.cluster.node(1);
        let pods = [bed.pod(1), bed.pod(2)];
        node.link_down("eth0").unwrap();
        eventually(SOON, "not ready while the underlay is down", || {
            let answer = http_get(bed.netns(1), 8471, "/readyz");
            answer.starts_with("HTTP/1.1 503") && answer.contains("eth0 is down")
        });
        node.link_up("eth0").unwrap();
        bed.wait_ready(1);
        bed.wait_for_state(1, "the routes to come back", &want);
        assert_pings(&pods);
        // So short that the agent may see only its end.
        bed.netns(1).run("sh", &["-c", "ip link set eth0 down; ip link set eth0 up"]).unwrap();
        node.link_up("eth0").unwrap();
        bed.wait_for_state(1, "the routes to come back after a blink", &want);
        assert_pings(&pods);
        // Without a carrier routes stay, and work again.
        let monitor = Monitor::start(bed.netns(1));
        node.carrier_off("eth0").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        node.carrier_on("eth0").unwrap();
        assert_pings(&pods);
        bed.wait_for_state(1, "all as before", &want);
        assert_eq!(monitor.seen(), Vec::<String>::new());
        assert_all_reach_all(&pods, 1500);
    });
}

fn assert_pings(pods: &[flannel_lab::pod::Pod]) {
    let to: Vec<IpAddr> = pods[1].addresses().iter().map(ipnetwork::IpNetwork::ip).collect();
    for dst in to {
        eventually(SOON, "pods to reach each other", || {
            flannel_lab::ping::reaches(pods[0].netns(), dst).unwrap()
        });
    }
}
