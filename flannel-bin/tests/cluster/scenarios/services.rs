//! Services and names: a cluster IP with two replicas on two nodes, reached across nodes by address and by name.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use flannel_lab::agent::{Agent, AgentBuilder};
use flannel_lab::netns::Netns;
use flannel_lab::pod::Pod;
use flannel_lab::wait::eventually;

use super::kube_proxy::{self, Service, service};
use super::names::{self, Ask};
use super::{Row, on_every_row, pod, rules};
use crate::harness::SOON;

on_every_row!(services_are_reached_across_nodes_by_address_and_by_name);

/// The cluster IPs, IPv4 first.
const API: [&str; 2] = ["10.96.0.1", "fd00:10:96::1"];
const DNS: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
const WEB: [&str; 2] = ["10.96.0.80", "fd00:10:96::50"];

fn ip(service: [&str; 2], v6: bool) -> IpAddr {
    service[usize::from(v6)].parse().unwrap()
}

fn services_are_reached_across_nodes_by_address_and_by_name(row: Row) {
    let bed = row.rolled_out(3);
    // What serves is on nodes 1 and 2, who asks on node 3, so that every way crosses nodes.
    let [replicas, resolvers] = [(); 2].map(|()| [pod(&bed, 1), pod(&bed, 2)]);
    let client = pod(&bed, 3);
    let servers = [web(&replicas[0], "replica1"), web(&replicas[1], "replica2")];
    let names = [("kubernetes", API), ("web", WEB)].map(|(name, ips)| {
        (format!("{name}.default.svc.cluster.local."), [false, true].map(|v6| ip(ips, v6)).to_vec())
    });
    for pod in &resolvers {
        names::serve(pod, &names);
    }
    for node in bed.cluster.nodes() {
        kube_proxy::serve(node.netns(), row.nftables, &services(&replicas, &resolvers));
    }
    for (what, netns) in
        [("a pod", client.netns()), ("its host", bed.netns(3)), ("a server's host", bed.netns(1))]
    {
        for v6 in [false, true] {
            assert_served(what, netns, v6);
        }
    }
    rules::assert_listed(row, &bed);
    drop(servers);
}

/// A web server in a pod that says who it is.
fn web(pod: &Pod, name: &str) -> Agent {
    let dir = format!("/run/{name}");
    fs::create_dir_all(&dir).unwrap();
    fs::write(format!("{dir}/index.html"), name).unwrap();
    let server = AgentBuilder::new(name, "busybox").netns(pod.netns());
    server.args(["httpd", "-f", "-v", "-p", "8080", "-h", &dir]).start().unwrap()
}

fn services(replicas: &[Pod; 2], resolvers: &[Pod; 2]) -> Vec<Service> {
    let mut services = Vec::new();
    for v6 in [false, true] {
        let of =
            |pods: &[Pod; 2]| pods.each_ref().map(|pod| if v6 { pod.ipv6() } else { pod.ipv4() }.unwrap());
        services.push(service("web", ip(WEB, v6), (80, 8080), "tcp", of(replicas)));
        services.push(service("dns", ip(DNS, v6), (53, 53), "udp", of(resolvers)));
        services.push(service("dns-tcp", ip(DNS, v6), (53, 53), "tcp", of(resolvers)));
    }
    services
}

/// By name and by address, over UDP and TCP, until each replica has answered.
#[track_caller]
fn assert_served(what: &str, netns: &Netns, v6: bool) {
    let server = ip(DNS, v6);
    for ask in [Ask::Udp, Ask::Tcp] {
        for (name, want) in [("kubernetes.default", API), ("web.default.svc.cluster.local", WEB)] {
            eventually(SOON, &format!("{what} to resolve {name} by {ask:?}"), || {
                let found = names::resolve(netns, server, ask, name, v6)?;
                if found == [ip(want, v6)] { Ok(()) } else { Err(format!("{found:?}")) }
            });
        }
        assert!(names::resolve(netns, server, ask, "nobody.default.svc.cluster.local", v6).is_err());
        let mut seen = BTreeSet::new();
        let address = if v6 { format!("[{}]", ip(WEB, v6)) } else { ip(WEB, v6).to_string() };
        for host in ["web.default.svc.cluster.local", &address] {
            seen.clear();
            eventually(SOON, &format!("both replicas to answer {what} at {host}"), || {
                let (status, from, page) = names::get(netns, server, ask, &format!("http://{host}/"), v6)?;
                assert_eq!((status, from), (200, ip(WEB, v6)), "{page}");
                seen.insert(page);
                if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?}")) }
            });
        }
        assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), ["replica1", "replica2"]);
    }
}
