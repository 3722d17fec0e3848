//! The same clusters on Kubernetes: an API server with an object for each node.

use flannel_lab::cluster::Cluster;
use flannel_lab::kube::store::KubeStore;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

use crate::backends::{VXLAN, on_store};
use crate::{
    choice, claims, connectivity, hostile, identity, memory, outages, repair, restart, strict, underlay,
};

on_store!(kube;
    pods_reach_each_other: connectivity::every_pod_pings_every_other,
    kill_and_start_again_under_traffic: restart::kill_and_start_again,
    no_outage_of_the_store_changes_the_datapath: outages::change_nothing,
    a_virtual_address_is_not_published: choice::keeps_its_address,
    a_node_whose_address_changes_is_followed: underlay::follows,
    addresses_that_changed_between_two_runs_cost_no_subnet: identity::cost_no_subnet,
    an_interface_that_is_corrected_costs_no_subnet: identity::corrected_interface,
    an_address_that_is_handed_on_cuts_nobody: claims::handed_on,
    readiness_turns_red_and_green_with_the_store: outages::turn_readiness_red,
    compaction_while_an_agent_is_cut_off: outages::compaction_while_an_agent_is_cut_off,
    an_api_server_away_at_the_start_is_waited_for: outages::at_the_start_are_waited_for,
    every_damage_by_hand_is_repaired: repair::damaged_by_hand,
    boots_without_its_api_server: memory::boots_without_its_server,
    a_config_that_changed_meanwhile_ends_the_agent: memory::ends_by_another_config,
);

/// A server in the underlay, where every node reaches it.
pub(crate) fn kube(cluster: &Cluster) -> KubeStore {
    KubeStore::start(cluster).unwrap()
}

#[test]
fn forty_kills_amid_leases_leave_all_as_it_was() {
    in_sandbox(test_name!(), || hostile::kills::forty_kills(&VXLAN, kube));
}

#[test]
fn a_record_that_changes_later_cuts_nobody_else() {
    in_sandbox(test_name!(), || claims::changes_later(&VXLAN, kube));
}

#[test]
fn a_running_node_puts_its_record_right() {
    in_sandbox(test_name!(), || claims::puts_right(kube));
}

#[test]
fn who_has_a_lease_is_let_in() {
    in_sandbox(test_name!(), || strict::lets_in_who_has_a_lease(&VXLAN, kube));
}
