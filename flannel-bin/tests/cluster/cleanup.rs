//! `flanneld cleanup`: the host is as before the agent came, and what others have on it is untouched.

use std::fs;
use std::process::Output;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::netns::Netns;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use serde_json::Value;

use crate::backends::{BackendCase, HOST_GW, UDP, VXLAN, on_every_backend};
use crate::harness::{Bed, FLANNELD, Folder, SOON, Store, new_folder, subnet_file};

on_every_backend!(all_goes_and_nothing_else, printed_commands_do_the_same);

/// What others have on a node, some of it much like ours.
const FOREIGN: &[&str] = &[
    "link add flannel.7 type veth peer name peer7",
    "link add flannel.8 type vxlan id 9 dstport 4789",
    "link add flannel.2 type vxlan id 2 dstport 8472 local 192.168.77.11 dev eth0 nolearning",
    "address add 10.99.1.0/32 dev flannel.2",
    "link set flannel.2 up",
    "route add 10.99.2.0/24 via 10.99.2.0 dev flannel.2 onlink proto 102",
    "route add 10.98.0.0/24 via 192.168.77.12 dev eth0 proto 102",
    "route add 10.97.0.0/24 via 192.168.77.12 dev eth0 proto static",
    "route add 10.244.250.0/24 via 192.168.77.12 dev eth0",
    "route add blackhole 10.244.251.0/24 proto static",
    "route add 10.244.252.0/24 via 192.168.77.12 dev eth0 table 77 proto 102",
];

/// All there is, as the tools print it.
fn whole(netns: &Netns) -> Vec<String> {
    let commands =
        ["-j -d link", "-j -4 route show table all", "-j -6 route show table all", "-j address", "nexthop"];
    let mut all: Vec<String> = commands.iter().map(|command| netns.ip(command).unwrap()).collect();
    all.push(netns.bridge("fdb").unwrap());
    all.push(netns.run("nft", &["--stateless", "list", "ruleset"]).unwrap());
    all
}

/// Nodes 1 and 2 with traffic between them programmed; the agent of 1 has ended, and left all it leaves. With
/// what was on node 1 before, and what the store had.
fn left_behind(case: &'static BackendCase) -> (Bed<Folder>, Vec<String>) {
    let families = case.widest();
    let cluster = Cluster::builder().nodes(2).families(families).build().unwrap();
    let mut bed = Bed::new(cluster, new_folder(), case, families);
    let node = bed.netns(1).clone();
    for command in FOREIGN {
        node.ip(command).unwrap();
    }
    // With rules of others, so that the tables and chains of iptables itself are there before.
    for program in ["iptables", "ip6tables"] {
        for rule in ["-t nat -A POSTROUTING -p sctp -j ACCEPT", "-A FORWARD -p sctp -j DROP"] {
            node.run(program, &rule.split(' ').collect::<Vec<_>>()).unwrap();
        }
    }
    settle(&node);
    let before = whole(&node);
    bed.spawn(1, &["--ip-blackhole-route", "--ip-masq"]);
    bed.start(2);
    bed.wait_ready(1);
    // Others have routes here that look like those to peers. The state file names peers once they are in use.
    eventually(SOON, "the peer to be in use", || {
        let text = fs::read_to_string(subnet_file(1).with_extension("env.state")).unwrap_or_default();
        let state: Value = serde_json::from_str(&text).unwrap_or_default();
        state["state"]["leases"].as_object().is_some_and(|leases| leases.len() == 1)
    });
    bed.stop(1);
    if !case.in_kernel {
        // The TUN goes with its agent, unless somebody made it persistent.
        let tun = case.sides()[0].0;
        let own = fs::read_to_string(subnet_file(1)).unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")).unwrap();
        let base = own.replace(".1/24", ".0/32");
        node.ip(&format!("tuntap add {tun} mode tun")).unwrap();
        node.ip(&format!("address add {base} dev {tun}")).unwrap();
    }
    if case.kind == "host-gw" {
        // As a Go agent leaves it, for the node that the state file knows.
        let peer = bed.remotes(2).remove(0);
        node.ip(&format!("route replace {} via {} dev eth0 proto boot", peer.subnet, peer.underlay)).unwrap();
    }
    assert_ne!(whole(&node), before);
    (bed, before)
}

/// IPv6 addresses of new links come from a worker of the kernel, in its own time.
fn settle(netns: &Netns) {
    let mut last = whole(netns);
    eventually(SOON, "the kernel to have settled", || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let now = whole(netns);
        std::mem::replace(&mut last, now.clone()) == now
    });
}

fn cleanup(bed: &Bed<impl Store>, more: &[&str]) -> Output {
    let mut command = bed.netns(1).command(FLANNELD);
    command.arg("cleanup").arg(format!("--subnet-file={}", subnet_file(1).display()));
    command.args(bed.store.flags()).args(more).output().unwrap()
}

/// What a successful run printed.
#[track_caller]
fn printed(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

#[track_caller]
fn assert_as_before(netns: &Netns, before: &[String]) {
    for (now, before) in whole(netns).iter().zip(before) {
        assert_eq!(now, before);
    }
}

pub(crate) fn all_goes_and_nothing_else(case: &'static BackendCase) {
    let (bed, before) = left_behind(case);
    let node = bed.netns(1).clone();
    let (left, records) = (whole(&node), bed.store.records().unwrap());
    let dry = cleanup(&bed, &["--dry-run", "--lease"]);
    let listed = printed(&dry);
    assert_as_before(&node, &left);
    assert!(subnet_file(1).exists() && bed.store.records().unwrap() == records, "a dry run changes nothing");
    let log = String::from_utf8(dry.stderr).unwrap();
    for note in [
        "flannel.7 stays: it is a veth",
        "flannel.8 stays",
        "flannel.2 stays",
        "routes with protocol 102 stay",
    ] {
        assert!(log.contains(note), "{note} in {log}");
    }

    // An agent that was killed in the middle of a write left this.
    fs::write(subnet_file(1).with_file_name(".subnet.env.k1LLed"), "half a fi").unwrap();
    assert_eq!(printed(&cleanup(&bed, &["--lease"])), listed);
    assert_as_before(&node, &before);
    let files = fs::read_dir("/run/flannel/node1").unwrap().map(|entry| entry.unwrap().file_name());
    assert!(files.into_iter().all(|name| name == "wgkey"), "a node's key is its operator's to remove");
    let own = records
        .keys()
        .find(|key| !bed.store.records().unwrap().contains_key(*key))
        .expect("the own lease is gone");
    assert_eq!(bed.store.records().unwrap().len(), records.len() - 1);
    assert!(listed.contains(&format!("/subnets/{own}")), "{listed}");
    for _ in 0..2 {
        assert_eq!(printed(&cleanup(&bed, &["--lease"])), "", "nothing is left");
    }
    assert_as_before(&node, &before);
}

fn printed_commands_do_the_same(case: &'static BackendCase) {
    let (bed, before) = left_behind(case);
    let node = bed.netns(1).clone();
    let listed = printed(&cleanup(&bed, &["--dry-run", "--lease"]));
    node.run("sh", &["-e", "-c", &listed]).unwrap();
    assert_as_before(&node, &before);
    assert_eq!(
        (fs::read_dir("/run/flannel/node1").unwrap().count(), bed.store.records().unwrap().len()),
        (0, 1)
    );
    assert_eq!(printed(&cleanup(&bed, &["--dry-run", "--lease"])), "");
}

fn bed(case: &'static BackendCase, families: Families) -> Bed<Folder> {
    let cluster = Cluster::builder().nodes(1).families(families).build().unwrap();
    let mut bed = Bed::new(cluster, new_folder(), case, families);
    bed.start(1);
    bed
}

#[test]
fn it_refuses_while_an_agent_runs() {
    in_sandbox(test_name!(), || {
        for case in [&VXLAN, &UDP] {
            let mut bed = bed(case, Families::V4);
            let before = whole(bed.netns(1));
            let refused = cleanup(&bed, &[]);
            let log = String::from_utf8(refused.stderr).unwrap();
            assert_eq!((refused.status.code(), refused.stdout), (Some(1), Vec::new()), "{log}");
            assert!(log.contains("an agent with this subnet file runs"), "{log}");
            let dry = cleanup(&bed, &["--dry-run"]);
            assert!(printed(&dry).contains("rm -f /run/flannel/node1/subnet.env"));
            assert!(String::from_utf8(dry.stderr).unwrap().contains("would be refused"));
            assert_as_before(bed.netns(1), &before);
            // A lock that a killed agent left behind is none.
            bed.kill(1);
            assert!(subnet_file(1).with_extension("env.lock").exists());
            printed(&cleanup(&bed, &[]));
            assert!(!subnet_file(1).exists());
        }
    });
}

#[test]
fn what_fails_stops_nothing_else_and_is_done_by_the_next_run() {
    in_sandbox(test_name!(), || {
        let mut bed = bed(&VXLAN, Families::V4);
        bed.stop(1);
        let store = "/run/flannel-store";
        fs::rename(store, "/run/elsewhere").unwrap();
        let output = cleanup(&bed, &["--lease"]);
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains("can't be looked at") && log.contains("proves to the next run"), "{log}");
        assert!(!bed.netns(1).ip("link").unwrap().contains("flannel.1"));
        assert!(subnet_file(1).exists(), "it says which lease is meant");
        fs::rename("/run/elsewhere", store).unwrap();
        assert!(printed(&cleanup(&bed, &["--lease"])).contains("/subnets/"));
        assert!(bed.store.records().unwrap().is_empty() && !subnet_file(1).exists());
    });
}

#[test]
fn a_lease_that_another_node_has_stays() {
    in_sandbox(test_name!(), || {
        let mut bed = bed(&HOST_GW, Families::V4);
        bed.stop(1);
        let (key, mut value) = bed.record_of(1);
        value["PublicIP"] = "192.168.77.99".into();
        bed.store.put(&key, &value.to_string()).unwrap();
        let output = cleanup(&bed, &["--lease"]);
        assert!(!printed(&output).contains("/subnets/"));
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(log.contains(&format!("lease {key} stays: it is that of 192.168.77.99")), "{log}");
        assert!(bed.store.records().unwrap().contains_key(&key));
    });
}

#[test]
fn rules_of_nftables_go_as_those_of_iptables() {
    in_sandbox(test_name!(), || {
        let mut bed = bed(&HOST_GW, Families::V4);
        bed.stop(1);
        let node = bed.netns(1).clone();
        let nft = |script: &str| node.run("nft", &[script]).unwrap();
        nft("add table ip other");
        nft("add chain ip other forward { type filter hook forward priority 0 ; }");
        nft("add table ip flannel-ipv4");
        nft("add chain ip flannel-ipv4 forward { type filter hook forward priority 0 ; }");
        nft("add rule ip flannel-ipv4 forward ip saddr 10.244.0.0/16 accept");
        let listed = printed(&cleanup(&bed, &[]));
        assert!(listed.contains("\nnft '"), "{listed}");
        let left = nft("list ruleset");
        // Now nothing tells whose such rules are.
        nft("add table ip flannel-ipv4");
        nft("add chain ip flannel-ipv4 forward { type filter hook forward priority 0 ; }");
        nft("add rule ip flannel-ipv4 forward ip saddr 10.244.0.0/16 accept");
        let unknown = cleanup(&bed, &[]);
        assert_eq!(printed(&unknown), "");
        let log = String::from_utf8(unknown.stderr).unwrap();
        assert!(
            log.contains("firewall rules stay: ") && nft("list ruleset").contains("flannel-ipv4"),
            "{log}"
        );
        assert!(left.contains("table ip other") && !left.to_lowercase().contains("flannel"), "{left}");
    });
}

#[cfg(feature = "etcd")]
#[test]
fn a_lease_in_etcd_goes_by_its_command_or_by_itself() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
        let store = crate::etcd::start(&cluster);
        let mut bed = Bed::new(cluster, store, &VXLAN, Families::Dual);
        bed.start(2);
        let others = bed.store.records().unwrap();
        for by_command in [false, true] {
            bed.start(1);
            bed.stop(1);
            let own = bed.record_of(1).0;
            let listed = printed(&cleanup(&bed, &["--lease", "--dry-run"]));
            assert!(listed.contains(&format!(" del '/coreos.com/network/subnets/{own}'")), "{listed}");
            assert_eq!(bed.store.records().unwrap().len(), 2);
            if by_command {
                bed.netns(1).run("sh", &["-e", "-c", &listed]).unwrap();
            } else {
                assert_eq!(printed(&cleanup(&bed, &["--lease"])), listed);
            }
            assert_eq!(bed.store.records().unwrap(), others);
            assert_eq!(printed(&cleanup(&bed, &["--lease"])), "");
        }
    });
}
