//! Two agents of one process, each in a namespace of its own, which start and stop again and again with a datapath and
//! firewall rules: what one run had open is closed before the next.

#[allow(dead_code, unreachable_pub)]
#[path = "../../flannel-core/examples/own_store.rs"]
mod own_store;

use std::fs;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use flannel_backend_udp::{UdpBackend, UdpOptions};
use flannel_core::agent::{Agent, FirewallOptions};
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::underlay::UnderlayOptions;
use flannel_lab::netns::Netns;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use own_store::MemoryStore;

const SOON: Duration = Duration::from_secs(20);
const ROUNDS: usize = 20;

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

/// Restarts an agent; each round waits for the other thread's in the same place.
fn restart(store: &MemoryStore, folder: &str, turns: &Turns) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut own = None;
        for round in 0..ROUNDS {
            let underlay = UnderlayOptions::auto().iface("eth0");
            let agent = Agent::builder(std::sync::Arc::new(store.join()))
                .backend(UdpBackend::new(UdpOptions::default()))
                .underlay(underlay)
                .firewall(FirewallOptions::masquerade())
                .subnet_file(format!("/run/{folder}/subnet.env"))
                .start()
                .unwrap();
            let node = tokio::time::timeout(SOON, agent.ready()).await.expect("it comes up").unwrap();
            assert_eq!(*own.get_or_insert(node.lease.key), node.lease.key, "round {round}");
            let mut status = agent.status();
            let sees_the_other = |it: &std::sync::Arc<_>| peers(it) == 1;
            let seen = tokio::time::timeout(SOON, status.wait_for(sees_the_other)).await;
            seen.expect("the other one is its peer").unwrap();
            agent.stop().await.unwrap();
            drop(agent);
            // What was told to end, such as a read of a file, has a moment to do so.
            while tokio::runtime::Handle::current().metrics().num_alive_tasks() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            turns.wait();
        }
    });
    runtime.metrics().num_alive_tasks()
}

fn peers(status: &flannel_core::agent::AgentStatus) -> usize {
    status.network.as_ref().map_or(0, |network| network.peers)
}

/// Where a thread says that a round is over, and hears that the next may begin.
struct Turns {
    over: Sender<()>,
    next: Receiver<()>,
}

impl Turns {
    fn wait(&self) {
        self.over.send(()).unwrap();
        self.next.recv().unwrap();
    }
}

/// What the process has open, and its threads: this one and those of the two agents.
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
fn twenty_restarts_of_two_agents_leave_nothing_open() {
    in_sandbox(test_name!(), || {
        let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#;
        let store = MemoryStore::new(NetworkConfig::parse(config, LeaseSource::Store).unwrap());
        let hosts = hosts();
        std::thread::scope(|scope| {
            let mut ends = Vec::new();
            let mut threads = Vec::new();
            for host in &hosts {
                let ((over, is_over), (go, next)) = (channel(), channel());
                let (turns, store) = (Turns { over, next }, &store);
                let work = move || restart(store, host.name(), &turns);
                threads.push(scope.spawn(move || host.enter(work).unwrap()));
                ends.push((is_over, go));
            }
            let mut first = None;
            for round in 0..ROUNDS {
                for (is_over, _) in &ends {
                    is_over.recv().unwrap();
                }
                // The first round made what stays, such as the threads that read files.
                if round == 1 {
                    first = Some(open());
                } else if let Some(first) = &first {
                    eventually(SOON, &format!("nothing more to be open after round {round}"), || {
                        let now = open();
                        now.0.len() <= first.0.len() && now.1 <= first.1
                    });
                }
                for (_, go) in &ends {
                    go.send(()).unwrap();
                }
            }
            for thread in threads {
                assert_eq!(thread.join().unwrap(), 0, "no task is left");
            }
        });
    });
}
