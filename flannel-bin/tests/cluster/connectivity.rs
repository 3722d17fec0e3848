//! Pods on different nodes reach each other.

use flannel_lab::cluster::{Cluster, Families};

use crate::backends::{BackendCase, on_every_backend};
use crate::harness::{Bed, Store, assert_all_reach_all, env_of, new_folder};

/// Every pod pings every other, in all families that the backend has.
pub(crate) fn every_pod_pings_every_other<S: Store>(
    case: &'static BackendCase,
    store: impl Fn(&Cluster) -> S,
) {
    for families in case.families {
        ping_in(case, *families, &store);
    }
}

fn ping_in<S: Store>(case: &'static BackendCase, families: Families, store: impl Fn(&Cluster) -> S) {
    let cluster = Cluster::builder().nodes(3).families(families).build().unwrap();
    let store = store(&cluster);
    let mut bed = Bed::new(cluster, store, case, families);
    bed.start_all();
    assert_eq!(bed.store.records().unwrap().len(), 3);
    let mtu = case.mtu(families, 1500);
    for number in 1..=3 {
        assert_eq!(env_of(number).mtu, mtu);
        bed.wait_for_peers(number, 2);
    }
    let pods: Vec<_> = (1..=3).map(|number| bed.pod(number)).collect();
    assert_all_reach_all(&pods, mtu);
}

fn on_the_local_store(case: &'static BackendCase) {
    every_pod_pings_every_other(case, |_| new_folder());
}

on_every_backend!(on_the_local_store);
