//! Networks of pods that cover what nodes reach without them.

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::ping::reaches;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, on_every_kind};
use crate::harness::{Bed, SOON, Store, http_get, new_folder};

on_every_kind!(a_network_around_the_nodes_is_refused_in_a_new_cluster_alone);

fn a_network_around_the_nodes_is_refused_in_a_new_cluster_alone(case: &'static BackendCase) {
    is_refused_in_a_new_cluster_alone(case, |_| new_folder());
}

#[cfg(feature = "etcd")]
mod etcd {
    crate::backends::on_store!(crate::etcd::start;
        a_network_around_the_nodes_is_refused_in_a_new_cluster_alone: super::is_refused_in_a_new_cluster_alone,
    );
}

fn config(case: &BackendCase, network: &str, range: (&str, &str)) -> String {
    let (min, max) = range;
    let backend = format!(r#"{{"Type":"{}"{}}}"#, case.kind, case.keys);
    format!(r#"{{"Network":"{network}","SubnetMin":"{min}","SubnetMax":"{max}","Backend":{backend}}}"#)
}

/// The nodes are in 192.168.77.0/24, which is more specific than the network: with a lease in it, all works.
fn is_refused_in_a_new_cluster_alone<S: Store>(
    case: &'static BackendCase,
    store: impl FnOnce(&Cluster) -> S,
) {
    let cluster = Cluster::builder().nodes(2).families(Families::V4).build().unwrap();
    let store = store(&cluster);
    let around = config(case, "192.168.0.0/16", ("192.168.100.0", "192.168.120.0"));
    let mut bed = Bed::with_config(cluster, store, case, &around);
    let readyz = |bed: &Bed<S>, number| http_get(bed.netns(number), 8471, "/readyz");
    let said = "Network = 192.168.0.0/16: covers the underlay address of eth0 192.168.77.11: ";
    bed.spawn(1, &[]);
    eventually(SOON, "the network to be refused by name", || {
        let answer = readyz(&bed, 1);
        if answer.starts_with("HTTP/1.1 503") && answer.contains(said) { Ok(()) } else { Err(answer) }
    });
    assert!(bed.store.records().unwrap().is_empty(), "no lease is taken");
    // A node of an agent that took its lease before there was this rule.
    let (_, value) = case.record(240);
    bed.store.put("192.168.119.0-24", &value).unwrap();
    bed.spawn(2, &[]);
    for number in [1, 2] {
        bed.wait_ready(number);
        eventually(SOON, "the network to be named", || {
            let answer = readyz(&bed, number);
            if answer.contains("lies inside the network 192.168.0.0/16") { Ok(()) } else { Err(answer) }
        });
    }
    let pods = [bed.pod(1), bed.pod(2)];
    let pods_reach_each_other = || {
        let addr = pods[1].ipv4().unwrap();
        eventually(SOON, &format!("pods reach {addr}"), || reaches(pods[0].netns(), addr).unwrap());
    };
    pods_reach_each_other();
    // Restarted, it goes by its own files.
    bed.store.delete("192.168.119.0-24").unwrap();
    bed.kill(1);
    bed.start(1);
    pods_reach_each_other();
}
