//! The same clusters on a real etcd, and what its outages do to them: nothing.

use std::time::{Duration, Instant};

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::store::EtcdStore;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, VXLAN, on_store};
use crate::harness::{Bed, SOON, Store, Traffic, http_get};
use crate::{choice, claims, connectivity, hostile, identity, outages, strict, underlay};

on_store!(start;
    pods_reach_each_other: connectivity::every_pod_pings_every_other,
    no_outage_of_the_store_changes_the_datapath: outages::change_nothing,
    a_virtual_address_is_not_published: choice::keeps_its_address,
    a_node_whose_address_changes_is_followed: underlay::follows,
    addresses_that_changed_between_two_runs_cost_no_subnet: identity::cost_no_subnet,
    an_interface_that_is_corrected_costs_no_subnet: identity::corrected_interface,
    an_address_that_is_handed_on_cuts_nobody: claims::handed_on,
    readiness_turns_red_and_green_with_the_store: outages::turn_readiness_red,
    compaction_while_an_agent_is_cut_off: outages::compaction_while_an_agent_is_cut_off,
    a_bad_record_touches_nothing_else: bad_record,
    etcd_away_at_the_start_is_waited_for: outages::at_the_start_are_waited_for,
);

/// A server in the underlay, where every node reaches it.
pub(crate) fn start(cluster: &Cluster) -> EtcdStore {
    EtcdStore::start(cluster, &[]).unwrap()
}

#[test]
fn a_record_that_changes_later_cuts_nobody_else() {
    in_sandbox(test_name!(), || claims::changes_later(&VXLAN, start));
}

#[test]
fn all_hostile_records_at_once_change_nothing() {
    in_sandbox(test_name!(), || {
        hostile::all_at_once(&VXLAN, start, |store, record| {
            store.put_bytes(&record.key, &record.value).unwrap();
        });
    });
}

#[test]
fn forty_kills_amid_leases_leave_all_as_it_was() {
    in_sandbox(test_name!(), || hostile::kills::forty_kills(&VXLAN, start));
}

#[test]
fn a_running_node_puts_its_record_right() {
    in_sandbox(test_name!(), || claims::puts_right(start));
}

#[test]
fn who_has_a_lease_is_let_in() {
    in_sandbox(test_name!(), || strict::lets_in_who_has_a_lease(&VXLAN, start));
}

fn bad_record(case: &'static BackendCase, store: fn(&Cluster) -> EtcdStore) {
    let mut bed = Bed::of_three(case, store);
    let pods = [bed.pod(1), bed.pod(2)];
    let traffic = Traffic::between(&pods[0], &pods[1]);
    let state = bed.state(1);
    let records = bed.store.records().unwrap();
    let peer_ip = bed.cluster.node(2).ipv4().unwrap().to_string();
    let (peer, good) = records.iter().find(|(_, value)| value.contains(&peer_ip)).unwrap();
    for (key, value) in [("junk", "x"), ("10.244.250.0-24", "no JSON"), (peer.as_str(), "{\"PublicIP\":7}")] {
        bed.store.put(key, value).unwrap();
    }
    eventually(SOON, "a word about each", || {
        // The status may be too late: the node whose record it is puts it back.
        let said = bed.agent(1).log();
        ["junk", "10.244.250.0-24", peer].iter().all(|key| said.contains(&format!("record {key:?}")))
    });
    assert_eq!(bed.state(1), state);
    // A restart does not forget what the kernel has for the unreadable one, nor does the node whose record
    // it is move to another subnet.
    bed.kill(1);
    bed.start(1);
    bed.kill(2);
    bed.store.put(peer, "unreadable while nobody looked").unwrap();
    bed.start(2);
    traffic.go_on(200);
    assert_eq!(bed.state(1), state);
    assert_eq!(&bed.store.records().unwrap()[peer], good);
    bed.store.put(peer, good).unwrap();
    bed.store.delete("10.244.250.0-24").unwrap();
    traffic.go_on(100);
    assert_eq!(bed.state(1), state);
    if case.in_kernel {
        traffic.assert_no_loss();
    }
}

#[test]
fn a_restored_backup_costs_no_packet() {
    in_sandbox(test_name!(), || {
        let dir = tempfile::tempdir().unwrap();
        let backup = dir.path().join("backup");
        let cluster = Cluster::builder().nodes(3).build().unwrap();
        let store = start(&cluster);
        let mut bed = Bed::new(cluster, store, &VXLAN, Families::V4);
        bed.start(1);
        bed.start(2);
        bed.store.etcd().save(&backup).unwrap();
        bed.start(3);
        (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
        let pods = [bed.pod(1), bed.pod(3)];
        let traffic = Traffic::between(&pods[0], &pods[1]);
        let (state, record) = (bed.state(1), bed.record_of(3));
        // The backup knows nothing of node 3, which can't put its lease back for a while.
        bed.agent(3).pause().unwrap();
        bed.store.etcd().restore(&backup).unwrap();
        eventually(SOON, "node 1 to say what is missing", || {
            bed.agent(1).log().contains("leases are missing")
        });
        traffic.go_on(500);
        assert_eq!(bed.state(1), state);
        bed.agent(3).resume().unwrap();
        eventually(SOON, "the lease to be back", || bed.store.records().unwrap().contains_key(&record.0));
        eventually(SOON, "node 1 to see it", || bed.agent(1).log().contains("no lease is missing any more"));
        assert_eq!((bed.record_of(3), bed.state(1)), (record, state));
        (1..=3).for_each(|number| bed.wait_ready(number));
        traffic.assert_no_loss();
    });
}

#[test]
fn an_agent_paused_beyond_its_lease_puts_it_back_or_says_who_has_it() {
    in_sandbox(test_name!(), || {
        let mut bed = Bed::of_three(&VXLAN, start);
        let pods = [bed.pod(2), bed.pod(3)];
        let traffic = Traffic::between(&pods[0], &pods[1]);
        let (state, record) = (bed.state(1), bed.record_of(1));
        bed.agent(1).pause().unwrap();
        // As if its time were over.
        let stored = bed.store.etcd().list(&EtcdStore::key(&record.0)).unwrap();
        bed.store.etcd().revoke_lease(stored[0].lease).unwrap();
        bed.wait_for_peers(2, 1);
        bed.agent(1).resume().unwrap();
        bed.wait_for_peers(2, 2);
        assert_eq!(bed.record_of(1), record);
        bed.wait_ready(1);

        bed.agent(1).pause().unwrap();
        let (_, value) = VXLAN.record(250);
        bed.store.delete(&record.0).unwrap();
        bed.store.put(&record.0, &value).unwrap();
        bed.agent(1).resume().unwrap();
        let lost = Instant::now();
        let readyz = || http_get(bed.netns(1), 8471, "/readyz");
        eventually(SOON, "the reason", || {
            let answer = readyz();
            let is_red = answer.starts_with("HTTP/1.1 503") && answer.contains("is now held by");
            if is_red { Ok(()) } else { Err(answer) }
        });
        // Its pods keep what they have for a minute.
        assert_eq!(bed.state(1), state);
        let status = bed.agent(1).wait(Duration::from_secs(80)).unwrap();
        assert_eq!(status.code(), Some(1), "{}", bed.agent(1).log());
        assert!(lost.elapsed() > Duration::from_secs(59), "{:?}", lost.elapsed());
        assert_eq!(bed.state(1), state);
        bed.start(1);
        assert_ne!(bed.record_of(1).0, record.0, "another subnet");
        traffic.assert_no_loss();
    });
}
