//! The way of a packet from a container on one node to one on another, and back, as an operator can see it: two
//! runc containers whose network comes from our own CNI plugin. `docs/packet-walk.md` tells it with the output of
//! the same commands, and is held to it.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flannel_lab::agent::{Agent, AgentBuilder};
use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::netns::Netns;
use flannel_lab::sandbox::{holder_pid, in_sandbox};
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use regex::Regex;
use serde_json::{Value, json};

use crate::backends::{BackendCase, HOST_GW, UDP, VXLAN};
use crate::harness::{Bed, FLANNELD, Folder, SOON, Store, new_folder, subnet_file};

const DOCUMENT: &str = include_str!("../../../docs/packet-walk.md");

/// Our plugin, built beside the agent, and installed as an operator would with its conflist.
fn install() -> (PathBuf, Value) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = Path::new(FLANNELD).ancestors().nth(2).expect("target, profile, program");
    let mut build = Command::new(cargo);
    build
        .args(["build", "--quiet", "--package", "flannel-cni", "--bin", "flannel", "--target-dir"])
        .arg(target);
    assert!(build.status().unwrap().success());
    let mut install = Command::new(FLANNELD);
    install.args(["install-cni", "--plugin-dir=/run/cni-bin", "--conf-dir=/run/net.d"]);
    assert!(install.status().unwrap().success());
    let conflist = fs::read_to_string("/run/net.d/10-flannel.conflist").unwrap();
    ("/run/cni-bin/flannel".into(), serde_json::from_str(&conflist).unwrap())
}

/// A container's cgroups have its name, and are the host's.
fn unique(name: &str) -> String {
    format!("flannel-test-{name}-{}", holder_pid().expect("in a sandbox"))
}

/// A container with a network of its own.
struct Container {
    node: u8,
    netns: Netns,
    address: IpAddr,
}

impl Container {
    /// What a container runtime does: a namespace, and the plugins of the conflist.
    fn new(bed: &Bed<Folder>, node: u8, plugin: &Path, conflist: &Value) -> Self {
        let netns = Netns::add(&format!("container{node}")).unwrap();
        let mut config = conflist["plugins"][0].clone();
        for key in ["cniVersion", "name"] {
            config[key] = conflist[key].clone();
        }
        // Nodes of ours share their files.
        config["subnetFile"] = json!(subnet_file(node));
        config["dataDir"] = json!(format!("/run/cni-{node}"));
        config["ipam"] = json!({ "dataDir": format!("/run/ipam-{node}") });
        let mut command = bed.netns(node).command(plugin);
        command.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", format!("c{node}"));
        command.env("CNI_NETNS", netns.path()).env("CNI_IFNAME", "eth0").env("CNI_PATH", "/usr/lib/cni");
        let mut plugin = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        plugin.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let output = plugin.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}");
        let result: Value = serde_json::from_str(&said).unwrap();
        let address = result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap();
        Self { node, netns, address: address.parse().unwrap() }
    }

    /// A program of busybox in a runc container in this network.
    fn runc(&self, name: &str, args: &[&str]) -> AgentBuilder {
        let name = &unique(name);
        let bundle = PathBuf::from(format!("/run/bundle-{name}"));
        let root = bundle.join("rootfs");
        for folder in ["bin", "proc", "www"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        fs::write(root.join("www/index.html"), format!("hello from container{}\n", self.node)).unwrap();
        let kinds = ["pid", "mount", "ipc", "uts"].map(|kind| json!({ "type": kind }));
        let namespaces: Vec<_> =
            kinds.into_iter().chain([json!({ "type": "network", "path": self.netns.path() })]).collect();
        let args: Vec<_> = ["/bin/busybox"].iter().chain(args).collect();
        let config = json!({
            "ociVersion": "1.0.2", "hostname": name, "root": { "path": "rootfs", "readonly": true },
            "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "env": ["PATH=/bin"], "args": args },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": { "namespaces": namespaces },
        });
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        AgentBuilder::new(name, "runc").args(["--root", "/run/runc", "run", "--bundle"]).arg(bundle).arg(name)
    }
}

/// One look, by a command on a node or in its container.
struct Look {
    /// `node1`, `node2`, `container1` ..
    place: &'static str,
    command: &'static str,
}

const fn look(place: &'static str, command: &'static str) -> Look {
    Look { place, command }
}

/// The looks that are the same whatever carries the packet: out of the container, and into the other one.
const OUT: [Look; 3] = [
    look("container1", "ip route"),
    look("node1", "ip route show dev cni0"),
    look("node1", "brctl show cni0"),
];
const IN: [Look; 2] =
    [look("node2", "ip route get 10.244.12.2"), look("node2", "ip neigh show 10.244.12.2 dev cni0")];

const BY_VXLAN: &[Look] = &[
    look("node1", "ip route get 10.244.12.2 from 10.244.11.2 iif cni0"),
    look("node1", "ip neigh show 10.244.12.0 dev flannel.1"),
    look("node1", "bridge fdb show dev flannel.1"),
    look("node1", "ip route get 192.168.77.12"),
    look("node2", "ip route get 10.244.11.2 from 10.244.12.2 iif cni0"),
    look("node2", "ip neigh show 10.244.11.0 dev flannel.1"),
    look("node2", "bridge fdb show dev flannel.1"),
];
const BY_HOST_GW: &[Look] = &[
    look("node1", "ip route get 10.244.12.2 from 10.244.11.2 iif cni0"),
    look("node2", "ip route get 10.244.11.2 from 10.244.12.2 iif cni0"),
];
const BY_UDP: &[Look] = &[
    look("node1", "ip route get 10.244.12.2 from 10.244.11.2 iif cni0"),
    look("node1", "ip route show dev flannel0"),
    look("node1", "ip tuntap show"),
    look("node2", "ip route get 10.244.11.2 from 10.244.12.2 iif cni0"),
];

fn bed(case: &'static BackendCase) -> Bed<Folder> {
    let cluster = Cluster::builder().nodes(2).families(Families::V4).build().unwrap();
    let config = format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"{}"}}}}"#, case.kind);
    let mut bed = Bed::with_config(cluster, new_folder(), case, &config);
    for number in 1..=2 {
        // What they had before, so that subnets and MACs are those of the document.
        let (_, value) = case.record(10 + number);
        let mut value: Value = serde_json::from_str(&value).unwrap();
        for ipv6 in ["PublicIPv6", "BackendV6Data"] {
            value.as_object_mut().unwrap().remove(ipv6);
        }
        bed.store.put(&format!("10.244.{}.0-24", 10 + number), &value.to_string()).unwrap();
        bed.spawn(number, &["--ip-masq"]);
    }
    (1..=2).for_each(|number| bed.wait_ready(number));
    (1..=2).for_each(|number| bed.wait_for_peers(number, 1));
    bed
}

fn server_is_up(container: &Container) -> bool {
    let address = (container.address, 8080);
    container.netns.enter(|| std::net::TcpStream::connect(address).is_ok()).unwrap()
}

fn walk(case: &'static BackendCase, way: &[Look]) {
    let (bed, (plugin, conflist)) = (bed(case), install());
    let containers = [1, 2].map(|node| Container::new(&bed, node, &plugin, &conflist));
    let server = containers[1].runc("server", &["httpd", "-f", "-p", "8080", "-h", "/www"]).start().unwrap();
    eventually(SOON, "the server", || if server_is_up(&containers[1]) { Ok(()) } else { Err(server.log()) });
    let url = format!("http://{}:8080/", containers[1].address);
    let client: Agent = containers[0].runc("client", &["wget", "-q", "-O", "-", &url]).start().unwrap();
    let status = client.wait(SOON).unwrap();
    assert!(status.success() && client.log().contains("hello from container2"), "{}", client.log());
    server.kill().unwrap();
    Command::new("runc")
        .args(["--root", "/run/runc", "delete", "--force", &unique("server")])
        .status()
        .unwrap();

    let (section, mut missing) = (section(case.kind), String::new());
    for look in OUT.iter().chain(way).chain(&IN) {
        let (kind, number) = look.place.split_at(look.place.len() - 1);
        let number: u8 = number.parse().unwrap();
        let container = &containers[usize::from(number) - 1];
        let netns = if kind == "node" { bed.netns(number) } else { &container.netns };
        let output = netns.run("sh", &["-c", look.command]).unwrap();
        let lines = output.lines().map(str::trim_end).filter(|line| !line.is_empty());
        let shown = format!("{}# {}\n{}\n", look.place, look.command, lines.collect::<Vec<_>>().join("\n"));
        if !masked(section).contains(&masked(&shown)) {
            missing.push_str(&shown);
        }
    }
    assert!(missing.is_empty(), "section {} of docs/packet-walk.md must have:\n{missing}", case.kind);
}

/// The part of the document about a backend.
fn section(kind: &str) -> &'static str {
    let begin = DOCUMENT.find(&format!("\n## {kind}\n")).unwrap_or_else(|| panic!("no section {kind}"));
    let rest = &DOCUMENT[begin + 1..];
    &rest[..rest[1..].find("\n## ").map_or(rest.len(), |end| end + 1)]
}

/// Without what differs from run to run: names and MACs of veths, how the kernel numbers, and what it counts.
fn masked(text: &str) -> String {
    let mut text = text.to_owned();
    for (pattern, by) in [
        (r"veth[0-9a-f]{8}", "vethX"),
        // Those of VTEPs stay.
        (r"\b(8000\.)?(?:[0-9a-f]{2}:){5}[0-9a-f]{2} (REACHABLE|STALE|DELAY|PROBE)", "MAC"),
        (r"8000\.[0-9a-f]{12}", "BRIDGE"),
        (r"[ \t]+", " "),
        (r" \n", "\n"),
        (r" nhid \d+", " nhid N"),
        (r" uid \d+", ""),
        (r"tun(?: vnet_hdr)? persist.*", "tun"),
    ] {
        text = Regex::new(pattern).unwrap().replace_all(&text, by).into_owned();
    }
    text
}

#[test]
fn a_packet_by_vxlan() {
    in_sandbox(test_name!(), || walk(&VXLAN, BY_VXLAN));
}

#[test]
fn a_packet_by_host_gw() {
    in_sandbox(test_name!(), || walk(&HOST_GW, BY_HOST_GW));
}

#[test]
fn a_packet_by_udp() {
    in_sandbox(test_name!(), || walk(&UDP, BY_UDP));
}
