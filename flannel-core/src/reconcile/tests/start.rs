//! What the loop does before it knows all leases, and about those that it can't read: nothing is deleted.

use super::*;

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_before_the_first_snapshot() {
    let kernel = FakeKernel::default();
    let link = kernel.add_link("tun0", 1450);
    kernel.put(route_of(link, &"10.5.9.0-24".parse().unwrap()), false);
    let bench = bench_on(kernel, link);
    bench.send(LeaseUpdate::Put(lease("10.5.2.0-24", 2)));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(bench.has_route("10.5.9.0-24") && bench.has_route("10.5.2.0-24"));
    assert!(!bench.status.borrow().synced);
    bench.snapshot(&[lease("10.5.2.0-24", 2), lease(OWN, 1)]);
    bench.settle().await;
    assert!(!bench.has_route("10.5.9.0-24") && bench.has_route("10.5.2.0-24"));
    assert!(!bench.has_route(OWN), "our own subnet gets no route");
    assert!(bench.status.borrow().synced);
}

#[tokio::test(start_paused = true)]
async fn what_is_recalled_is_programmed_and_deletes_nothing() {
    let kernel = FakeKernel::default();
    let link = kernel.add_link("tun0", 1450);
    kernel.put(route_of(link, &"10.5.9.0-24".parse().unwrap()), false);
    let bench = bench_on(kernel, link);
    bench.send(LeaseUpdate::Recalled {
        leases: vec![lease("10.5.2.0-24", 2), lease("10.5.3.0-24", 3), lease(OWN, 1)],
        saved: 1_750_000_000,
    });
    bench.settle().await;
    assert!(bench.has_route("10.5.2.0-24") && bench.has_route("10.5.3.0-24") && !bench.has_route(OWN));
    // Drift is repaired, resyncs come and go: nothing is deleted.
    bench.kernel.delete(&route_of(link, &"10.5.2.0-24".parse().unwrap()).key(), true);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(bench.has_route("10.5.2.0-24") && bench.has_route("10.5.9.0-24"));
    let status = bench.status.borrow().clone();
    assert_eq!((status.recalled, status.synced, status.peers), (Some(1_750_000_000), false, 2));
    // The store is back: one peer has left, one is new, one stays untouched.
    bench.kernel.take_ops();
    bench.snapshot(&[lease("10.5.2.0-24", 2), lease("10.5.4.0-24", 4)]);
    bench.settle().await;
    assert!(bench.has_route("10.5.2.0-24") && bench.has_route("10.5.4.0-24"));
    assert!(!bench.has_route("10.5.3.0-24") && !bench.has_route("10.5.9.0-24"));
    let kept = route_of(link, &"10.5.2.0-24".parse().unwrap()).key();
    assert!(bench.kernel.take_ops().iter().all(|op| op.key() != kept));
    assert!(bench.status.borrow().recalled.is_none() && bench.status.borrow().synced);
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_record_keeps_what_the_kernel_has_for_it() {
    let kernel = FakeKernel::default();
    let link = kernel.add_link("tun0", 1450);
    let stale =
        OneDevice { link: Some(link), ..OneDevice::default() }.peer(&lease("10.5.7.0-24", 7)).unwrap();
    let leftover =
        OneDevice { link: Some(link), ..OneDevice::default() }.peer(&lease("10.5.8.0-24", 8)).unwrap();
    for object in stale.objects.iter().chain(&leftover.objects) {
        kernel.put(*object, false);
    }
    let bench = bench_on(kernel, link);
    bench.send(LeaseUpdate::Snapshot {
        leases: vec![lease("10.5.2.0-24", 2)],
        unreadable: vec![UnreadableRecord { key: "10.5.7.0-24".into(), reason: "unreadable".into() }].into(),
    });
    bench.settle().await;
    let objects = bench.kernel.objects();
    assert!(stale.objects.iter().all(|object| objects.get(&object.key()).is_some()));
    assert!(leftover.objects.iter().all(|object| objects.get(&object.key()).is_none()));
    assert!(bench.status.borrow().rejected()[0].contains("10.5.7.0-24"));

    let mut unreadable = lease("10.5.2.0-24", 2);
    unreadable.attrs.backend_type = "unreadable".into();
    bench.send(LeaseUpdate::Put(unreadable));
    bench.send(LeaseUpdate::Removed("10.5.7.0-24".into()));
    bench.settle().await;
    assert!(bench.has_route("10.5.2.0-24") && !bench.has_route("10.5.7.0-24"));
    bench.send(LeaseUpdate::Removed("10.5.2.0-24".into()));
    bench.settle().await;
    assert!(!bench.has_route("10.5.2.0-24"));
}
