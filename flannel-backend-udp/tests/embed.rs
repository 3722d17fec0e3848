//! Two agents of one process, each in a namespace of its own, which start and stop again and again with a datapath and
//! firewall rules, from threads that are in a third namespace: that one stays as it is, and what one run had open is
//! closed before the next.

#[allow(dead_code, unreachable_pub)]
#[path = "../../flannel-core/examples/own_store.rs"]
mod own_store;

use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use flannel_backend_udp::{UdpBackend, UdpOptions};
use flannel_core::agent::{Agent, AgentEvent, AgentStatus, FirewallOptions};
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::events::NetworkEvent;
use flannel_core::firewall::FirewallEvent;
use flannel_core::lease::LeaseKey;
use flannel_core::status::PeerState;
use flannel_core::underlay::UnderlayOptions;
use flannel_lab::netns::Netns;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use own_store::MemoryStore;

const SOON: Duration = Duration::from_secs(20);
const ROUNDS: usize = 20;
/// What an agent that keeps masquerading leaves among the rules, by nftables or iptables.
const RULES: [&str; 2] = ["flannel-ipv4", "FLANNEL-POSTRTG"];

/// Two namespaces on one wire.
fn hosts() -> [Netns; 2] {
    let [one, two] = ["one", "two"].map(|name| Netns::add(name).unwrap());
    one.ip("link add eth0 type veth peer name eth0 netns two").unwrap();
    for (host, addr) in [(&one, "192.0.2.1/24"), (&two, "192.0.2.2/24")] {
        host.ip(&format!("addr add {addr} dev eth0")).unwrap();
        host.ip("link set eth0 up").unwrap();
    }
    [one, two]
}

fn start(store: &MemoryStore, host: &Netns) -> Agent {
    let netns = flannel_core::netns::Netns::open(host.path()).unwrap();
    Agent::builder(Arc::new(store.join()))
        .backend(UdpBackend::new(UdpOptions::default()))
        .underlay(UnderlayOptions::auto().iface("eth0"))
        .firewall(FirewallOptions::masquerade())
        .subnet_file(format!("/run/{}/subnet.env", host.name()))
        .netns(netns)
        .start()
        .unwrap()
}

/// Waits until an agent is up and carries packets to the other one, and returns its lease.
async fn come_up(agent: &Agent) -> LeaseKey {
    let node = tokio::time::timeout(SOON, agent.ready()).await.expect("it comes up").unwrap();
    let mut status = agent.status();
    let seen = status.wait_for(|it| it.network.as_ref().is_some_and(|network| network.peers == 1));
    let status = tokio::time::timeout(SOON, seen).await.expect("the other one is its peer").unwrap().clone();
    tells_all(&status);
    node.lease.key
}

/// What an embedder needs of a running network is in the status: the peer, the device, and what was counted.
fn tells_all(status: &AgentStatus) {
    let network = status.network.as_ref().unwrap();
    let peers: Vec<_> = network.peer_list.iter().collect();
    let [peer] = peers[..] else { panic!("{peers:?}") };
    assert_eq!((&peer.state, peer.path.v4.as_ref().unwrap().as_str()), (&PeerState::Programmed, "udp"));
    let [device] = &network.devices[..] else { panic!("{:?}", network.devices) };
    assert_eq!((&*device.name, device.mtu.0, device.usable), ("flannel0", 1472, true));
    let counted: Vec<_> = network.counters.read().into_iter().map(|counters| counters.of).collect();
    assert_eq!(counted, ["flannel0", "udp"]);
    let json = serde_json::to_value(status).unwrap();
    let network = &json["network"];
    assert_eq!(network["peer_list"][0]["state"], "programmed", "{json}");
    assert_eq!((&network["devices"][0]["mtu"], &network["counters"][1]["of"]), (&1472.into(), &"udp".into()));
}

/// All that an agent could change in the namespace of the calling thread.
fn here() -> String {
    let run = |line: &str| {
        let output = Command::new("sh").args(["-c", line]).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run("ip -d address show; ip route show table all; ip -6 route show table all; nft list ruleset")
}

/// What the process has open, and its threads.
fn open() -> (Vec<String>, usize) {
    let link = |entry: std::io::Result<fs::DirEntry>| fs::read_link(entry.unwrap().path()).ok();
    let mut files: Vec<String> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(link)
        .map(|to| to.to_string_lossy().into_owned())
        // Numbers of sockets and pipes differ, their kinds do not.
        .map(|to| to.split('[').next().unwrap_or_default().to_owned())
        .collect();
    files.sort();
    (files, fs::read_dir("/proc/self/task").unwrap().count())
}

#[test]
fn twenty_restarts_of_two_agents_leave_nothing_open_and_no_trace_elsewhere() {
    in_sandbox(test_name!(), || {
        let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#;
        let store = MemoryStore::new(NetworkConfig::parse(config, LeaseSource::Store).unwrap());
        let hosts = hosts();
        // What goes astray would meet them.
        let _port = UdpSocket::bind("0.0.0.0:8285").unwrap();
        let before = here();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (mut own, mut first) = (None, None);
        for round in 0..ROUNDS {
            runtime.block_on(async {
                let agents = hosts.each_ref().map(|host| start(&store, host));
                let leases = [come_up(&agents[0]).await, come_up(&agents[1]).await];
                assert_eq!(*own.get_or_insert(leases), leases, "round {round}: they keep their leases");
                for host in &hosts {
                    let rules = host.run("sh", &["-c", "nft list ruleset; iptables-save"]).unwrap();
                    assert!(RULES.iter().any(|name| rules.contains(name)), "{}: {rules}", host.name());
                }
                assert_eq!(here(), before, "round {round}: it is nobody's namespace");
                let mut events = agents[0].events();
                for agent in agents {
                    agent.stop().await.unwrap();
                }
                let mut told = Vec::new();
                while let Some(event) = events.recv().await {
                    told.push(event.event);
                }
                let is_created = |event: &AgentEvent| {
                    matches!(event, AgentEvent::Network(NetworkEvent::DeviceCreated { link, .. }) if link == "flannel0")
                };
                assert!(told.iter().any(is_created), "{told:?}");
                let in_place = |event: &AgentEvent| {
                    matches!(event, AgentEvent::Firewall(FirewallEvent::RulesInPlace { .. }))
                };
                assert!(told.iter().any(in_place), "{told:?}");
            });
            eventually(SOON, "no task to be left", || runtime.metrics().num_alive_tasks() == 0);
            // The first round made what stays, such as the threads that read files.
            match &first {
                None => first = Some(open()),
                Some(first) => {
                    let (files, threads): &(Vec<String>, usize) = first;
                    eventually(SOON, &format!("nothing more to be open after round {round}"), || {
                        let now = open();
                        now.0.len() <= files.len() && now.1 <= *threads
                    });
                }
            }
        }
        assert_eq!(here(), before);
    });
}
