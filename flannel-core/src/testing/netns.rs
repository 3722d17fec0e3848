//! A contract of every backend: all its effects are in the network namespace for which it is registered.
//!
//! [`netns_contract`] runs agents for two namespaces in one process, from threads in a third namespace. That one has
//! links, devices, sockets and rules that a misdirected effect would change. It must stay as it is, byte for byte, and
//! twenty restarts must leak nothing.

use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use tokio_util::sync::CancellationToken;

use super::FakeStore;
use crate::addr::{Family, PerFamily};
use crate::backend::{Backend, Registration};
use crate::config::{LeaseSource, NetworkConfig};
use crate::firewall::rules::{Ours, Range, Wanted};
use crate::firewall::{Firewall, ManagerChoice, Managers};
use crate::netlink::Netlink;
use crate::netns::Netns;
use crate::subnet::SubnetManager;
use crate::underlay::{self, UnderlayOptions};

const RESTARTS: usize = 20;
/// How long to wait for anything, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a running backend has in its namespace, from which the contract sees that it worked.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    /// The network config. Its network must cover 10.5.99.0/24, the subnet of the one peer.
    pub config: &'static str,
    /// The peer's record.
    pub peer: &'static str,
    /// A device of the backend's own, with the value of its sysctl `accept_ra`; `None` if it makes none.
    pub device: Option<(&'static str, &'static str)>,
    /// The beginning of a route of the backend, as `ip route` prints it.
    pub route: &'static str,
    /// The UDP port that it opens, if any.
    pub port: Option<u16>,
}

/// Checks the backend that `make` makes. Panics with the difference if it has an effect outside of its namespace, or
/// none in it.
///
/// Makes namespaces and devices: the caller must be root in a network and mount namespace of its own, in which nothing
/// else happens. Needs `ip`, `bridge`, `nft` and `iptables`.
pub fn netns_contract(footprint: &Footprint, make: impl Fn() -> Box<dyn Backend>) {
    let here = Netns::current().expect("/proc is mounted");
    set_up_host();
    // Targets for misdirected effects by name or port.
    for link in ["flannel.1", "flannel0"] {
        ip(&format!("link add {link} type veth peer name {link}-peer"));
        ip(&format!("address add 198.51.100.1/32 dev {link}"));
    }
    let socket = footprint.port.map(|port| UdpSocket::bind(("0.0.0.0", port)).expect("the port is free"));
    run("nft", "add table inet strangers");
    let hosts = [fresh(), fresh()];
    for host in &hosts {
        host.run(set_up_host).expect("it can be entered");
    }
    let (before, mut first) = (snapshot(), None);

    for restart in 0..RESTARTS {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("threads can be started");
        runtime.block_on(async {
            let backends = [make(), make()];
            let by_nft = Agent::start(&*backends[0], &hosts[0], footprint, ManagerChoice::Nftables);
            let by_iptables = Agent::start(&*backends[1], &hosts[1], footprint, ManagerChoice::Iptables);
            let both = Box::pin(async { tokio::join!(by_nft, by_iptables) });
            let agents = tokio::time::timeout(PATIENCE, both);
            let (by_nft, by_iptables) = agents.await.expect("both agents come up");
            assert_same(&before, &snapshot(), restart);
            let rules = ["nft list table ip flannel-ipv4", "iptables-save"];
            for ((host, rules), table) in hosts.iter().zip(rules).zip(["masquerade", "FLANNEL-POSTRTG"]) {
                host.run(|| assert_at_work(footprint, rules, table)).expect("it can be entered");
            }
            by_nft.stop().await;
            by_iptables.stop().await;
        });
        drop(runtime);
        assert_same(&before, &snapshot(), restart);
        // The first run also leaves what the runtime keeps for the whole process: a pipe for signals.
        let counts = first.get_or_insert_with(counts);
        // A joined thread is still listed for a moment.
        let begin = Instant::now();
        while self::counts() != *counts && begin.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        assert_eq!(
            self::counts(),
            *counts,
            "descriptors and threads after the first start and start {restart}"
        );
    }
    assert!(here.is_current(), "the calling thread is where it was");
    drop(socket);
}

/// A new namespace, which is gone once the handle is dropped.
fn fresh() -> Netns {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may");
        Netns::current().expect("/proc is mounted")
    });
    made.join().expect("it has no reason to panic")
}

/// Gives the calling thread's namespace a NIC `eth0` with 192.0.2.1/24 that the kernel does not change by itself.
fn set_up_host() {
    for sysctl in ["default/addr_gen_mode", "all/addr_gen_mode"] {
        fs::write(format!("/proc/sys/net/ipv6/conf/{sysctl}"), "1").expect("/proc/sys can be written");
    }
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("/proc/sys can be written");
    ip("link set lo up");
    ip("link add eth0 type veth peer name peer0");
    ip("link set peer0 up");
    ip("link set eth0 up");
    ip("address add 192.0.2.1/24 dev eth0");
    ip("route add default via 192.0.2.254");
}

struct Agent {
    /// Kept, since its watches end when it is dropped.
    _store: FakeStore,
    cancel: CancellationToken,
    network: tokio::task::JoinHandle<Result<(), crate::backend::BackendError>>,
    firewall: tokio::task::JoinHandle<()>,
}

impl Agent {
    /// Returns once the peer's objects and the rules are in the kernel.
    async fn start(backend: &dyn Backend, netns: &Netns, of: &Footprint, choice: ManagerChoice) -> Self {
        let config = NetworkConfig::parse(of.config, LeaseSource::Store).expect("the config can be used");
        let (store, options) = (FakeStore::new(config.clone()), UnderlayOptions::of_config(&config));
        store.put("10.5.99.0-24", of.peer);
        let mut kernel = Netlink::open_in(netns).expect("netlink");
        let underlay = underlay::choose(&mut kernel, &options).await.expect("eth0 is there");
        let registration = Registration::new(netns, &config, &underlay, &store).chosen_by(&options);
        let network = backend.register(registration).await.expect("it registers");
        let range = |family| {
            let (network, subnet) =
                (config.networks.get(family)?.network, network.lease().key.subnet(family)?);
            Some(Range { network, subnet })
        };
        let ranges = PerFamily::from_fn(range);
        let managers = Managers::open(netns, choice, &[Family::V4], Duration::from_secs(5)).await;
        let wanted = Wanted { ranges, masquerade: true, fully_random: false, forward: true };
        let firewall = Firewall::new(managers.expect("both are installed"), wanted, Ours::AnyRange);
        let (mut status, mut rules) = (network.status(), firewall.status());
        let cancel = CancellationToken::new();
        let agent = Self {
            network: tokio::spawn(network.run(store.watch_leases(), cancel.clone())),
            firewall: tokio::spawn(firewall.run(cancel.clone())),
            cancel,
            _store: store,
        };
        let synced = status.wait_for(|status| status.synced && status.peers == 1).await;
        assert_eq!(synced.expect("it runs").refused(), [""; 0]);
        rules.wait_for(|status| status.in_place).await.expect("it runs");
        agent
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.network.await.expect("no panic").expect("it stops in order");
        self.firewall.await.expect("no panic");
    }
}

/// Checks, in the namespace, that the agent did its work there.
fn assert_at_work(of: &Footprint, rules: &str, named: &str) {
    let here = Netns::current().expect("/proc is mounted");
    if let Some((device, accept_ra)) = of.device {
        assert!(ip("link show").contains(&format!(": {device}: ")), "{device} is there");
        let now = here.sysctl(&format!("ipv6/conf/{device}/accept_ra")).expect("the device has the sysctl");
        assert_eq!(now, accept_ra, "accept_ra of {device}");
    }
    let routes = ip("route show");
    assert!(routes.lines().any(|line| line.starts_with(of.route)), "{} in {routes}", of.route);
    if let Some(port) = of.port {
        let sockets = here.proc_net("udp").expect("the table is there");
        assert!(sockets.contains(&format!(":{port:04X} ")), "port {port} in {sockets}");
    }
    let (program, args) = rules.split_once(' ').unwrap_or((rules, ""));
    let shown = run(program, args);
    assert!(shown.contains(named), "{named} in {shown}");
}

/// Everything in a namespace that an agent may change.
type Snapshot = BTreeMap<String, String>;

/// Reads the calling thread's namespace.
fn snapshot() -> Snapshot {
    let mut all = Snapshot::new();
    for command in [
        "ip -d address show",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip nexthop show",
        "ip rule show",
        "ip neigh show",
        "bridge fdb show",
        "nft list ruleset",
    ] {
        let (program, args) = command.split_once(' ').unwrap_or((command, ""));
        all.insert(command.to_owned(), run(program, args));
    }
    let here = Netns::current().expect("/proc is mounted");
    // Netlink sockets of this process: those of the programs above are gone with them.
    for table in ["netlink", "udp", "udp6", "raw", "raw6", "ip_tables_names", "ip6_tables_names"] {
        let shown = here.proc_net(table).unwrap_or_default();
        let sockets = shown.lines().map(|line| line.split_whitespace().skip(1).take(3).collect::<Vec<_>>());
        let mut sockets: Vec<_> = sockets.map(|fields| fields.join(" ")).collect();
        sockets.sort();
        all.insert(format!("/proc/net/{table}"), sockets.join("\n"));
    }
    read_all(Path::new("/proc/sys/net"), &mut all);
    all
}

fn read_all(folder: &Path, into: &mut Snapshot) {
    for entry in fs::read_dir(folder).expect("it is there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_all(&path, into);
        } else {
            let value = fs::read_to_string(&path).unwrap_or_else(|error| error.kind().to_string());
            into.insert(path.display().to_string(), value);
        }
    }
}

fn assert_same(before: &Snapshot, now: &Snapshot, restart: usize) {
    let differs = |key: &&String| before.get(*key) != now.get(*key);
    let names: std::collections::BTreeSet<_> = before.keys().chain(now.keys()).filter(differs).collect();
    let told: Vec<_> = names.iter().map(|key| (key, before.get(*key), now.get(*key))).collect();
    assert!(told.is_empty(), "start {restart} changed another namespace: {told:#?}");
}

/// Descriptors and threads of this process.
fn counts() -> [usize; 2] {
    ["fd", "task"].map(|what| fs::read_dir(format!("/proc/self/{what}")).expect("/proc is mounted").count())
}

fn ip(args: &str) -> String {
    run("ip", args)
}

fn run(program: &str, args: &str) -> String {
    let output = Command::new(program).args(args.split_whitespace()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
