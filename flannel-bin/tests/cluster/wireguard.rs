//! The rows of WireGuard, in user space and in the kernel. Those of the kernel need its module, which not every machine that
//! runs tests has.

mod go;
mod kernel;
mod mixed;
mod nat;
mod plain;
mod process;
mod rotate;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::netns::Netns;
use flannel_lab::pod::Pod;
use flannel_lab::wait::eventually;

use crate::backends::{
    BackendCase, WIREGUARD, WIREGUARD_SINGLE, WIREGUARD_USERSPACE, WIREGUARD_USERSPACE_SINGLE, rows,
};
use crate::cleanup::all_goes_and_nothing_else;
use crate::harness::{Bed, Folder, SOON, Store, Traffic, assert_all_reach_all, http_get, new_folder};
use crate::hostile::kills::forty_kills;
use crate::{connectivity, repair, restart, underlay};

/// The rows of both.
macro_rules! rows_of {
    ($case:ident $single:ident $(#[$why:meta])?) => {
        rows!(
            $(#[$why])?
            pods_reach_each_other: connectivity::every_pod_pings_every_other(&$case, |_| new_folder());
            killed_and_started_again: restart::kill_and_start_again(&$case, |_| new_folder());
            damage_is_repaired: repair::damaged_by_hand(&$case, |_| new_folder());
            what_is_not_ours_stays: repair::what_is_not_ours_stays(&$case);
            the_nic_goes_and_comes_back: repair::the_underlay_nic_goes_and_comes_back(&$case);
            the_mtu_follows: repair::the_mtu_follows_the_underlay(&$case);
            a_changed_address_is_followed: underlay::follows(&$case, |_| new_folder());
            keys_of_the_config_are_switched_under_traffic: keys_are_switched(&$case);
            one_device_carries_both_families: one_device(&$single);
            nothing_leaves_unencrypted: plain::nothing_leaves(&$case);
            from_vxlan_and_back: plain::from_vxlan(&$case);
            a_link_of_that_name_stays_and_is_named: foreign_link(&$case);
        );

        #[cfg(feature = "etcd")]
        rows!(
            $(#[$why])?
            no_outage_of_the_store_changes_the_datapath: crate::outages::change_nothing(&$case, crate::etcd::start);
        );
    };
}

mod userspace {
    use super::*;

    rows_of!(WIREGUARD_USERSPACE WIREGUARD_USERSPACE_SINGLE);
    rows!(
        who_encrypts_is_chosen_by_what_the_kernel_has: process::chosen();
        killed_at_any_moment_of_its_start: restart::killed_at_any_moment(&WIREGUARD_USERSPACE, "flannel0");
        the_key_changes_without_loss: rotate::rounds(&WIREGUARD_USERSPACE, 1, false);
        a_restart_while_the_key_changes_costs_a_handshake: rotate::restarted(&WIREGUARD_USERSPACE);
        forty_kills_amid_leases_leave_all_as_it_was: forty_kills(&WIREGUARD_USERSPACE, |_| new_folder());
        cleanup_leaves_nothing: all_goes_and_nothing_else(&WIREGUARD_USERSPACE);
        a_restart_costs_a_handshake: process::restart_costs_a_handshake();
        two_nodes_behind_nats_join_and_a_lost_mapping_comes_back: nat::port_restricted_pair(&WIREGUARD_USERSPACE);
        a_full_cone_lets_a_symmetric_nat_in: nat::full_cone_and_symmetric(&WIREGUARD_USERSPACE);
        what_can_not_go_straight_goes_by_a_relay_and_by_the_next_one: nat::relayed(&WIREGUARD_USERSPACE);
        what_can_go_straight_again_leaves_the_relay: nat::straight_again(&WIREGUARD_USERSPACE);
        a_relay_carries_nearly_what_it_carries_for_itself: nat::relay_carries(&WIREGUARD_USERSPACE);
        a_port_that_is_taken_is_named_and_taken_once_it_is_free: process::port_taken();
    );
}

mod vm {
    use super::*;

    rows_of!(WIREGUARD WIREGUARD_SINGLE #[ignore = "needs a kernel with wireguard; .ci/vm --all runs it in a VM"]);
    rows!(
        #[ignore = "needs a kernel with wireguard; .ci/vm --all runs it in a VM"]
        damage_inside_of_the_device_is_repaired: kernel::damage_inside();
        from_go_and_back: go::from_go();
        kernel_and_user_space_in_one_cluster: mixed::both_ways();
        from_the_kernel_to_user_space_and_back: mixed::there_and_back();
        the_key_changes_without_loss: rotate::rounds(&WIREGUARD, 3, true);
        two_nodes_behind_nats_join: nat::port_restricted_pair(&WIREGUARD);
        what_can_not_go_straight_goes_by_a_relay: nat::relayed(&WIREGUARD);
        agents_are_killed_while_the_key_changes: rotate::killed(&WIREGUARD);
    );
}

fn bed(case: &'static BackendCase, nodes: u8) -> Bed<Folder> {
    let cluster = Cluster::builder().nodes(nodes).families(Families::Dual).build().unwrap();
    let mut bed = Bed::new(cluster, new_folder(), case, Families::Dual);
    bed.start_all();
    (1..=nodes).for_each(|number| bed.wait_for_peers(number, usize::from(nodes) - 1));
    bed
}

fn sh(netns: &Netns, command: &str) -> String {
    netns.run("sh", &["-c", command]).unwrap_or_else(|error| panic!("{command}: {error}"))
}

fn keys_are_switched(case: &'static BackendCase) {
    let mut bed = bed(case, 2);
    let pods = [bed.pod(1), bed.pod(2)];
    let traffic = Traffic::between(&pods[0], &pods[1]);
    let devices =
        |bed: &Bed<Folder>| [1, 2].map(|number| bed.netns(number).link_index("flannel-wg").unwrap());
    let before = devices(&bed);
    let psk = sh(bed.netns(1), "wg genpsk").trim().to_owned();
    let keys =
        format!(r#""Type":"wireguard","PSK":"{psk}","PersistentKeepaliveInterval":5,"ListenPort":4000"#);
    let config = case.config(Families::Dual).replace(r#""Type":"wireguard""#, &keys);
    bed.store.put_config(&config).unwrap();
    for number in 1..=2 {
        bed.stop(number);
        bed.start(number);
    }
    for number in 1..=2 {
        eventually(SOON, "the keys in force", || {
            let (command, there): (_, &[&str]) = if case.in_kernel {
                ("wg showconf flannel-wg", &["ListenPort = 4000", "PersistentKeepalive = 5", ":4000", &psk])
            } else {
                ("ss -ulnH", &[":4000 "])
            };
            let text = sh(bed.netns(number), command);
            if there.iter().all(|it| text.contains(it)) { Ok(()) } else { Err(text) }
        });
    }
    traffic.go_on(100);
    if case.in_kernel {
        assert_eq!(devices(&bed), before, "the same devices");
    }
    for number in 1..=2 {
        assert!(!bed.agent(number).log().contains(&psk), "no log has the key");
    }
}

fn one_device(case: &'static BackendCase) {
    let bed = bed(case, 3);
    let pods: Vec<Pod> = (1..=3).map(|number| bed.pod(number)).collect();
    assert_all_reach_all(&pods, case.mtu(Families::Dual, 1500));
    for number in 1..=3 {
        assert_eq!(bed.netns(number).link_index("flannel-wg-v6").unwrap(), None);
        if case.in_kernel {
            let endpoints = sh(bed.netns(number), "wg show flannel-wg endpoints");
            assert_eq!(endpoints.matches("]:51820").count(), 2, "{endpoints}");
        }
    }
}

/// A link of somebody else with the device's name: one of another kind, and a TUN that stays when its maker ends. It comes
/// while the agent runs, and is there when the next one starts.
fn foreign_link(case: &'static BackendCase) {
    let mut bed = bed(case, 2);
    let netns = bed.netns(1).clone();
    let pods = [bed.pod(1), bed.pod(2)];
    for (kind, command) in
        [("bridge", "link add flannel-wg type bridge"), ("tun", "tuntap add flannel-wg mode tun")]
    {
        let is_named = |text: &str| text.to_lowercase().contains(&format!("there is a {kind} of this name"));
        bed.agent(1).pause().unwrap();
        netns.ip("link del flannel-wg").unwrap();
        netns.ip(command).unwrap();
        bed.agent(1).resume().unwrap();
        eventually(SOON, "a word about the link", || {
            let answer = http_get(&netns, 8471, "/readyz");
            let is_red = answer.starts_with("HTTP/1.1 503") && is_named(&answer);
            if is_red { Ok(()) } else { Err(answer) }
        });
        bed.kill(1);
        bed.spawn(1, &[]);
        assert_eq!(bed.agent(1).wait(SOON).unwrap().code(), Some(1));
        assert!(is_named(&bed.agent(1).log()), "{}", bed.agent(1).log());
        assert!(netns.ip("-d link show flannel-wg").unwrap().contains(kind), "it stays");
        netns.ip("link del flannel-wg").unwrap();
        bed.start(1);
        bed.wait_for_peers(1, 1);
        assert_all_reach_all(&pods, case.mtu(Families::Dual, 1500));
    }
}
