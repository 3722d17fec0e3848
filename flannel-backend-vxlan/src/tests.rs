//! The backend on a fake kernel and a store in memory. The real kernel is in `tests/`.

mod checksums;
mod convergence;
mod deleted;
mod direct;
mod incremental;
mod live;
mod moved;
mod next_hops;
mod nic;
mod told;
mod unserved;

use std::sync::Arc;
use std::time::Duration;

use flannel_core::addr::{LinkIndex, Vni};
use flannel_core::config::LeaseSource;
use flannel_core::dataplane::{Address, Dataplane, Neighbour, Object, Op, Route, Through};
use flannel_core::kernel::{LinkAddress, LinkOp};
use flannel_core::lease::Lease;
use flannel_core::subnet::SubnetManager;
use flannel_core::testing::{BackendSubject, FakeKernel, FakeStore, backend_contract};
use futures::StreamExt;
use tokio::task::JoinHandle;

use flannel_core::addr::Mtu;
use flannel_core::backend::NetworkStatus;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use flannel_core::netns::Netns;
use flannel_core::underlay::UnderlayOptions;

use super::*;

const DUAL: &str =
    r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
const PEER: &str = r#"{"PublicIP":"192.0.2.9","PublicIPv6":"2001:db8::9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:09"},"BackendV6Data":{"VNI":1,"VtepMAC":"0e:00:00:00:00:09"}}"#;
const PEER_KEY: &str = "10.5.99.0-24&fd00:5:0:99::-64";

fn config(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text, LeaseSource::Store).unwrap()
}

struct Host {
    kernel: FakeKernel,
    store: FakeStore,
    underlay: Underlay,
    config: NetworkConfig,
    previous: Option<State>,
    next_hop_objects: NextHopObjects,
    blackholes: bool,
}

impl Host {
    /// A host whose kernel has next-hop objects or not.
    fn new(objects: bool, text: &str) -> Self {
        let kernel = FakeKernel::default();
        if !objects {
            kernel.lack_next_hops();
        }
        let link = kernel.add_link("eth0", 1500);
        give(&kernel, link, "192.0.2.1/24");
        give(&kernel, link, "2001:db8::1/64");
        let config = config(text);
        let addr = |family| match family {
            Family::V4 => "192.0.2.1".parse().unwrap(),
            Family::V6 => "2001:db8::1".parse().unwrap(),
        };
        let addrs = PerFamily::from_fn(|family| config.networks.get(family).map(|_| addr(family)));
        let underlay = Underlay::new("eth0", link, Mtu(1500), addrs);
        Self {
            kernel,
            store: FakeStore::new(config.clone()),
            underlay,
            config,
            previous: None,
            next_hop_objects: NextHopObjects::Auto,
            blackholes: false,
        }
    }

    async fn register(&self) -> Result<Box<dyn Network>, BackendError> {
        let kernel = self.kernel.clone();
        let backend = VxlanBackend::with_kernel(move |_| Ok(Box::new(kernel.clone())))
            .next_hop_objects(self.next_hop_objects);
        let (config, underlay, previous) = (&self.config, &self.underlay, self.previous.as_ref());
        let options = UnderlayOptions::of_config(config).iface("eth0");
        let netns = Netns::current().unwrap();
        let registration = Registration::new(&netns, config, underlay, &self.store)
            .previous(previous)
            .chosen_by(&options)
            .blackholes(self.blackholes);
        backend.register(registration).await
    }

    /// Registers and runs.
    async fn start(&self) -> Running {
        let network = self.register().await.unwrap();
        let status = network.status();
        let cancel = CancellationToken::new();
        let task = tokio::spawn(network.run(self.store.watch_leases(), cancel.clone()));
        settle().await;
        Running { status, cancel, task }
    }
}

struct Running {
    status: watch::Receiver<NetworkStatus>,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), BackendError>>,
}

impl Running {
    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// Gives a link an address, as DHCP would.
fn give(kernel: &FakeKernel, link: LinkIndex, addr: &str) {
    let addr = addr.parse().unwrap();
    let (global, deprecated, permanent, temporary, tentative) = (true, false, false, false, false);
    kernel.add_address(LinkAddress { link, addr, global, deprecated, permanent, temporary, tentative });
}

async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

async fn resync() {
    tokio::time::sleep(Duration::from_secs(67)).await;
}

/// Runs every test on a kernel with and on one without next-hop objects.
macro_rules! in_both_forms {
    ($($test:ident),+ $(,)?) => {
        in_both_forms!(@form objects true: $($test),+);
        in_both_forms!(@form plain false: $($test),+);
    };
    (@form $form:ident $objects:literal: $($test:ident),+) => {
        mod $form {
            $(
                #[tokio::test(start_paused = true)]
                async fn $test() {
                    super::$test($objects).await;
                }
            )+
        }
    };
}

in_both_forms!(
    makes_a_device_a_family_and_publishes_its_mac,
    the_mac_is_the_records_else_the_stored_one_else_the_devices_else_random,
    a_restart_writes_nothing,
    a_start_with_thousands_of_leases_takes_in_what_it_causes,
    every_change_by_hand_is_repaired,
    leftovers_in_our_network_go_and_strangers_stay,
    a_changed_config_recreates_the_device_and_a_foreign_link_is_refused,
    an_underlay_link_that_goes_and_returns_brings_the_devices_back,
    routes_of_host_gw_are_moved_in_place_and_others_stay,
    the_device_of_another_vni_goes_once_the_new_one_has_all,
);

#[tokio::test(start_paused = true)]
async fn it_keeps_what_every_backend_promises() {
    for objects in [true, false] {
        let make = |kernel: FakeKernel| {
            if !objects {
                kernel.lack_next_hops();
            }
            Box::new(VxlanBackend::with_kernel(move |_| Ok(Box::new(kernel.clone())))) as Box<dyn Backend>
        };
        let other = PEER.replace("192.0.2.9", "192.0.2.8").replace("db8::9", "db8::8").replace(":09", ":08");
        let peers = [(PEER_KEY, PEER), ("10.5.98.0-24&fd00:5:0:98::-64", &other)];
        let unusable = r#"{"PublicIP":"192.0.2.9","BackendType":"vxlan","BackendData":7}"#;
        let (config, ends_with_process) = (DUAL, false);
        backend_contract(BackendSubject { make: &make, config, peers, unusable, ends_with_process }).await;
    }
}

/// How many objects there are for this node and one peer, each in two families.
fn all(objects: bool) -> usize {
    if objects { 10 } else { 8 }
}

/// However many peers there are, nothing is read again because of what their objects caused, on a kernel that keeps some thousand
/// notifications, as real ones do.
async fn a_start_with_thousands_of_leases_takes_in_what_it_causes(objects: bool) {
    let per_peer = if objects { 4 } else { 3 };
    let mut reads = Vec::new();
    for count in [1, 3000_u16] {
        let host = Host::new(objects, DUAL);
        host.kernel.hold_notifications(5000);
        for n in 1..=count {
            let [high, low] = n.to_be_bytes();
            let mac = format!("00:00:{high:02x}:{low:02x}");
            let attrs =
                PEER.replace("192.0.2.9", &format!("172.16.{high}.{low}")).replace("00:00:00:09", &mac);
            let attrs = attrs.replace("db8::9", &format!("db8:9::{n:x}"));
            let [high, low] = (n * 4).to_be_bytes();
            host.store.put(&format!("10.5.{high}.{low}-30&fd00:5:0:{n:x}::-64"), &attrs);
        }
        let running = host.start().await;
        settle().await;
        let own = all(objects) - 2 * per_peer;
        assert_eq!(host.kernel.objects().len(), own + 2 * per_peer * usize::from(count));
        reads.push(host.kernel.take_dumps());
        running.stop().await;
    }
    assert_eq!(reads[0], reads[1]);
}

async fn makes_a_device_a_family_and_publishes_its_mac(objects: bool) {
    let host = Host::new(objects, DUAL);
    let network = host.register().await.unwrap();
    assert_eq!(network.overlay_mtu(), Mtu(1430), "the smaller of both");
    for (name, mtu) in [("flannel.1", 1450), ("flannel-v6.1", 1430)] {
        let link = host.kernel.link_named(name).unwrap();
        assert_eq!((link.mtu, link.up), (Mtu(mtu), true));
        let vxlan = link.vxlan.unwrap();
        assert_eq!((vxlan.vni, vxlan.port, vxlan.lower), (Vni::new(1).unwrap(), 8472, Some(LinkIndex(1))));
    }
    let v4 = host.kernel.link_named("flannel.1").unwrap().mac.unwrap();
    let v6 = host.kernel.link_named("flannel-v6.1").unwrap().mac.unwrap();
    let json = network.lease().attrs.to_json();
    assert_eq!(
        json,
        format!(
            r#"{{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{v4}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"{v6}"}}}}"#
        )
    );
}

async fn the_mac_is_the_records_else_the_stored_one_else_the_devices_else_random(objects: bool) {
    let v4 = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
    let mac = |host: &Host| host.kernel.link_named("flannel.1").unwrap().mac.unwrap();
    let drawn: Vec<MacAddr> = std::iter::repeat_with(|| Host::new(objects, v4))
        .take(2)
        .map(|host| async move {
            host.register().await.unwrap();
            mac(&host)
        })
        .collect::<futures::stream::FuturesOrdered<_>>()
        .collect()
        .await;
    assert!(drawn[0] != drawn[1] && drawn.iter().all(|mac| mac.0[0] & 3 == 2), "{drawn:?}");

    let on_device = MacAddr([2, 0, 0, 0, 0, 0x77]);
    let other = Host::new(objects, v4);
    other.register().await.unwrap();
    other.kernel.edit_link("flannel.1", false, |link| link.mac = Some(on_device));
    let mut fresh = Host { store: FakeStore::new(config(v4)), ..other };
    fresh.register().await.unwrap();
    assert_eq!(mac(&fresh), on_device, "adopted");

    let record = |mac: u8| {
        format!(
            r#"{{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{{"VtepMAC":"0a:00:00:00:00:{mac:02x}"}}}}"#
        )
    };
    fresh.store = FakeStore::new(config(v4));
    let own = Lease::decode("10.5.7.0-24", record(2).as_bytes(), 1).unwrap();
    fresh.previous = Some(State::default().own(own));
    fresh.register().await.unwrap();
    assert_eq!(mac(&fresh).to_string(), "0a:00:00:00:00:02", "stored");

    fresh.store.put(&fresh.store.leases()[0].to_string(), &record(1));
    fresh.register().await.unwrap();
    assert_eq!(mac(&fresh).to_string(), "0a:00:00:00:00:01", "peers know the recorded one");
}

async fn a_restart_writes_nothing(objects: bool) {
    let host = Host::new(objects, DUAL);
    host.store.put(PEER_KEY, PEER);
    let running = host.start().await;
    assert_eq!(running.status.borrow().peers, 1);
    assert_eq!(host.kernel.objects().len(), all(objects));
    running.stop().await;
    host.kernel.take_ops();
    host.kernel.take_link_ops();
    let before = host.kernel.objects();
    let running = host.start().await;
    resync().await;
    let mut ops = host.kernel.take_ops();
    // Where there are no next-hop objects, one is tried at each start.
    ops.retain(|op| objects || !matches!(op.object(), Object::NextHop(_)));
    assert_eq!((ops, host.kernel.take_link_ops()), (vec![], vec![]));
    assert_eq!(host.kernel.objects(), before);
    assert!(running.status.borrow().synced);
}

async fn every_change_by_hand_is_repaired(objects: bool) {
    let host = Host::new(objects, DUAL);
    host.store.put(PEER_KEY, PEER);
    let _running = host.start().await;
    let want = host.kernel.objects();
    for (announced, name) in [(true, "flannel.1"), (false, "flannel-v6.1"), (false, "flannel.1")] {
        let right = host.kernel.link_named(name).unwrap();
        host.kernel.edit_link(name, announced, |link| {
            link.mtu = Mtu(1280);
            link.mac = Some(MacAddr([2, 9, 9, 9, 9, 9]));
            link.up = false;
            link.vxlan.as_mut().unwrap().learning = true;
        });
        if announced {
            settle().await;
        } else {
            resync().await;
        }
        let mut repaired = host.kernel.link_named(name).unwrap();
        repaired.carrier = right.carrier;
        assert_eq!(repaired, right);
        assert_eq!(host.kernel.objects(), want);
    }
    host.kernel.delete_link("flannel.1");
    settle().await;
    let index = host.kernel.link_named("flannel.1").unwrap().index;
    assert!(
        host.kernel.objects().iter().any(|object| matches!(object, Object::Neighbour(n) if n.link == index))
    );
    assert_eq!(host.kernel.objects().len(), want.len(), "all peers are back on the new device");
}

async fn leftovers_in_our_network_go_and_strangers_stay(objects: bool) {
    let host = Host::new(objects, DUAL);
    host.store.put(PEER_KEY, PEER);
    let running = host.start().await;
    let want = host.kernel.objects();
    running.stop().await;
    let link = host.kernel.link_named("flannel.1").unwrap().index;
    let mac = MacAddr([2, 0, 0, 0, 0, 5]);
    let leftover_dst = "10.5.200.0/24".parse().unwrap();
    let leftovers = [
        Object::Route(Route {
            dst: leftover_dst,
            metric: 0,
            via: Some([10, 5, 200, 0].into()),
            link: Some(link),
            onlink: true,
            through: Through::Itself,
            protocol: 3,
            mtu: None,
            plain: true,
        }),
        Object::Address(Address { link, addr: "10.5.200.0/32".parse().unwrap() }),
        Object::Neighbour(Neighbour { link, addr: [10, 5, 200, 0].into(), mac }),
    ];
    let route = |dst: &str, protocol| {
        let dst = dst.parse().unwrap();
        let via = Some([172, 16, 0, 2].into());
        Object::Route(Route {
            dst,
            metric: 0,
            via,
            link: Some(link),
            onlink: true,
            through: Through::Itself,
            protocol,
            mtu: None,
            plain: true,
        })
    };
    let strangers = [
        route("172.16.9.0/24", 3),
        route("0.0.0.0/0", 3),
        // The kernel's own, for an address of ours.
        route("10.5.201.0/24", 2),
        Object::Address(Address { link, addr: "172.16.0.1/32".parse().unwrap() }),
        Object::Neighbour(Neighbour { link, addr: [172, 16, 0, 2].into(), mac }),
    ];
    for object in leftovers.iter().chain(&strangers) {
        host.kernel.put(*object, false);
    }
    let _running = host.start().await;
    let all: Dataplane = want.iter().chain(strangers).collect();
    assert_eq!(host.kernel.objects(), all);
}

async fn a_changed_config_recreates_the_device_and_a_foreign_link_is_refused(objects: bool) {
    let host = Host::new(objects, r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#);
    host.register().await.unwrap();
    host.kernel.take_link_ops();
    let gbp =
        Host { config: config(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","GBP":true}}"#), ..host };
    gbp.register().await.unwrap();
    let ops = gbp.kernel.take_link_ops();
    assert!(matches!(ops[..], [LinkOp::Delete(_), LinkOp::Create { .. }, LinkOp::SetUp(_)]), "{ops:?}");

    let host = Host::new(objects, r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#);
    host.kernel.add_link("flannel.1", 1500);
    let error = host.register().await.err().unwrap().to_string();
    assert!(error.contains("flannel.1") && error.contains("remove or rename"), "{error}");
    assert!(host.store.leases().is_empty(), "nothing is published that can't be reached");
}

async fn an_underlay_link_that_goes_and_returns_brings_the_devices_back(objects: bool) {
    let host = Host::new(objects, DUAL);
    host.store.put(PEER_KEY, PEER);
    let running = host.start().await;
    for name in ["flannel.1", "flannel-v6.1", "eth0"] {
        host.kernel.delete_link(name);
    }
    settle().await;
    assert_eq!(running.status.borrow().device_problem().as_deref(), Some("underlay link eth0 is gone"));
    host.kernel.add_link("eth0", 1400);
    host.kernel.edit_link("eth0", true, |_| {});
    settle().await;
    let status = running.status.borrow().clone();
    assert_eq!((status.device_problem(), status.overlay_mtu), (None, Some(Mtu(1330))));
    assert_eq!(host.kernel.link_named("flannel.1").unwrap().mtu, Mtu(1350));
    assert_eq!(host.kernel.objects().len(), all(objects));
}

async fn routes_of_host_gw_are_moved_in_place_and_others_stay(objects: bool) {
    let mut host = Host::new(objects, DUAL);
    let link = host.underlay.link;
    let route = |dst: &str, protocol| {
        let (dst, via) = (dst.parse().unwrap(), "192.0.2.9".parse().ok());
        Object::Route(Route {
            dst,
            metric: 0,
            via,
            link: Some(link),
            onlink: false,
            through: Through::Itself,
            protocol,
            mtu: None,
            plain: true,
        })
    };
    let stranger = route("10.5.97.0/24", 3);
    // A marked one that is wanted, a marked one that is not, and one that Go wrote where we knew the node.
    for object in [route("10.5.99.0/24", 102), route("10.5.98.0/24", 102), route("10.5.96.0/24", 3), stranger]
    {
        host.kernel.put(object, false);
    }
    let lease = Lease::decode("10.5.96.0-24", br#"{"PublicIP":"192.0.2.9"}"#, 1).unwrap();
    let leases = [(lease.key, Arc::new(lease.into()))].into();
    let mut previous = State::default();
    (previous.backend, previous.leases) = ("host-gw".into(), leases);
    host.previous = Some(previous);
    host.store.put(PEER_KEY, PEER);
    let _running = host.start().await;
    let ops = host.kernel.take_ops();
    let of_shared = |op: &&Op| op.object().key() == route("10.5.99.0/24", 102).key();
    let moved: Vec<_> = ops.iter().filter(of_shared).collect();
    assert!(matches!(moved[..], [Op::Replace(_)]), "{moved:?}");
    let there = host.kernel.objects();
    assert_eq!(there.len(), all(objects) + 1, "{there:?}");
    assert!(there.get(&stranger.key()).is_some());
}

async fn the_device_of_another_vni_goes_once_the_new_one_has_all(objects: bool) {
    let mut host = Host::new(objects, r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#);
    host.store.put("10.5.99.0-24", PEER);
    let running = host.start().await;
    host.previous = Some(host.register().await.unwrap().state().borrow().clone());
    running.stop().await;
    host.config = config(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#);
    let _running = host.start().await;
    assert!(host.kernel.link_named("flannel.1").is_none());
    let link = host.kernel.link_named("flannel.2").unwrap().index;
    assert_eq!(host.kernel.objects().len(), all(objects) / 2);
    assert!(
        host.kernel.objects().iter().any(|object| matches!(object, Object::Route(r) if r.link == Some(link)))
    );
}
