//! The loop on a kernel in memory, with a backend that has one device.

mod blackholes;
mod config;
mod drift;
mod flood;
mod heartbeat;
mod moved;
mod peers;
mod reach;
mod refused;
mod replaced;
mod segments;
mod start;

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use futures::channel::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::addr::{Family, LinkIndex, MacAddr, Mtu, PerFamily};
use crate::backend::Underlay;
use crate::dataplane::{Address, FdbEntry, Neighbour, NextHop, Op, ROUTE_PROTOCOL, Route, Through};
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
    /// The device of another backend, to which the routes of leases go that name it.
    other: Option<LinkIndex>,
    /// Notes what may be taken away while routes move.
    watch: Option<moved::Watch>,
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
        mtu: None,
        plain: true,
    })
}

/// The same by a next-hop object, which comes first.
fn by_next_hop(link: LinkIndex, key: &LeaseKey) -> [Object; 2] {
    let Object::Route(route) = route_of(link, key) else { unreachable!("it is a route") };
    let next_hop = NextHop { link, gateway: route.dst.base(), spare: None };
    [Object::NextHop(next_hop), Object::Route(Route { through: Through::Object, ..route })]
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
        if let Some(other) = self.other.filter(|_| lease.attrs.backend_type == "other") {
            let claims = vec![Claim::Subnet(lease.subnet(Family::V4).unwrap())];
            return Ok(Peer { objects: vec![route_of(other, &lease.key)], claims, ..Peer::default() });
        }
        let net = lease.subnet(Family::V4).unwrap();
        if lease.attrs.backend_type == "next hop" {
            let claims = vec![Claim::Subnet(net)];
            return Ok(Peer { objects: by_next_hop(link, &lease.key).to_vec(), claims, ..Peer::default() });
        }
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

    async fn hold(&mut self, _: bool, prune: Prune<'_>) -> Held {
        if let Some(watch) = &self.watch {
            watch.note(prune);
        }
        Held::default()
    }

    fn prune_peers(&mut self, _: &dyn Fn(&LeaseKey) -> bool) {
        if let Some(watch) = &self.watch {
            watch.note_prune();
        }
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
                route.link.is_some_and(|link| [self.link, self.other].contains(&Some(link)))
                    && inside(route.dst.base())
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
