//! Outages of a store that is a process, and what they do to the datapath: nothing.

use std::time::{Duration, Instant};

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::wait::{eventually, patiently};

use crate::backends::BackendCase;
use crate::harness::{Bed, Monitor, SOON, Server, Store, Traffic, http_get};

fn ready<S: Store>(bed: &Bed<S>, number: u8) -> bool {
    http_get(bed.netns(number), 8471, "/readyz").starts_with("HTTP/1.1 200")
}

/// Something that happens to the server, and its end.
type Outage<S> = fn(&mut S);

/// Traffic flows and nothing is written while the server is away, and news come soon after.
pub(crate) fn change_nothing<S: Server>(case: &'static BackendCase, store: impl FnOnce(&Cluster) -> S) {
    let mut bed = Bed::of_three(case, store);
    let pods = [bed.pod(1), bed.pod(2)];
    let traffic = Traffic::between(&pods[0], &pods[1]);
    let mut peers = 2;
    let outages: [(&str, Outage<S>); 3] = [
        ("paused", |store| {
            store.pause().unwrap();
            std::thread::sleep(Duration::from_secs(8));
            store.resume().unwrap();
        }),
        ("killed for a while", |store| {
            store.kill().unwrap();
            std::thread::sleep(Duration::from_secs(5));
            store.restart().unwrap();
        }),
        ("restarted at once", |store| {
            store.kill().unwrap();
            store.restart().unwrap();
        }),
    ];
    for (what, outage) in outages {
        let began = Instant::now();
        let (cpu, lines) = (bed.agent(1).cpu_time().unwrap(), bed.agent(1).log().lines().count());
        let monitor = Monitor::start(bed.netns(1));
        outage(&mut bed.store);
        assert_eq!(monitor.seen(), Vec::<String>::new(), "{what}");
        let (key, value) = case.record(200 + peers as u8);
        bed.store.put(&key, &value).unwrap();
        let start = Instant::now();
        peers += 1;
        bed.wait_for_peers(1, peers);
        assert!(
            start.elapsed() < patiently(Duration::from_secs(10)),
            "{what}: news after {:?}",
            start.elapsed()
        );
        eventually(SOON, "readiness to come back", || ready(&bed, 1));
        let cpu = bed.agent(1).cpu_time().unwrap().saturating_sub(cpu);
        // An agent that carries the traffic itself works for that, too, but never without a pause.
        let most = if case.in_kernel { patiently(Duration::from_secs(1)) } else { began.elapsed() / 2 };
        assert!(cpu < most, "{what}: {cpu:?} of CPU");
        let log = bed.agent(1).log();
        let lines = log.lines().skip(lines).filter(|line| !line.contains(" DEBUG ")).count();
        assert!(lines < 20, "{what}: {lines} log lines\n{log}");
    }
    traffic.assert_no_loss();
}

/// An agent says that it is not ready without the server, and lives.
pub(crate) fn turn_readiness_red<S: Server>(case: &'static BackendCase, store: impl FnOnce(&Cluster) -> S) {
    let bed = Bed::of_three(case, store);
    assert!(ready(&bed, 1));
    bed.store.kill().unwrap();
    eventually(Duration::from_secs(40), "not ready without the store", || {
        let answer = http_get(bed.netns(1), 8471, "/readyz");
        answer.starts_with("HTTP/1.1 503") && answer.contains("flanneld is not ready any more")
    });
    assert!(http_get(bed.netns(1), 8471, "/healthz").ends_with("flanneld is running"), "alive all the same");
    bed.store.restart().unwrap();
    eventually(SOON, "ready again", || ready(&bed, 1));
}

/// What an agent missed and can't be told any more is found by a new list.
pub(crate) fn compaction_while_an_agent_is_cut_off<S: Server>(
    case: &'static BackendCase,
    store: impl FnOnce(&Cluster) -> S,
) {
    let bed = Bed::of_three(case, store);
    let pods = [bed.pod(2), bed.pod(3)];
    let traffic = Traffic::between(&pods[0], &pods[1]);
    let (left, value) = case.record(204);
    bed.store.put(&left, &value).unwrap();
    bed.wait_for_peers(1, 3);
    let node = bed.cluster.node(1);
    node.partition().unwrap();
    // Its deletion is compacted away before node 1 can hear of it.
    bed.store.delete(&left).unwrap();
    let (key, value) = case.record(205);
    bed.store.put(&key, &value).unwrap();
    for round in 0..5 {
        bed.store.put(&format!("junk{round}"), "x").unwrap();
        bed.store.delete(&format!("junk{round}")).unwrap();
    }
    let (key, value) = case.record(206);
    bed.store.put(&key, &value).unwrap();
    bed.store.compact().unwrap();
    std::thread::sleep(Duration::from_secs(7));
    node.heal().unwrap();
    eventually(SOON, "the peer that left to be gone", || !bed.state(1).to_string().contains("10.244.204."));
    bed.wait_for_peers(1, 4);
    bed.store.delete(&key).unwrap();
    bed.wait_for_peers(1, 3);
    traffic.assert_no_loss();
}

/// An agent that starts without the server waits for it.
pub(crate) fn at_the_start_are_waited_for<S: Server>(
    case: &'static BackendCase,
    store: impl FnOnce(&Cluster) -> S,
) {
    let cluster = Cluster::builder().nodes(1).families(Families::Dual).build().unwrap();
    let store = store(&cluster);
    let mut bed = Bed::new(cluster, store, case, Families::V4);
    bed.store.kill().unwrap();
    bed.spawn(1, &[]);
    eventually(SOON, "alive and not ready", || {
        let alive = http_get(bed.netns(1), 8471, "/healthz").starts_with("HTTP/1.1 200");
        alive && http_get(bed.netns(1), 8471, "/readyz").starts_with("HTTP/1.1 503")
    });
    std::thread::sleep(Duration::from_secs(5));
    assert!(bed.agent(1).is_running());
    let lines = bed.agent(1).log().lines().filter(|line| !line.contains(" DEBUG ")).count();
    assert!(lines < 10, "{}", bed.agent(1).log());
    bed.store.restart().unwrap();
    bed.wait_ready(1);
    assert_eq!(bed.store.records().unwrap().len(), 1);
}
