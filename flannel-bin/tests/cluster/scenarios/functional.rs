//! Upstream's functional tests: etcd with TLS, two hosts, and addresses on devices without any pod.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flannel_lab::agent::Agent;
use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::etcd::{Etcd, EtcdOptions, TlsFiles};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::subnet_env::SubnetEnv;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use serde_json::Value;

use crate::backends::{BackendCase, HOST_GW, UDP, VXLAN};
use crate::harness::{Bed, FLANNELD, SOON, Store};
use crate::kube::kube;

/// What shows which network somebody is in.
const VXLAN_NETWORK: &str = r#"{"Network":"10.11.0.0/16","Backend":{"Type":"vxlan"}}"#;
const HOST_GW_NETWORK: &str = r#"{"Network":"10.12.0.0/16","Backend":{"Type":"host-gw"}}"#;
/// As long as upstream waits for `subnet.env`.
const ROLL_OUT: Duration = Duration::from_secs(30);

/// Two hosts and an etcd that speaks TLS alone.
struct Hosts {
    cluster: Cluster,
    etcd: Etcd,
    tls: TlsFiles,
    agents: Vec<Agent>,
}

impl Hosts {
    fn new(families: Families) -> Self {
        let cluster = Cluster::builder().nodes(2).families(families).build().unwrap();
        let at = cluster.fabric_address();
        fs::create_dir_all("/run/tls").unwrap();
        let tls = TlsFiles::create(Path::new("/run/tls"), &[at]).unwrap();
        let options = EtcdOptions { tls: Some(tls.clone()), ..EtcdOptions::at(cluster.fabric(), at) };
        Self { cluster, etcd: Etcd::start(options).unwrap(), tls, agents: Vec::new() }
    }

    /// A network below a prefix of its own, with a daemon on each host.
    fn network(&mut self, prefix: &str, config: &str) {
        self.etcd.put(&format!("{prefix}/config"), config).unwrap();
        for node in self.cluster.nodes() {
            let file = subnet_file(prefix, node.number());
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            let agent = node.agent(prefix.trim_matches('/'), FLANNELD).args([
                format!("--etcd-endpoints={}", self.etcd.endpoint()),
                format!("--etcd-prefix={prefix}"),
                format!("--etcd-cafile={}", self.tls.ca.display()),
                format!("--etcd-certfile={}", self.tls.client_cert.display()),
                format!("--etcd-keyfile={}", self.tls.client_key.display()),
                format!("--subnet-file={}", file.display()),
                "--iface=eth0".to_owned(),
            ]);
            self.agents.push(agent.start().unwrap());
        }
        for (number, agent) in (1..=2).zip(&self.agents[self.agents.len() - 2..]) {
            agent.wait_until_ready(&subnet_file(prefix, number), ROLL_OUT).unwrap();
        }
    }

    /// The first addresses of each host's subnet, on a device where they are pinged. Upstream takes a dummy, which not
    /// every kernel has; a bridge without ports is as good.
    fn targets(&self, prefix: &str) -> [Vec<IpAddr>; 2] {
        [1, 2].map(|number| {
            let env = SubnetEnv::read(&subnet_file(prefix, number)).unwrap();
            let netns = self.cluster.node(number).netns();
            let device = format!("br-{}", prefix.trim_matches('/'));
            netns.ip(&format!("link add {device} type bridge")).unwrap();
            netns.ip(&format!("link set {device} up")).unwrap();
            let firsts = env.families().into_iter().map(|family| family.gateway.ip());
            firsts
                .inspect(|ip| {
                    let nodad = if ip.is_ipv6() { "nodad" } else { "" };
                    netns.ip(&format!("address add {ip} dev {device} {nodad}")).unwrap();
                })
                .collect()
        })
    }

    /// Whether host `number` has an answer from `to`, asked from this address or interface.
    fn ping(&self, number: u8, from: &str, to: IpAddr) -> bool {
        let netns = self.cluster.node(number).netns();
        netns.run("ping", &["-n", "-q", "-c", "1", "-W", "1", "-I", from, &to.to_string()]).is_ok()
    }

    /// Each host pings the other, with its own first address as the source.
    #[track_caller]
    fn assert_ping(&self, [one, two]: &[Vec<IpAddr>; 2]) {
        for (one, two) in one.iter().zip(two) {
            for (number, from, to) in [(1, one, two), (2, two, one)] {
                eventually(SOON, &format!("host {number} to reach {to} from {from}"), || {
                    self.ping(number, &from.to_string(), *to)
                });
            }
        }
    }
}

fn subnet_file(prefix: &str, number: u8) -> PathBuf {
    format!("/run{prefix}-{number}/subnet.env").into()
}

fn hosts_ping_each_other(case: &'static BackendCase) {
    let mut hosts = Hosts::new(Families::Dual);
    hosts.network("/net", &case.config(Families::Dual));
    let targets = hosts.targets("/net");
    assert!(targets.iter().all(|ips| ips.len() == 2), "{targets:?}");
    hosts.assert_ping(&targets);
    let records = hosts.etcd.list("/net/subnets/").unwrap();
    assert!(records.len() == 2 && records.iter().all(|record| record.lease != 0), "{records:?}");
}

#[test]
fn vxlan_with_tls() {
    in_sandbox(test_name!(), || hosts_ping_each_other(&VXLAN));
}

#[test]
fn host_gw_with_tls() {
    in_sandbox(test_name!(), || hosts_ping_each_other(&HOST_GW));
}

#[test]
fn udp_with_tls() {
    in_sandbox(test_name!(), || hosts_ping_each_other(&UDP));
}

/// Two daemons on each host, with prefixes, networks, backends and subnet files of their own.
#[test]
fn two_daemons_on_one_host() {
    in_sandbox(test_name!(), || {
        let mut hosts = Hosts::new(Families::V4);
        hosts.network("/vxlan", VXLAN_NETWORK);
        hosts.network("/hostgw", HOST_GW_NETWORK);
        let [vxlan, host_gw] = ["/vxlan", "/hostgw"].map(|prefix| hosts.targets(prefix));
        for (targets, network) in [(&vxlan, "10.11."), (&host_gw, "10.12.")] {
            assert!(targets.iter().flatten().all(|ip| ip.to_string().starts_with(network)), "{targets:?}");
            hosts.assert_ping(targets);
        }
        for (number, peer) in [(1, 1), (2, 0)] {
            let (by_vxlan, by_host_gw) = (vxlan[peer][0], host_gw[peer][0]);
            // By the right interface first, or else the wrong ones would prove nothing.
            assert!(hosts.ping(number, "flannel.1", by_vxlan) && hosts.ping(number, "eth0", by_host_gw));
            assert!(!hosts.ping(number, "flannel.1", by_host_gw), "{by_host_gw} is not behind flannel.1");
            assert!(!hosts.ping(number, "eth0", by_vxlan), "{by_vxlan} is not behind eth0");
        }
        // Neither touches what is the other's when it starts again.
        let routes = |number| hosts.cluster.node(number).netns().ip("route").unwrap();
        let before = [1, 2].map(routes);
        hosts.agents.iter().for_each(|agent| assert!(agent.terminate().unwrap().success()));
        assert_eq!([1, 2].map(routes), before);
        hosts.agents.clear();
        hosts.network("/vxlan", VXLAN_NETWORK);
        hosts.assert_ping(&vxlan);
        hosts.assert_ping(&host_gw);
        assert_eq!([1, 2].map(|number| hosts.cluster.node(number).netns().ip("route").unwrap()), before);
    });
}

/// What a node is reached by from elsewhere shows up in what it publishes; its device keeps its own address.
#[test]
fn public_ip_overwrite_shows_up_in_public_ip() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
        let store = kube(&cluster);
        let mut bed = Bed::new(cluster, store, &VXLAN, Families::Dual);
        let overwrites = [("public-ip", "172.18.0.2"), ("public-ipv6", "2001:db8::2")];
        bed.store.api().edit_node("node1", |node| {
            for (name, value) in overwrites {
                node["metadata"]["annotations"][format!("{PREFIX}{name}-overwrite")] = value.into();
            }
        });
        bed.start_all();
        let annotation = |node: &str, name: &str| -> Value {
            bed.store.api().node(node).unwrap()["metadata"]["annotations"][format!("{PREFIX}{name}")].clone()
        };
        for (name, value) in overwrites {
            assert_eq!(annotation("node1", name), value);
            assert_eq!(annotation("node1", &format!("{name}-overwrite")), value, "it stays as it was put");
        }
        assert_eq!(annotation("node2", "public-ip"), bed.cluster.node(2).ipv4().unwrap().to_string());
        let device = bed.netns(1).ip("-d link show flannel.1").unwrap();
        assert!(device.contains("local 192.168.77.11"), "{device}");
        // The other node sends to what was published.
        bed.wait_for_peers(2, 1);
        let fdb = bed.netns(2).bridge("fdb show dev flannel.1").unwrap();
        assert!(fdb.contains("dst 172.18.0.2"), "{fdb}");
        assert_eq!(bed.store.records().unwrap().len(), 2);
    });
}

const PREFIX: &str = "flannel.alpha.coreos.com/";
