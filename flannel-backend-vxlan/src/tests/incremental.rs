//! Incremental equals full: whatever leases and kernel went through, the loop ends where a look at everything
//! would. Nothing here depends on a clock or on chance, so a failure shrinks to the few steps that matter.

use std::collections::BTreeSet;

use flannel_core::dataplane::{FdbEntry, ObjectKey, plan};
use flannel_core::kernel::{Kernel, Link};
use flannel_core::lease::{LeaseTable, LeaseUpdate, UnreadableRecord};
use flannel_core::peers::PeerTable;
use flannel_core::reconcile::Driver;
use flannel_core::status::PeerState;
use futures::{FutureExt, StreamExt};
use proptest::prelude::*;

use super::*;

/// Slots of leases: both families, one, the IPv4 subnet of another slot, and IPv6 alone.
const KEYS: [&str; 5] = [
    "10.5.100.0-24&fd00:5:0:100::-64",
    "10.5.101.0-24",
    "10.5.102.0-24&fd00:5:0:102::-64",
    "10.5.100.0-24&fd00:5:0:103::-64",
    "0.0.0.0-0&fd00:5:0:104::-64",
];

const DEVICES: [&str; 2] = ["flannel.1", "flannel-v6.1"];

/// What happens, in small domains, so that things meet.
#[derive(Debug, Clone)]
enum Step {
    /// A lease is written: slot, underlay address, MAC.
    Put(usize, u8, u8),
    /// One of another backend.
    Other(usize),
    /// One without the data of its backend, so that it is unreadable.
    Dataless(usize),
    /// A record whose key or value is no lease's.
    Unreadable(usize),
    Remove(usize),
    /// The store lost its place and lists all.
    Snapshot,
    /// Somebody deletes the n-th object, with a word about it or without.
    Delete(usize, bool),
    /// Somebody changes the n-th object.
    Change(usize, u8),
    /// Somebody adds what nobody wants.
    Leftover(usize, u8),
    /// Somebody's route takes the place of a slot's.
    Foreign(usize),
    Down(usize),
    Up(usize),
    Mac(usize, u8),
    Mtu(usize, u32),
    Learning(usize),
    DeleteDevice(usize),
    UnderlayDown,
    UnderlayMtu(u32),
    /// With everything on it, and another number when it is back.
    UnderlayGone,
    UnderlayBack,
    /// Notifications get lost.
    Overrun,
    /// Every n-th operation is refused from now on.
    Refuse(usize),
    RefuseNothing,
    /// The loop gets its turn, and some time, in milliseconds.
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let slot = || 0..KEYS.len();
    let device = || 0..DEVICES.len();
    let nth = || 0..24_usize;
    prop_oneof![
        8 => (slot(), 0..3_u8, 0..3_u8).prop_map(|(slot, ip, mac)| Step::Put(slot, ip, mac)),
        1 => slot().prop_map(Step::Other),
        1 => slot().prop_map(Step::Dataless),
        1 => slot().prop_map(Step::Unreadable),
        3 => slot().prop_map(Step::Remove),
        1 => Just(Step::Snapshot),
        5 => (nth(), prop::bool::weighted(0.9)).prop_map(|(nth, told)| Step::Delete(nth, told)),
        5 => (nth(), 0..3_u8).prop_map(|(nth, to)| Step::Change(nth, to)),
        2 => (device(), 0..3_u8).prop_map(|(device, n)| Step::Leftover(device, n)),
        1 => slot().prop_map(Step::Foreign),
        2 => device().prop_map(Step::Down),
        1 => device().prop_map(Step::Up),
        2 => (device(), 0..3_u8).prop_map(|(device, mac)| Step::Mac(device, mac)),
        2 => (device(), prop::sample::select(vec![1200, 1300])).prop_map(|(device, mtu)| Step::Mtu(device, mtu)),
        1 => device().prop_map(Step::Learning),
        2 => device().prop_map(Step::DeleteDevice),
        1 => Just(Step::UnderlayDown),
        1 => prop::sample::select(vec![1400, 1500]).prop_map(Step::UnderlayMtu),
        1 => Just(Step::UnderlayGone),
        2 => Just(Step::UnderlayBack),
        2 => Just(Step::Overrun),
        1 => (2..4_usize).prop_map(Step::Refuse),
        1 => Just(Step::RefuseNothing),
        8 => prop::sample::select(vec![1, 1, 1, 150]).prop_map(Step::Wait),
    ]
}

pub(super) fn value(ip: u8, mac: u8) -> String {
    format!(
        r#"{{"PublicIP":"192.0.2.{n}","PublicIPv6":"2001:db8::{n}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0a:00:00:00:00:{mac:02x}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"0e:00:00:00:00:{mac:02x}"}}}}"#,
        n = 100 + ip
    )
}

/// What a test did that has to be undone, or waited for.
#[derive(Default)]
struct Done {
    unreadable: BTreeSet<usize>,
    foreign: BTreeSet<ObjectKey>,
    /// Whether something happened that nobody was told, and only the resync shows.
    silent: bool,
}

fn garbage(slot: usize) -> UnreadableRecord {
    UnreadableRecord { key: KEYS[slot].to_owned(), reason: "garbage".to_owned() }
}

impl Host {
    /// The objects on our devices.
    fn nth(&self, nth: usize) -> Option<Object> {
        let links: Vec<_> = DEVICES.iter().filter_map(|name| self.kernel.link_named(name)).collect();
        let ours = |object: &Object| links.iter().any(|link| is_on(object, link));
        let objects = self.kernel.objects();
        let ours: Vec<_> = objects.iter().filter(ours).collect();
        (!ours.is_empty()).then(|| ours[nth % ours.len()])
    }

    fn underlay_back(&self) {
        if self.kernel.link_named("eth0").is_none() {
            let link = self.kernel.add_link("eth0", 1500);
            give(&self.kernel, link, "192.0.2.1/24");
            give(&self.kernel, link, "2001:db8::1/64");
        }
        self.kernel.edit_link("eth0", true, |link| (link.up, link.mtu) = (true, Mtu(1500)));
    }

    async fn apply(&self, step: &Step, done: &mut Done) {
        let kernel = &self.kernel;
        match *step {
            Step::Put(slot, ip, mac) => {
                done.unreadable.remove(&slot);
                self.store.put(KEYS[slot], &value(ip, mac));
            }
            Step::Other(slot) => {
                done.unreadable.remove(&slot);
                self.store.put(KEYS[slot], r#"{"PublicIP":"192.0.2.9","BackendType":"host-gw"}"#);
            }
            Step::Dataless(slot) => {
                done.unreadable.insert(slot);
                self.store.put(KEYS[slot], r#"{"PublicIP":"192.0.2.9","BackendType":"vxlan"}"#);
            }
            Step::Unreadable(slot) => {
                done.unreadable.insert(slot);
                self.store.tell(&LeaseUpdate::Unreadable(garbage(slot)));
            }
            Step::Remove(slot) => {
                done.unreadable.remove(&slot);
                self.store.remove(KEYS[slot]);
            }
            Step::Snapshot => {
                // Of an unreadable record the store has only what it can't read.
                let is_good = |lease: &flannel_core::lease::Lease| {
                    !done.unreadable.iter().any(|slot| lease.key.to_string() == KEYS[*slot])
                };
                let leases = self.store.leases().into_iter().filter(is_good).collect();
                let unreadable = done.unreadable.iter().copied().map(garbage).collect();
                self.store.tell(&LeaseUpdate::Snapshot { leases, unreadable });
            }
            Step::Delete(nth, told) => {
                if let Some(object) = self.nth(nth) {
                    done.silent |= !told;
                    kernel.delete(&object.key(), told);
                }
            }
            Step::Change(nth, to) => {
                if let Some(changed) = self.nth(nth).and_then(|object| changed(object, to)) {
                    kernel.replace(changed);
                }
            }
            Step::Leftover(device, n) => {
                if let Some(link) = kernel.link_named(DEVICES[device]) {
                    let object = leftover(link.index, device, n);
                    kernel.replace(object);
                }
            }
            Step::Foreign(slot) => {
                let dst = KEYS[slot].split('&').next().unwrap().replace('-', "/");
                if let (Ok(dst), Some(link)) =
                    (dst.parse::<flannel_core::addr::Subnet>(), kernel.link_named("cni0"))
                    && dst.prefix() > 0
                {
                    let route = Object::Route(Route {
                        dst,
                        metric: 0,
                        via: None,
                        link: Some(link.index),
                        onlink: false,
                        protocol: 3,
                        mtu: None,
                        plain: true,
                        through: Through::Itself,
                    });
                    done.foreign.insert(route.key());
                    kernel.put(route, true);
                }
            }
            Step::Down(device) => kernel.edit_link(DEVICES[device], true, |link| link.up = false),
            Step::Up(device) => kernel.edit_link(DEVICES[device], true, |link| link.up = true),
            Step::Mac(device, mac) => {
                kernel
                    .edit_link(DEVICES[device], true, |link| link.mac = Some(MacAddr([2, 9, 9, 9, 9, mac])));
            }
            Step::Mtu(device, mtu) => kernel.edit_link(DEVICES[device], true, |link| link.mtu = Mtu(mtu)),
            Step::Learning(device) => {
                let learns = |link: &mut Link| link.vxlan.iter_mut().for_each(|vxlan| vxlan.learning = true);
                kernel.edit_link(DEVICES[device], true, learns);
            }
            Step::DeleteDevice(device) => kernel.delete_link(DEVICES[device]),
            Step::UnderlayDown => kernel.edit_link("eth0", true, |link| link.up = false),
            Step::UnderlayMtu(mtu) => kernel.edit_link("eth0", true, |link| link.mtu = Mtu(mtu)),
            Step::UnderlayGone => kernel.delete_link("eth0"),
            Step::UnderlayBack => self.underlay_back(),
            Step::Overrun => kernel.overrun(),
            Step::Refuse(nth) => {
                let mut count = 0;
                kernel.refuse(move |_| {
                    count += 1;
                    (count % nth == 0).then_some(libc::ENOMEM)
                });
            }
            Step::RefuseNothing => kernel.refuse_nothing(),
            Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
    }

    /// What a look at everything says is still to be done.
    async fn rest(&self, seen: &LeaseTable) -> Vec<Op> {
        let vxlan = VxlanConfig::parse(&self.config.backend).unwrap();
        let mut kernel: Box<dyn Kernel> = Box::new(self.kernel.clone());
        let own =
            self.store.leases().into_iter().find(|lease| lease.attrs.public_ips == self.underlay.published);
        let own = own.expect("nobody else has our addresses");
        let sides =
            sides(&self.config, &vxlan, &self.underlay, &[&own.attrs], &MacAddr::random, &mut *kernel)
                .await
                .unwrap();
        let mut driver = VxlanDriver::new(vxlan, self.underlay.clone(), sides, self.next_hop_objects);
        driver.set_lease(&own);
        self.kernel.take_link_ops();
        let devices = driver.ensure_devices(&mut *kernel).await.unwrap();
        assert_eq!((devices.problems.text(), self.kernel.take_link_ops()), (None, vec![]), "the devices");
        let mut peers = PeerTable::new(driver.own_objects(), driver.own_claims());
        for lease in seen.iter().filter(|lease| lease.key != own.key) {
            peers.put(lease.key, (&**lease).into(), driver.peer(lease));
        }
        let have: Dataplane = self.kernel.objects().iter().filter(|object| driver.owns(object)).collect();
        plan(peers.want(), &have)
    }
}

fn is_on(object: &Object, link: &Link) -> bool {
    let index = link.index;
    matches!(object, Object::Address(address) if address.link == index)
        || matches!(object, Object::Neighbour(neighbour) if neighbour.link == index)
        || matches!(object, Object::Fdb(entry) if entry.link == index)
        || matches!(object, Object::NextHop(next_hop) if next_hop.link == index)
        || matches!(object, Object::Route(route) if route.link == Some(index))
}

/// What somebody could make of an object under its key, or beside it.
fn changed(object: Object, to: u8) -> Option<Object> {
    match object {
        Object::Neighbour(neighbour) => {
            Some(Object::Neighbour(Neighbour { mac: MacAddr([2, 8, 8, 8, 8, to]), ..neighbour }))
        }
        // In place of the other remote, which goes without a notification.
        Object::Fdb(entry) => Some(Object::Fdb(FdbEntry {
            dst: if entry.dst.is_ipv4() { [192, 0, 2, 100 + to].into() } else { entry.dst },
            port: entry.dst.is_ipv6().then_some(4000 + u16::from(to)),
            ..entry
        })),
        Object::Route(route) => {
            let through = Through::Itself;
            Some(Object::Route(Route { via: None, onlink: false, plain: to > 0, through, ..route }))
        }
        Object::Address(_) | Object::NextHop(_) => None,
    }
}

fn leftover(link: LinkIndex, device: usize, n: u8) -> Object {
    let (base, dst) = if device == 0 {
        (format!("10.5.20{n}.0"), format!("10.5.20{n}.0/24"))
    } else {
        (format!("fd00:5:0:20{n}::"), format!("fd00:5:0:20{n}::/64"))
    };
    let (addr, dst): (std::net::IpAddr, flannel_core::addr::Subnet) =
        (base.parse().unwrap(), dst.parse().unwrap());
    let mac = MacAddr([2, 7, 7, 7, 7, n]);
    match n {
        0 => Object::Neighbour(Neighbour { link, addr, mac }),
        1 => {
            Object::Fdb(FdbEntry { link, mac, dst: [192, 0, 2, 9].into(), port: None, vni: None, via: None })
        }
        _ => Object::Route(Route {
            dst,
            metric: Route::default_metric(dst.family()),
            via: Some(addr),
            link: Some(link),
            onlink: true,
            protocol: 3,
            mtu: None,
            plain: true,
            through: Through::Itself,
        }),
    }
}

async fn incremental_equals_full(objects: bool, steps: &[Step]) {
    let host = Host::new(objects, DUAL);
    host.kernel.add_link("cni0", 1450);
    // It begins with its first message.
    let (mut watch, mut seen) = (host.store.watch_leases(), LeaseTable::default());
    seen.apply(watch.next().await.unwrap().unwrap());
    let running = host.start().await;
    let mut done = Done::default();
    for step in steps {
        host.apply(step, &mut done).await;
    }
    // What the host and the operators have to mend; the rest is ours.
    host.kernel.refuse_nothing();
    host.underlay_back();
    for slot in &done.unreadable {
        host.store.remove(KEYS[*slot]);
    }
    for key in &done.foreign {
        if host
            .kernel
            .objects()
            .get(key)
            .is_some_and(|object| matches!(object, Object::Route(route) if route.protocol == 3))
        {
            host.kernel.delete(key, true);
        }
    }
    // The longest pause before another try, but no resync.
    tokio::time::sleep(Duration::from_secs(40)).await;
    if done.silent {
        resync().await;
    }
    while let Some(Some(update)) = watch.next().now_or_never() {
        seen.apply(update.unwrap());
    }
    assert_eq!(host.rest(&seen).await, vec![], "{:?}", *running.status.borrow());
    let status = running.status.borrow().clone();
    assert_eq!((status.refused(), status.device_problem(), status.underlay_problem()), (vec![], None, None));
    for peer in status.peer_list.iter() {
        let is_settled = matches!(peer.state, PeerState::Programmed | PeerState::Rejected(_));
        assert!(is_settled, "{peer:?}");
    }
    let peers = seen.iter().filter(|lease| lease.attrs.public_ips != host.underlay.published);
    let entries = status.peer_list.iter().map(|peer| peer.lease);
    assert!(entries.eq(peers.map(|lease| lease.key)), "{status:?}");
    running.stop().await;
}

fn run(objects: bool, steps: &[Step]) {
    // The jitter of pauses is the only chance in the loop.
    fastrand::seed(7);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(incremental_equals_full(objects, steps));
}

/// The entry for the first address must not be deleted while another record of the subnet is unreadable. That does not keep
/// the kernel from replacing it.
#[test]
fn a_peer_that_moves_and_returns_while_its_subnet_has_an_unreadable_record() {
    let wait = || Step::Wait(1);
    let steps =
        [Step::Dataless(0), Step::Put(3, 2, 2), wait(), Step::Put(3, 0, 2), wait(), Step::Put(3, 2, 2)];
    for objects in [false, true] {
        run(objects, &steps);
    }
}

/// The deletion of a route is refused, so its next-hop object stays; then somebody moves the route off it, which says when the object
/// can go.
#[test]
fn a_next_hop_object_whose_last_route_somebody_else_moved() {
    let steps = [
        Step::UnderlayGone,
        Step::Put(4, 0, 0),
        Step::Refuse(2),
        Step::UnderlayBack,
        Step::Wait(1),
        Step::Remove(4),
        Step::Wait(1),
        Step::Change(3, 0),
    ];
    run(true, &steps);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happened_the_loop_ends_where_a_full_look_would(
        objects in any::<bool>(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        run(objects, &steps);
    }
}
