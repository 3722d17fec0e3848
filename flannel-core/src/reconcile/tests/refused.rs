//! A kernel that refuses objects, or can't be asked.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_foreign_holder_is_reported_and_left_alone_until_it_goes() {
    let bench = bench();
    let other = bench.kernel.add_link("cni0", 1500);
    let Object::Route(marked) = route_of(other, &"10.5.2.0-24".parse().unwrap()) else { unreachable!() };
    let foreign = Object::Route(Route { protocol: 3, ..marked });
    bench.kernel.put(foreign, false);
    bench.snapshot(&[lease("10.5.2.0-24", 2), lease("10.5.3.0-24", 3)]);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(bench.kernel.objects().get(&foreign.key()), Some(foreign));
    assert!(bench.has_route("10.5.3.0-24"), "one failing peer delays no other");
    assert!(bench.status.borrow().refused()[0].contains("10.5.2.0/24 is in the way"));
    // Its lease goes, and with it the trouble; then it comes again.
    bench.send(LeaseUpdate::Removed("10.5.2.0-24".into()));
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert!(bench.status.borrow().refused().is_empty());
    assert_eq!(bench.kernel.objects().get(&foreign.key()), Some(foreign));
    bench.send(LeaseUpdate::Put(lease("10.5.2.0-24", 2)));
    bench.settle().await;
    assert_eq!(bench.status.borrow().refused().len(), 1);
    bench.kernel.delete(&foreign.key(), true);
    bench.settle().await;
    let route = bench.kernel.objects().get(&foreign.key());
    assert_eq!(route, Some(route_of(bench.link, &"10.5.2.0-24".parse().unwrap())));
    assert!(bench.status.borrow().refused().is_empty());
}

#[tokio::test(start_paused = true)]
async fn refused_operations_are_tried_again_with_backoff() {
    let bench = bench();
    bench.kernel.refuse(|op| matches!(op.object(), Object::Route(_)).then_some(libc::ENOMEM));
    bench.snapshot(&[lease("10.5.2.0-24", 2)]);
    tokio::time::sleep(Duration::from_secs(40)).await;
    let tries = bench.kernel.take_ops().iter().filter(|op| matches!(op.object(), Object::Route(_))).count();
    assert!((5..=12).contains(&tries), "{tries} tries in 40 s");
    bench.kernel.refuse_nothing();
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert!(bench.has_route("10.5.2.0-24") && bench.status.borrow().refused().is_empty());
}

#[tokio::test(start_paused = true)]
async fn failing_reads_and_lost_announcements_end_in_the_wanted_state() {
    let bench = bench();
    bench.snapshot(&[lease("10.5.2.0-24", 2)]);
    bench.settle().await;
    let want = bench.kernel.objects();
    bench.kernel.fail_dumps(Some(libc::EBUSY));
    bench.kernel.delete(&route_of(bench.link, &"10.5.2.0-24".parse().unwrap()).key(), false);
    bench.kernel.overrun();
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Some twenty a second without backoff; jitter makes each delay a quarter shorter at most.
    assert!(bench.kernel.take_dumps() < 20, "retries back off");
    bench.kernel.fail_dumps(None);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(bench.kernel.objects(), want);
}

/// The object's next try is due again and again, but nothing can be tried before the kernel answers.
#[tokio::test(start_paused = true)]
async fn a_refused_object_does_not_hurry_a_kernel_that_can_not_be_asked() {
    let bench = bench();
    bench.kernel.refuse(|op| matches!(op, Op::Create(Object::Route(_))).then_some(libc::EPERM));
    bench.snapshot(&[lease("10.5.2.0-24", 2)]);
    bench.told().await;
    bench.kernel.fail_dumps(Some(libc::EBUSY));
    bench.kernel.overrun();
    bench.kernel.take_dumps();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(bench.kernel.take_dumps() < 20, "retries back off");
    bench.kernel.fail_dumps(None);
    bench.kernel.refuse_nothing();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(bench.has_route("10.5.2.0-24"));
}
