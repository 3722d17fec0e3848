//! What others can make large: garbage, leases that are refused, snapshots.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::status::{Listed, SAMPLE, Subject};

const MANY: usize = 24_000;

/// The key of the nth record of garbage: that of a lease, or not.
fn garbage(n: usize) -> String {
    if n.is_multiple_of(2) { format!("10.77.{}.{}-30", n / 128, n % 128 / 2 * 4) } else { format!("junk{n}") }
}

fn bad(n: usize) -> LeaseUpdate {
    LeaseUpdate::Unreadable(UnreadableRecord { key: garbage(n), reason: "unreadable".into() })
}

/// Counts how often the status is announced.
fn announcements(bench: &Bench) -> Arc<AtomicUsize> {
    let (count, mut status) = (Arc::new(AtomicUsize::new(0)), bench.status.clone());
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while status.changed().await.is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    count
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_garbage_is_a_count_with_a_sample_and_a_good_lease_behind_it_is_programmed() {
    let bench = bench();
    bench.snapshot(&[lease("10.5.2.0-24", 2), lease(OWN, 1)]);
    bench.told().await;
    bench.kernel.take_dumps();
    let (announced, start) = (announcements(&bench), Instant::now());
    (0..MANY).for_each(|n| bench.send(bad(n)));
    bench.send(LeaseUpdate::Put(lease("10.5.3.0-24", 3)));
    bench.settle().await;
    assert!(bench.has_route("10.5.3.0-24"));
    bench.told().await;
    let leases = bench.status.borrow().problems.leases.clone();
    assert_eq!((leases.count, leases.sample.len()), (MANY, SAMPLE));

    // One that comes and goes: each time it costs that record, and the status is announced now and then.
    for _ in 0..1000 {
        bench.send(LeaseUpdate::Removed(garbage(0)));
        bench.send(bad(0));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.told().await;
    let most = 4 + usize::try_from(start.elapsed().as_millis() / 250).unwrap();
    assert!(announced.load(Ordering::Relaxed) <= most, "{announced:?} in {:?}", start.elapsed());

    // All of it goes at once, with a peer among it.
    bench.send(LeaseUpdate::Removed("10.5.2.0-24".into()));
    (0..MANY).for_each(|n| bench.send(LeaseUpdate::Removed(garbage(n))));
    bench.settle().await;
    assert!(!bench.has_route("10.5.2.0-24") && bench.has_route("10.5.3.0-24"));
    bench.told().await;
    assert_eq!(bench.status.borrow().problems.leases, Listed::default());
    assert_eq!(bench.kernel.take_dumps(), 0, "nothing makes it read everything again");
}

#[tokio::test(start_paused = true)]
async fn others_have_their_turn_while_thousands_of_messages_are_taken() {
    let bench = bench();
    bench.snapshot(&[lease(OWN, 1)]);
    bench.told().await;
    (0..MANY).for_each(|n| bench.send(bad(n)));
    bench.send(LeaseUpdate::Put(lease("10.5.3.0-24", 3)));
    let mut turns = 0;
    while !bench.has_route("10.5.3.0-24") {
        tokio::task::yield_now().await;
        turns += 1;
    }
    assert!(turns >= MANY / AT_ONCE, "{turns}");
    // Told to end in the midst of a flood, it ends with the slice that it is at.
    (0..MANY).for_each(|n| bench.send(LeaseUpdate::Removed(garbage(n))));
    bench.send(LeaseUpdate::Put(lease("10.5.4.0-24", 4)));
    tokio::task::yield_now().await;
    bench.cancel.cancel();
    bench.task.await.unwrap().unwrap();
    let lost = route_of(bench.link, &"10.5.4.0-24".parse().unwrap());
    assert!(bench.kernel.objects().get(&lost.key()).is_none(), "the rest is not taken first");
}

/// What is in half of a snapshot is no wish: nothing is written before all of it is worked out, and deletions less
/// than all.
#[tokio::test(start_paused = true)]
async fn a_snapshot_of_thousands_is_worked_out_in_slices_and_programmed_as_one() {
    let bench = bench();
    let all: Vec<Lease> =
        (0..4000_u32).map(|n| lease(&format!("10.5.{}.{}-28", 2 + n / 16, n % 16 * 16), 7)).collect();
    bench.snapshot(&all[..2000]);
    bench.told().await;
    assert!(bench.has_route("10.5.2.0-28"));
    let count = |bench: &Bench| all.iter().filter(|lease| bench.has_route(&lease.key.to_string())).count();
    assert_eq!(count(&bench), 2000);
    bench.kernel.take_ops();
    // The first half goes, the second comes.
    bench.snapshot(&all[2000..]);
    let mut turns = 0;
    while bench.has_route("10.5.2.0-28") {
        tokio::task::yield_now().await;
        turns += 1;
        let written = bench.kernel.take_ops();
        let is_all = all[2000..].iter().all(|lease| bench.has_route(&lease.key.to_string()));
        assert!(written.is_empty() || is_all, "{} operations of a half", written.len());
    }
    assert!(turns >= 4000 / AT_ONCE, "{turns}");
    bench.settle().await;
    assert_eq!(count(&bench), 2000);
}

/// One lease in thousands of refused ones costs what it changes, and so does each of those.
#[tokio::test(start_paused = true)]
async fn the_status_of_thousands_of_refused_leases_is_a_count_with_a_sample() {
    let bench = bench();
    bench.snapshot(&[lease(OWN, 1)]);
    bench.told().await;
    let (announced, start) = (announcements(&bench), Instant::now());
    for n in 0..5000_u32 {
        // All of them have the same MAC at the same address, but the first of them has this node's subnet.
        let key = format!("10.5.1.{}-{}", n % 64 * 4, 25 + n / 64 % 6);
        if let Ok(key) = key.parse::<LeaseKey>() {
            bench.send(LeaseUpdate::Put(Lease { key, ..lease("10.5.3.0-24", 3) }));
        }
        if n % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    bench.told().await;
    let leases = bench.status.borrow().problems.leases.clone();
    assert!(leases.count > 100 && leases.sample.len() == SAMPLE, "{}", leases.count);
    let most = 4 + usize::try_from(start.elapsed().as_millis() / 250).unwrap();
    assert!(announced.load(Ordering::Relaxed) <= most, "{announced:?} in {:?}", start.elapsed());
    let lost = bench.status.borrow().problems.texts(&Subject::OwnLease);
    assert!(lost.len() <= 9, "{}", lost.len());
}
