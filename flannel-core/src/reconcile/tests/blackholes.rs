//! Blackhole routes for the node's own subnets.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_blackhole_is_held_like_any_route_and_goes_when_it_is_not_wanted_any_more() {
    let kernel = FakeKernel::default();
    let link = kernel.add_link("tun0", 1450);
    let blackhole = Route::blackhole(subnet("10.5.1.0/24"));
    let ours = Object::Route(blackhole);
    let of_go = Object::Route(Route { protocol: 3, metric: 0, ..blackhole });
    let elsewhere = Object::Route(Route { dst: subnet("10.5.2.0/24"), protocol: 3, metric: 0, ..blackhole });
    kernel.put(of_go, false);
    kernel.put(elsewhere, false);
    let bench = bench_with(kernel.clone(), link, Reconciler::keep_blackholes);
    let has = |object: Object| kernel.objects().get(&object.key()) == Some(object);
    bench.snapshot(&[lease("10.5.3.0-24", 3)]);
    bench.settle().await;
    assert!(has(ours) && !has(of_go) && has(elsewhere));
    let repairs = bench.status.borrow().repairs;
    bench.kernel.delete(&ours.key(), true);
    bench.settle().await;
    assert!(has(ours) && bench.status.borrow().repairs == repairs + 1);
    // Somebody puts one without our mark in its place, and again and again.
    bench.kernel.take_ops();
    let unmarked = Object::Route(Route { protocol: 3, ..blackhole });
    for _ in 0..3 {
        bench.kernel.put(unmarked, true);
        bench.settle().await;
        assert!(has(ours), "ours was there first");
    }
    bench.kernel.put(unmarked, true);
    bench.settle().await;
    assert!(has(unmarked));
    bench.told().await;
    assert!(bench.status.borrow().refused()[0].contains("10.5.1.0/24 of ours was replaced"));
    bench.kernel.delete(&ours.key(), true);
    bench.told().await;
    assert!(has(ours) && bench.status.borrow().refused().is_empty());
    bench.cancel.cancel();
    bench.task.await.unwrap().unwrap();

    let bench = bench_on(kernel.clone(), link);
    bench.settle().await;
    assert!(has(ours), "nothing is deleted before the first snapshot");
    bench.snapshot(&[lease("10.5.3.0-24", 3)]);
    bench.settle().await;
    assert!(!has(ours) && has(elsewhere));
}

#[tokio::test(start_paused = true)]
async fn a_refused_blackhole_keeps_no_node_from_starting() {
    let kernel = FakeKernel::default();
    kernel.add_link("tun0", 1450);
    kernel.refuse(|op| matches!(op.object(), Object::Route(_)).then_some(libc::EPERM));
    let state =
        State { networks: PerFamily { v4: Some(subnet("10.5.0.0/16")), v6: None }, ..State::default() };
    let driver = OneDevice::default();
    let mut reconciler = Reconciler::new(driver, Box::new(kernel.clone()), OWN.parse().unwrap(), state, None);
    reconciler.keep_blackholes();
    reconciler.prepare().await.unwrap();
    assert_eq!(reconciler.status().borrow().refused().len(), 1);
}

/// Whose node needs the blackhole, and who has its place: what becomes of the start, and of the route.
#[tokio::test(start_paused = true)]
async fn a_foreign_blackhole_serves_this_node_as_well_as_its_own_and_another_route_does_not() {
    let ours = Route::blackhole(subnet("10.5.0.0/16"));
    let blackhole = Route { protocol: 4, ..ours };
    for is_needed in [true, false] {
        for is_blackhole in [true, false] {
            let what = format!("needed: {is_needed}, in its place is a blackhole: {is_blackhole}");
            let kernel = FakeKernel::default();
            kernel.add_link("tun0", 1450);
            let eth1 = kernel.add_link("eth1", 1500);
            let unicast = Route { link: Some(eth1), through: Through::Itself, ..blackhole };
            let holder = Object::Route(if is_blackhole { blackhole } else { unicast });
            kernel.put(holder, false);
            let state = State {
                networks: PerFamily { v4: Some(subnet("10.5.0.0/16")), v6: None },
                ..State::default()
            };
            let driver =
                OneDevice { needs: is_needed.then_some(Object::Route(ours)), ..OneDevice::default() };
            let mut reconciler =
                Reconciler::new(driver, Box::new(kernel.clone()), OWN.parse().unwrap(), state, None);
            if !is_needed {
                reconciler.blackholes = vec![Object::Route(ours)];
            }
            let (status, prepared) = (reconciler.status(), reconciler.prepare().await);
            assert_eq!(prepared.is_ok(), is_blackhole || !is_needed, "{what}: {prepared:?}");
            if prepared.is_err() {
                continue;
            }
            let (leases, stream) = mpsc::unbounded();
            let (cancel, update) = (
                CancellationToken::new(),
                LeaseUpdate::Snapshot { leases: vec![], unreadable: UnreadableRecords::default() },
            );
            leases.unbounded_send(Ok(update)).unwrap();
            let task = tokio::spawn(reconciler.run(stream.boxed(), cancel.clone()));
            tokio::time::sleep(Duration::from_secs(90)).await;
            assert_eq!(kernel.objects().get(&holder.key()), Some(holder), "{what}: it stays");
            let refused = status.borrow().refused();
            let does = "(blackhole proto 4) and does what ours would, so it stays";
            assert!(
                refused[0].contains("10.5.0.0/16 is in the way") && refused[0].contains(does) == is_blackhole,
                "{what}: {refused:?}"
            );
            assert!(status.borrow().problems.node.is_empty(), "{what}: no packet is lost");
            kernel.delete(&holder.key(), true);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(kernel.objects().get(&holder.key()), Some(Object::Route(ours)), "{what}");
            assert!(status.borrow().refused().is_empty(), "{what}");
            cancel.cancel();
            task.await.unwrap().unwrap();
        }
    }
}
