//! A node of ours takes over from a Go node: state, subnet and traffic.

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::golden::Golden;
use flannel_lab::pod::{CniOptions, Pod};
use flannel_lab::subnet_env::SubnetEnv;
use serde_json::Value;

use crate::backends::{BackendCase, on_every_backend};
use crate::harness::{Bed, LocalFolder, Monitor, Store, Traffic, is_flannels, sides, subnet_file};

on_every_backend!(a_node_without_a_lost_ping);

fn a_node_without_a_lost_ping(case: &'static BackendCase) {
    for name in case.takeover {
        take_over(case, &Golden::named(name));
    }
}

fn take_over(case: &'static BackendCase, golden: &Golden) {
    let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
    let mut bed = Bed::with_config(cluster, LocalFolder::new(), case, &golden.config().unwrap());
    let mut pods = Vec::new();
    for number in [1, 2] {
        lay_out(&bed, golden, number);
        let env = golden.subnet_env(&format!("node{number}")).unwrap();
        std::fs::create_dir_all(subnet_file(number).parent().unwrap()).unwrap();
        std::fs::write(subnet_file(number), env).unwrap();
        let _ = std::fs::remove_file(subnet_file(number).with_extension("env.state"));
        let env: SubnetEnv = env.parse().unwrap();
        pods.push(Pod::attach_cni(bed.cluster.node(number), &env, &CniOptions::default()).unwrap());
    }
    for (key, value) in golden.records() {
        bed.store.put(&key, &value);
    }
    let mut want = bed.state(1);
    assert_eq!(want.routes.len(), usize::from(case.in_kernel), "{want}");
    let families = want.routes.iter().chain(&want.routes6).filter(|line| line.contains(" via ")).count();
    let peer = golden.records().into_iter().find_map(|(key, value)| {
        let value: Value = serde_json::from_str(&value).unwrap();
        (value["PublicIP"] == "192.168.77.12").then(|| sides(case, &key, &value))
    });
    let peer: Vec<_> = peer.unwrap().into_iter().map(|(_, remote)| remote).collect();
    (case.adopt)(&mut want, &peer);
    if !case.in_kernel {
        // Nothing is left but the records, and the pods with their addresses.
        for number in [1, 2] {
            bed.start(number);
        }
        Traffic::between(&pods[0], &pods[1]).assert_no_loss();
        assert_eq!(bed.store.records(), golden.records().into_iter().collect());
        return;
    }
    let traffic = Traffic::between(&pods[0], &pods[1]);
    let monitor = Monitor::start(bed.netns(1));
    bed.start(1);
    traffic.go_on(300);
    bed.start(2);
    traffic.go_on(300);
    traffic.assert_no_loss();
    bed.wait_for_state(1, "what fits to be adopted as it is, marked where others could own it", &want);
    let seen = monitor.seen();
    assert_eq!(seen.len(), case.adoptions * families, "nothing else is written: {seen:#?}");
    assert_eq!(bed.store.records(), golden.records().into_iter().collect());
}

/// Makes the kernel state of node 1 or 2 that the golden files show, with the commands of an operator.
fn lay_out(bed: &Bed<LocalFolder>, golden: &Golden, number: u8) {
    let parse = |(key, value): (String, String)| (key, serde_json::from_str::<Value>(&value).unwrap());
    let mut records: Vec<(String, Value)> = golden.records().into_iter().map(parse).collect();
    records.sort_by_key(|(_, value)| value["PublicIP"].to_string());
    let ((own, own_value), (peer, peer_value)) =
        (&records[usize::from(number) - 1], &records[2 - usize::from(number)]);
    let own = sides(bed.case, own, own_value).into_iter().map(|(own, _)| own);
    let peer = sides(bed.case, peer, peer_value).into_iter().map(|(_, peer)| peer);
    for (own, peer) in own.zip(peer) {
        for command in (bed.case.as_go_leaves_it)(&own, &peer) {
            bed.netns(number).run("sh", &["-c", &command]).unwrap();
        }
    }
    assert!(bed.state(number).routes.iter().all(|line| is_flannels(line)));
}
