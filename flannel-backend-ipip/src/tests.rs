//! The backend on a fake kernel and a store in memory. The real kernel is in `tests/vm.rs` and the tests of the agent.

mod nic;

use std::time::Duration;

use flannel_core::addr::{Family, LinkIndex, Mtu, PerFamily};
use flannel_core::backend::{NetworkStatus, Underlay};
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::dataplane::{Address, Dataplane, Object, Op, Route};
use flannel_core::kernel::{Kernel, Link, LinkAddress, LinkAttr, LinkKind, LinkOp};
use flannel_core::subnet::SubnetManager;
use flannel_core::testing::{BackendSubject, FakeKernel, FakeStore, backend_contract};
use flannel_core::underlay::UnderlayOptions;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"ipip"}}"#;
const DIRECT: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"ipip","DirectRouting":true}}"#;
const PEER: &str = r#"{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"ipip"}"#;
const FAR: &str = r#"{"PublicIP":"198.51.100.9","PublicIPv6":null,"BackendType":"ipip"}"#;
const PEER_KEY: &str = "10.5.99.0-24";
const FAR_KEY: &str = "10.5.98.0-24";

struct Host {
    kernel: FakeKernel,
    store: FakeStore,
    underlay: Underlay,
    config: NetworkConfig,
}

fn parse(config: &str) -> NetworkConfig {
    NetworkConfig::parse(config, LeaseSource::Store).unwrap()
}

impl Host {
    fn new(config: &str) -> Self {
        let kernel = FakeKernel::default();
        let link = kernel.add_link("eth0", 1500);
        give(&kernel, link, "192.0.2.1/24");
        let on_link = Route::by_node("192.0.2.0/24".parse().unwrap(), [192, 0, 2, 1].into(), link);
        kernel.put(Object::Route(Route { via: None, protocol: 2, plain: false, ..on_link }), false);
        let addrs = PerFamily { v4: "192.0.2.1".parse().ok(), v6: None };
        let underlay = Underlay::new("eth0", link, Mtu(1500), addrs);
        let config = parse(config);
        Self { kernel, store: FakeStore::new(config.clone()), underlay, config }
    }

    async fn register(&self) -> Result<Box<dyn Network>, BackendError> {
        let kernel = self.kernel.clone();
        let backend = IpipBackend::with_kernel(move |_| Ok(Box::new(kernel.clone())));
        let (netns, options) =
            (Netns::current().unwrap(), UnderlayOptions::of_config(&self.config).iface("eth0"));
        let registration =
            Registration::new(&netns, &self.config, &self.underlay, &self.store).chosen_by(&options);
        backend.register(registration).await
    }

    async fn start(&self) -> Running {
        let network = self.register().await.unwrap();
        let (status, state) = (network.status(), network.state());
        let cancel = CancellationToken::new();
        let task = tokio::spawn(network.run(self.store.watch_leases(), cancel.clone()));
        settle().await;
        Running { status, state, cancel, task }
    }

    fn device(&self) -> Option<Link> {
        self.kernel.link_named(device::NAME)
    }

    fn route(dst: &str, via: [u8; 4], link: LinkIndex) -> Object {
        Object::Route(Route { onlink: true, ..Route::by_node(dst.parse().unwrap(), via.into(), link) })
    }

    /// The objects of ours, so without the route of the underlay.
    fn objects(&self) -> Dataplane {
        let is_ours = |object: &Object| !matches!(object, Object::Route(route) if route.protocol == 2);
        self.kernel.objects().iter().filter(is_ours).collect()
    }

    /// What is desired with the peer on these links.
    fn desired(&self, device: LinkIndex, peer: LinkIndex) -> Dataplane {
        let own = self.store.leases();
        let own = own.iter().find(|lease| lease.attrs.public_ips.v4 == self.underlay.published.v4).unwrap();
        let base =
            flannel_core::addr::Subnet::containing(own.subnet(Family::V4).unwrap().base(), 32).unwrap();
        let address = Object::Address(Address { link: device, addr: base.into() });
        [address, Self::route("10.5.99.0/24", [192, 0, 2, 9], peer)].into_iter().collect()
    }
}

struct Running {
    status: watch::Receiver<NetworkStatus>,
    state: watch::Receiver<State>,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), BackendError>>,
}

impl Running {
    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn give(kernel: &FakeKernel, link: LinkIndex, addr: &str) {
    let addr = addr.parse().unwrap();
    let (global, deprecated, permanent, temporary, tentative) = (true, false, false, false, false);
    kernel.add_address(LinkAddress { link, addr, global, deprecated, permanent, temporary, tentative });
}

/// Waits until the status says all that there is to say, however much it said just before.
async fn told() {
    tokio::time::sleep(Duration::from_millis(251)).await;
}

async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn it_keeps_what_every_backend_promises() {
    let make = |kernel: FakeKernel| {
        Box::new(IpipBackend::with_kernel(move |_| Ok(Box::new(kernel.clone())))) as Box<dyn Backend>
    };
    for config in [CONFIG, DIRECT] {
        let peers = [(PEER_KEY, PEER), (FAR_KEY, FAR)];
        let unusable = r#"{"BackendType":"ipip"}"#;
        backend_contract(BackendSubject { make: &make, config, peers, unusable, ends_with_process: false })
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn it_publishes_upstreams_bytes_and_makes_upstreams_device() {
    let host = Host::new(CONFIG);
    host.store.put(PEER_KEY, PEER);
    let network = host.register().await.unwrap();
    assert_eq!(network.overlay_mtu(), Mtu(1480));
    let json = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"ipip"}"#;
    assert_eq!(network.lease().attrs.to_json(), json);
    drop(network);
    let mut running = host.start().await;
    let device = host.device().unwrap();
    assert_eq!((device.mtu, device.up, device.kind.as_deref()), (Mtu(1480), true, Some("ipip")));
    assert_eq!(host.objects(), host.desired(device.index, device.index));
    assert_eq!(running.state.borrow_and_update().devices, [Device::of_kind("flannel.ipip", "ipip")]);
    let path = running.status.borrow().peer_list.iter().next().unwrap().path.clone();
    assert_eq!(path.v4.unwrap().as_str(), "ipip");
    running.stop().await;
    host.kernel.take_ops();
    host.kernel.take_link_ops();
    let running = host.start().await;
    tokio::time::sleep(Duration::from_secs(67)).await;
    assert_eq!(
        (host.kernel.take_ops(), host.kernel.take_link_ops()),
        (vec![], vec![]),
        "a restart writes nothing"
    );
    running.stop().await;
}

/// The device with this local address, as Go flannel and the kernel leave it.
async fn made_by_go(host: &Host, local: [u8; 4]) -> Link {
    let spec = device::DeviceSpec { local: local.into(), mtu: Mtu(1480) };
    let mut kernel = host.kernel.clone();
    kernel.change_link(&spec.create()).await.unwrap();
    let index = host.device().unwrap().index;
    kernel.change_link(&LinkOp::SetUp(index)).await.unwrap();
    host.kernel.take_link_ops();
    host.device().unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_go_left_is_adopted_without_a_write() {
    let host = Host::new(CONFIG);
    host.store.put(PEER_KEY, PEER);
    let device = made_by_go(&host, [192, 0, 2, 1]).await;
    let Object::Route(route) = Host::route("10.5.99.0/24", [192, 0, 2, 9], device.index) else { panic!() };
    host.kernel.put(Object::Route(Route { protocol: 3, ..route }), false);
    let gone = Route { protocol: 3, dst: "10.5.97.0/24".parse().unwrap(), ..route };
    host.kernel.put(Object::Route(gone), false);
    let running = host.start().await;
    assert_eq!(host.kernel.take_link_ops(), [], "the device is as it should be");
    let ops = host.kernel.take_ops();
    let [Op::Create(Object::Address(_)), Op::Delete(left)] = ops[..] else { panic!("{ops:?}") };
    assert_eq!(
        left,
        Object::Route(gone),
        "the route of a node that left goes, that of the other stays as it is"
    );
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_wrong_device_is_changed_in_place_and_a_hopeless_one_made_again() {
    let host = Host::new(CONFIG);
    host.store.put(PEER_KEY, PEER);
    let device = made_by_go(&host, [192, 0, 2, 77]).await;
    let running = host.start().await;
    let ops = host.kernel.take_link_ops();
    assert!(matches!(ops[..], [LinkOp::Change(index, _)] if index == device.index), "{ops:?}");
    // Somebody changes it; the link itself looks as before.
    let remote = LinkKind::new("ipip", [LinkAttr::new(3, [192, 0, 2, 9])]);
    host.kernel.clone().change_link(&LinkOp::Change(device.index, remote)).await.unwrap();
    host.kernel.edit_link(device::NAME, true, |_| {});
    settle().await;
    let again = host.device().unwrap();
    assert_ne!(again.index, device.index);
    assert_eq!(host.objects(), host.desired(again.index, again.index));
    host.kernel.edit_link(device::NAME, true, |link| (link.mtu, link.up) = (Mtu(900), false));
    settle().await;
    let mended = host.device().unwrap();
    assert_eq!((mended.index, mended.mtu, mended.up), (again.index, Mtu(1480), true));
    host.kernel.edit_link("eth0", true, |link| link.mtu = Mtu(1400));
    told().await;
    assert_eq!(
        (host.device().unwrap().mtu, running.status.borrow().overlay_mtu),
        (Mtu(1380), Some(Mtu(1380)))
    );
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_link_of_that_name_stays_and_is_named() {
    let host = Host::new(CONFIG);
    let create = LinkOp::Create {
        name: device::NAME.to_owned(),
        mac: None,
        mtu: None,
        kind: LinkKind::new("dummy", []),
    };
    host.kernel.clone().change_link(&create).await.unwrap();
    host.kernel.take_link_ops();
    let error = host.register().await.err().unwrap().to_string();
    assert!(
        error.contains("no IPIP tunnel (dummy)") && error.contains("ip link set flannel.ipip name"),
        "{error}"
    );
    assert_eq!(host.kernel.take_link_ops(), []);
    host.kernel.delete_link(device::NAME);
    assert!(host.register().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_with_the_same_address_and_a_missing_module_are_named() {
    let host = Host::new(CONFIG);
    let other = LinkOp::Create {
        name: "tun9".to_owned(),
        mac: None,
        mtu: None,
        kind: LinkKind::new("ipip", [LinkAttr::new(2, [192, 0, 2, 1])]),
    };
    host.kernel.clone().change_link(&other).await.unwrap();
    for (errno, words) in [(libc::EEXIST, "ip link del tun9"), (libc::EOPNOTSUPP, "modprobe ipip")] {
        host.kernel.refuse_link(move |op| matches!(op, LinkOp::Create { .. }).then_some(errno));
        let error = host.register().await.err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_that_changes_costs_no_route() {
    let host = Host::new(CONFIG);
    host.store.put(PEER_KEY, PEER);
    let network = host.register().await.unwrap();
    let attrs = network.attrs();
    let cancel = CancellationToken::new();
    let task = tokio::spawn(network.run(host.store.watch_leases(), cancel.clone()));
    settle().await;
    host.kernel.take_ops();
    host.kernel.take_link_ops();
    host.kernel.remove_address("192.0.2.1".parse().unwrap());
    give(&host.kernel, host.underlay.link, "192.0.2.2/24");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(attrs.borrow().public_ips.v4, "192.0.2.2".parse().ok());
    let ops = host.kernel.take_link_ops();
    let [LinkOp::Change(_, kind)] = &ops[..] else { panic!("{ops:?}") };
    assert_eq!(kind.get(2), Some(&[192, 0, 2, 2][..]));
    assert_eq!(host.kernel.take_ops(), []);
    cancel.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn direct_routing_replaces_one_route_and_is_live() {
    let host = Host::new(CONFIG);
    host.store.put(PEER_KEY, PEER);
    host.store.put(FAR_KEY, FAR);
    let running = host.start().await;
    let device = host.device().unwrap().index;
    let lower = host.underlay.link;
    host.kernel.take_ops();
    for (config, link, path) in [(DIRECT, lower, "direct"), (CONFIG, device, "ipip")] {
        host.store.set_config(parse(config));
        told().await;
        let near = Host::route("10.5.99.0/24", [192, 0, 2, 9], link);
        let ops = host.kernel.take_ops();
        assert_eq!(ops, [Op::Replace(near)], "that of the far node stays in the tunnel");
        let status = running.status.borrow().clone();
        let near = status.peer_list.get(&PEER_KEY.parse().unwrap()).unwrap();
        assert_eq!(near.path.v4.as_ref().unwrap().as_str(), path);
        assert_eq!(status.restart_needed(), None);
    }
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_direct_route_of_go_is_marked_in_place() {
    let host = Host::new(DIRECT);
    host.store.put(PEER_KEY, PEER);
    let want = Host::route("10.5.99.0/24", [192, 0, 2, 9], host.underlay.link);
    let Object::Route(route) = want else { panic!() };
    host.kernel.put(Object::Route(Route { protocol: 3, ..route }), false);
    let running = host.start().await;
    assert!(host.kernel.take_ops().contains(&Op::Replace(want)));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn ipv6_is_refused_before_anything_is_done() {
    let dual = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"ipip"}}"#;
    let host = Host { config: parse(dual), ..Host::new(CONFIG) };
    let error = host.register().await.err().unwrap().to_string();
    assert!(error.contains("EnableIPv6 = true") && error.contains("IPv4 only"), "{error}");
    assert!(host.store.leases().is_empty() && host.device().is_none());
}
