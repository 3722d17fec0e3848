//! An agent that is killed again and again, wherever it is, while leases come and go.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use flannel_lab::cluster::Cluster;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, on_every_backend};
use crate::harness::{Bed, SOON, Store, Traffic, env_of, new_folder, subnet_file};

on_every_backend!(forty_kills_amid_leases_leave_all_as_it_was);

fn forty_kills_amid_leases_leave_all_as_it_was(case: &'static BackendCase) {
    forty_kills(case, |_| new_folder());
}

/// Every kill comes at another moment: of the start, of a lease, or of peace.
pub(crate) fn forty_kills<S: Store>(case: &'static BackendCase, store: impl FnOnce(&Cluster) -> S) {
    let mut bed = Bed::of_three(case, store);
    let (env, records, state) = (env_of(1), bed.store.records().unwrap(), bed.state(1));
    // The agent that runs may be about to write one.
    let files: Vec<_> = files().into_iter().filter(|name| !name.starts_with('.')).collect();
    let pods = [bed.pod(1), bed.pod(2)];
    let traffic = Traffic::between(&pods[0], &pods[1]).and(Traffic::between(&pods[1], &pods[0]));
    let mut rng = numbers(case.kind);
    for round in 0..40_u8 {
        let (key, value) = case.record(200 + round);
        bed.store.put(&key, &value).unwrap();
        // Seldom long enough for all of the start, which takes some 100 ms.
        sleep(Duration::from_millis(rng() % 160));
        bed.kill(1);
        if round % 2 == 0 {
            bed.store.delete(&key).unwrap();
        }
        bed.spawn(1, &[]);
        if round % 8 == 7 {
            bed.wait_ready(1);
        }
    }
    // As if the next kill had come in the middle of a write.
    bed.kill(1);
    abandon_drafts();
    bed.spawn(1, &[]);
    for round in (1..40).step_by(2) {
        bed.store.delete(&case.record(200 + round).0).unwrap();
    }
    bed.wait_ready(1);
    bed.wait_for_peers(1, 2);
    bed.wait_for_state(1, "what it was before", &state);
    assert_eq!((env_of(1), bed.store.records().unwrap()), (env, records));
    eventually(SOON, "no drafts are left", || {
        let have = self::files();
        if have == files { Ok(()) } else { Err(format!("{have:?}")) }
    });
    traffic.go_on(50);
    if case.in_kernel {
        traffic.assert_no_loss();
    }
}

/// The files of node 1's agent.
fn files() -> Vec<String> {
    let folder = subnet_file(1);
    let list = fs::read_dir(folder.parent().unwrap()).unwrap();
    let mut names = list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>();
    names.sort_unstable();
    names
}

/// What an agent leaves that is killed before it gives its files their names.
fn abandon_drafts() {
    let state_file = subnet_file(1).with_extension("env.state");
    for path in [subnet_file(1), state_file] {
        let name = format!(".{}.k1LLed", path.file_name().unwrap().to_string_lossy());
        fs::write(path.with_file_name(name), "half a fi").unwrap();
    }
}

/// The same numbers in each run (xorshift), other ones for each backend.
fn numbers(kind: &str) -> impl FnMut() -> u64 {
    let mut state =
        kind.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |state, byte| state.rotate_left(7) ^ u64::from(byte));
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}
