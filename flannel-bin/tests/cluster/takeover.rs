//! A node of ours takes over from a Go node, and a Go node from ours: state, subnet, rules and traffic.

use std::time::Duration;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::golden::Golden;
use flannel_lab::kernel_state::KernelState;
use flannel_lab::pod::{CniOptions, Pod};
use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

use crate::backends::{BackendCase, on_every_backend};
use crate::go::{GoNodes, sh};
use crate::harness::{Bed, Monitor, Store, Traffic, WITHOUT_GATE, new_folder};

on_every_backend!(there_and_back_without_a_lost_ping);

fn there_and_back_without_a_lost_ping(case: &'static BackendCase) {
    for name in case.takeover {
        there_and_back(case, &Golden::named(name), |_| new_folder());
    }
}

/// Two nodes as Go agents leave them become ours one by one, then Go's again, and ours once more, all the time under
/// traffic: from each pod to the other and to the world.
pub(crate) fn there_and_back<S: Store>(
    case: &'static BackendCase,
    golden: &Golden,
    store: impl FnOnce(&Cluster) -> S,
) -> Bed<S> {
    let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
    let store = store(&cluster);
    let mut bed = Bed::with_config(cluster, store, case, &golden.config().unwrap());
    let go = GoNodes::of(golden);
    let pods = [1, 2].map(|number| {
        go.lay_out(&bed, number);
        pod(&bed, &go, number)
    });
    let stored = bed.store.everything().unwrap();
    if !case.in_kernel {
        // Nothing is left but the records, and the pods with their addresses.
        for number in [1, 2] {
            bed.start(number);
        }
        Traffic::between(&pods[0], &pods[1]).assert_no_loss();
        assert_eq!(bed.store.everything().unwrap(), stored);
        return bed;
    }
    let left = [1, 2].map(|number| bed.state(number));
    assert_eq!(left[0].routes.len(), usize::from(case.in_kernel), "{}", left[0]);
    let ours = [1, 2].map(|number| {
        let mut state = left[usize::from(number) - 1].clone();
        (case.adopt)(&mut state, &go.peer_of(case, number));
        state
    });
    let devices = [1, 2].map(|number| numbers_of_devices(&bed, number));
    let traffic = traffic(&bed, &pods);

    let rules = [1, 2].map(|number| rules(&bed, number));
    let monitor = Monitor::start(bed.netns(1));
    for number in [1, 2] {
        bed.spawn(number, &["--ip-masq"]);
        bed.wait_ready(number);
        traffic.go_on(300);
    }
    let what = "what fits to be adopted as it is, marked where others could own it";
    (1..).zip(&ours).for_each(|(number, ours)| bed.wait_for_state(number, what, ours));
    let families = go.peer_of(case, 1).len();
    let seen = monitor.seen();
    assert_eq!(seen.len(), case.adoptions * families, "nothing else is written: {seen:#?}");
    if !golden.name.ends_with("nftables") {
        // With their numbers: not one was written again. With nftables one differs on purpose.
        assert_eq!([1, 2].map(|number| self::rules(&bed, number)), rules);
    }
    let rules = [1, 2].map(|number| unnumbered_rules(&bed, number));
    traffic.assert_no_loss();

    for number in [1, 2] {
        let traffic = self::traffic(&bed, &pods);
        bed.stop(number);
        traffic.go_on(100);
        traffic.assert_no_loss();
        // What is lost while Go writes its own things again is Go's affair.
        go.start(&bed, number);
        assert_is_gos(&bed, golden, number, &left[usize::from(number) - 1]);
    }
    let traffic = self::traffic(&bed, &pods);
    for number in [1, 2] {
        bed.spawn(number, &["--ip-masq"]);
        bed.wait_ready(number);
        traffic.go_on(300);
        bed.wait_for_state(number, "what it was at the first time", &ours[usize::from(number) - 1]);
    }
    traffic.assert_no_loss();
    assert_eq!([1, 2].map(|number| numbers_of_devices(&bed, number)), devices, "no device was made anew");
    assert_eq!([1, 2].map(|number| unnumbered_rules(&bed, number)), rules, "no rule is there twice");

    // Go can remove what it takes over.
    for number in [1, 2] {
        bed.stop(number);
        go.start(&bed, number);
        go.remove_peer(&bed, number);
        let state = bed.state(number);
        let routes = state.routes.iter().chain(&state.routes6);
        assert_eq!(routes.filter(|line| line.contains(" via ")).count(), 0, "{state}");
    }
    assert_eq!(bed.store.everything().unwrap(), stored, "nothing was written to the store in all that time");
    bed
}

/// A pod as the plugin makes it with the config map of Go flannel's manifest.
pub(crate) fn pod<S: Store>(bed: &Bed<S>, go: &GoNodes<'_>, number: u8) -> Pod {
    let delegate = ["hairpinMode", "isDefaultGateway"].map(|key| (key.to_owned(), Value::Bool(true)));
    let options = CniOptions { delegate: Map::from_iter(delegate), ..CniOptions::default() };
    Pod::attach_cni(bed.cluster.node(number), &go.subnet_env(number), &options).unwrap()
}

/// A ping a millisecond from each pod to the other and to the world, which knows the way to nodes only; in each family
/// that the pods have.
pub(crate) fn traffic<S: Store>(bed: &Bed<S>, [one, two]: &[Pod; 2]) -> Traffic {
    let of = |from: &Pod, to: &Pod| {
        let world = bed.cluster.fabric_addresses().into_iter();
        let world = world.filter(|addr| from.addresses().iter().any(|own| own.is_ipv6() == addr.is_ipv6()));
        let to = to.addresses().iter().map(IpNetwork::ip).chain(world);
        Traffic::to(from, to, Duration::from_millis(1))
    };
    of(one, two).and(of(two, one))
}

/// That a node is as Go left it; only what it does not look at may be different.
fn assert_is_gos<S: Store>(bed: &Bed<S>, golden: &Golden, number: u8, left: &KernelState) {
    let mut state = bed.state(number);
    // Go knows no next-hop objects. It leaves them as they are, without routes.
    state.next_hops.clear();
    if bed.case.kind == "host-gw" {
        // It does not look at who wrote a route.
        for line in state.routes.iter_mut().chain(&mut state.routes6) {
            *line = line.replace("proto 102", "proto boot");
        }
    }
    if golden.name == "vxlan-directrouting" {
        // What encapsulation would need, which Go leaves as it is, too.
        state.neighbours.clear();
        state.fdb.clear();
    }
    assert_eq!(state, *left, "\nhave {state}\nwant {left}");
}

/// The numbers of the devices: another one has another.
fn numbers_of_devices<S: Store>(bed: &Bed<S>, number: u8) -> Vec<Option<u32>> {
    ["flannel.1", "flannel-v6.1"].map(|device| bed.netns(number).link_index(device).unwrap()).to_vec()
}

/// All rules with their numbers, without the counters, which count.
fn rules<S: Store>(bed: &Bed<S>, number: u8) -> String {
    sh(bed.netns(number), &format!("nft --stateless --handle list ruleset | {WITHOUT_GATE}"))
}

fn unnumbered_rules<S: Store>(bed: &Bed<S>, number: u8) -> String {
    let save = "iptables-save; ip6tables-save";
    let rules = sh(bed.netns(number), &format!("{{ {save}; }} | sed 's/\\[[0-9:]*\\]//; /^#/d'"));
    let ours = "nft --stateless list ruleset | sed -n '/^table ip6* flannel/,/^}/p'";
    rules + &sh(bed.netns(number), ours)
}
