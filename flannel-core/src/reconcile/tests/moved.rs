//! A peer goes over to another backend: what its former device holds for it stays until its route has moved.

use std::sync::{Arc, Mutex};

use super::*;

const KEY: &str = "10.5.2.0-24";

/// On which device the peer's route is, and whether what is there for its subnet may be taken away.
type Moment = (Option<LinkIndex>, bool);

/// Notes that each time the driver is asked to take away what it should.
#[derive(Clone)]
pub(super) struct Watch {
    kernel: FakeKernel,
    seen: Arc<Mutex<Vec<Moment>>>,
    /// Where the route was whenever the driver was told to end what it does for peers that are gone.
    pruned: Arc<Mutex<Vec<Option<LinkIndex>>>>,
}

impl Watch {
    fn new(kernel: &FakeKernel) -> Self {
        Self { kernel: kernel.clone(), seen: Arc::default(), pruned: Arc::default() }
    }

    fn route(&self) -> Option<LinkIndex> {
        let route = self.kernel.objects().get(&route_of(LinkIndex(1), &KEY.parse().unwrap()).key())?;
        route.link()
    }

    pub(super) fn note(&self, prune: Prune<'_>) {
        let seen = (self.route(), prune.allows(subnet("10.5.2.0/24")));
        self.seen.lock().unwrap().push(seen);
    }

    pub(super) fn note_prune(&self) {
        self.pruned.lock().unwrap().push(self.route());
    }

    fn take(&self) -> Vec<Moment> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

/// A peer whose route is on the first of two devices.
async fn by_one_of_two() -> (Bench, Watch, [LinkIndex; 2]) {
    let kernel = FakeKernel::default();
    let (link, other) = (kernel.add_link("tun0", 1450), kernel.add_link("tun1", 1450));
    let watch = Watch::new(&kernel);
    let bench = bench_with(kernel, link, |reconciler| {
        (reconciler.driver.other, reconciler.driver.watch) = (Some(other), Some(watch.clone()));
    });
    bench.snapshot(&[lease(KEY, 2)]);
    bench.settle().await;
    (bench, watch, [link, other])
}

/// The peer's lease names the other backend from now on.
async fn go_over(bench: &Bench) {
    let moved = lease(KEY, 2);
    let attrs = LeaseAttrs { backend_type: "other".into(), ..moved.attrs };
    bench.send(LeaseUpdate::Put(Lease { attrs, ..moved }));
    bench.settle().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_from_the_former_device_before_the_route_has_moved() {
    let (bench, watch, [link, other]) = by_one_of_two().await;
    assert_eq!(watch.route(), Some(link));
    watch.take();
    go_over(&bench).await;
    assert_eq!(watch.take(), [(Some(link), false), (Some(other), true)]);
    // A route that stays holds up nothing.
    bench.send(LeaseUpdate::Put(lease("10.5.3.0-24", 3)));
    bench.settle().await;
    assert_eq!(watch.take(), [(Some(other), true)]);
}

#[tokio::test(start_paused = true)]
async fn nothing_ends_in_the_former_backend_while_passes_fail() {
    let (bench, watch, [link, other]) = by_one_of_two().await;
    watch.pruned.lock().unwrap().clear();
    bench.kernel.fail_dumps(Some(libc::ENOBUFS));
    bench.kernel.overrun();
    go_over(&bench).await;
    assert_eq!((watch.route(), watch.pruned.lock().unwrap().len()), (Some(link), 0));
    bench.kernel.fail_dumps(None);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let pruned = std::mem::take(&mut *watch.pruned.lock().unwrap());
    assert!(!pruned.is_empty() && pruned.iter().all(|at| *at == Some(other)), "{pruned:?}");
}
