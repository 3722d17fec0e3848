mod blackholes;
mod config;
mod flood;
mod heartbeat;
mod peers;
mod reach;
mod replaced;
mod segments;

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use futures::channel::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::addr::{Family, LinkIndex, MacAddr, Mtu, PerFamily};
use crate::backend::Underlay;
use crate::dataplane::{Address, FdbEntry, Neighbour, Op, ROUTE_PROTOCOL, Route, Through};
use crate::events::NetworkEvent;
use crate::kernel::{ConfOf, KernelError, KernelEvent, Kinds, LinkOp};
use crate::lease::{Lease, LeaseAttrs, LeaseUpdate, UnreadableRecord, UnreadableRecords};
use crate::peers::{Claim, Peer, PeerError};
use crate::status::{DeviceStatus, RepairKind, Timings};
use crate::subnet::SubnetError;
use crate::testing::FakeKernel;

/// A backend with one device, which it only looks for. If there is an `eth0`, the device's MTU follows that.
#[derive(Default)]
struct OneDevice {
    link: Option<LinkIndex>,
    /// What this node needs besides the device's address.
    needs: Option<Object>,
}

const OWN: &str = "10.5.1.0-24";

fn subnet(text: &str) -> crate::addr::Subnet {
    text.parse().unwrap()
}

fn route_of(link: LinkIndex, key: &LeaseKey) -> Object {
    let dst = key.subnet(Family::V4).unwrap();
    let via = Some(dst.base());
    Object::Route(Route {
        dst,
        metric: 0,
        via,
        link: Some(link),
        onlink: true,
        through: Through::Itself,
        protocol: ROUTE_PROTOCOL,
        plain: true,
    })
}

#[async_trait]
impl Driver for OneDevice {
    async fn ensure_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Devices, KernelError> {
        let before = self.link;
        let mut link = kernel.link("tun0").await?;
        self.link = link.as_ref().map(|link| link.index);
        let overlay_mtu = kernel.link("eth0").await?.map(|lower| Mtu(lower.mtu.0 - 50));
        let mut is_resized = false;
        if let Some((link, mtu)) = link.as_mut().zip(overlay_mtu).filter(|(link, mtu)| link.mtu != *mtu) {
            kernel.change_link(&LinkOp::SetMtu(link.index, mtu)).await?;
            (link.mtu, is_resized) = (mtu, true);
        }
        let shown = link.iter().map(|link| DeviceStatus::of(link, true)).collect();
        let mut problems = crate::status::DeviceProblems::default();
        problems.extend(self.link.is_none().then(|| "tun0 is missing".to_owned()));
        let (links, changed) = (self.link.into_iter().collect(), before != self.link || is_resized);
        Ok(Devices { links, changed, problems, overlay_mtu, shown, ..Devices::default() })
    }

    fn set_lease(&mut self, _: &Lease) {}

    fn set_underlay(&mut self, _: &Underlay) -> Result<(), HostProblem> {
        Ok(())
    }

    fn attrs(&self) -> LeaseAttrs {
        LeaseAttrs::default()
    }

    fn own_objects(&self) -> Vec<Object> {
        let addr = "10.5.1.0/32".parse().unwrap();
        self.link.map(|link| Object::Address(Address { link, addr })).into_iter().chain(self.needs).collect()
    }

    fn own_claims(&self) -> Vec<Claim> {
        vec![Claim::Subnet(subnet("10.5.1.0/24"))]
    }

    fn peer(&self, lease: &Lease) -> Result<Peer, PeerError> {
        if lease.attrs.backend_type == "unreadable" {
            return Err(PeerError::Unreadable("unreadable".into()));
        }
        let link = self.link.ok_or(PeerError::NotOurs("no device".into()))?;
        let net = lease.subnet(Family::V4).unwrap();
        let mac = MacAddr([2, 0, 0, 0, 0, lease.created as u8]);
        let dst: IpAddr = [192, 0, 2, lease.created as u8].into();
        Ok(Peer {
            objects: vec![
                Object::Neighbour(Neighbour { link, addr: net.base(), mac }),
                Object::Fdb(FdbEntry { link, mac, dst, port: None, vni: None, via: None }),
                route_of(link, &lease.key),
            ],
            claims: vec![Claim::Subnet(net), Claim::Vtep(link, mac, dst)],
            ..Peer::default()
        })
    }

    fn scopes(&self) -> Vec<Scope> {
        self.link.map(|link| Scope { link, family: Family::V4, kinds: Kinds::ALL }).into_iter().collect()
    }

    fn owns(&self, object: &Object) -> bool {
        let inside = |addr| subnet("10.5.0.0/16").contains(addr);
        match object {
            Object::Address(address) => Some(address.link) == self.link && inside(address.addr.ip()),
            Object::Neighbour(neighbour) => Some(neighbour.link) == self.link && inside(neighbour.addr),
            Object::Fdb(entry) => Some(entry.link) == self.link,
            Object::NextHop(next_hop) => Some(next_hop.link) == self.link && inside(next_hop.gateway),
            Object::Route(route) => {
                route.link.is_some() && route.link == self.link && inside(route.dst.base())
            }
        }
    }

    fn concerns(&self, event: &KernelEvent) -> bool {
        match event {
            KernelEvent::Link(link) => link.name == "tun0" || link.name == "eth0",
            KernelEvent::LinkGone(_, name) => name == "tun0",
            _ => false,
        }
    }
}

struct Bench {
    kernel: FakeKernel,
    link: LinkIndex,
    leases: mpsc::UnboundedSender<Result<LeaseUpdate, SubnetError>>,
    status: watch::Receiver<NetworkStatus>,
    events: NetworkEvents,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), BackendError>>,
}

fn bench() -> Bench {
    let kernel = FakeKernel::default();
    let link = kernel.add_link("tun0", 1450);
    bench_on(kernel, link)
}

fn bench_on(kernel: FakeKernel, link: LinkIndex) -> Bench {
    bench_with(kernel, link, |_| ())
}

fn bench_with(
    kernel: FakeKernel,
    link: LinkIndex,
    prepare: impl FnOnce(&mut Reconciler<OneDevice>),
) -> Bench {
    let (leases, stream) = mpsc::unbounded();
    let cancel = CancellationToken::new();
    let (driver, kernel_handle) = (OneDevice::default(), Box::new(kernel.clone()));
    let state =
        State { networks: PerFamily { v4: Some(subnet("10.5.0.0/16")), v6: None }, ..State::default() };
    let state = State { backend: "one".into(), ..state };
    let mut reconciler = Reconciler::new(driver, kernel_handle, OWN.parse().unwrap(), state, None);
    prepare(&mut reconciler);
    let (status, events) = (reconciler.status(), reconciler.events());
    let task = tokio::spawn(reconciler.run(stream.boxed(), cancel.clone()));
    Bench { kernel, link, leases, status, events, cancel, task }
}

impl Bench {
    fn send(&self, update: LeaseUpdate) {
        self.leases.unbounded_send(Ok(update)).unwrap();
    }

    fn snapshot(&self, leases: &[Lease]) {
        self.send(LeaseUpdate::Snapshot {
            leases: leases.to_vec(),
            unreadable: UnreadableRecords::default(),
        });
    }

    /// Lets the loop work; under paused time this ends only when it has nothing more to do now.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// Waits until the status says all that there is to say, however much it said just before.
    async fn told(&self) {
        tokio::time::sleep(Duration::from_millis(251)).await;
    }

    fn has_route(&self, key: &str) -> bool {
        self.kernel.objects().get(&route_of(self.link, &key.parse().unwrap()).key()).is_some()
    }
}

fn lease(key: &str, created: u64) -> Lease {
    Lease { key: key.parse().unwrap(), attrs: LeaseAttrs::default(), created }
}

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

#[tokio::test(start_paused = true)]
async fn each_part_of_the_work_is_timed_when_it_is_done() {
    let bench = bench();
    let counts = |bench: &Bench| {
        let Timings { plan, read, netlink, watch_lag, program, repair, .. } =
            bench.status.borrow().timings.clone();
        [plan, read, netlink, watch_lag, program, repair].map(|histogram| histogram.read().count())
    };
    bench.snapshot(&[lease("10.5.2.0-24", 2), lease("10.5.3.0-24", 3)]);
    bench.settle().await;
    let [plans, reads, requests, watch_lag, program, repair] = counts(&bench);
    assert!(plans > 0 && reads > 0 && requests > 0, "{plans} {reads} {requests}");
    assert_eq!((watch_lag, program, repair), (1, 1, 0), "one batch of leases, and nothing to repair");
    bench.send(LeaseUpdate::Put(lease("10.5.4.0-24", 4)));
    bench.settle().await;
    assert_eq!(
        counts(&bench),
        [plans + 1, reads, requests + 1, 2, 2, 0],
        "one more batch; nothing is read again"
    );
    let route = bench.kernel.objects().iter().map(|object| object.key()).last().unwrap();
    bench.kernel.delete(&route, true);
    bench.settle().await;
    assert_eq!(counts(&bench), [plans + 2, reads, requests + 2, 2, 2, 1]);
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
    let mut bench = bench();
    bench.snapshot(&[lease("10.5.2.0-24", 2), lease("10.5.3.0-24", 3)]);
    bench.settle().await;
    let want = bench.kernel.objects();
    let entry =
        want.iter().find_map(|object| if let Object::Fdb(entry) = object { Some(entry) } else { None });
    bench.kernel.take_dumps();
    let stolen = FdbEntry { dst: [192, 0, 2, 99].into(), ..entry.unwrap() };
    bench.kernel.execute(&[Op::Replace(Object::Fdb(stolen))]).await.unwrap();
    bench.settle().await;
    assert_eq!((bench.kernel.objects(), bench.kernel.take_dumps()), (want, 0));
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
async fn an_unreadable_record_keeps_what_the_kernel_has_for_it() {
    let kernel = FakeKernel::default();
    let link = kernel.add_link("tun0", 1450);
    let stale = OneDevice { link: Some(link), needs: None }.peer(&lease("10.5.7.0-24", 7)).unwrap();
    let leftover = OneDevice { link: Some(link), needs: None }.peer(&lease("10.5.8.0-24", 8)).unwrap();
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

#[tokio::test(start_paused = true)]
async fn an_ended_watch_is_an_error_and_a_cancelled_loop_leaves_everything() {
    let bench = bench();
    bench.snapshot(&[lease("10.5.2.0-24", 2)]);
    bench.settle().await;
    let before = bench.kernel.objects();
    bench.cancel.cancel();
    bench.task.await.unwrap().unwrap();
    assert_eq!(bench.kernel.objects(), before);

    let bench = self::bench();
    drop(bench.leases);
    assert!(matches!(bench.task.await.unwrap(), Err(BackendError::WatchEnded)));
}
