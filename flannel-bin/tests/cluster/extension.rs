//! extension with real commands, and alloc, which leaves everything to others.

use std::path::Path;
use std::time::Duration;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::pod::Pod;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use crate::backends::{ALLOC, BackendCase, EXTENSION};
use crate::harness::{Bed, Folder, SOON, Store, Traffic, assert_all_reach_all, http_get, new_folder};

fn bed(case: &'static BackendCase) -> Bed<Folder> {
    let cluster = Cluster::builder().nodes(3).families(Families::V4).build().unwrap();
    Bed::new(cluster, new_folder(), case, Families::V4)
}

#[test]
fn commands_make_a_network_and_are_tried_again() {
    in_sandbox(test_name!(), || {
        let mut bed = bed(&EXTENSION);
        bed.start_all();
        (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
        let pods: Vec<Pod> = (1..=3).map(|number| bed.pod(number)).collect();
        assert_all_reach_all(&pods, 1500);
        let (_, record) = bed.record_of(2);
        assert_eq!(record["BackendType"], "extension");
        let published = record["BackendData"].as_str().unwrap().to_owned();
        assert!(!published.is_empty(), "{record}");

        // A node that no command can reach is named, and delays nobody; then it can be reached.
        let (key, value) = EXTENSION.record(200);
        bed.store.put(&key, &value.replace("192.168.77.200", "192.168.99.1")).unwrap();
        eventually(SOON, "a word about the command", || {
            let answer = http_get(bed.netns(1), 8471, "/readyz");
            let is_told = answer.starts_with("HTTP/1.1 200")
                && answer.contains("SubnetAddCommand: ip failed (exit status: 2)");
            if is_told { Ok(()) } else { Err(answer) }
        });
        bed.netns(1).ip("address add 192.168.99.2/24 dev eth0").unwrap();
        bed.wait_for_peers(1, 3);

        // What an operator's commands made stays through a kill and a start, and a node that left meanwhile goes then.
        let traffic = Traffic::between(&pods[0], &pods[1]);
        eventually(Duration::from_secs(60), "the state file to have the node", || {
            std::fs::read_to_string("/run/flannel/node1/subnet.env.state")
                .is_ok_and(|text| text.contains(&key))
        });
        bed.kill(1);
        bed.store.delete(&key).unwrap();
        bed.start(1);
        bed.wait_for_peers(1, 2);
        eventually(SOON, "the command for the node that left", || Path::new("/run/removed").exists());
        traffic.go_on(100);
        traffic.assert_no_loss();
    });
}

#[test]
fn alloc_gives_a_lease_and_touches_nothing() {
    in_sandbox(test_name!(), || {
        let mut bed = bed(&ALLOC);
        bed.start_all();
        let pods: Vec<Pod> = (1..=3).map(|number| bed.pod(number)).collect();
        let (_, record) = bed.record_of(1);
        assert_eq!((record.get("BackendType"), record.get("BackendData")), (None, None), "{record}");
        // Somebody else, such as a cloud's controller, routes to each node's subnet.
        for from in 1..=3 {
            for to in (1..=3).filter(|to| *to != from) {
                let remote = bed.remotes(to).remove(0);
                bed.netns(from).ip(&format!("route add {} via {}", remote.subnet, remote.underlay)).unwrap();
            }
        }
        assert_all_reach_all(&pods, 1500);
        let want: Vec<_> = (1..=3).map(|number| bed.state(number)).collect();
        bed.kill(1);
        bed.start(1);
        for (number, want) in (1..=3).zip(&want) {
            bed.wait_for_state(number, "the routes of others to be there", want);
        }
        assert_all_reach_all(&pods, 1500);
    });
}
