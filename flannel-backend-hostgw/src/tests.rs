//! The backend on a fake kernel and a store in memory. The real kernel is in the tests of the agent.

mod nic;

use std::time::Duration;

use flannel_core::addr::{Family, LinkIndex, MacAddr, Vni};
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::dataplane::{Address, Dataplane, Object, Op, Route, Through};
use flannel_core::kernel::{Link, LinkAddress, LinkOp, VxlanLink};
use flannel_core::state_file::Device;
use flannel_core::subnet::SubnetManager;
use flannel_core::testing::{BackendSubject, FakeKernel, FakeStore, backend_contract};
use tokio::task::JoinHandle;

use flannel_core::addr::Mtu;
use flannel_core::backend::NetworkStatus;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use flannel_core::netns::Netns;
use flannel_core::underlay::UnderlayOptions;

use super::*;

const DUAL: &str =
    r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"host-gw"}}"#;
const PEER: &str = r#"{"PublicIP":"192.0.2.9","PublicIPv6":"2001:db8::9","BackendType":"host-gw"}"#;
const PEER_KEY: &str = "10.5.99.0-24&fd00:5:0:99::-64";

struct Host {
    kernel: FakeKernel,
    store: FakeStore,
    underlay: Underlay,
    config: NetworkConfig,
    previous: Option<State>,
}

impl Host {
    fn new() -> Self {
        let kernel = FakeKernel::default();
        let link = kernel.add_link("eth0", 1500);
        give(&kernel, link, "192.0.2.1/24");
        give(&kernel, link, "2001:db8::1/64");
        let config = NetworkConfig::parse(DUAL, LeaseSource::Store).unwrap();
        let addrs = PerFamily { v4: "192.0.2.1".parse().ok(), v6: "2001:db8::1".parse().ok() };
        let underlay = Underlay::new("eth0", link, Mtu(1500), addrs);
        Self { kernel, store: FakeStore::new(config.clone()), underlay, config, previous: None }
    }

    async fn register(&self) -> Result<Box<dyn Network>, BackendError> {
        let kernel = self.kernel.clone();
        let backend = HostGwBackend::with_kernel(move |_| Ok(Box::new(kernel.clone())));
        let (netns, options) =
            (Netns::current().unwrap(), UnderlayOptions::of_config(&self.config).iface("eth0"));
        let registration = Registration::new(&netns, &self.config, &self.underlay, &self.store)
            .previous(self.previous.as_ref())
            .chosen_by(&options);
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

#[tokio::test(start_paused = true)]
async fn it_keeps_what_every_backend_promises() {
    let make = |kernel: FakeKernel| {
        Box::new(HostGwBackend::with_kernel(move |_| Ok(Box::new(kernel.clone())))) as Box<dyn Backend>
    };
    let other = PEER.replace("192.0.2.9", "192.0.2.8").replace("db8::9", "db8::8");
    let peers = [(PEER_KEY, PEER), ("10.5.98.0-24&fd00:5:0:98::-64", &other)];
    let unusable = r#"{"BackendType":"host-gw"}"#;
    let (config, ends_with_process) = (DUAL, false);
    backend_contract(BackendSubject { make: &make, config, peers, unusable, ends_with_process }).await;
}

/// Gives a link an address, as DHCP would.
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

fn route(dst: &str, via: &str, link: LinkIndex) -> Route {
    let dst: flannel_core::addr::Subnet = dst.parse().unwrap();
    let metric = Route::default_metric(dst.family());
    Route {
        dst,
        metric,
        via: via.parse().ok(),
        link: Some(link),
        onlink: false,
        through: Through::Itself,
        protocol: 102,
        mtu: None,
        plain: true,
    }
}

fn routes_of_peer(link: LinkIndex) -> Dataplane {
    let (v4, v6) = (route("10.5.99.0/24", "192.0.2.9", link), route("fd00:5:0:99::/64", "2001:db8::9", link));
    [Object::Route(v4), Object::Route(v6)].into_iter().collect()
}

#[tokio::test(start_paused = true)]
async fn publishes_upstreams_bytes_and_makes_a_route_a_family() {
    let host = Host::new();
    host.store.put(PEER_KEY, PEER);
    let network = host.register().await.unwrap();
    assert_eq!(network.overlay_mtu(), Mtu(1500), "nothing is added to packets");
    let json = r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"host-gw"}"#;
    assert_eq!(network.lease().attrs.to_json(), json);
    drop(network);
    let running = host.start().await;
    assert_eq!(host.kernel.objects(), routes_of_peer(host.underlay.link));
    assert_eq!(host.kernel.take_link_ops(), [], "the host's link is not touched");
    running.stop().await;
    host.kernel.take_ops();
    let _running = host.start().await;
    tokio::time::sleep(Duration::from_secs(67)).await;
    assert_eq!(host.kernel.take_ops(), [], "a restart writes nothing");
}

#[tokio::test(start_paused = true)]
async fn the_state_names_the_nodes_once_the_kernel_follows() {
    let host = Host::new();
    host.store.put(PEER_KEY, PEER);
    let mut running = host.start().await;
    assert!(running.state.has_changed().unwrap());
    let state = running.state.borrow_and_update().clone();
    assert_eq!((state.backend.as_str(), state.devices.len(), state.leases.len()), ("host-gw", 0, 1));
    assert_eq!(state.leases[&PEER_KEY.parse().unwrap()].attrs.public_ips.v4, "192.0.2.9".parse().ok());
    host.store.remove(PEER_KEY);
    settle().await;
    assert!(running.state.has_changed().unwrap() && running.state.borrow_and_update().leases.is_empty());
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!running.state.has_changed().unwrap(), "said once");
}

#[tokio::test(start_paused = true)]
async fn nat_is_refused_in_either_family() {
    for family in Family::ALL {
        let mut host = Host::new();
        let elsewhere = PerFamily { v4: "203.0.113.1".parse().ok(), v6: "2001:db8:ffff::1".parse().ok() };
        *host.underlay.published.get_mut(family) = elsewhere.get(family).copied();
        let error = host.register().await.err().unwrap().to_string();
        assert!(error.contains(&format!("{family} address")) && error.contains("NAT"), "{error}");
        assert!(host.store.leases().is_empty(), "nothing is published");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_off_link_is_named_and_tried_when_addresses_change() {
    let host = Host::new();
    let link = host.underlay.link;
    host.kernel.refuse(|op| match op.object() {
        Object::Route(route) if route.via == "192.0.2.9".parse().ok() => Some(libc::ENETUNREACH),
        _ => None,
    });
    host.store.put(PEER_KEY, PEER);
    host.store.put("10.5.50.0-24", r#"{"PublicIP":"192.0.2.5","BackendType":"host-gw"}"#);
    let running = host.start().await;
    let refused = running.status.borrow().refused();
    let want = "subnet 10.5.99.0/24: its node 192.0.2.9 is not on-link on eth0 (IPv4): host-gw needs all nodes on \
                one layer 2 segment";
    assert_eq!(refused, [want]);
    assert_eq!(host.kernel.objects().len(), 2, "the others are not affected");
    // Long enough for the pause between tries to be half a minute.
    tokio::time::sleep(Duration::from_secs(300)).await;
    host.kernel.refuse_nothing();
    host.kernel.take_ops();
    settle().await;
    assert_eq!(host.kernel.take_ops(), [], "it waits");
    host.kernel.put(Object::Address(Address { link, addr: "192.0.2.129/25".parse().unwrap() }), true);
    settle().await;
    let route = Object::Route(route("10.5.99.0/24", "192.0.2.9", link));
    assert_eq!(host.kernel.take_ops(), [Op::Create(route)]);
    let status = running.status.borrow().clone();
    assert_eq!((status.refused().len(), status.repairs), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_off_link_node_that_moves_is_tried_at_once() {
    let host = Host::new();
    host.kernel.refuse(|op| match op.object() {
        Object::Route(route) if route.via == "192.0.2.9".parse().ok() => Some(libc::EHOSTUNREACH),
        _ => None,
    });
    host.store.put(PEER_KEY, PEER);
    let running = host.start().await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    host.store.put(PEER_KEY, &PEER.replace("192.0.2.9", "192.0.2.10"));
    settle().await;
    assert_eq!(host.kernel.objects().len(), 2);
    assert!(running.status.borrow().refused().is_empty());
}

#[tokio::test(start_paused = true)]
async fn routes_of_a_go_node_are_marked_in_place() {
    let host = Host::new();
    host.store.put(PEER_KEY, PEER);
    let want = routes_of_peer(host.underlay.link);
    for object in want.iter() {
        let Object::Route(route) = object else { unreachable!() };
        host.kernel.put(Object::Route(Route { protocol: 3, ..route }), false);
    }
    let _running = host.start().await;
    assert_eq!(host.kernel.objects(), want);
    let ops = host.kernel.take_ops();
    assert!(ops.iter().all(|op| matches!(op, Op::Replace(_))) && ops.len() == 2, "{ops:?}");
    // The same for a node whose lease comes later, and for a route that somebody writes anew.
    let later = route("10.5.50.0/24", "192.0.2.5", host.underlay.link);
    host.kernel.put(Object::Route(Route { protocol: 3, ..later }), false);
    host.store.put("10.5.50.0-24", r#"{"PublicIP":"192.0.2.5","BackendType":"host-gw"}"#);
    settle().await;
    assert_eq!(host.kernel.objects().get(&Object::Route(later).key()), Some(Object::Route(later)));
    host.kernel.put(Object::Route(Route { protocol: 3, ..later }), true);
    settle().await;
    assert_eq!(host.kernel.objects().get(&Object::Route(later).key()), Some(Object::Route(later)));
}

#[tokio::test(start_paused = true)]
async fn a_link_that_goes_down_or_away_brings_its_routes_back() {
    let host = Host::new();
    host.store.put(PEER_KEY, PEER);
    let running = host.start().await;
    let want = host.kernel.objects();
    host.kernel.edit_link("eth0", true, |link| link.up = false);
    for object in want.iter() {
        host.kernel.delete(&object.key(), false);
    }
    told().await;
    assert_eq!(running.status.borrow().device_problem().as_deref(), Some("underlay link eth0 is down"));
    assert!(running.status.borrow().refused().is_empty(), "one reason is enough");
    host.kernel.edit_link("eth0", true, |link| link.up = true);
    told().await;
    assert_eq!(host.kernel.objects(), want);
    host.kernel.delete_link("eth0");
    told().await;
    assert_eq!(running.status.borrow().device_problem().as_deref(), Some("underlay link eth0 is gone"));
    let link = host.kernel.add_link("eth0", 1400);
    host.kernel.edit_link("eth0", true, |_| {});
    told().await;
    assert_eq!(host.kernel.objects(), routes_of_peer(link));
    assert_eq!(running.status.borrow().overlay_mtu, Some(Mtu(1400)));
}

/// A device as the VXLAN backend makes it, and the route of the peer through it.
async fn vxlan_was_here(host: &Host) -> Route {
    let vni = Vni::new(1).unwrap();
    let vxlan = VxlanLink {
        vni,
        port: 8472,
        local: None,
        lower: Some(host.underlay.link),
        learning: false,
        gbp: false,
        foreign: false,
    };
    let mac = MacAddr([2, 0, 0, 0, 0, 7]);
    let create = LinkOp::create_vxlan("flannel.1", mac, Mtu(1450), &vxlan);
    host.kernel.clone().change_link(&create).await.unwrap();
    let Link { index, .. } = host.kernel.link_named("flannel.1").unwrap();
    let route = Route { onlink: true, ..route("10.5.99.0/24", "10.5.99.0", index) };
    // One that was adopted from a Go node, so that nothing but the device says that it is ours.
    host.kernel.put(Object::Route(Route { protocol: 3, ..route }), false);
    host.kernel.put(Object::Route(Route { dst: "10.5.98.0/24".parse().unwrap(), ..route }), false);
    route
}

#[tokio::test(start_paused = true)]
async fn a_device_of_before_is_removed_after_its_routes_moved() {
    let mut host = Host::new();
    vxlan_was_here(&host).await;
    let device = Device::vxlan("flannel.1", Vni::new(1).unwrap());
    let mut previous = State::default().devices([device]);
    previous.backend = "vxlan".into();
    host.previous = Some(previous);
    host.store.put(PEER_KEY, PEER);
    let network = host.register().await.unwrap();
    assert!(host.kernel.link_named("flannel.1").is_some(), "nothing goes before the leases are known");
    let mut state = network.state();
    let _task = tokio::spawn(network.run(host.store.watch_leases(), CancellationToken::new()));
    settle().await;
    let ops = host.kernel.take_ops();
    assert!(matches!(ops[..], [Op::Replace(_), Op::Create(_), Op::Delete(_)]), "{ops:?}");
    assert!(host.kernel.link_named("flannel.1").is_none());
    assert_eq!(host.kernel.objects(), routes_of_peer(host.underlay.link));
    assert!(state.borrow_and_update().devices.is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_a_stored_state_an_old_device_stays() {
    let host = Host::new();
    let route = vxlan_was_here(&host).await;
    let marked = Route { metric: 5, ..route };
    host.kernel.put(Object::Route(marked), false);
    host.store.put(PEER_KEY, PEER);
    let running = host.start().await;
    assert!(host.kernel.link_named("flannel.1").is_some());
    assert!(running.status.borrow().refused()[0].contains("10.5.99.0/24 is in the way"));
    let objects = host.kernel.objects();
    assert_eq!(objects.get(&Object::Route(marked).key()), None, "marked routes go from any link");
    assert_eq!(objects.len(), 2, "{objects:?}");
}

#[tokio::test(start_paused = true)]
async fn a_new_underlay_address_is_published_and_one_that_is_no_gateway_is_not() {
    let host = Host::new();
    let network = host.register().await.unwrap();
    let (attrs, status) = (network.attrs(), network.status());
    let cancel = CancellationToken::new();
    let task = tokio::spawn(network.run(host.store.watch_leases(), cancel.clone()));
    settle().await;
    host.kernel.remove_address("192.0.2.1".parse().unwrap());
    give(&host.kernel, host.underlay.link, "192.0.2.2/24");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let published = attrs.borrow().public_ips;
    assert_eq!(published, PerFamily { v4: "192.0.2.2".parse().ok(), v6: "2001:db8::1".parse().ok() });
    assert_eq!(status.borrow().underlay_problem(), None);
    cancel.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_config_that_changes_is_named_but_for_keys_without_a_meaning() {
    let host = Host::new();
    let running = host.start().await;
    for (text, named) in [
        (DUAL.replace("host-gw\"", "host-gw\",\"VNI\":7"), None),
        (DUAL.replace("host-gw", "vxlan"), Some("Backend.Type")),
        (DUAL.replace("10.5.0.0/16", "10.4.0.0/15"), Some("Network")),
        (DUAL.to_owned(), None),
    ] {
        host.store.set_config(NetworkConfig::parse(&text, LeaseSource::Store).unwrap());
        told().await;
        let restart = running.status.borrow().restart_needed();
        let want = named.map(|key| format!("network config: {key} changed"));
        assert_eq!(
            restart.as_deref().map(|why| &why[..want.as_ref().map_or(0, String::len)]),
            want.as_deref()
        );
    }
    assert!(running.status.borrow().synced);
}
