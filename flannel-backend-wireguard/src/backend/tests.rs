//! The backend on a kernel, devices and a store in memory.

mod drift;
mod nat;
mod peers;
mod process;
mod restart;
mod rotation;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flannel_core::addr::{Family, LinkIndex, Mtu, PerFamily};
use flannel_core::backend::{NetworkStatus, Underlay};
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::dataplane::{Address, Object, Route, Through};
use flannel_core::kernel::LinkOp;
use flannel_core::lease::LeaseAttrs;
use flannel_core::subnet::SubnetManager as _;
use flannel_core::testing::{BackendSubject, FakeKernel, FakeStore, backend_contract};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::device::{Change, PeerChange, PeerState};
use crate::key::{PrivateKey, PublicKey};
use crate::testing::FakeDevices;

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"wireguard"}}"#;
const PEER: &str = "10.5.99.0-24&fd00:5:0:99::-64";

fn key(n: u8) -> PublicKey {
    PrivateKey([n; 32]).clamped().public()
}

/// The record of node `n`, whose underlay addresses end in it.
fn record(n: u8) -> String {
    let key = key(n);
    format!(
        r#"{{"PublicIP":"192.0.2.{n}","PublicIPv6":"2001:db8::{n}","BackendType":"wireguard","BackendData":{{"PublicKey":"{key}","Port":51820}},"BackendV6Data":{{"PublicKey":"{key}","Port":51821}}}}"#
    )
}

struct Host {
    kernel: FakeKernel,
    devices: FakeDevices,
    store: FakeStore,
    config: NetworkConfig,
    underlay: Underlay,
    previous: Option<State>,
    folder: tempfile::TempDir,
}

struct Running {
    status: watch::Receiver<NetworkStatus>,
    state: watch::Receiver<State>,
    attrs: watch::Receiver<LeaseAttrs>,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), BackendError>>,
}

impl Running {
    async fn stop(self) -> State {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
        self.state.borrow().clone()
    }
}

async fn settle() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

impl Host {
    fn new(config: &str) -> Self {
        let kernel = FakeKernel::default();
        let link = kernel.add_link("eth0", 1500);
        let config = NetworkConfig::parse(config, LeaseSource::Store).unwrap();
        let local = PerFamily { v4: "192.0.2.1".parse().ok(), v6: "2001:db8::1".parse().ok() };
        let underlay = Underlay::new("eth0", link, Mtu(1500), local);
        let (devices, previous) = (FakeDevices::default(), None);
        let store = FakeStore::new(config.clone());
        Self { kernel, devices, store, config, underlay, previous, folder: tempfile::tempdir().unwrap() }
    }

    fn backend(&self) -> WireguardBackend {
        let kernel = self.kernel.clone();
        WireguardBackend::with_kernel(move |_| Ok(Box::new(kernel.clone())), Arc::new(self.devices.clone()))
            .key_file(self.folder.path().join("wgkey"))
    }

    async fn register(&self) -> Result<Box<dyn Network>, BackendError> {
        let netns = Netns::current().unwrap();
        let registration = Registration::new(&netns, &self.config, &self.underlay, &self.store);
        self.backend().register(registration.previous(self.previous.as_ref())).await
    }

    async fn start(&self) -> Running {
        let network = self.register().await.unwrap();
        let (status, state, attrs) = (network.status(), network.state(), network.attrs());
        let cancel = CancellationToken::new();
        let task = tokio::spawn(network.run(self.store.watch_leases(), cancel.clone()));
        settle().await;
        Running { status, state, attrs, cancel, task }
    }

    fn link(&self, name: &str) -> LinkIndex {
        self.kernel.link_named(name).unwrap().index
    }

    fn key(&self) -> PrivateKey {
        key_file::read(&self.folder.path().join("wgkey")).unwrap().unwrap()
    }

    fn peers(&self, name: &str) -> Vec<(PublicKey, PeerState)> {
        self.devices.state(self.link(name)).peers.into_iter().collect()
    }
}

fn route(dst: &str, link: LinkIndex) -> Route {
    Route::by_device(dst.parse().unwrap(), link)
}

#[tokio::test(start_paused = true)]
async fn it_keeps_what_every_backend_promises() {
    let folder = tempfile::tempdir().unwrap();
    let devices = FakeDevices::default();
    let make = |kernel: FakeKernel| {
        let open = move |_: &Netns| Ok(Box::new(kernel.clone()) as Box<dyn Kernel>);
        let backend = WireguardBackend::with_kernel(open, Arc::new(devices.clone()));
        Box::new(backend.key_file(folder.path().join("wgkey"))) as Box<dyn Backend>
    };
    let (first, second) = (record(9), record(8));
    let peers = [(PEER, first.as_str()), ("10.5.98.0-24&fd00:5:0:98::-64", second.as_str())];
    let unusable = r#"{"PublicIP":"192.0.2.9","BackendType":"wireguard","BackendData":{"Port":1}}"#;
    let (config, ends_with_process) = (DUAL, false);
    backend_contract(BackendSubject { make: &make, config, peers, unusable, ends_with_process }).await;
}

#[tokio::test(start_paused = true)]
async fn each_family_has_its_device_with_key_port_peers_and_routes() {
    let host = Host::new(DUAL);
    host.store.put(PEER, &record(9));
    let running = host.start().await;
    let own = host.key().public();
    let published = running.attrs.borrow().to_json();
    assert_eq!(
        published,
        format!(
            r#"{{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"wireguard","BackendData":{{"PublicKey":"{own}","Port":51820}},"BackendV6Data":{{"PublicKey":"{own}","Port":51821}}}}"#
        )
    );
    for (name, port, at, subnet) in [
        ("flannel-wg", 51820, "192.0.2.9:51820", "10.5.99.0/24"),
        ("flannel-wg-v6", 51821, "[2001:db8::9]:51821", "fd00:5:0:99::/64"),
    ] {
        let link = host.kernel.link_named(name).unwrap();
        assert_eq!((link.mtu, link.up), (Mtu(1420), true));
        let state = host.devices.state(link.index);
        assert_eq!((state.private_key, state.listen_port), (Some(host.key()), port));
        let peer = PeerState {
            endpoint: Some(at.parse().unwrap()),
            allowed_ips: [subnet.parse().unwrap()].into(),
            ..PeerState::default()
        };
        assert_eq!(state.peers.into_iter().collect::<Vec<_>>(), [(key(9), peer)]);
        assert_eq!(
            host.kernel.objects().get(&Object::Route(route(subnet, link.index)).key()),
            Some(Object::Route(route(subnet, link.index)))
        );
    }
    let blackholes = host.kernel.objects();
    let blackholes = blackholes.iter().filter_map(|object| match object {
        Object::Route(route) if route.through == Through::Nowhere => Some(route.dst.to_string()),
        _ => None,
    });
    assert_eq!(blackholes.collect::<Vec<_>>(), ["10.5.0.0/16", "fd00:5::/48"]);
    assert_eq!(running.status.borrow().datapath.as_deref(), Some("WireGuard in memory"));
    let devices = running.state.borrow().devices.clone();
    assert_eq!(devices, ["flannel-wg", "flannel-wg-v6"].map(|name| Device::of_kind(name, "wireguard")));
}

#[tokio::test(start_paused = true)]
async fn key_and_port_come_before_the_device_is_up_and_the_blackhole_before_all_peers() {
    let host = Host::new(DUAL);
    host.store.put(PEER, &record(9));
    let network = host.register().await.unwrap();
    let link = host.link("flannel-wg");
    let changes = host.devices.take_changes();
    assert_eq!(changes[..2], [Change::PrivateKey(host.key()), Change::ListenPort(51820)]);
    assert!(host.devices.state(link).peers.is_empty());
    let ops = host.kernel.take_link_ops();
    assert!(matches!(&ops[..2], [LinkOp::Create { .. }, LinkOp::SetUp(_)]), "{ops:?}");
    let there = host.kernel.objects();
    let blackhole = Route::blackhole("10.5.0.0/16".parse().unwrap());
    assert_eq!(there.get(&Object::Route(blackhole).key()), Some(Object::Route(blackhole)));
    drop(network);
}

#[tokio::test(start_paused = true)]
async fn live_keys_of_the_config_change_devices_in_place() {
    let host = Host::new(DUAL);
    host.store.put(PEER, &record(9));
    let mut running = host.start().await;
    host.kernel.take_link_ops();
    host.devices.take_changes();
    let psk = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";
    let text = DUAL.replace(
        r#""Type":"wireguard""#,
        &format!(
            r#""Type":"wireguard","ListenPort":4000,"MTU":1400,"PSK":"{psk}","PersistentKeepaliveInterval":25"#
        ),
    );
    host.store.set_config(NetworkConfig::parse(&text, LeaseSource::Store).unwrap());
    settle().await;
    let link = host.kernel.link_named("flannel-wg").unwrap();
    assert_eq!(link.mtu, Mtu(1320));
    let state = host.devices.state(link.index);
    assert_eq!(state.listen_port, 4000);
    let peer = &state.peers[&key(9)];
    assert_eq!((peer.keepalive, &peer.preshared_key), (25, &Some(psk.parse().unwrap())));
    assert!(running.attrs.borrow_and_update().to_json().contains(r#""Port":4000"#), "the port is published");
    assert_eq!(running.status.borrow().restart_needed(), None);
    let mode = DUAL.replace(r#""Type":"wireguard""#, r#""Type":"wireguard","Mode":"auto""#);
    host.store.set_config(NetworkConfig::parse(&mode, LeaseSource::Store).unwrap());
    settle().await;
    assert!(running.status.borrow().restart_needed().unwrap().contains("Backend.Mode"));
}

#[tokio::test(start_paused = true)]
async fn in_the_other_modes_one_device_carries_both_families() {
    let host = Host::new(&DUAL.replace(r#""Type":"wireguard""#, r#""Type":"wireguard","Mode":"ipv6""#));
    host.store.put(PEER, &record(9));
    let _running = host.start().await;
    assert!(host.kernel.link_named("flannel-wg-v6").is_none());
    let [(of, peer)] = &host.peers("flannel-wg")[..] else { panic!("one peer") };
    assert_eq!((*of, peer.endpoint), (key(9), "[2001:db8::9]:51820".parse().ok()));
    let subnets: BTreeSet<_> = ["10.5.99.0/24", "fd00:5:0:99::/64"].map(|it| it.parse().unwrap()).into();
    assert_eq!(peer.allowed_ips, subnets);
}

/// Probes blame the port that carries the family, and say sizes as they are on the underlay.
#[tokio::test(start_paused = true)]
async fn probes_know_each_familys_port_and_what_is_added() {
    for (keys, ports, added) in [
        ("", [51820, 51821], [Some(60), Some(80)]),
        (r#","Mode":"ipv6","ListenPort":4000"#, [4000, 4000], [Some(80), Some(80)]),
        (r#","Mode":"ipv4""#, [51820, 51820], [Some(60), Some(60)]),
        (r#","Mode":"auto""#, [51820, 51820], [None, None]),
    ] {
        let host = Host::new(&DUAL.replace(r#""Type":"wireguard""#, &format!(r#""Type":"wireguard"{keys}"#)));
        let probing = host.register().await.unwrap().probing().unwrap();
        let tunnel = probing.tunnel.unwrap();
        assert_eq!(Family::ALL.map(|family| tunnel.port(family)), ports, "{keys}");
        assert_eq!(Family::ALL.map(|family| probing.overhead.get(family).copied()), added, "{keys}");
        assert_eq!(tunnel.wrap(Family::V4, None, &[0; 64]), None, "only the device can make its messages");
    }
}

#[tokio::test(start_paused = true)]
async fn the_status_reads_the_sessions_of_both_devices_and_says_how_to_look_at_them() {
    let host = Host::new(DUAL);
    host.store.put(PEER, &record(9));
    let network = host.register().await.unwrap();
    let (status, inspector) = (network.status(), network.inspector().unwrap());
    let probing = network.probing().unwrap();
    let cancel = CancellationToken::new();
    let task = tokio::spawn(network.run(host.store.watch_leases(), cancel.clone()));
    settle().await;
    let before = status.borrow().sessions.clone();
    let last = SystemTime::now().checked_sub(Duration::from_secs(3));
    let reads = host.devices.reads();
    host.devices.edit(host.link("flannel-wg-v6"), |state| {
        let peer = state.peers.get_mut(&key(9)).unwrap();
        (peer.last_handshake, peer.rx_bytes) = (last, 92);
    });
    let sessions = before.read();
    let shown: Vec<_> = sessions.iter().map(|it| (&*it.device, &it.families[..], it.state.name())).collect();
    assert_eq!(
        shown,
        [("flannel-wg", &[Family::V4][..], "none"), ("flannel-wg-v6", &[Family::V6][..], "alive")]
    );
    assert_eq!((sessions[1].last_handshake, sessions[1].received_bytes), (last, 92));
    assert!(sessions.iter().all(|session| session.lease == PEER.parse().unwrap()));
    assert_eq!(host.devices.reads(), reads + 2, "one read a device, when somebody asks");
    assert_eq!(probing.sessions, before, "probes ask the same");
    let commands: Vec<_> = inspector.peer(PEER.parse().unwrap()).await.unwrap();
    let commands: Vec<_> = commands.iter().map(|it| (it.command.as_str(), it.present)).collect();
    for name in ["flannel-wg", "flannel-wg-v6"] {
        let command = format!("wg show {name} | grep -A 7 -F {}", key(9));
        assert!(commands.contains(&(&command, true)), "{commands:?}");
    }
    // A look at the devices makes no other handle, which would be another status.
    host.kernel.edit_link("flannel-wg", true, |link| link.mtu = Mtu(1300));
    settle().await;
    assert_eq!(status.borrow().sessions, before);
    cancel.cancel();
    task.await.unwrap().unwrap();
    assert_eq!(before.read(), [], "who keeps a status does not keep the devices");
}
