//! Restarts and crashes are invisible to traffic.

use std::time::Duration;

use flannel_lab::cluster::Cluster;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

use crate::backends::{BackendCase, UDP, on_every_backend};
use crate::harness::{Bed, Monitor, Store, Traffic, env_of, new_folder};

on_every_backend!(kill_and_start_again_under_traffic);

fn kill_and_start_again_under_traffic(case: &'static BackendCase) {
    kill_and_start_again(case, |_| new_folder());
}

/// Ends an agent in each way and starts it again, under traffic.
pub(crate) fn kill_and_start_again<S: Store>(case: &'static BackendCase, store: impl FnOnce(&Cluster) -> S) {
    let mut bed = Bed::of_three(case, store);
    let (env, records, state) = (env_of(1), bed.store.records().unwrap(), bed.state(1));
    let pods = [bed.pod(1), bed.pod(2)];
    let traffic = Traffic::between(&pods[0], &pods[1]);
    let back = Traffic::between(&pods[1], &pods[0]);
    let monitor = Monitor::start(bed.netns(1));
    for round in 0..3 {
        if round == 2 {
            bed.stop(1);
        } else {
            bed.kill(1);
        }
        if case.in_kernel {
            traffic.go_on(100);
            assert_eq!(bed.state(1), state, "traffic does not need the agent");
        }
        bed.start(1);
        traffic.go_on(100);
        back.go_on(100);
    }
    if case.in_kernel {
        traffic.assert_no_loss();
        back.assert_no_loss();
        assert_eq!(monitor.seen(), Vec::<String>::new(), "a restart writes nothing to the kernel");
    }
    bed.wait_for_state(1, "the state of the first time", &state);
    assert_eq!((env_of(1), bed.store.records().unwrap()), (env, records));
}

#[test]
fn killed_at_any_moment_of_its_start() {
    in_sandbox(test_name!(), || killed_at_any_moment(&UDP, "flannel1"));
}

/// An agent that is killed while it starts a program leaves that with all its ports, and its TUN, for a moment. The next one
/// takes no `other` name.
pub(crate) fn killed_at_any_moment(case: &'static BackendCase, other: &str) {
    let cluster = Cluster::builder().nodes(1).families(case.widest()).build().unwrap();
    let mut bed = Bed::new(cluster, new_folder(), case, case.widest());
    bed.spawn(1, &["--ip-masq"]);
    for round in 0..150 {
        std::thread::sleep(Duration::from_millis(12 + round * 7 % 48));
        assert!(bed.agent(1).is_running(), "round {round}: {}", bed.agent(1).log());
        bed.kill(1);
        bed.spawn(1, &["--ip-masq"]);
    }
    bed.wait_ready(1);
    assert_eq!(bed.netns(1).link_index(other).unwrap(), None, "the TUN has its own name again");
}
