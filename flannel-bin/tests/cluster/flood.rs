//! Somebody fills the store with garbage, or writes one bad record again and again: an agent goes on, says so in a few
//! lines, and answers.

use std::time::Instant;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use crate::backends::VXLAN;
use crate::harness::{Bed, SOON, Store, http_get, new_folder};

const MANY: usize = 300;
/// How often one key goes from bad to good and back.
const TOGGLES: usize = 100;

#[test]
fn garbage_and_toggles_in_a_folder() {
    in_sandbox(test_name!(), || flood(|_| new_folder()));
}

#[cfg(feature = "etcd")]
#[test]
fn garbage_and_toggles_in_etcd() {
    in_sandbox(test_name!(), || flood(crate::etcd::start));
}

fn flood<S: Store>(store: impl FnOnce(&Cluster) -> S) {
    let cluster = Cluster::builder().nodes(1).build().unwrap();
    let store = store(&cluster);
    let mut bed = Bed::new(cluster, store, &VXLAN, Families::V4);
    bed.start_all();
    let start = Instant::now();
    let said = |bed: &Bed<S>| http_get(bed.netns(1), 8471, "/readyz");
    let (key, value) = VXLAN.record(240);
    for n in 0..TOGGLES {
        // One that can't be read, and one that can, but is refused.
        bed.store.put("10.244.177.0-24", if n % 2 == 0 { "{" } else { "{}" }).unwrap();
        bed.store.put("10.1.0.0-16", if n % 2 == 0 { &value } else { "{" }).unwrap();
    }
    (0..MANY).for_each(|n| bed.store.put(&format!("junk{n:04}"), "{").unwrap());
    bed.store.put(&key, &value).unwrap();
    bed.wait_for_peers(1, 1);
    eventually(SOON, "all garbage is counted, and some of it named", || {
        let answer = said(&bed);
        let is_counted = answer.starts_with("HTTP/1.1 200") && answer.contains(" more leases");
        if is_counted && answer.len() < 16 << 10 { Ok(()) } else { Err(answer) }
    });
    assert!(http_get(bed.netns(1), 8471, "/healthz").starts_with("HTTP/1.1 200"));
    let log = bed.agent(1).log();
    let count = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    // Twenty a minute, however long the store takes for all this.
    let most = 20 * (2 + usize::try_from(start.elapsed().as_secs() / 60).unwrap());
    for what in ["record skipped", "lease not used"] {
        assert!((1..=most).contains(&count(what)), "{what}: {}", count(what));
    }
    (0..MANY).for_each(|n| bed.store.delete(&format!("junk{n:04}")).unwrap());
    for key in ["10.244.177.0-24", "10.1.0.0-16"] {
        bed.store.delete(key).unwrap();
    }
    eventually(SOON, "nothing to say", || {
        // Probes go on to say that a node that never was is dead.
        let answer = said(&bed);
        let is_quiet = |line: &str| line.starts_with("probes: ");
        let mut notes = answer.lines().skip_while(|line| *line != "flanneld is ready").skip(1);
        if answer.contains("flanneld is ready") && notes.all(is_quiet) { Ok(()) } else { Err(answer) }
    });
    bed.stop(1);
}
