//! The real binary on a real etcd server.
#![cfg(feature = "etcd")]

mod common;

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{FLANNELD, get};
use flannel_lab::agent::Agent;
use flannel_lab::cluster::Cluster;
use flannel_lab::etcd::{Etcd, EtcdOptions};
use flannel_lab::node::Node;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(20);
const CONFIG: &str = r#"{"Network": "10.42.0.0/16", "Backend": {"Type": "vxlan"}}"#;

fn start(node: &Node, args: &[&str]) -> Agent {
    let agent = node
        .agent("flanneld", FLANNELD)
        .arg("--etcd-endpoints=http://192.168.77.1:2379")
        .arg(format!("--subnet-file=/run/{}.env", node.name()))
        .args(["--iface=eth0", "--healthz-ip=127.0.0.1", "--healthz-port=8471"])
        .args(args);
    agent.start().unwrap()
}

fn readyz(node: &Node) -> String {
    let ask = || get(SocketAddr::from(([127, 0, 0, 1], 8471)), "/readyz");
    node.netns().enter(ask).unwrap().map_or_else(|error| error.to_string(), |(_, body)| body)
}

fn ready(node: &Node) {
    eventually(SOON, "the node to be ready", || readyz(node) == "flanneld is ready");
}

#[test]
fn lives_through_outages_of_the_store() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(2).build().unwrap();
        let agents: Vec<_> = cluster.nodes().map(|node| start(node, &[])).collect();
        for node in cluster.nodes() {
            eventually(SOON, "the reason", || readyz(node).contains("store unavailable"));
        }
        let mut etcd = Etcd::start(EtcdOptions::at(cluster.fabric(), cluster.fabric_address())).unwrap();
        for node in cluster.nodes() {
            eventually(SOON, "the reason", || readyz(node).contains("no network config at"));
        }
        etcd.put("/coreos.com/network/config", CONFIG).unwrap();
        cluster.nodes().for_each(ready);
        assert_eq!(etcd.list("/coreos.com/network/subnets/").unwrap().len(), 2);

        etcd.kill().unwrap();
        for node in cluster.nodes() {
            eventually(SOON, "the node to be not ready", || readyz(node).contains("\nstore away for "));
        }
        etcd.restart().unwrap();
        cluster.nodes().for_each(ready);
        for agent in &agents {
            assert_eq!(agent.terminate().unwrap().code(), Some(0), "{}", agent.log());
        }
        assert_eq!(etcd.list("/coreos.com/network/subnets/").unwrap().len(), 2, "leases stay");
    });
}

#[test]
fn a_wrong_password_ends_it() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(1).build().unwrap();
        let mut etcd = Etcd::start(EtcdOptions::at(cluster.fabric(), cluster.fabric_address())).unwrap();
        etcd.put("/coreos.com/network/config", CONFIG).unwrap();
        etcd.enable_auth("flannel", "right").unwrap();
        let agent = start(cluster.node(1), &["--etcd-username=flannel", "--etcd-password=wr0ng"]);
        assert_eq!(agent.wait(SOON).unwrap().code(), Some(1), "{}", agent.log());
        assert!(agent.log().contains("store refused") && !agent.log().contains("wr0ng"), "{}", agent.log());
        let agent = start(cluster.node(1), &["--etcd-username=flannel", "--etcd-password=right"]);
        ready(cluster.node(1));
        agent.terminate().unwrap();
    });
}

#[test]
fn a_store_that_never_answers_does_not_hold_up_a_stop() {
    // Connections are accepted by the kernel and never read from.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = "--subnet-file=/nonexistent/subnet.env";
    let mut child = Command::new(FLANNELD)
        .env_clear()
        .args([&format!("--etcd-endpoints=http://{}", silent.local_addr().unwrap()), file])
        .spawn()
        .unwrap();
    // Once it is connected it waits for an answer.
    let connection = silent.accept().unwrap();
    assert_eq!(child.try_wait().unwrap(), None);
    let begin = Instant::now();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    drop(connection);
}
