//! A node that starts while its store is away forwards at once, by what it stored before.

use std::fs;
use std::time::Duration;

use flannel_lab::cluster::Cluster;
use flannel_lab::kernel_state::KernelState;
use flannel_lab::pod::Pod;
use flannel_lab::wait::eventually;
use serde_json::Value;

use crate::backends::{BackendCase, on_every_kind};
use crate::harness::{Bed, SOON, Server, Store, Traffic, env_of, http_get, new_folder, subnet_file};
use flannel_lab::store::EtcdStore;

on_every_kind!(
    boots_without_etcd_and_follows_it_when_it_is_back,
    boots_without_its_folder,
    a_config_that_changed_meanwhile_ends_the_agent_and_touches_nothing,
    a_damaged_file_means_to_wait_for_the_store,
);

/// Ends the agent of node 1 and takes everything that a boot takes, but the state file.
fn power_off<S: Store>(bed: &mut Bed<S>, peers: usize) {
    eventually(SOON, "the state file to know all", || {
        let text = fs::read_to_string(state_file()).unwrap_or_default();
        let state: Value = serde_json::from_str(&text).unwrap_or_default();
        state["state"]["leases"].as_object().is_some_and(|leases| leases.len() == peers)
    });
    bed.kill(1);
    for command in bed.case.wipe {
        bed.netns(1).run("sh", &["-c", command]).unwrap();
    }
    fs::remove_file(subnet_file(1)).unwrap();
    eventually(SOON, "nothing to be left", || bed.state(1) == KernelState::default());
}

fn state_file() -> std::path::PathBuf {
    subnet_file(1).with_extension("env.state")
}

fn readyz<S: Store>(bed: &Bed<S>) -> String {
    http_get(bed.netns(1), 8471, "/readyz")
}

/// Starts the agent of node 1 while the store is away: all is as it was, and the status says by what.
fn boot_without_store<S: Store>(
    bed: &mut Bed<S>,
    pods: &[Pod; 2],
    want: &KernelState,
    env: &str,
) -> [Traffic; 2] {
    bed.spawn(1, &[]);
    bed.wait_for_state(1, "all that was stored", want);
    let traffic = [Traffic::between(&pods[0], &pods[1]), Traffic::between(&pods[1], &pods[0])];
    eventually(SOON, "the subnet file", || fs::read_to_string(subnet_file(1)).is_ok_and(|text| text == env));
    assert!(bed.agent(1).log().contains("starting from what an earlier run stored"));
    eventually(SOON, "a status that says by what", || {
        let answer = readyz(bed);
        let says = answer.starts_with("HTTP/1.1 503") && answer.contains("traffic flows by what was stored");
        if says { Ok(()) } else { Err(answer) }
    });
    traffic
}

fn boots_without_etcd_and_follows_it_when_it_is_back(case: &'static BackendCase) {
    boots_without_its_server(case, crate::etcd::start);
}

/// By what was stored, and follows the server when it is back.
pub(crate) fn boots_without_its_server<S: Server>(case: &'static BackendCase, store: impl Fn(&Cluster) -> S) {
    let mut bed = Bed::of_three(case, store);
    let pods = [bed.pod(1), bed.pod(2)];
    let (left, value) = case.record(230);
    bed.store.put(&left, &value).unwrap();
    bed.wait_for_peers(1, 3);
    let (want, own) = (bed.state(1), bed.record_of(1));
    let env = fs::read_to_string(subnet_file(1)).unwrap();
    power_off(&mut bed, 3);
    // What node 1 does not hear of.
    bed.store.delete(&left).unwrap();
    let (joined, value) = case.record(231);
    bed.store.put(&joined, &value).unwrap();
    bed.store.kill().unwrap();

    let traffic = boot_without_store(&mut bed, &pods, &want, &env);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(bed.state(1), want, "nothing is deleted without the store");
    bed.store.restart().unwrap();
    bed.wait_ready(1);
    bed.wait_for_peers(1, 3);
    if case.in_kernel {
        eventually(SOON, "who left to be gone and who joined to be there", || {
            let state = bed.state(1).to_string();
            !state.contains("10.244.230.") && state.contains("10.244.231.")
        });
    }
    eventually(SOON, "the file to follow", || {
        let text = fs::read_to_string(state_file()).unwrap();
        text.contains(&joined) && !text.contains(&left)
    });
    assert_eq!(bed.record_of(1), own, "the lease is confirmed as it was");
    for traffic in traffic {
        traffic.go_on(100);
        traffic.assert_no_loss();
    }
    assert!(bed.agent(1).log().contains("the store is back and confirms the lease"));
}

fn boots_without_its_folder(case: &'static BackendCase) {
    let mut bed = Bed::of_three(case, |_| new_folder());
    let pods = [bed.pod(1), bed.pod(2)];
    let want = bed.state(1);
    let env = fs::read_to_string(subnet_file(1)).unwrap();
    power_off(&mut bed, 2);
    fs::rename("/run/flannel-store", "/run/not-mounted").unwrap();
    let traffic = boot_without_store(&mut bed, &pods, &want, &env);
    fs::rename("/run/not-mounted", "/run/flannel-store").unwrap();
    bed.wait_ready(1);
    assert_eq!(bed.state(1), want);
    for traffic in traffic {
        traffic.assert_no_loss();
    }
}

fn a_config_that_changed_meanwhile_ends_the_agent_and_touches_nothing(case: &'static BackendCase) {
    ends_by_another_config(case, crate::etcd::start);
}

/// The server comes back with another config than what was stored.
pub(crate) fn ends_by_another_config<S: Server>(case: &'static BackendCase, store: impl Fn(&Cluster) -> S) {
    let mut bed = Bed::of_three(case, store);
    let want = bed.state(1);
    let env = env_of(1);
    power_off(&mut bed, 2);
    let config = case.config(case.widest());
    bed.store.put_config(&config.replace("10.244.", "10.245.")).unwrap();
    bed.store.kill().unwrap();
    bed.spawn(1, &[]);
    bed.wait_for_state(1, "all that was stored", &want);
    bed.store.restart().unwrap();
    let status = bed.agent(1).wait(SOON).unwrap();
    let log = bed.agent(1).log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("start again to use it"), "{log}");
    if case.in_kernel {
        assert_eq!(bed.state(1), want, "pods keep their traffic until the next start");
    }
    bed.store.put_config(&config).unwrap();
    bed.start(1);
    bed.wait_for_state(1, "all as before", &want);
    assert_eq!(env_of(1), env);
}

fn a_damaged_file_means_to_wait_for_the_store(case: &'static BackendCase) {
    let mut bed = Bed::of_three(case, crate::etcd::start);
    let want = bed.state(1);
    power_off(&mut bed, 2);
    bed.store.etcd().kill().unwrap();
    let good = fs::read_to_string(state_file()).unwrap();
    for (file, says) in [
        (good[..good.len() / 2].to_owned(), "is no state of an agent"),
        (good.replace("192.168.77.12", "192.168.77.99"), "its checksum does not fit"),
        (good.replacen("\"version\":2", "\"version\":9", 1), "has version 9 of another agent"),
    ] {
        fs::write(state_file(), file).unwrap();
        bed.spawn(1, &[]);
        eventually(SOON, says, || bed.agent(1).log().contains(says));
        eventually(SOON, "waiting", || readyz(&bed).contains("waiting for the network config"));
        assert_eq!(bed.state(1), KernelState::default());
        bed.kill(1);
    }
    // Nor does the file of another store, or one whose node this is not, count.
    fs::write(state_file(), good).unwrap();
    bed.spawn(1, &["--etcd-prefix=/another/network"]);
    eventually(SOON, "a word about the other store", || bed.agent(1).log().contains("but this agent uses"));
    assert_eq!(bed.state(1), KernelState::default());
    bed.kill(1);
    // One that came here with the disk of another machine: none of its NICs is here.
    bed.netns(1).ip("link set eth0 address 02:77:00:00:00:99").unwrap();
    bed.spawn(1, &["--public-ip=192.168.77.77"]);
    let log = |bed: &Bed<EtcdStore>| bed.agent(1).log();
    // host-gw refuses such an address before it asks for a lease.
    eventually(SOON, "a word about the other node", || {
        log(&bed).contains("the stored lease is another node's")
            || log(&bed).contains("which can't work behind NAT")
    });
    bed.kill(1);
    bed.netns(1).ip("link set eth0 address 02:77:00:00:00:01").unwrap();
    bed.store.etcd().restart().unwrap();
    bed.start(1);
    bed.wait_for_state(1, "all as before", &want);
}
