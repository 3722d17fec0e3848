//! Rules as several kernels say them: those that Go flannel writes by `nft`, those that we wrote by it in earlier versions, and
//! those that we write now.
//!
//! `record.py` in the folder with the recordings makes them.

use super::super::command::terms;
use super::super::seen::rule;
use crate::addr::{Family, PerFamily};
use crate::firewall::rules::{Chain, Mark, Range, Rule, Side, Verdict, Wanted};
use crate::netlink::nftables::{recorded, written};

fn ranges(v4: (&str, &str), v6: (&str, &str)) -> PerFamily<Range> {
    let range = |(network, subnet): (&str, &str)| {
        Some(Range { network: network.parse().unwrap(), subnet: subnet.parse().unwrap() })
    };
    PerFamily { v4: range(v4), v6: range(v6) }
}

/// What node 1 of the golden state has.
fn golden() -> PerFamily<Range> {
    ranges(("10.244.0.0/16", "10.244.16.0/24"), ("fd00:10:244::/56", "fd00:10:244:10::/64"))
}

/// What the node of `fresh-ipv4.nft` and `fresh-ipv6.nft` has, which were recorded one after the other.
fn fresh() -> PerFamily<Range> {
    ranges(("10.1.0.0/16", "10.1.7.0/24"), ("fd00:1::/56", "fd00:1:0:7::/64"))
}

fn ours(ranges: PerFamily<Range>, family: Family) -> Vec<Rule> {
    let want = Wanted::of(ranges).masquerading(true).forwarding();
    Chain::ALL.into_iter().flat_map(|chain| want.rules(family, chain, true).unwrap()).collect()
}

/// The rules of Go, with its two faults.
fn of_go(family: Family) -> Vec<Rule> {
    let Range { network, subnet } = *golden().get(family).unwrap();
    let mut rules = ours(golden(), family);
    for rule in &mut rules {
        rule.mark = rule.mark.map(|_| Mark::Exact);
        if rule.src.is_some_and(|src| src.outside) && rule.verdict == Verdict::Return {
            rule.src = Some(Side { subnet, outside: true });
            rule.dst = Some(Side { subnet: network, outside: false });
        }
    }
    rules
}

fn seen(recording: &[u8], family: Family) -> Vec<Rule> {
    let rules = recorded(recording).rules.into_iter().filter(|(of, ..)| *of == family.into());
    let mut rules: Vec<_> =
        rules.map(|(_, chain, seen)| (chain, rule(family, &seen).expect("recognised"))).collect();
    // Go makes the chains in the other order.
    rules.sort_by_key(|(chain, _)| std::cmp::Reverse(chain.clone()));
    rules.into_iter().map(|(_, rule)| rule).collect()
}

#[test]
fn rules_are_recognised_on_every_kernel() {
    for (kernel, go, by_nft) in [
        ("6.1", &include_bytes!("recorded/6.1-go")[..], &include_bytes!("recorded/6.1-nft")[..]),
        ("6.12", include_bytes!("recorded/6.12-go"), include_bytes!("recorded/6.12-nft")),
        ("6.18", include_bytes!("recorded/6.18-go"), include_bytes!("recorded/6.18-nft")),
    ] {
        for family in Family::ALL {
            assert_eq!(seen(go, family), of_go(family), "{kernel}");
            assert_eq!(seen(by_nft, family), ours(fresh(), family), "{kernel}");
        }
    }
}

#[test]
fn what_we_write_is_what_we_read() {
    for family in Family::ALL {
        for ours in ours(golden(), family) {
            assert_eq!(rule(family, &written(&terms(&ours))), Some(ours));
        }
    }
}
