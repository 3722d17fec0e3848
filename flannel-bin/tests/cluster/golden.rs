//! Our kernel state, records and `subnet.env` against those of real Go nodes.

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::golden::Golden;
use flannel_lab::kernel_state::unnumbered;
use flannel_lab::netns::Netns;
use flannel_lab::wait::eventually;
use serde_json::Value;

use crate::backends::{BackendCase, on_every_backend};
use crate::harness::{Bed, Folder, SOON, Store, is_flannels, new_folder, subnet_file};

on_every_backend!(a_node_of_ours_has_the_state_of_theirs);

fn bed_of(case: &'static BackendCase, golden: &Golden) -> Bed<Folder> {
    // Like theirs, our nodes have both families on the underlay whatever the overlay has.
    let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
    let bed = Bed::with_config(cluster, new_folder(), case, &golden.config().unwrap());
    for (key, value) in golden.records() {
        bed.store.put(&key, &value).unwrap();
    }
    bed
}

fn a_node_of_ours_has_the_state_of_theirs(case: &'static BackendCase) {
    for name in case.golden {
        let golden = Golden::named(name);
        let mut bed = bed_of(case, &golden);
        // What the golden case before left says that the record of this one is another node's.
        let _ = std::fs::remove_dir_all(subnet_file(1).parent().unwrap());
        bed.spawn(1, &["--ip-masq"]);
        bed.wait_ready(1);
        assert_eq!(bed.store.records().unwrap(), golden.records().into_iter().collect(), "{name}: records");
        let netns = bed.netns(1).clone();
        for link in golden.json["node1"]["links"].as_array().unwrap() {
            compare_link(name, link, &netns);
        }
        for link in golden.json["node1"]["addresses"].as_array().unwrap() {
            compare_addresses(name, link, &netns);
        }
        compare_lines(name, &golden, &netns);
        compare_subnet_env(name, &golden);
        compare_rules(name, &golden, &netns);
    }
}

/// The rules of iptables, text and order. (Those of nftables differ on purpose: see the tests of the core.)
fn compare_rules(name: &str, golden: &Golden, netns: &Netns) {
    let by_chain = |mut lines: Vec<String>| {
        lines.retain(|line| line.starts_with("-A") || line.contains("FLANNEL"));
        lines.sort_by_key(|line| line.split(' ').nth(1).map(str::to_owned));
        lines
    };
    for family in ["iptables", "ip6tables"] {
        let theirs = by_chain(golden.lines(family));
        eventually(SOON, &format!("{name}: rules of {family}"), || {
            let ours = netns.run(&format!("{family}-save"), &[]).unwrap();
            let ours = by_chain(ours.lines().map(|line| line.trim().to_owned()).collect());
            if ours == theirs { Ok(()) } else { Err(format!("{ours:#?} instead of {theirs:#?}")) }
        });
    }
}

/// Every attribute that `ip -d` shows, but the number of the link.
fn compare_link(name: &str, golden: &Value, netns: &Netns) {
    let ifname = golden["ifname"].as_str().unwrap();
    let ours = netns.ip_json(&format!("link show dev {ifname}")).unwrap()[0].clone();
    let mut theirs = golden.clone();
    if name == "udp" {
        // On purpose: the header that carries super-packets.
        theirs["linkinfo"]["info_data"]["vnet_hdr"] = true.into();
    }
    for (attribute, theirs) in theirs.as_object().unwrap() {
        if attribute != "ifindex" {
            assert_eq!(&ours[attribute], theirs, "{name}: {attribute} of {ifname}");
        }
    }
}

fn compare_addresses(name: &str, golden: &Value, netns: &Netns) {
    let ifname = golden["ifname"].as_str().unwrap();
    eventually(SOON, &format!("{name}: addresses of {ifname}"), || {
        let ours = netns.ip_json(&format!("address show dev {ifname}")).unwrap()[0]["addr_info"].clone();
        let theirs = &golden["addr_info"];
        let keys = |list: &Value| {
            let of = |addr: &Value| {
                ["family", "local", "prefixlen", "scope", "label", "valid_life_time"]
                    .map(|key| addr[key].to_string())
            };
            // A TUN has no MAC, so its link-local address is random.
            let counts = |addr: &&Value| name != "udp" || addr["scope"] != "link";
            let mut all: Vec<_> = list.as_array().unwrap().iter().filter(counts).map(of).collect();
            all.sort();
            all
        };
        if keys(&ours) == keys(theirs) { Ok(()) } else { Err(format!("{ours} instead of {theirs}")) }
    });
}

/// Routes, neighbours and FDB entries. One difference on purpose: our routes say who wrote them.
fn compare_lines(name: &str, golden: &Golden, netns: &Netns) {
    for (what, command) in [
        ("routes", "-d -4 route show"),
        ("routes6", "-d -6 route show"),
        ("neighbours", "neigh show nud permanent"),
        ("fdb", ""),
    ] {
        let mut theirs = golden.lines(what);
        theirs.retain(|line| is_flannels(line));
        for line in &mut theirs {
            *line = line.replace("proto boot", "proto 102");
        }
        if name == "vxlan-directrouting" {
            // On purpose: what encapsulation would need is there for on-link peers, too.
            match what {
                "neighbours" => {
                    theirs.push("10.244.37.0 dev flannel.1 lladdr ca:f3:ac:16:d3:1b PERMANENT".into());
                }
                "fdb" => {
                    theirs.push("ca:f3:ac:16:d3:1b dev flannel.1 dst 192.168.77.12 self permanent".into());
                }
                _ => {}
            }
        }
        theirs.sort();
        eventually(SOON, &format!("{name}: {what}"), || {
            let ours = if command.is_empty() { netns.bridge("fdb show") } else { netns.ip(command) }.unwrap();
            let mut ours: Vec<_> = ours.lines().map(|line| line.trim().to_owned()).collect();
            ours.retain(|line| !line.starts_with("nh_info"));
            for line in &mut ours {
                // Another difference on purpose: the gateway is kept in a next-hop object.
                *line = unnumbered(line).replace(" nhid N", "");
            }
            ours.retain(|line| is_flannels(line) && !line.starts_with("33:33") && !line.starts_with("01:00"));
            ours.sort();
            if ours == theirs { Ok(()) } else { Err(format!("{ours:#?} instead of {theirs:#?}")) }
        });
    }
}

/// One difference on purpose: the true MTU where VXLAN's underlay is IPv6.
fn compare_subnet_env(name: &str, golden: &Golden) {
    let mut theirs = golden.subnet_env("node1").unwrap().to_owned();
    if name.starts_with("vxlan-dual") {
        theirs = theirs.replace("FLANNEL_MTU=1450", "FLANNEL_MTU=1430");
    }
    assert_eq!(std::fs::read_to_string(subnet_file(1)).unwrap(), theirs, "{name}");
}
