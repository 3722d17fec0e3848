//! The backend of a cluster is changed node by node: stop, change the config, start.

mod live;

use std::collections::BTreeMap;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::pod::Pod;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, HOST_GW, UDP, VXLAN};
use crate::harness::{Bed, Folder, SOON, Store, Traffic, assert_all_reach_all, new_folder};

#[test]
fn vxlan_to_host_gw_and_back() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(4).families(Families::Dual).build().unwrap();
        let mut bed = Bed::new(cluster, new_folder(), &VXLAN, Families::Dual);
        bed.start_all();
        (1..=4).for_each(|number| bed.wait_for_peers(number, 3));
        let pods: Vec<Pod> = (1..=4).map(|number| bed.pod(number)).collect();
        let (vxlan, records) =
            ((1..=4).map(|n| bed.state(n)).collect::<Vec<_>>(), bed.store.records().unwrap());

        switch(&mut bed, &pods, &HOST_GW);
        for number in 1..=4 {
            eventually(SOON, "nothing of vxlan", || {
                let state = bed.state(number);
                let is_gone = state.links.is_empty() && state.neighbours.is_empty();
                let are_routes = (state.routes.len(), state.routes6.len()) == (3, 3);
                if is_gone && are_routes { Ok(()) } else { Err(state.to_string()) }
            });
            assert!(bed.agent(number).log().contains("device of an earlier backend removed"));
        }
        assert_all_reach_all(&pods, VXLAN.mtu(Families::Dual, 1500));

        switch(&mut bed, &pods, &VXLAN);
        // With its device a node lost its VTEP MAC, and drew another one.
        for (number, want) in (1..=4).zip(&vxlan) {
            let want = without_macs(&want.to_string());
            eventually(SOON, "the state of the first time", || {
                let state = without_macs(&bed.state(number).to_string());
                if state == want { Ok(()) } else { Err(state) }
            });
        }
        assert_all_reach_all(&pods, VXLAN.mtu(Families::Dual, 1500));
        let without_macs = |records: BTreeMap<String, String>| {
            records.into_iter().map(|(key, value)| (key, without_macs(&value))).collect::<Vec<_>>()
        };
        assert_eq!(without_macs(bed.store.records().unwrap()), without_macs(records));
    });
}

/// The lines of a text in order, with the same word for every MAC address.
fn without_macs(text: &str) -> Vec<String> {
    let is_mac = |word: &str| word.len() == 17 && word.split(':').filter(|byte| byte.len() == 2).count() == 6;
    let anonymous = |line: &str| {
        let words = line.split_inclusive([' ', '"']).map(|word| {
            let bare = word.trim_end_matches([' ', '"']);
            if is_mac(bare) { word.replace(bare, "MAC") } else { word.to_owned() }
        });
        words.collect::<String>()
    };
    let mut lines: Vec<String> = text.lines().map(anonymous).collect();
    lines.sort_unstable();
    lines
}

/// Between plain routes, next-hop objects and what a Go agent writes, under traffic.
#[test]
fn the_form_of_routes_changes_under_traffic() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
        let mut bed = Bed::new(cluster, new_folder(), &VXLAN, Families::Dual);
        bed.start_all();
        (1..=2).for_each(|number| bed.wait_for_peers(number, 1));
        let pods = [bed.pod(1), bed.pod(2)];
        let traffic = [Traffic::between(&pods[0], &pods[1]), Traffic::between(&pods[1], &pods[0])];
        let objects = bed.state(1);
        assert_eq!(objects.next_hops.len(), 2, "{objects}");
        let go_on = || traffic.iter().for_each(|traffic| traffic.go_on(200));

        bed.stop(1);
        bed.spawn(1, &["--nexthop-objects=off"]);
        bed.wait_ready(1);
        go_on();
        let plain = bed.state(1);
        let has_objects = |line: &String| line.contains("nhid");
        assert!(plain.next_hops.is_empty() && !plain.routes.iter().any(has_objects), "{plain}");

        bed.kill(1);
        bed.start(1);
        go_on();
        bed.wait_for_state(1, "next-hop objects again", &objects);

        // A Go agent takes the node over: it replaces routes by plain ones, and leaves our objects as they are.
        bed.stop(1);
        for remote in bed.remotes(2) {
            let family = if remote.base.contains(':') { "-6" } else { "-4" };
            let crate::backends::Remote { device, subnet, base, .. } = remote;
            let replace =
                format!("{family} route replace {subnet} via {base} dev {device} onlink proto boot");
            bed.netns(1).ip(&replace).unwrap();
        }
        go_on();
        let of_go = bed.state(1);
        assert_eq!(of_go.next_hops, objects.next_hops, "harmless");
        let is_of_go = |line: &String| line.contains("proto boot") && !line.contains("nhid");
        assert_eq!(
            of_go.routes.iter().chain(&of_go.routes6).filter(|line| is_of_go(line)).count(),
            2,
            "{of_go}"
        );
        // A peer leaves while it is there, and Go removes what it knows of.
        bed.netns(1).ip("nexthop add id 99 via 10.244.250.0 dev flannel.1 onlink proto 102").unwrap();
        bed.start(1);
        go_on();
        bed.wait_for_state(1, "all as before, without the leftover", &objects);
        for traffic in traffic {
            traffic.assert_no_loss();
        }
    });
}

/// Two nodes at a time, one after the other, while the other two have their traffic.
fn switch(bed: &mut Bed<Folder>, pods: &[Pod], to: &'static BackendCase) {
    bed.store.put_config(&to.config(Families::Dual)).unwrap();
    for [first, second, others @ ..] in [[1_u8, 2, 3, 4], [3, 4, 1, 2]] {
        let [from, to] = others.map(|number| &pods[usize::from(number) - 1]);
        let traffic = Traffic::between(from, to);
        for number in [first, second] {
            bed.stop(number);
            bed.start(number);
        }
        traffic.go_on(200);
        traffic.assert_no_loss();
    }
    bed.case = to;
    (1..=4).for_each(|number| bed.wait_for_peers(number, 3));
}

#[test]
fn udp_to_vxlan_and_back() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(4).families(Families::Dual).build().unwrap();
        let mut bed = Bed::new(cluster, new_folder(), &UDP, Families::Dual);
        bed.start_all();
        (1..=4).for_each(|number| bed.wait_for_peers(number, 3));
        let pods: Vec<Pod> = (1..=4).map(|number| bed.pod(number)).collect();
        let udp: Vec<_> = (1..=4).map(|n| bed.state(n)).collect();
        // Pods keep the MTU they were made with, which must fit both.
        let smallest = VXLAN.mtu(Families::Dual, 1500);

        switch(&mut bed, &pods, &VXLAN);
        for number in 1..=4 {
            eventually(SOON, "nothing of udp", || {
                let state = bed.state(number).to_string();
                if state.contains("flannel0") { Err(state) } else { Ok(()) }
            });
        }
        assert_all_reach_all(&pods, smallest);

        switch(&mut bed, &pods, &UDP);
        for (number, want) in (1..=4).zip(&udp) {
            bed.wait_for_state(number, "the state of the first time", want);
        }
        assert_all_reach_all(&pods, smallest);
    });
}

#[test]
fn without_a_stored_state_only_what_is_marked_goes() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
        let mut bed = Bed::new(cluster, new_folder(), &VXLAN, Families::Dual);
        bed.start_all();
        bed.wait_for_peers(1, 1);
        for number in [1, 2] {
            bed.stop(number);
            std::fs::remove_file(format!("/run/flannel/node{number}/subnet.env.state")).unwrap();
        }
        bed.store.put_config(&HOST_GW.config(Families::Dual)).unwrap();
        bed.case = &HOST_GW;
        bed.start_all();
        for number in [1, 2] {
            bed.wait_for_peers(number, 1);
            let state = bed.state(number);
            assert_eq!(state.links.len(), 2, "nothing proves that the devices are ours: {state}");
            assert!(!state.routes.iter().any(|line| line.contains("onlink")), "{state}");
            assert!(bed.agent(number).log().contains("looks like a device of another flannel backend"));
        }
        let pods = [bed.pod(1), bed.pod(2)];
        assert_all_reach_all(&pods, 1500);
    });
}
