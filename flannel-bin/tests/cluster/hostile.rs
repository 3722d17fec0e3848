//! Records that can't be used: each is refused by name, and nobody else notices. And the other abuses that an agent
//! must outlive: noise in the tunnel, kills, a full disk. All of them at once: `cargo soak --hostile`.

mod disk;
pub(crate) mod kills;
mod packets;

use flannel_core::testing::hostile::{Hostile, Scene};
#[cfg(feature = "etcd")]
use flannel_lab::cluster::Cluster;
use flannel_lab::kernel_state::KernelState;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, on_every_kind};
use crate::harness::{Bed, Folder, Monitor, SOON, Store, Traffic, http_get, new_folder};

on_every_kind!(hostile_records_are_refused_by_name, a_record_is_used_once_its_rival_is_gone);

fn bed(case: &'static BackendCase) -> Bed<Folder> {
    Bed::of_three(case, |_| new_folder())
}

fn readyz<S: Store>(bed: &Bed<S>) -> String {
    http_get(bed.netns(1), 8471, "/readyz")
}

/// All records that are to be refused, in a cluster of whatever store.
#[cfg(feature = "etcd")]
pub(crate) fn all_at_once<S: Store>(
    case: &'static BackendCase,
    store: impl FnOnce(&Cluster) -> S,
    put: impl Fn(&S, &Hostile),
) {
    let mut bed = Bed::of_three(case, store);
    let pods = [bed.pod(1), bed.pod(2)];
    let traffic = Traffic::between(&pods[0], &pods[1]).and(Traffic::between(&pods[1], &pods[0]));
    let state = bed.state(1);
    let cases = scene(&bed).cases();
    assert!(cases.len() >= 50, "{}", cases.len());
    // Those of one key replace each other.
    for record in &cases {
        put(&bed.store, record);
    }
    // What comes after them is used, so they have been seen by then.
    let (honest, value) = case.record(231);
    bed.store.put(&honest, &value).unwrap();
    bed.wait_for_peers(1, 3);
    bed.store.delete(&honest).unwrap();
    bed.wait_for_state(1, "what it was before the records", &state);
    bed.kill(1);
    bed.start(1);
    bed.wait_for_state(1, "what it was before the restart", &state);
    wait_until_named(&bed, &[cases.last().unwrap()]);
    let mut keys = cases.iter().map(|record| record.key.as_str()).collect::<Vec<_>>();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        bed.store.delete(key).unwrap();
    }
    wait_until_green(&bed, "all");
    assert_eq!(bed.state(1), state);
    traffic.go_on(50);
    if case.in_kernel {
        traffic.assert_no_loss();
    }
}

/// The good records that the bad ones are made of.
fn scene<S: Store>(bed: &Bed<S>) -> Scene {
    let text = |(key, value): (String, serde_json::Value)| (key, value.to_string());
    Scene {
        kind: bed.case.kind,
        own: text(bed.record_of(1)),
        peer: text(bed.record_of(2)),
        stranger: bed.case.record(240),
    }
}

/// Waits until node 1 is ready and says so of every record.
#[track_caller]
fn wait_until_named<S: Store>(bed: &Bed<S>, records: &[&Hostile]) {
    for record in records {
        eventually(SOON, &format!("{}: {:?}", record.name, record.says), || {
            let answer = readyz(bed);
            let named = answer.starts_with("HTTP/1.1 200") && record.is_named_by(&answer);
            if named { Ok(()) } else { Err(answer) }
        });
    }
}

#[track_caller]
fn wait_until_green<S: Store>(bed: &Bed<S>, name: &str) {
    eventually(SOON, &format!("{name}: nothing to say"), || {
        let answer = readyz(bed);
        // Probes of the other nodes went where the record led them, which this node says for minutes.
        let mut rest = answer.lines().filter(|line| !line.contains(" came out of the overlay "));
        if rest.next_back() == Some("flanneld is ready") { Ok(()) } else { Err(answer) }
    });
}

fn hostile_records_are_refused_by_name(case: &'static BackendCase) {
    let mut bed = bed(case);
    let pods = [bed.pod(1), bed.pod(2)];
    let traffic = [Traffic::between(&pods[0], &pods[1]), Traffic::between(&pods[1], &pods[0])];
    let scene = scene(&bed);
    let state = bed.state(1);
    let whole = KernelState::of(bed.netns(1)).unwrap();
    let monitor = Monitor::start(bed.netns(1));
    let cases = scene.cases();
    for record in &cases {
        bed.store.put_bytes(&record.key, &record.value).unwrap();
        wait_until_named(&bed, &[record]);
        bed.store.delete(&record.key).unwrap();
        wait_until_green(&bed, record.name);
    }
    assert_eq!(monitor.seen(), Vec::<String>::new(), "nothing is written");
    assert_eq!(KernelState::of(bed.netns(1)).unwrap(), whole);

    // All at once, as far as they have keys of their own, and over a restart.
    let mut together: Vec<&Hostile> = Vec::new();
    for record in &cases {
        if !together.iter().any(|other| other.key == record.key) {
            bed.store.put_bytes(&record.key, &record.value).unwrap();
            together.push(record);
        }
    }
    wait_until_named(&bed, &together);
    let [there, back] = traffic;
    there.go_on(50);
    if !case.in_kernel {
        // Its packets wait for the agent.
        there.assert_no_loss();
        back.assert_no_loss();
        bed.kill(1);
        bed.start(1);
        wait_until_named(&bed, &together);
        bed.wait_for_state(1, "the same state after a restart", &state);
        return;
    }
    bed.kill(1);
    bed.start(1);
    wait_until_named(&bed, &together);
    assert_eq!(bed.state(1), state);
    for record in &together {
        bed.store.delete(&record.key).unwrap();
    }
    wait_until_green(&bed, "all");
    assert_eq!(bed.state(1), state);
    there.go_on(50);
    there.assert_no_loss();
    back.assert_no_loss();
    assert_eq!(monitor.seen(), Vec::<String>::new(), "nothing is written by all of them together");
}

fn a_record_is_used_once_its_rival_is_gone(case: &'static BackendCase) {
    let bed = bed(case);
    let (key, value) = case.record(230);
    bed.store.put(&key, &value).unwrap();
    bed.wait_for_peers(1, 3);
    let state = bed.state(1);
    // Its lower half, by another node.
    let (rival, rival_value) = (key.replacen("-24", "-25", 1), case.record(231).1);
    bed.store.put(&rival, &rival_value).unwrap();
    eventually(SOON, "a word about the younger", || {
        readyz(&bed).contains(&format!("of lease {key}, which claimed it first"))
    });
    assert_eq!(bed.state(1), state);
    bed.store.delete(&key).unwrap();
    wait_until_green(&bed, "the rival alone");
    bed.wait_for_peers(1, 3);
    if case.in_kernel {
        assert!(bed.state(1).to_string().contains("10.244.230.0/25"), "{}", bed.state(1));
    }
    bed.store.delete(&rival).unwrap();
    bed.wait_for_peers(1, 2);
}
