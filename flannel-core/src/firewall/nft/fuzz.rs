//! What the kernel says of rules in a table of ours, as a function of bytes, for fuzzing.

use super::command::declared;
use super::plan::changes;
use super::seen::{SeenChain, SeenTable, rule};
use crate::addr::Family;
use crate::firewall::rules::{Chain, Ours, Rule, Wanted};
use crate::netlink::nftables::recorded;

/// Datagrams from the kernel.
///
/// # Panics
/// If a rule that is recognised is not recognised again after it was written by us.
pub(crate) fn rules(data: &[u8]) {
    let recorded = recorded(data);
    for family in Family::ALL {
        let rules: Vec<_> = recorded.rules.iter().map(|(_, _, rule)| rule.clone()).collect();
        for known in rules.iter().filter_map(|seen| rule(family, seen)) {
            again(family, &known);
        }
        let chain = |chain| SeenChain { chain, hook: Some(declared(chain).hook()), rules: rules.clone() };
        let seen = SeenTable { chains: Chain::ALL.map(chain).into(), other: false, is_dormant: false };
        _ = changes(family, &Wanted::default(), Some(&seen), &Ours::AnyRange);
    }
}

fn again(family: Family, known: &Rule) {
    let terms = super::command::terms(known);
    let written = crate::netlink::nftables::written(&terms);
    let read = rule(family, &written);
    // Rules of Go compare the whole mark, ours a bit of it.
    let same = read.is_some_and(|read| Rule { mark: None, ..read } == Rule { mark: None, ..*known });
    assert!(same, "{known:?} is written as {written:?}");
}
