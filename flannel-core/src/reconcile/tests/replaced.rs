//! A route of ours that somebody else replaces: how often it is put back, and what stays.

use super::*;

const PEER: &str = "10.5.2.0-24";

/// Somebody's route to the peer's subnet, on a link of theirs.
fn foreign(link: LinkIndex, gateway: u8) -> Object {
    let Object::Route(marked) = route_of(link, &PEER.parse().unwrap()) else { unreachable!() };
    Object::Route(Route { protocol: 3, via: Some([192, 168, 77, gateway].into()), onlink: false, ..marked })
}

struct Replaced {
    bench: Bench,
    other: LinkIndex,
    ours: Object,
}

impl Replaced {
    async fn new() -> Self {
        let bench = bench();
        let other = bench.kernel.add_link("eth0", 1500);
        bench.snapshot(&[lease(PEER, 2), lease("10.5.3.0-24", 3)]);
        bench.told().await;
        let ours = route_of(bench.link, &PEER.parse().unwrap());
        let it = Self { bench, other, ours };
        assert_eq!(it.holder(), it.ours);
        it
    }

    fn holder(&self) -> Object {
        self.bench.kernel.objects().get(&self.ours.key()).unwrap()
    }

    /// Somebody replaces ours; returns who holds the key a moment later.
    async fn replace(&self, gateway: u8) -> Object {
        self.bench.kernel.put(foreign(self.other, gateway), true);
        self.bench.told().await;
        self.holder()
    }

    fn refused(&self) -> Vec<String> {
        self.bench.status.borrow().refused().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_ours_is_put_back_thrice_a_minute_and_then_stays_as_a_named_conflict() {
    let it = Replaced::new().await;
    let theirs = foreign(it.other, 99);
    for _ in 0..3 {
        assert_eq!(it.replace(99).await, it.ours);
        assert_eq!(it.refused(), Vec::<String>::new());
    }
    assert_eq!(it.replace(99).await, theirs, "the fourth time within a minute");
    let told = it.refused().concat();
    for word in [
        "10.5.2.0/24",
        "via 192.168.77.99 dev eth0 proto boot",
        "3 times within a minute",
        "ip monitor route",
    ] {
        assert!(told.contains(word), "{word}: {told}");
    }
    // It is tried no more, however long it stands: it says so, and that is all.
    it.bench.kernel.take_ops();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(it.holder(), theirs);
    assert_eq!(it.refused(), [told]);
    let tried = it.bench.kernel.take_ops();
    assert!(tried.iter().all(|op| *op == Op::Create(it.ours)), "nothing overwrites it: {tried:?}");
    // It changes, long after: that is another matter, and ours comes back.
    assert_eq!(it.replace(98).await, it.ours);
    assert_eq!(it.refused(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn ours_comes_back_at_once_when_the_foreign_one_goes() {
    let it = Replaced::new().await;
    for _ in 0..4 {
        it.replace(99).await;
    }
    assert_eq!(it.refused().len(), 1);
    it.bench.kernel.delete(&it.ours.key(), true);
    it.bench.told().await;
    assert_eq!((it.holder(), it.refused().len()), (it.ours, 0));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_slow_is_put_back_every_time() {
    let it = Replaced::new().await;
    for _ in 0..20 {
        assert_eq!(it.replace(99).await, it.ours);
        tokio::time::sleep(Duration::from_secs(21)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_replacement_that_nobody_announced_is_found_by_the_audit() {
    let it = Replaced::new().await;
    it.bench.kernel.put(foreign(it.other, 99), false);
    tokio::time::sleep(Duration::from_secs(70)).await;
    assert_eq!(it.holder(), it.ours);
    // Deleted and added is the same as replaced.
    it.bench.kernel.delete(&it.ours.key(), true);
    assert_eq!(it.replace(99).await, it.ours);
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_made_for_an_address_is_never_replaced() {
    let it = Replaced::new().await;
    let Object::Route(route) = foreign(it.other, 99) else { unreachable!() };
    let connected = Object::Route(Route { via: None, protocol: 2, ..route });
    it.bench.kernel.put(connected, true);
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(it.holder(), connected);
    assert!(
        it.refused()[0].contains("the kernel made it for an address (dev eth0 proto kernel)"),
        "{:?}",
        it.refused()
    );
}

#[tokio::test(start_paused = true)]
async fn whoever_came_while_the_peer_was_away_or_the_agent_down_was_there_before_us() {
    let it = Replaced::new().await;
    let theirs = foreign(it.other, 99);
    it.bench.send(LeaseUpdate::Removed("10.5.2.0-24".into()));
    it.bench.told().await;
    it.bench.kernel.put(theirs, true);
    it.bench.send(LeaseUpdate::Put(lease(PEER, 2)));
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(it.holder(), theirs);
    assert!(it.refused()[0].contains("10.5.2.0/24 is in the way"), "{:?}", it.refused());
    // A new run knows nothing of what the one before had programmed.
    it.bench.kernel.delete(&it.ours.key(), true);
    it.bench.told().await;
    assert_eq!(it.holder(), it.ours);
    it.bench.cancel.cancel();
    it.bench.task.await.unwrap().unwrap();
    it.bench.kernel.put(theirs, true);
    let next = bench_on(it.bench.kernel.clone(), it.bench.link);
    next.snapshot(&[lease(PEER, 2)]);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(next.kernel.objects().get(&theirs.key()), Some(theirs));
    assert!(next.status.borrow().refused()[0].contains("10.5.2.0/24 is in the way"));
}
