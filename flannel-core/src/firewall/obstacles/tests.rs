//! Which rule sets surely cut pods, and which don't.

mod host;
mod rulesets;
mod walk;

use std::net::IpAddr;

use super::packet::Links;
use super::*;
use crate::addr::Subnet;

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
