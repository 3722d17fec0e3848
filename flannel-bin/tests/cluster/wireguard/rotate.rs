//! Nodes change their keys while packets flow.

use std::time::{Duration, Instant};

use flannel_lab::cluster::Families;
use flannel_lab::wait::eventually;

use super::process::WITHOUT_GREETING;
use super::{bed, sh};
use crate::backends::BackendCase;
use crate::harness::{Bed, FLANNELD, Folder, Traffic, assert_all_reach_all};

/// How long a rotation may take: the devices must be quiet for 6 s, twice.
const LONG: Duration = Duration::from_secs(90);

/// Tells a node to change its key. Returns the one that it has.
fn rotate(bed: &Bed<Folder>, number: u8) -> String {
    let before = key(bed, number);
    let file = format!("--subnet-file={}", bed.subnet_file(number).display());
    let said = bed.netns(number).run(FLANNELD, &["rotate-key", &file]).unwrap();
    assert!(said.contains(&format!("is being changed from {before} to ")), "{said}");
    before
}

fn key(bed: &Bed<Folder>, number: u8) -> String {
    bed.record_of(number).1["BackendData"]["PublicKey"].as_str().unwrap().to_owned()
}

/// Whether some node has a second device, or one changes its key.
fn is_under_way(bed: &Bed<Folder>, nodes: u8) -> Result<(), String> {
    for number in 1..=nodes {
        let links = bed.netns(number).ip("-o link show").unwrap();
        let file = bed.subnet_file(number).with_file_name("wgkey.next");
        if links.contains("flannel-wg-r") || links.contains("flannel-wg-v6-r") || file.exists() {
            return Err(format!("node {number}: {links}\n{}", bed.agent(number).log()));
        }
    }
    Ok(())
}

fn wait_for_the_end(bed: &Bed<Folder>, nodes: u8) {
    eventually(LONG, "the rotation to be over", || is_under_way(bed, nodes));
}

/// Hosts that demand that the way back is by the same device, as some distributions have it.
fn be_strict(bed: &Bed<Folder>, number: u8) {
    sh(bed.netns(number), "sysctl -qw net.ipv4.conf.all.rp_filter=1");
}

/// One node changes its key, some times, and then perhaps two at once.
pub(super) fn rounds(case: &'static BackendCase, rounds: u8, then_two: bool) {
    let bed = bed(case, 3);
    (1..=2).for_each(|number| be_strict(&bed, number));
    let pods = [bed.pod(1), bed.pod(2), bed.pod(3)];
    assert_all_reach_all(&pods, case.mtu(Families::Dual, 1500));
    let traffic = Traffic::between(&pods[0], &pods[1]).and(Traffic::between(&pods[2], &pods[0]));
    for round in 1..=rounds {
        let (began, before) = (Instant::now(), rotate(&bed, 1));
        wait_for_the_end(&bed, 3);
        assert_ne!(key(&bed, 1), before);
        println!("round {round} took {:?}", began.elapsed());
        traffic.go_on(100);
    }
    if then_two {
        let before = [1, 2].map(|number| rotate_or_wait(&bed, number));
        eventually(2 * LONG, "both keys to be changed", || {
            let is_over = is_under_way(&bed, 3);
            let are_changed =
                [1, 2].iter().zip(&before).all(|(number, before)| key(&bed, *number) != *before);
            if are_changed { is_over } else { Err(bed.agent(2).log()) }
        });
        traffic.go_on(100);
    }
    traffic.assert_no_loss();
    assert_all_reach_all(&pods, case.mtu(Families::Dual, 1500));
}

/// A node may have seen already that another one changes its key.
fn rotate_or_wait(bed: &Bed<Folder>, number: u8) -> String {
    let before = key(bed, number);
    let file = format!("--subnet-file={}", bed.subnet_file(number).display());
    bed.netns(number).run(FLANNELD, &["rotate-key", &file]).unwrap();
    before
}

/// Both ends are killed in turn while one of them changes its key. Devices of the kernel stay.
pub(super) fn killed(case: &'static BackendCase) {
    let mut bed = bed(case, 2);
    (1..=2).for_each(|number| be_strict(&bed, number));
    let pods = [bed.pod(1), bed.pod(2)];
    let traffic = Traffic::between(&pods[0], &pods[1]).and(Traffic::between(&pods[1], &pods[0]));
    let before = rotate(&bed, 1);
    // While the next key is offered, and when it is in force.
    for _ in 0..2 {
        for number in [2, 1] {
            bed.kill(number);
            traffic.go_on(20);
            bed.start(number);
            bed.wait_for_peers(number, 1);
            traffic.go_on(20);
        }
        eventually(LONG, "the next key", || key(&bed, 1) != before);
    }
    wait_for_the_end(&bed, 2);
    traffic.assert_no_loss();
}

/// A device in the process ends with that, and on both devices the next one begins the handshakes itself.
pub(super) fn restarted(case: &'static BackendCase) {
    let mut bed = bed(case, 2);
    let pods = [bed.pod(1), bed.pod(2)];
    let traffic = Traffic::between(&pods[1], &pods[0]);
    let before = rotate(&bed, 1);
    eventually(LONG, "the peer to send by its second device", || {
        let routes = bed.netns(2).ip("route show").unwrap();
        if routes.contains("dev flannel-wg-r") { Ok(()) } else { Err(routes) }
    });
    bed.kill(1);
    let began = Instant::now();
    bed.start(1);
    traffic.go_on(1);
    let all = began.elapsed();
    println!("packets again {all:?} after the end of the last agent");
    assert!(all < WITHOUT_GREETING, "{all:?}");
    wait_for_the_end(&bed, 2);
    assert_ne!(key(&bed, 1), before);
    traffic.go_on(20);
}
