//! Pods on different nodes reach each other.

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

use crate::harness::{Bed, LocalFolder, Store, assert_all_reach_all, config, env_of};

pub(crate) fn every_pod_pings_every_other<S: Store>(
    families: Families,
    store: impl FnOnce(&Cluster) -> S,
    mtu: u32,
) {
    let cluster = Cluster::builder().nodes(3).families(families).build().unwrap();
    let store = store(&cluster);
    let mut bed = Bed::new(cluster, store, &config(families));
    bed.start_all();
    assert_eq!(bed.store.records().len(), 3);
    for number in 1..=3 {
        assert_eq!(env_of(number).mtu, mtu);
        bed.wait_for_peers(number, 2);
    }
    let pods: Vec<_> = (1..=3).map(|number| bed.pod(number)).collect();
    assert_all_reach_all(&pods, mtu);
}

#[test]
fn ipv4_on_the_local_store() {
    in_sandbox(test_name!(), || every_pod_pings_every_other(Families::V4, |_| LocalFolder::new(), 1450));
}

#[test]
fn dual_stack_on_the_local_store() {
    in_sandbox(test_name!(), || every_pod_pings_every_other(Families::Dual, |_| LocalFolder::new(), 1430));
}

#[test]
fn ipv6_alone_on_the_local_store() {
    in_sandbox(test_name!(), || every_pod_pings_every_other(Families::V6, |_| LocalFolder::new(), 1430));
}
