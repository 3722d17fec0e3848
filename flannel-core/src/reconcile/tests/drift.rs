//! What somebody else changes in the kernel is put right, and what the loop itself changes is none of that.

use super::*;

#[tokio::test(start_paused = true)]
async fn announced_drift_is_repaired_at_once_and_touches_nothing_else() {
    let bench = bench();
    bench.snapshot(&[lease("10.5.2.0-24", 2), lease("10.5.3.0-24", 3)]);
    bench.settle().await;
    let want = bench.kernel.objects();
    bench.kernel.take_ops();
    bench.kernel.take_dumps();
    for object in want.iter().collect::<Vec<_>>() {
        bench.kernel.delete(&object.key(), true);
        bench.settle().await;
        let read_again = matches!(object, Object::Address(_));
        let takes = |other: &Object| match other {
            // With the address neighbours and routes go.
            Object::Neighbour(_) | Object::Route(_) => read_again || *other == object,
            _ => *other == object,
        };
        let lost: Vec<_> = want.iter().filter(takes).map(Op::Create).collect();
        assert_eq!(bench.kernel.take_ops(), lost);
        assert_eq!(bench.kernel.take_dumps() > 0, read_again, "{object:?}");
    }
    assert_eq!(bench.kernel.objects(), want);
    bench.told().await;
    let status = bench.status.borrow().clone();
    assert_eq!(status.repairs, want.len() as u64);
    let counted: Vec<_> = status.repaired.iter().filter(|(_, _, count)| *count > 0).collect();
    let by_kind = [
        (RepairKind::Address, 1),
        // Those of both peers, and once more those that went with the address.
        (RepairKind::Neighbour, 4),
        (RepairKind::Fdb, 2),
        (RepairKind::Route, 4),
    ];
    assert_eq!(counted, by_kind.map(|(kind, count)| (kind, RepairCause::Announced, count)));
}

/// The kernel announces that an address is gone, and only then takes the link's routes, without a notification.
#[tokio::test(start_paused = true)]
async fn routes_that_go_behind_the_last_address_are_put_again_at_once() {
    let bench = bench();
    bench.snapshot(&[lease("10.5.2.0-24", 2), lease("10.5.3.0-24", 3)]);
    bench.settle().await;
    let want = bench.kernel.objects();
    let address = want.iter().find(|object| matches!(object, Object::Address(_))).unwrap();
    bench.kernel.delete(&address.key(), true);
    bench.settle().await;
    assert_eq!(bench.kernel.objects(), want);
    assert_eq!(bench.status.borrow().repairs, 1);
}

/// The kernel announces the new remote of a MAC, but not that the old one is gone.
#[tokio::test(start_paused = true)]
async fn a_replaced_fdb_entry_is_put_back_without_reading_anything() {
    let bench = bench();
    bench.snapshot(&[lease("10.5.2.0-24", 2), lease("10.5.3.0-24", 3)]);
    bench.settle().await;
    let want = bench.kernel.objects();
    let entry =
        want.iter().find_map(|object| if let Object::Fdb(entry) = object { Some(entry) } else { None });
    bench.kernel.take_dumps();
    let stolen = FdbEntry { dst: [192, 0, 2, 99].into(), ..entry.unwrap() };
    bench.kernel.replace(Object::Fdb(stolen));
    bench.settle().await;
    assert_eq!((bench.kernel.objects(), bench.kernel.take_dumps()), (want, 0));
}

#[tokio::test(start_paused = true)]
async fn an_mtu_that_somebody_gave_a_route_is_taken_away_in_place() {
    let bench = bench();
    bench.snapshot(&[lease("10.5.2.0-24", 2)]);
    bench.settle().await;
    let ours @ Object::Route(route) = route_of(bench.link, &"10.5.2.0-24".parse().unwrap()) else {
        unreachable!()
    };
    bench.kernel.take_ops();
    bench.kernel.put(Object::Route(Route { mtu: Some(Mtu(1350)), ..route }), true);
    bench.settle().await;
    assert_eq!(bench.kernel.take_ops(), [Op::Replace(ours)]);
}

#[tokio::test(start_paused = true)]
async fn silent_drift_is_repaired_by_the_audit() {
    let bench = bench();
    bench.snapshot(&[lease("10.5.2.0-24", 2)]);
    bench.settle().await;
    let want = bench.kernel.objects();
    bench.kernel.delete(&route_of(bench.link, &"10.5.2.0-24".parse().unwrap()).key(), false);
    bench.kernel.put(route_of(bench.link, &"10.5.8.0-24".parse().unwrap()), false);
    tokio::time::sleep(Duration::from_secs(67)).await;
    assert_eq!(bench.kernel.objects(), want);
}

#[tokio::test(start_paused = true)]
async fn its_own_writes_are_not_answered() {
    let bench = bench();
    bench.snapshot(&[lease("10.5.2.0-24", 2), lease("10.5.3.0-24", 3)]);
    bench.settle().await;
    assert_eq!(bench.kernel.take_ops().len(), 7);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(bench.kernel.take_ops(), []);
    bench.send(LeaseUpdate::Put(lease("10.5.3.0-24", 3)));
    bench.settle().await;
    assert_eq!(bench.kernel.take_ops(), [], "an unchanged lease causes nothing");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_device_turns_the_status_red_and_comes_back_with_everything() {
    let mut bench = bench();
    bench.snapshot(&[lease("10.5.2.0-24", 2)]);
    bench.settle().await;
    bench.kernel.delete_link("tun0");
    bench.settle().await;
    assert_eq!(bench.status.borrow().device_problem().as_deref(), Some("tun0 is missing"));
    bench.link = bench.kernel.add_link("tun0", 1450);
    bench.kernel.edit_link("tun0", true, |_| {});
    bench.settle().await;
    assert!(bench.has_route("10.5.2.0-24"));
    assert_eq!(bench.status.borrow().device_problem(), None);
}

/// The same correction of a device is a repair if somebody changed the device, and none if the underlay's MTU changed.
#[tokio::test(start_paused = true)]
async fn a_device_that_follows_the_underlay_is_not_repaired() {
    let kernel = FakeKernel::default();
    kernel.add_link("eth0", 1500);
    let link = kernel.add_link("tun0", 1450);
    let mut bench = bench_on(kernel, link);
    bench.snapshot(&[lease("10.5.2.0-24", 2)]);
    bench.told().await;
    let objects = bench.kernel.objects();
    for (what, name, mtu, overlay, repairs) in [
        ("the underlay's MTU shrinks", "eth0", 1400, 1350, 0),
        ("somebody changes the device", "tun0", 1300, 1350, 1),
        ("the underlay's MTU grows", "eth0", 1500, 1450, 1),
    ] {
        bench.kernel.edit_link(name, true, |link| link.mtu = Mtu(mtu));
        bench.told().await;
        assert_eq!(bench.kernel.link_named("tun0").unwrap().mtu, Mtu(overlay), "{what}");
        assert_eq!(bench.status.borrow().repairs, repairs, "{what}");
        assert_eq!(bench.kernel.objects(), objects, "{what}");
    }
    // What the kernel drops from a device that shrinks is put again for the same reason.
    bench.kernel.delete(&route_of(link, &"10.5.2.0-24".parse().unwrap()).key(), false);
    bench.kernel.edit_link("eth0", true, |link| link.mtu = Mtu(1400));
    bench.told().await;
    assert_eq!((bench.kernel.objects(), bench.status.borrow().repairs), (objects, 1));
    let mut repaired = 0;
    while let Some(Some(event)) = bench.events.recv().now_or_never() {
        repaired += usize::from(matches!(event, NetworkEvent::Repaired { .. }));
    }
    assert_eq!(repaired, 1);
}

/// The kernel deletes the routes through a next-hop object with it. For IPv4 nothing is announced, and the end of the object
/// means nothing any more once it is not there at a read.
#[tokio::test(start_paused = true)]
async fn a_next_hop_object_that_goes_in_the_middle_of_a_read_takes_its_route_with_it() {
    let bench = bench();
    let lease = lease("10.5.2.0-24", 2);
    let attrs = LeaseAttrs { backend_type: "next hop".into(), ..lease.attrs };
    let [next_hop, route] = by_next_hop(bench.link, &lease.key);
    bench.snapshot(&[Lease { attrs, ..lease }]);
    bench.settle().await;
    assert_eq!(bench.kernel.objects().get(&route.key()), Some(route));
    bench.kernel.before_objects(move |kernel| kernel.delete(&next_hop.key(), false));
    bench.kernel.overrun();
    bench.settle().await;
    let there = bench.kernel.objects();
    assert_eq!([there.get(&next_hop.key()), there.get(&route.key())], [Some(next_hop), Some(route)]);
}
