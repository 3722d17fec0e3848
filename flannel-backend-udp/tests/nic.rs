//! Whatever befalls the NIC, what belongs on the TUN stays: without its route pods' packets would leave by the
//! default route. The backend itself, on the real kernel.

use std::process::Command;
use std::time::Duration;

use flannel_backend_udp::{UdpBackend, UdpOptions};
use flannel_core::addr::{LinkIndex, Mtu, PerFamily};
use flannel_core::backend::{Backend, Registration, Underlay};
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::dataplane::ObjectKey;
use flannel_core::kernel::{Kernel, KernelEvent};
use flannel_core::netlink::Netlink;
use flannel_core::netns::Netns;
use flannel_core::subnet::SubnetManager;
use flannel_core::testing::FakeStore;
use flannel_core::underlay::UnderlayOptions;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use tokio_util::sync::CancellationToken;

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#;
const NAMES: [&str; 3] = ["eth0", "ens3", "enp0s3"];

fn try_ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split_whitespace()).output().unwrap().status.success()
}

fn ip(arguments: &str) {
    assert!(try_ip(arguments), "ip {arguments}");
}

/// The NIC by its other end, which nobody touches; `None` while it is pulled out.
fn nic() -> Option<String> {
    NAMES.into_iter().find(|name| try_ip(&format!("link show {name} type veth"))).map(str::to_owned)
}

fn plug(name: &str) {
    ip(&format!("link add {name} type veth peer name peer0"));
    ip("link set peer0 up");
    ip(&format!("link set {name} up"));
    ip(&format!("address add 192.0.2.1/24 dev {name}"));
}

/// Lets one thing befall it. An MTU of 80 leaves a TUN less than it can have.
fn befall(rng: &mut fastrand::Rng) -> String {
    let name = NAMES[rng.usize(..NAMES.len())];
    let Some(nic) = nic() else {
        plug(name);
        return format!("plug {name}");
    };
    let step = match rng.usize(..8) {
        0 => format!("link set {nic} down"),
        1 => format!("link set {nic} up"),
        2 => format!("link set {nic} name {name}"),
        3 => format!("address flush dev {nic} scope global"),
        4 => format!("address add 192.0.2.1/24 dev {nic}"),
        5 => format!("link del {nic}"),
        6 => format!("link set {nic} mtu {}", [80, 1400, 1500][rng.usize(..3)]),
        _ => "link set peer0 down".to_owned(),
    };
    // What is so already, the kernel refuses.
    try_ip(&step);
    step
}

fn heal() {
    if nic().is_none() {
        plug("eth0");
    }
    let name = nic().unwrap();
    try_ip(&format!("link set {name} name eth0"));
    for step in ["link set peer0 up", "link set eth0 up", "link set eth0 mtu 1500"] {
        ip(step);
    }
    try_ip("address add 192.0.2.1/24 dev eth0");
}

/// What the kernel announced that left a link.
async fn gone_from(kernel: &mut Netlink, tun: LinkIndex) -> Vec<KernelEvent> {
    let mut gone = Vec::new();
    while let Ok(events) = tokio::time::timeout(Duration::from_millis(1), kernel.events()).await {
        gone.extend(events.into_iter().filter(|event| match event {
            KernelEvent::LinkGone(link, _) | KernelEvent::Gone(ObjectKey::Address(link, _)) => *link == tun,
            KernelEvent::Gone(ObjectKey::Route(dst, _)) => dst.to_string() == "10.5.0.0/16",
            KernelEvent::Overrun => panic!("notifications were lost"),
            _ => false,
        }));
    }
    gone
}

async fn the_tun_keeps_what_it_has(seed: u64) {
    let config = NetworkConfig::parse(CONFIG, LeaseSource::Store).unwrap();
    let store = FakeStore::new(config.clone());
    let addr = PerFamily { v4: "192.0.2.1".parse().ok(), v6: None };
    let mut kernel = Netlink::open().unwrap();
    let link = kernel.link("eth0").await.unwrap().unwrap().index;
    let underlay = Underlay::new("eth0", link, Mtu(1500), addr);
    let (netns, options) = (Netns::current().unwrap(), UnderlayOptions::of_config(&config).iface("eth0"));
    let registration = Registration::new(&netns, &config, &underlay, &store).chosen_by(&options);
    let network = UdpBackend::new(UdpOptions::default()).register(registration).await.unwrap();
    store.put("10.5.99.0-24", r#"{"PublicIP":"192.0.2.9"}"#);
    let (mut status, cancel) = (network.status(), CancellationToken::new());
    let task = tokio::spawn(network.run(store.watch_leases(), cancel.clone()));
    status.wait_for(|status| status.synced && status.peers == 1).await.unwrap();
    let tun = kernel.link("flannel0").await.unwrap().unwrap().index;
    assert_eq!(gone_from(&mut kernel, tun).await, []);
    let mut rng = fastrand::Rng::with_seed(seed);
    for step in 0..24 {
        let what = befall(&mut rng);
        assert_eq!(gone_from(&mut kernel, tun).await, [], "seed {seed}, step {step}: after {what}");
    }
    heal();
    let well = status.wait_for(|status| {
        status.device_problem().is_none()
            && status.underlay_problem().is_none()
            && status.overlay_mtu == Some(Mtu(1472))
    });
    let waited = tokio::time::timeout(Duration::from_secs(60), well).await.map(|well| well.unwrap().clone());
    let status = waited.unwrap_or_else(|_| panic!("seed {seed}: not well again"));
    assert_eq!((status.peers, status.refused()), (1, vec![]), "seed {seed}");
    assert_eq!(gone_from(&mut kernel, tun).await, [], "seed {seed}: at the end");
    cancel.cancel();
    task.await.unwrap().unwrap();
}

#[test]
fn whatever_befalls_the_nic_the_tun_keeps_what_it_has() {
    in_sandbox(test_name!(), || {
        // IPv6 of the host itself says this and that on the TUN.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for seed in 0..6 {
            plug("eth0");
            runtime.block_on(the_tun_keeps_what_it_has(seed));
            ip("link del eth0");
        }
    });
}
