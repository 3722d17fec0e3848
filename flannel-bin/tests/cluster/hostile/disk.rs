//! Full disks: that of the agent's own files, and that of the store's folder.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use flannel_lab::cluster::Cluster;
use flannel_lab::wait::eventually;
use nix::mount::{MsFlags, mount};

use crate::backends::{BackendCase, on_every_kind};
use crate::harness::{Bed, SOON, Store, Traffic, env_of, new_folder, subnet_file};

on_every_kind!(a_full_disk_costs_no_packet_and_is_got_over);

/// Puts a file system of a few pages over a folder.
fn small_disk(at: &Path) {
    fs::create_dir_all(at).unwrap();
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("size=256k,mode=755")).unwrap();
}

/// Takes all the space that is left.
fn fill(disk: &Path) {
    let mut file = File::create(disk.join("filling")).unwrap();
    let error = loop {
        if let Err(error) = file.write_all(&[0; 512]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
}

fn free(disk: &Path) {
    fs::remove_file(disk.join("filling")).unwrap();
}

fn a_full_disk_costs_no_packet_and_is_got_over(case: &'static BackendCase) {
    let disk = subnet_file(1).parent().unwrap().to_owned();
    small_disk(&disk);
    let cluster = Cluster::builder().nodes(3).families(case.widest()).build().unwrap();
    let mut bed = Bed::new(cluster, new_folder(), case, case.widest());
    for number in [1, 2] {
        bed.start(number);
    }
    bed.wait_for_peers(1, 1);
    let pods = [bed.pod(1), bed.pod(2)];
    let traffic = Traffic::between(&pods[0], &pods[1]);
    let (env, state) = (env_of(1), bed.state(1));
    fill(&disk);
    assert!(bed.agent(1).is_running());

    // A start finds its files whole, and needs no other ones.
    bed.kill(1);
    bed.start(1);
    assert_eq!(env_of(1), env);
    bed.wait_for_state(1, "what it was before", &state);
    traffic.go_on(50);

    // Who joins is used, though it can't be remembered; and is remembered once there is space.
    bed.start(3);
    if case.in_kernel {
        bed.wait_for_peers(1, 2);
    }
    eventually(SOON, "a word about the disk", || {
        let log = bed.agent(1).log();
        if log.contains("No space left on device") { Ok(()) } else { Err(log) }
    });
    free(&disk);
    let (third, _) = bed.record_of(3);
    bed.store.put(&case.record(230).0, &case.record(230).1).unwrap();
    eventually(SOON, "the state file to name node 3", || {
        let text = fs::read_to_string(subnet_file(1).with_extension("env.state")).unwrap_or_default();
        if text.contains(&third) { Ok(()) } else { Err(text) }
    });
    let pod = bed.pod(3);
    Traffic::between(&pods[0], &pod).assert_no_loss();
    if case.in_kernel {
        traffic.assert_no_loss();
    }
}
