//! Which rule sets surely cut pods, and which don't.

mod host;
mod rulesets;
mod walk;

use std::net::IpAddr;
use std::process::Command;

use flannel_lab::sandbox::in_sandbox;

use super::packet::Links;
use super::*;
use crate::addr::Subnet;
use crate::kernel::Kernel;
use crate::netlink::Netlink;

fn range(network: &str, subnet: &str) -> Range {
    Range { network: network.parse().unwrap(), subnet: subnet.parse().unwrap() }
}

fn ranges() -> PerFamily<Range> {
    PerFamily {
        v4: Some(range("10.244.0.0/16", "10.244.7.0/24")),
        v6: Some(range("fd00:10:244::/56", "fd00:10:244:7::/64")),
    }
}

/// The links of a node with pods.
fn links() -> Links {
    let addresses =
        |texts: &[&str]| texts.iter().map(|text| text.parse::<IpAddr>().unwrap()).collect::<Vec<_>>();
    Links::new(
        [
            ("lo", true, addresses(&["127.0.0.1"])),
            ("eth0", false, addresses(&["192.0.2.7", "2001:db8::7"])),
            ("docker0", false, addresses(&["172.17.0.1"])),
            ("flannel.1", false, addresses(&["10.244.7.0"])),
            ("flannel-v6.1", false, addresses(&["fd00:10:244:7::"])),
            ("cni0", false, addresses(&["10.244.7.1", "fd00:10:244:7::1"])),
            ("veth1", false, Vec::new()),
        ],
        &ranges(),
    )
}

/// A namespace with rules of nftables.
struct NftHost(look::Surroundings);

impl NftHost {
    /// The tables of a rule set, in the words of `nft` or in JSON, as they are read.
    async fn tables(&mut self, ruleset: &str) -> Vec<Table> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ruleset).unwrap();
        let nft = |args: &[&str]| {
            let output = Command::new("nft").args(args).output().unwrap();
            assert!(output.status.success(), "{ruleset}: {}", String::from_utf8_lossy(&output.stderr));
        };
        nft(&["flush", "ruleset"]);
        let path = file.path().to_str().unwrap();
        if ruleset.starts_with('{') {
            nft(&["-j", "-f", path]);
        } else {
            nft(&["-f", path]);
        }
        let mut kernel = Netlink::open().unwrap();
        let names = kernel.links().await.unwrap().into_iter().map(|link| (link.index.0, link.name));
        self.0.forget();
        self.0.nf_tables(names.collect()).await.unwrap()
    }
}

/// Runs `body` in a namespace with the links of [`links`].
fn with_tables(test: &str, body: impl AsyncFnOnce(&mut NftHost)) {
    in_sandbox(test, || {
        for name in ["eth0", "docker0", "flannel.1", "cni0", "veth1"] {
            let status = Command::new("ip").args(["link", "add", name, "type", "bridge"]).status().unwrap();
            assert!(status.success(), "{name}");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let netns = crate::netns::Netns::current().unwrap();
            body(&mut NftHost(look::Surroundings::open(&netns, std::time::Duration::from_secs(1)))).await;
        });
    });
}

fn all_of(tables: &[Table]) -> Vec<Found> {
    find(tables, &ranges(), &links())
}

/// What an obstacle is said to be, with a rule's text as far as it is known.
fn said(tables: &[Table]) -> Vec<String> {
    let said = |found: Found| {
        let cuts = found.cuts.iter().map(|(family, cuts)| {
            let Cuts { to_peers, from_peers, world } = *cuts;
            let letters = [(to_peers, 'o'), (from_peers, 'i'), (world, 'w')];
            let letters: String = letters.into_iter().filter(|(is, _)| *is).map(|(_, it)| it).collect();
            format!("{}:{letters}", if family == Family::V4 { 4 } else { 6 })
        });
        let by = if found.cut.rule.is_some() {
            format!("rule of {}", found.cut.chain)
        } else {
            "policy".to_owned()
        };
        format!("{} {} by {by} {}", found.table.name, found.base, cuts.collect::<Vec<_>>().join(" "))
    };
    all_of(tables).into_iter().map(said).collect()
}

/// The tables of a save of IPv4.
fn saved(dump: &str) -> Vec<Table> {
    let name =
        |name: &str| TableName { realm: Realm::Legacy, family: "ip".to_owned(), name: name.to_owned() };
    iptables::tables(dump, name, Family::V4)
}

/// A filter table whose FORWARD has this policy and these rules.
fn forward(policy: &str, rules: &[&str]) -> Vec<Table> {
    let chains = rules.iter().filter_map(|rule| rule.strip_prefix("-A ")?.split(' ').next());
    let chains: std::collections::BTreeSet<_> = chains.filter(|chain| *chain != "FORWARD").collect();
    let chains: String = chains.into_iter().flat_map(|chain| [":", chain, " - [0:0]\n"]).collect();
    saved(&format!("*filter\n:FORWARD {policy} [0:0]\n{chains}{}\nCOMMIT\n", rules.join("\n")))
}

fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}
