//! Chains of others, as functions of bytes, for fuzzing.

use std::collections::BTreeMap;

use super::chain::{Chain, Policy, Realm, Rule, Table, TableName};
use super::nft::Context;
use super::packet::Links;
use super::{advice, find, iptables, nft, text_of};
use crate::addr::{Family, PerFamily};
use crate::firewall::rules::Range;
use crate::netlink::nftables::{Recorded, recorded};

/// Datagrams from the kernel about nftables, or a dump of iptables.
///
/// # Panics
/// If what is found has no place or no advice.
pub(crate) fn chains(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut tables = by_nft(data);
    for (realm, family) in [(Realm::Legacy, Family::V4), (Realm::NfTables, Family::V6)] {
        let of = if family == Family::V4 { "ip" } else { "ip6" };
        let name = |name: &str| TableName { realm, family: of.to_owned(), name: name.to_owned() };
        tables.extend(iptables::tables(&text, name, family));
    }
    let range = |network: &str, subnet: &str| {
        Some(Range { network: network.parse().ok()?, subnet: subnet.parse().ok()? })
    };
    let ranges = PerFamily {
        v4: range("10.244.0.0/16", "10.244.7.0/24"),
        v6: range("fd00:10:244::/56", "fd00:10:244:7::/64"),
    };
    let addr = |text: &str| vec![text.parse().expect("a constant")];
    let host = [
        ("lo", true, addr("127.0.0.1")),
        ("eth0", false, addr("192.0.2.1")),
        ("flannel.1", false, addr("10.244.7.0")),
        ("cni0", false, addr("10.244.7.1")),
    ];
    let links = Links::new(host, &ranges);
    for found in find(&tables, &ranges, &links) {
        let has = |table: &&Table| table.name == found.table && table.chain(&found.base).is_some();
        let table = tables.iter().find(has).expect("it was found there");
        assert!(!found.cuts.is_empty());
        assert!(!advice(table, &found, &ranges).is_empty());
        if let Some(rule) = &found.cut.rule {
            _ = text_of(rule, &text);
        }
    }
}

/// The chains of all recorded rules, each as a base chain.
fn by_nft(data: &[u8]) -> Vec<Table> {
    let Recorded { rules, sets } = recorded(data);
    let context = Context { sets, ..Context::default() };
    let mut chains: BTreeMap<TableName, BTreeMap<String, Vec<Rule>>> = BTreeMap::new();
    for (family, chain, rule) in rules {
        let (rules, _) = nft::rules(family, &[rule], &context);
        _ = nft::targets(&rules).count();
        let name =
            TableName { realm: Realm::NfTables, family: family.name().to_owned(), name: "t".to_owned() };
        chains.entry(name).or_default().entry(chain).or_default().extend(rules);
    }
    let table = |(name, chains): (_, BTreeMap<_, _>)| {
        let chain = |(name, rules)| Chain { name, policy: Some(Policy::Drop), rules };
        Table { name, chains: chains.into_iter().map(chain).collect() }
    };
    chains.into_iter().map(table).collect()
}
