//! A config that changes while two nodes run and their pods ping each other every millisecond, on the real
//! kernel: not one echo is lost, and no device is made anew.

use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use flannel_backend_vxlan::{NextHopObjects, VxlanBackend};
use flannel_core::addr::Mtu;
use flannel_core::backend::{Backend, NetworkStatus, Registration};
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::netlink::Netlink;
use flannel_core::netns::Netns as CoreNetns;
use flannel_core::subnet::{SubnetManager, renew_and_publish};
use flannel_core::subnet_file::SubnetFile;
use flannel_core::testing::FakeStore;
use flannel_core::underlay::{self, UnderlayOptions};
use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::netns::Netns;
use flannel_lab::ping::{PingOptions, Pinger, reaches};
use flannel_lab::pod::Pod;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::subnet_env::SubnetEnv;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(20);
const DEVICES: [&str; 2] = ["flannel.1", "flannel-v6.1"];

fn config(keys: &str) -> NetworkConfig {
    let text = format!(
        r#"{{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{{"Type":"vxlan"{keys}}}}}"#
    );
    NetworkConfig::parse(&text, LeaseSource::Store).unwrap()
}

/// The backend on a node, in a thread in its namespace.
struct Agent {
    status: watch::Receiver<NetworkStatus>,
    env: SubnetEnv,
    cancel: CancellationToken,
    thread: JoinHandle<()>,
}

impl Agent {
    fn start(netns: &Netns, store: &FakeStore, objects: NextHopObjects) -> Self {
        let path = format!("/run/{}.env", netns.name());
        let (netns, store, cancel) = (netns.clone(), store.clone(), CancellationToken::new());
        let (sender, started) = channel();
        let stop = cancel.clone();
        let agent = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(run(&store, objects, &sender, stop));
        };
        let thread = std::thread::spawn(move || netns.enter(agent).unwrap());
        let (status, file) = started.recv().expect("it registers");
        file.write(Path::new(&path)).unwrap();
        Self { status, env: SubnetEnv::read(Path::new(&path)).unwrap(), cancel, thread }
    }

    fn stop(self) {
        self.cancel.cancel();
        self.thread.join().unwrap();
    }
}

async fn run(
    store: &FakeStore,
    objects: NextHopObjects,
    started: &Sender<(watch::Receiver<NetworkStatus>, SubnetFile)>,
    cancel: CancellationToken,
) {
    let config = store.network_config().await.unwrap();
    let (netns, options) = (CoreNetns::current().unwrap(), UnderlayOptions::of_config(&config).iface("eth0"));
    let underlay = underlay::choose(&mut Netlink::open_in(&netns).unwrap(), &options).await.unwrap();
    let registration = Registration::new(&netns, &config, &underlay, store).chosen_by(&options);
    let backend = VxlanBackend::new().next_hop_objects(objects);
    let network = backend.register(registration).await.unwrap();
    let file = SubnetFile {
        networks: config.networks.map(|_, network| network.network),
        subnets: network.lease().key.subnets(),
        mtu: network.overlay_mtu(),
        ip_masq: false,
    };
    started.send((network.status(), file)).unwrap();
    let (lease, attrs) = (network.lease().clone(), network.attrs());
    tokio::select! {
        ended = network.run(store.watch_leases(), cancel) => ended.unwrap(),
        held = renew_and_publish(store, lease, attrs) => panic!("{held:?}"),
    }
}

#[test]
fn not_one_echo_is_lost_with_next_hop_objects() {
    in_sandbox(test_name!(), || change_all(NextHopObjects::Auto));
}

#[test]
fn not_one_echo_is_lost_with_plain_routes() {
    in_sandbox(test_name!(), || change_all(NextHopObjects::Off));
}

fn change_all(objects: NextHopObjects) {
    let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
    let nodes = [cluster.node(1), cluster.node(2)];
    let store = FakeStore::new(config(""));
    let agents = nodes.map(|node| Agent::start(node.netns(), &store, objects));
    let pods = [0, 1].map(|at| Pod::attach_plain(nodes[at], &agents[at].env).unwrap());
    let pingers = ping_all(&pods);
    let indexes = || {
        let index = |netns: &Netns, device| netns.link_index(device).unwrap().unwrap();
        nodes.map(|node| DEVICES.map(|device| index(node.netns(), device)))
    };
    let before = indexes();
    for (keys, mtu, learning, direct) in [
        (r#","MTU":1400"#, 1330, false, false),
        ("", 1430, false, false),
        (r#","Learning":true"#, 1430, true, false),
        ("", 1430, false, false),
        (r#","DirectRouting":true"#, 1430, false, true),
        ("", 1430, false, false),
        (r#","MTU":1350,"Learning":true,"DirectRouting":true,"VNI":9"#, 1280, true, true),
        ("", 1430, false, false),
    ] {
        store.set_config(config(keys));
        for (node, agent) in nodes.iter().zip(&agents) {
            eventually(SOON, &format!("{} with {keys:?}", node.name()), || {
                is_as(node.netns(), agent, mtu, learning, direct)
            });
            let restart = agent.status.borrow().restart_needed().unwrap_or_default();
            assert_eq!(restart.contains("Backend.VNI"), keys.contains("VNI"), "{restart}");
        }
        for pinger in &pingers {
            pinger.wait_for_replies(200, SOON).unwrap();
        }
        assert_eq!(indexes(), before, "{keys:?}: the devices are the same");
    }
    for pinger in pingers {
        let report = pinger.stop();
        assert!(report.received > 1600, "{report:?}");
        assert_eq!(report.lost, 0, "{report:?}");
    }
    agents.into_iter().for_each(Agent::stop);
}

/// Both ways, in both families, an echo every millisecond.
fn ping_all(pods: &[Pod; 2]) -> Vec<Pinger> {
    let options = PingOptions { interval: Duration::from_millis(1), ..PingOptions::default() };
    let mut pingers = Vec::new();
    for (from, to) in [(0, 1), (1, 0)] {
        let netns = pods[from].netns();
        for dst in pods[to].ipv4().into_iter().chain(pods[to].ipv6()) {
            eventually(SOON, "the first reply", || reaches(netns, dst).unwrap());
            pingers.push(Pinger::start(netns, dst, options.clone()).unwrap());
        }
    }
    pingers
}

/// Whether a node has what a config says; `overlay_mtu` is that of both families.
fn is_as(netns: &Netns, agent: &Agent, overlay_mtu: u32, learning: bool, direct: bool) -> Result<(), String> {
    let status = agent.status.borrow().clone();
    if status.overlay_mtu != Some(Mtu(overlay_mtu)) || status.device_problem().is_some() {
        return Err(format!("{status:?}"));
    }
    for (device, more) in DEVICES.into_iter().zip([20, 0]) {
        let link = netns.ip_json(&format!("link show {device}")).unwrap();
        let (mtu, learns) = (&link[0]["mtu"], &link[0]["linkinfo"]["info_data"]["learning"]);
        if mtu.as_u64() != Some(u64::from(overlay_mtu + more))
            || learns.as_bool().unwrap_or(false) != learning
        {
            return Err(link.to_string());
        }
    }
    for (family, device) in [("-4", DEVICES[0]), ("-6", DEVICES[1])] {
        let routes = netns.ip(&format!("{family} route show proto 102")).unwrap();
        let dev = format!("dev {} ", if direct { "eth0" } else { device });
        let to_peer = |line: &&str| line.contains("via ") || line.contains("nhid ");
        let to_peers: Vec<_> = routes.lines().filter(to_peer).collect();
        if to_peers.len() != 1 || !to_peers[0].contains(&dev) {
            return Err(routes);
        }
    }
    Ok(())
}
