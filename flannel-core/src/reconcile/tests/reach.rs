//! Whose pods are cut off, and what the status says of it.

use super::*;

/// What the status says of the peers: how many there should be, how many are cut, and whether that is a reason.
fn reach(bench: &Bench) -> (usize, usize, bool) {
    let status = bench.status.borrow();
    let reach = status.problems.reach.v4.unwrap();
    (reach.expected, reach.cut, !status.problems.summary(false).reasons.is_empty())
}

/// As on a node of the network 10.5.0.0/16, which a status by peers takes.
fn bench_of_network() -> Bench {
    let kernel = FakeKernel::default();
    let link = kernel.add_link("tun0", 1450);
    bench_with(kernel, link, |reconciler| {
        reconciler.record.edit(|state| state.networks.v4 = Some(subnet("10.5.0.0/16")));
        reconciler.work.rebuild_peers();
    })
}

#[tokio::test(start_paused = true)]
async fn a_peer_is_cut_by_any_object_that_it_lacks_and_all_together_are_a_reason() {
    for kind in 0..3_usize {
        let bench = bench_of_network();
        let is_of = move |op: &Op| match op.object() {
            Object::Neighbour(_) => kind == 0,
            Object::Fdb(_) => kind == 1,
            Object::Route(route) => kind == 2 && route.via.is_some(),
            _ => false,
        };
        bench.snapshot(&[lease("10.5.2.0-24", 2), lease("10.5.3.0-24", 3)]);
        bench.settle().await;
        assert_eq!(reach(&bench), (2, 0, false), "{kind}");
        // One peer that comes later, refused at run time.
        bench.kernel.refuse(move |op| is_of(op).then_some(libc::ENOMEM));
        bench.send(LeaseUpdate::Put(lease("10.5.4.0-24", 4)));
        bench.settle().await;
        assert_eq!(reach(&bench), (3, 0, false), "{kind}: it may go through at the next try");
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(reach(&bench), (3, 1, false), "{kind}");
        assert_eq!(bench.status.borrow().problems.summary(false).notes.len(), 1, "{kind}: one line");
        bench.send(LeaseUpdate::Removed("10.5.2.0-24".into()));
        bench.send(LeaseUpdate::Removed("10.5.3.0-24".into()));
        bench.settle().await;
        assert_eq!(reach(&bench), (1, 1, true), "{kind}: nobody is left");
        // New devices and a storm of notifications make it no better.
        bench.kernel.edit_link("tun0", true, |_| {});
        bench.settle().await;
        assert_eq!(reach(&bench), (1, 1, true), "{kind}");
        bench.kernel.refuse_nothing();
        bench.kernel.overrun();
        bench.settle().await;
        assert_eq!(reach(&bench), (1, 0, false), "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_at_the_start_counts_at_once_and_so_does_a_conflict() {
    let bench = bench_of_network();
    bench.kernel.refuse(|op| matches!(op.object(), Object::Route(_)).then_some(libc::EEXIST));
    bench.snapshot(&[lease("10.5.2.0-24", 2)]);
    bench.settle().await;
    assert_eq!(reach(&bench), (1, 1, true), "never green before");
    bench.kernel.refuse_nothing();
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(reach(&bench), (1, 0, false));
    // Another lease of a peer's subnet: the peer holds, the lease is cut.
    bench.send(LeaseUpdate::Put(lease("10.5.2.0-25", 9)));
    bench.settle().await;
    assert_eq!(reach(&bench), (2, 1, false));
    // What contradicts this node is nobody's who should be reachable, so it reddens no lone node.
    bench.send(LeaseUpdate::Removed("10.5.2.0-24".into()));
    bench.send(LeaseUpdate::Removed("10.5.2.0-25".into()));
    bench.send(LeaseUpdate::Put(lease("10.5.1.0-25", 9)));
    bench.settle().await;
    assert_eq!(reach(&bench), (0, 0, false));
    assert_eq!(bench.status.borrow().rejected().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn thousands_of_refused_leases_are_a_count_and_a_sample() {
    let bench = bench_of_network();
    let strangers = (0..3000_u32).map(|n| lease(&format!("10.{}.{}.0-24", 100 + n / 250, n % 250), 9));
    let mut leases: Vec<Lease> = strangers.collect();
    leases.push(lease("10.5.2.0-24", 2));
    bench.snapshot(&leases);
    bench.settle().await;
    let leases = bench.status.borrow().problems.leases.clone();
    assert_eq!((leases.count, leases.sample.len()), (3000, crate::status::SAMPLE));
    assert_eq!(reach(&bench), (1, 0, false), "none of them should be reachable");
}

#[tokio::test(start_paused = true)]
async fn forwarding_that_is_switched_off_cuts_all_until_it_is_on_again() {
    let bench = bench_of_network();
    bench.snapshot(&[lease("10.5.2.0-24", 2)]);
    bench.settle().await;
    assert_eq!(reach(&bench), (1, 0, false));
    let operations = bench.status.borrow().operations;
    bench.kernel.set_forwarding(Family::V4, ConfOf::All, false);
    bench.settle().await;
    assert_eq!(reach(&bench), (1, 1, true));
    let reasons = bench.status.borrow().problems.summary(false).reasons;
    assert!(reasons[0].ends_with("run sysctl -w net.ipv4.ip_forward=1") && reasons.len() == 1, "{reasons:?}");
    // IPv6 is not used here.
    bench.kernel.set_forwarding(Family::V6, ConfOf::All, false);
    bench.kernel.set_forwarding(Family::V4, ConfOf::All, true);
    bench.settle().await;
    assert_eq!(reach(&bench), (1, 0, false));
    assert_eq!(bench.status.borrow().problems.summary(true), crate::status::ProblemSummary::default());
    bench.kernel.set_forwarding(Family::V4, ConfOf::Link(bench.link), false);
    bench.settle().await;
    let reasons = bench.status.borrow().problems.summary(false).reasons;
    assert!(reasons[0].ends_with("run sysctl -w net/ipv4/conf/tun0/forwarding=1"), "{reasons:?}");
    assert_eq!(bench.status.borrow().operations, operations, "nothing of the host is changed");
}
