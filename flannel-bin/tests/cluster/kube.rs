//! The same clusters on Kubernetes: an API server with an object for each node.

use flannel_lab::cluster::Cluster;
use flannel_lab::kube::store::KubeStore;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

use crate::backends::{BackendCase, VXLAN, on_every_backend};
use crate::harness::Bed;
use crate::{claims, connectivity, identity, memory, outages, repair, restart, underlay};

on_every_backend!(
    pods_reach_each_other,
    kill_and_start_again_under_traffic,
    no_outage_of_the_store_changes_the_datapath,
    a_virtual_address_is_not_published,
    a_node_whose_address_changes_is_followed,
    addresses_that_changed_between_two_runs_cost_no_subnet,
    an_interface_that_is_corrected_costs_no_subnet,
    an_address_that_is_handed_on_cuts_nobody,
    readiness_turns_red_and_green_with_the_store,
    compaction_while_an_agent_is_cut_off,
    an_api_server_away_at_the_start_is_waited_for,
    every_damage_by_hand_is_repaired,
    boots_without_its_api_server,
    a_config_that_changed_meanwhile_ends_the_agent,
);

/// A server in the underlay, where every node reaches it.
pub(crate) fn kube(cluster: &Cluster) -> KubeStore {
    KubeStore::start(cluster).unwrap()
}

fn pods_reach_each_other(case: &'static BackendCase) {
    connectivity::every_pod_pings_every_other(case, kube);
}

fn kill_and_start_again_under_traffic(case: &'static BackendCase) {
    restart::kill_and_start_again(case, kube);
}

fn no_outage_of_the_store_changes_the_datapath(case: &'static BackendCase) {
    outages::change_nothing(case, kube);
}

fn an_address_that_is_handed_on_cuts_nobody(case: &'static BackendCase) {
    claims::handed_on(case, kube);
}

#[test]
fn forty_kills_amid_leases_leave_all_as_it_was() {
    in_sandbox(test_name!(), || crate::hostile::kills::forty_kills(&VXLAN, kube));
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
    in_sandbox(test_name!(), || crate::strict::lets_in_who_has_a_lease(&VXLAN, kube));
}

fn a_virtual_address_is_not_published(case: &'static BackendCase) {
    crate::choice::keeps_its_address(case, kube);
}

fn a_node_whose_address_changes_is_followed(case: &'static BackendCase) {
    underlay::follows(case, kube);
}

fn addresses_that_changed_between_two_runs_cost_no_subnet(case: &'static BackendCase) {
    identity::cost_no_subnet(case, kube);
}

fn an_interface_that_is_corrected_costs_no_subnet(case: &'static BackendCase) {
    identity::corrected_interface(case, kube);
}

fn readiness_turns_red_and_green_with_the_store(case: &'static BackendCase) {
    outages::turn_readiness_red(case, kube);
}

fn compaction_while_an_agent_is_cut_off(case: &'static BackendCase) {
    outages::compaction_while_an_agent_is_cut_off(case, kube);
}

fn an_api_server_away_at_the_start_is_waited_for(case: &'static BackendCase) {
    outages::at_the_start_are_waited_for(case, kube);
}

fn every_damage_by_hand_is_repaired(case: &'static BackendCase) {
    repair::every_damage_by_hand_is_repaired(&Bed::of_three(case, kube));
}

fn boots_without_its_api_server(case: &'static BackendCase) {
    memory::boots_without_its_server(case, kube);
}

fn a_config_that_changed_meanwhile_ends_the_agent(case: &'static BackendCase) {
    memory::ends_by_another_config(case, kube);
}
