//! The exact rules on a node, as upstream's end-to-end tests list them.

use flannel_lab::kube::store::KubeStore;
use flannel_lab::subnet_env::FamilySubnet;
use ipnetwork::IpNetwork;

use super::{Row, kube_proxy, sh};
use crate::harness::{Bed, env_of};

/// All of ours on each node, in order, and kube-proxy's before our jumps.
pub(super) fn assert_listed(row: Row, bed: &Bed<KubeStore>) {
    for node in bed.cluster.nodes() {
        for family in env_of(node.number()).families() {
            if row.nftables {
                for (chain, want) in nft(family) {
                    let (kind, table) = if family.network.is_ipv6() {
                        ("ip6", "flannel-ipv6")
                    } else {
                        ("ip", "flannel-ipv4")
                    };
                    let have = sh(node.netns(), &format!("nft list chain {kind} {table} {chain}"));
                    assert_eq!(have, format!("table {kind} {table} {{\n{want}}}\n"), "{}", node.name());
                }
            } else {
                let program = if family.network.is_ipv6() { "ip6tables" } else { "iptables" };
                for (table, chain, want) in iptables(family) {
                    let have = sh(node.netns(), &format!("{program} -w 5 -t {table} -S {chain}"));
                    assert_eq!(have.lines().collect::<Vec<_>>(), want, "{} on {}", program, node.name());
                }
            }
        }
    }
}

/// The node's subnet, and the group addresses of its family.
fn words(family: FamilySubnet<IpNetwork>) -> (String, &'static str) {
    let FamilySubnet { gateway, .. } = family;
    let groups = if gateway.is_ipv6() { "ff00::/8" } else { "224.0.0.0/4" };
    (format!("{}/{}", gateway.network(), gateway.prefix()), groups)
}

/// Table, chain, and the lines of `iptables -S`.
fn iptables(family: FamilySubnet<IpNetwork>) -> [(&'static str, &'static str, Vec<String>); 4] {
    let ((s, m), n) = (words(family), family.network);
    let masq = r#"-m comment --comment "flanneld masq""#;
    let forward = r#"-m comment --comment "flanneld forward""#;
    let chain = |table, chain: &'static str, lines: Vec<String>| {
        let first =
            if chain.starts_with("FLANNEL") { format!("-N {chain}") } else { format!("-P {chain} ACCEPT") };
        let theirs = kube_proxy::jumps(table, chain);
        let ours = lines.into_iter().map(|line| format!("-A {chain} {line}"));
        (table, chain, [first].into_iter().chain(theirs).chain(ours).collect())
    };
    [
        chain("nat", "POSTROUTING", vec![format!("{masq} -j FLANNEL-POSTRTG")]),
        chain(
            "nat",
            "FLANNEL-POSTRTG",
            vec![
                format!("-m mark --mark 0x4000/0x4000 {masq} -j RETURN"),
                format!("-s {s} -d {n} {masq} -j RETURN"),
                format!("-s {n} -d {s} {masq} -j RETURN"),
                format!("! -s {n} -d {s} {masq} -j RETURN"),
                format!("-s {n} ! -d {m} {masq} -j MASQUERADE --random-fully"),
                format!("! -s {n} -d {n} {masq} -j MASQUERADE --random-fully"),
            ],
        ),
        chain("filter", "FORWARD", vec![format!("{forward} -j FLANNEL-FWD")]),
        chain(
            "filter",
            "FLANNEL-FWD",
            vec![format!("-s {n} {forward} -j ACCEPT"), format!("-d {n} {forward} -j ACCEPT")],
        ),
    ]
}

/// A chain's name, and what `nft list chain` says of it.
fn nft(family: FamilySubnet<IpNetwork>) -> [(&'static str, String); 2] {
    let ((s, m), n) = (words(family), family.network);
    let ip = if n.is_ipv6() { "ip6" } else { "ip" };
    let chain = |name, lines: &[String]| {
        let lines = lines.iter().fold(String::new(), |text, line| {
            format!(
                "{text}		{line}
"
            )
        });
        (
            name,
            format!(
                "	chain {name} {{
{lines}	}}
"
            ),
        )
    };
    [
        chain(
            "postrtg",
            &[
                "comment \"chain to manage traffic masquerading by flannel\"".to_owned(),
                "type nat hook postrouting priority srcnat; policy accept;".to_owned(),
                // Go's has `meta mark 0x00004000`, which misses a packet with another bit besides.
                "meta mark & 0x00004000 == 0x00004000 return".to_owned(),
                format!("{ip} saddr {s} {ip} daddr {n} return"),
                format!("{ip} saddr {n} {ip} daddr {s} return"),
                format!("{ip} saddr != {n} {ip} daddr {s} return"),
                format!("{ip} saddr {n} {ip} daddr != {m} masquerade fully-random"),
                format!("{ip} saddr != {n} {ip} daddr {n} masquerade fully-random"),
            ],
        ),
        chain(
            "forward",
            &[
                "comment \"chain to accept flannel traffic\"".to_owned(),
                "type filter hook forward priority filter; policy accept;".to_owned(),
                format!("{ip} saddr {n} accept"),
                format!("{ip} daddr {n} accept"),
            ],
        ),
    ]
}
