//! Many at once, much lost, and things that vanish.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use flannel_lab::test_name;
use neli::consts::rtnl::Rtm;
use neli::{Size, ToBytes};
use tokio::time::{Instant, pause};

use super::super::message::Message;
use super::super::{Netlink, encode};
use super::changes::{ours, peer};
use super::kernel::device;
use super::sandbox::{ip, with_underlay};
use crate::addr::{Family, LinkIndex};
use crate::dataplane::{Object, Op};
use crate::kernel::{Kernel, KernelEvent, Kinds, LinkOp, Scope};
use crate::netns::Netns;

fn peers(link: LinkIndex, family: Family, count: u16) -> Vec<Object> {
    (1..=count).flat_map(|number| peer(link, family, number, 1)).collect()
}

fn ops(objects: &[Object], op: fn(Object) -> Op) -> Vec<Op> {
    objects.iter().copied().map(op).collect()
}

/// Checks for exactly these objects, with patience: the neighbours of all namespaces share one table, and
/// when one goes elsewhere a list in several datagrams may skip one of ours.
async fn assert_all_there(kernel: &mut Netlink, link: LinkIndex, family: Family, objects: &[Object]) {
    let wanted: BTreeSet<_> = objects.iter().copied().collect();
    let mut seen = ours(kernel, link, family).await;
    for _ in 0..20 {
        let skipped = |missed: &Object| matches!(missed, Object::Neighbour(_));
        if seen == wanted || !wanted.difference(&seen).all(skipped) {
            break;
        }
        seen = ours(kernel, link, family).await;
    }
    assert_eq!(seen, wanted);
}

#[test]
fn a_thousand_peers_come_and_go() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        for family in Family::ALL {
            let link = device(&mut kernel, family).await.index;
            let objects = peers(link, family, 1000);
            let start = std::time::Instant::now();
            assert_eq!(kernel.execute(&ops(&objects, Op::Create)).await.unwrap(), []);
            let created = start.elapsed();
            let start = std::time::Instant::now();
            assert_all_there(&mut kernel, link, family, &objects).await;
            println!("{family}: 3000 operations in {created:?}, read back in {:?}", start.elapsed());
            assert_eq!(kernel.execute(&ops(&objects, Op::Delete)).await.unwrap(), []);
            assert_eq!(ours(&mut kernel, link, family).await, BTreeSet::new());
        }
    });
}

#[test]
fn hundreds_of_failures_are_all_reported() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        let bad = ops(&peers(LinkIndex(9999), Family::V4, 200), Op::Create);
        let start = stop_the_clock();
        let refusals = kernel.execute(&bad).await.unwrap();
        assert_eq!(refusals.iter().map(|it| it.op).collect::<Vec<_>>(), bad);
        assert_eq!(start.elapsed(), Duration::ZERO, "waited for an answer that never comes");
        assert_eq!(kernel.execute(&[]).await.unwrap(), []);
    });
}

#[test]
fn lost_announcements_are_an_overrun() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::with_event_buffer(&Netns::current().unwrap(), 8192).unwrap();
        let link = device(&mut kernel, Family::V4).await.index;
        let objects = peers(link, Family::V4, 500);
        assert_eq!(kernel.execute(&ops(&objects, Op::Create)).await.unwrap(), []);
        stop_the_clock();
        let mut events = Vec::new();
        while !events.contains(&KernelEvent::Overrun) {
            let more = tokio::time::timeout(Duration::from_secs(1), kernel.events()).await;
            events.extend(more.expect("the overrun is said"));
        }
        assert!(events.len() < objects.len());
        // The state is there to be read, and later notifications come through.
        assert_all_there(&mut kernel, link, Family::V4, &objects).await;
        while tokio::time::timeout(Duration::from_millis(50), kernel.events()).await.is_ok() {}
        // The kernel doesn't say who deleted an FDB entry.
        assert_eq!(kernel.execute(&[Op::Delete(objects[1])]).await.unwrap(), []);
        assert_eq!(kernel.events().await, [KernelEvent::Gone(objects[1].key())]);
    });
}

#[test]
fn every_announcement_of_a_thousand_peers_arrives() {
    with_underlay(test_name!(), || async {
        let (mut kernel, mut other) = (Netlink::open().unwrap(), Netlink::open().unwrap());
        let link = device(&mut kernel, Family::V4).await.index;
        // In user namespaces the receive buffer can't be made larger than the system allows, so this is
        // read in between; an agent does so too.
        stop_the_clock();
        let mut missing: BTreeSet<_> = BTreeSet::new();
        for objects in peers(link, Family::V4, 1000).chunks(90) {
            assert_eq!(other.execute(&ops(objects, Op::Create)).await.unwrap(), []);
            missing.extend(objects.iter().copied());
            while let Ok(events) = tokio::time::timeout(Duration::from_millis(20), kernel.events()).await {
                for event in events {
                    assert_ne!(event, KernelEvent::Overrun);
                    if let KernelEvent::Put(object) = event {
                        missing.remove(&object);
                    }
                }
            }
        }
        assert_eq!(missing, BTreeSet::new());
    });
}

/// Stops this runtime's clock. From now on it moves only when everything waits, and then as far as the next limit of
/// time; the kernel answers before a request is sent. So it tells waiting from slowness, on every machine.
fn stop_the_clock() -> Instant {
    pause();
    Instant::now()
}

/// Polls a future so many times at most, and drops it if it is not done.
async fn abandon<F: Future>(polls: usize, future: F) {
    let (mut future, mut left) = (pin!(future), polls);
    std::future::poll_fn(|context| {
        left = left.saturating_sub(1);
        let is_done = future.as_mut().poll(context).is_ready();
        if is_done || left == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[test]
fn dropped_futures_confuse_nothing() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        let link = device(&mut kernel, Family::V4).await.index;
        let objects = peers(link, Family::V4, 1000);
        let (good, bad) =
            (ops(&objects, Op::Replace), ops(&peers(LinkIndex(9999), Family::V4, 300), Op::Create));
        let scope = Scope { link, family: Family::V4, kinds: Kinds::ALL };
        let start = stop_the_clock();
        for polls in [1, 2, 3, 5, 8] {
            abandon(polls, kernel.execute(&bad)).await;
            abandon(1, kernel.execute(&good)).await;
            abandon(1, kernel.lookup([192, 0, 2, 9].into())).await;
            assert_eq!(kernel.link("none").await.unwrap(), None);
            assert_eq!(kernel.execute(&bad[..3]).await.unwrap().len(), 3);
            assert_eq!(kernel.execute(&good).await.unwrap(), []);

            abandon(polls, kernel.objects(scope)).await;
            abandon(1, kernel.objects(scope)).await;
            abandon(1, kernel.links()).await;
            // A list that ends at its first entry, which can't be read, is read to its end before the next.
            let neighbours = || encode::neighbours_of(Family::V4, Some(link));
            let unreadable = |_: &Message<'_>| Err::<Option<()>, _>("for this test".into());
            let broken = kernel.dumps.dump("a list", Rtm::Getneigh, neighbours, neighbours, unreadable).await;
            assert!(broken.is_err());
            assert_all_there(&mut kernel, link, Family::V4, &objects).await;
            abandon(1, kernel.events()).await;
            assert_eq!(start.elapsed(), Duration::ZERO, "waited for what never comes");
        }
    });
}

#[test]
fn lists_are_read_while_they_change() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        let link = device(&mut kernel, Family::V4).await.index;
        let v6 = device(&mut kernel, Family::V6).await.index;
        let fixed = peers(link, Family::V4, 500);
        assert_eq!(kernel.execute(&ops(&fixed, Op::Create)).await.unwrap(), []);
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let handle = tokio::runtime::Handle::current();
        let mut other = { Netlink::open().unwrap() };
        let changer = std::thread::spawn(move || {
            let changing: Vec<_> = (600..900).flat_map(|number| peer(link, Family::V4, number, 1)).collect();
            let changing6 = peers(v6, Family::V6, 100);
            let mut rounds = 0;
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                for objects in [&changing, &changing6] {
                    for op in [Op::Replace, Op::Delete] {
                        assert_eq!(handle.block_on(other.execute(&ops(objects, op))).unwrap(), []);
                    }
                }
                rounds += 1;
            }
            rounds
        });
        let fixed: BTreeSet<_> = fixed.into_iter().collect();
        let mut complete = 0;
        for _ in 0..40 {
            tokio::task::yield_now().await;
            let seen = kernel.objects(Scope { link, family: Family::V4, kinds: Kinds::ALL }).await.unwrap();
            let seen: BTreeSet<_> = seen.into_iter().collect();
            // The kernel may skip entries that were not touched when others go, and does not say so.
            complete += usize::from(fixed.is_subset(&seen));
            let skipped = |missed: &Object| matches!(missed, Object::Fdb(_) | Object::Neighbour(_));
            assert!(fixed.difference(&seen).all(skipped));
            kernel.objects(Scope { link: v6, family: Family::V6, kinds: Kinds::ALL }).await.unwrap();
            kernel.links().await.unwrap();
            kernel.addresses().await.unwrap();
        }
        stop.send(()).unwrap();
        println!("{complete} complete, {} rounds of changes meanwhile", changer.join().unwrap());
    });
}

#[test]
fn a_device_that_vanishes_gives_errors() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        for family in Family::ALL {
            let link = device(&mut kernel, family).await.index;
            let objects = peers(link, family, 100);
            assert_eq!(kernel.execute(&ops(&objects, Op::Create)).await.unwrap(), []);
            ip(if family == Family::V4 { "link del flannel.1" } else { "link del flannel-v6.1" });
            let refusals = kernel.execute(&ops(&objects, Op::Replace)).await.unwrap();
            assert_eq!(refusals.len(), 300);
            for refusal in &refusals {
                assert_eq!(refusal.errno, libc::ENODEV, "{refusal}");
            }
            let deleted = kernel.execute(&ops(&objects, Op::Delete)).await.unwrap();
            println!("{family}: {} deletions refused, such as {}", deleted.len(), deleted[0]);
            for kinds in [
                Kinds { addresses: true, neighbours: false, fdb: false, next_hops: false, routes: false },
                Kinds { addresses: false, neighbours: true, fdb: false, next_hops: false, routes: false },
                Kinds { addresses: false, neighbours: false, fdb: true, next_hops: false, routes: false },
                Kinds::ROUTES,
            ] {
                let read = kernel.objects(Scope { link, family, kinds }).await;
                println!("{family}: {kinds:?}: {read:?}");
                match read {
                    Ok(objects) => assert_eq!(objects, []),
                    Err(error) => assert_eq!(error.errno(), Some(libc::ENODEV), "{error}"),
                }
            }
            assert!(kernel.change_link(&LinkOp::SetUp(link)).await.is_err());
        }
    });
}

/// How many entries a dump brings, whatever they are about.
async fn count<P: Size + ToBytes>(
    kernel: &mut Netlink,
    kind: Rtm,
    filter: impl Fn() -> P,
    all: impl Fn() -> P,
) -> usize {
    kernel.dumps.dump("count", kind, filter, all, |_| Ok(Some(()))).await.unwrap().len()
}

#[test]
fn the_kernel_selects_what_is_read() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        for family in Family::ALL {
            let link = device(&mut kernel, family).await.index;
            let objects = peers(link, family, 10);
            assert_eq!(kernel.execute(&ops(&objects, Op::Create)).await.unwrap(), []);
            let lo = LinkIndex(1);
            let every = || encode::neighbours_of(family, None);
            let neighbours = |link| move || encode::neighbours_of(family, Some(link));
            assert!(count(&mut kernel, Rtm::Getneigh, neighbours(link), every).await >= 10);
            let none = count(&mut kernel, Rtm::Getneigh, neighbours(lo), every).await;
            assert!(none < 10, "{none} neighbours on lo");
            let fdb = |link| move || encode::fdb_of(link);
            assert_eq!(count(&mut kernel, Rtm::Getneigh, fdb(link), fdb(lo)).await, 10);
            assert_eq!(count(&mut kernel, Rtm::Getneigh, fdb(lo), fdb(lo)).await, 0);
            let routes = |link| move || encode::routes_of(family, link);
            let of_lo = count(&mut kernel, Rtm::Getroute, routes(Some(lo)), routes(None)).await;
            assert!(of_lo < 10, "{of_lo} routes through lo");
            let addresses = |link| move || encode::addresses_of(family, link);
            let of_lo = count(&mut kernel, Rtm::Getaddr, addresses(lo), addresses(lo)).await;
            assert_eq!(of_lo, 1);

            // A selection that the kernel refuses is replaced by all, and selected here.
            let refused = || encode::lookup(family.unspecified());
            let all = count(&mut kernel, Rtm::Getroute, routes(None), routes(None)).await;
            assert!(count(&mut kernel, Rtm::Getroute, refused, routes(None)).await >= all);
        }
    });
}
