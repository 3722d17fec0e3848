//! Listings of several versions of nft.

use proptest::prelude::*;
use serde_json::json;

use super::super::listing::table;
use super::super::script::{script, text};
use crate::addr::{Family, PerFamily};
use crate::firewall::rules::{Chain, Ours, Range, Rule, Verdict, Wanted};

fn ranges() -> PerFamily<Range> {
    let range = |network: &str, subnet: &str| Range {
        network: network.parse().unwrap(),
        subnet: subnet.parse().unwrap(),
    };
    PerFamily {
        v4: Some(range("10.1.0.0/16", "10.1.7.0/24")),
        v6: Some(range("fd00:1::/56", "fd00:1:0:7::/64")),
    }
}

fn listing(expressions: &serde_json::Value) -> String {
    json!({"nftables": [
        {"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "ip", "name": "flannel-ipv4", "handle": 1}},
        {"chain": {"family": "ip", "table": "flannel-ipv4", "name": "postrtg", "handle": 1,
                   "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}},
        {"rule": {"family": "ip", "table": "flannel-ipv4", "chain": "postrtg", "handle": 9, "expr": expressions}},
    ]})
    .to_string()
}

fn read(expressions: &serde_json::Value) -> Option<Rule> {
    let seen = table(Family::V4, &listing(expressions)).unwrap();
    assert_eq!(seen.chains[0].rules[0].handle, 9);
    seen.chains[0].rules[0].rule
}

#[test]
fn reads_the_forms_of_all_versions() {
    let to = |right| json!({"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": right}});
    let host = to(json!("10.1.7.9"));
    let net = to(json!({"prefix": {"addr": "10.1.7.0", "len": 24}}));
    for (flags, random) in [
        (json!(null), false),
        (json!({}), false),
        (json!({"flags": "fully-random"}), true),
        (json!({"flags": ["fully-random"]}), true),
    ] {
        let rule = read(&json!([net, {"masquerade": flags}])).expect("understood");
        assert_eq!(rule.verdict, Verdict::Masquerade { fully_random: random }, "{flags}");
    }
    let rule = read(&json!([host, {"accept": null}])).unwrap();
    assert_eq!(text(&rule), "ip daddr 10.1.7.9/32 accept");
    for bits in [json!({"&": [{"meta": {"key": "mark"}}, 0x4000]}), json!({"meta": {"key": "mark"}})] {
        let rule = read(&json!([{"match": {"op": "==", "left": bits, "right": 0x4000}}, {"return": null}]));
        assert!(text(&rule.unwrap()).starts_with("meta mark"));
    }
}

#[test]
fn what_is_not_as_ours_is_not_ours() {
    let saddr = |op: &str, right: &str| json!({"match": {"op": op, "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": right}});
    for expressions in [
        json!([]),
        json!([{"counter": null}, {"accept": null}]),
        json!([{"drop": null}]),
        json!([{"accept": null}, saddr("==", "10.0.0.1")]),
        json!([saddr("==", "10.0.0.1")]),
        json!([saddr("<", "10.0.0.1"), {"accept": null}]),
        json!([saddr("==", "fd00::1"), {"accept": null}]),
        json!([saddr("==", "@set"), {"accept": null}]),
        json!([saddr("==", "10.0.0.1"), saddr("==", "10.0.0.2"), {"accept": null}]),
        json!([{"masquerade": {"flags": ["random", "fully-random"]}}]),
        json!([{"masquerade": {"flags": "fully-random", "port": 9}}]),
        json!([{"match": {"op": "!=", "left": {"meta": {"key": "mark"}}, "right": 0x4000}}, {"return": null}]),
        json!([{"match": {"op": "==", "left": {"meta": {"key": "iif"}}, "right": 0x4000}}, {"return": null}]),
    ] {
        assert_eq!(read(&expressions), None, "{expressions}");
    }
}

#[test]
fn rubbish_is_an_error_and_nothing_is_nothing() {
    assert!(table(Family::V4, "nft: what?").is_err());
    assert!(table(Family::V4, "{}").is_err());
    assert!(
        table(Family::V4, &json!({"nftables": [{"rule": {"chain": "x", "handle": 1}}]}).to_string()).is_err()
    );
    assert!(table(Family::V4, "").unwrap().chains.is_empty());
}

#[test]
fn a_fresh_script_for_each_family() {
    let want = Wanted { ranges: ranges(), masquerade: true, fully_random: true, forward: true };
    let ours = Ours::Of(vec![ranges()]);
    let lines = |family| script(family, &want, true, None, &ours).lines.join("\n") + "\n";
    assert_eq!(lines(Family::V4), include_str!("fresh-ipv4.nft"));
    assert_eq!(lines(Family::V6), include_str!("fresh-ipv6.nft"));
    let plain = script(Family::V4, &want, false, None, &ours).lines.join("\n");
    assert!(plain.contains("masquerade") && !plain.contains("fully-random"));
    assert_eq!(script(Family::V4, &Wanted::default(), true, None, &ours).lines, [""; 0]);
}

#[test]
fn rules_of_go_and_of_earlier_subnets_are_ours_and_no_others() {
    let ours = Ours::Of(vec![ranges()]);
    let parse = |text: &str| {
        let mut words = text.split(' ');
        let mut subnet = || {
            Some(crate::firewall::rules::Side {
                outside: words.next()? == "!",
                subnet: words.next()?.parse().ok()?,
            })
        };
        Rule { mark: None, src: subnet(), dst: subnet(), verdict: Verdict::Return }
    };
    for (rule, want) in [
        ("= 10.1.7.0/24 = 10.1.0.0/16", true),
        ("! 10.1.7.0/24 = 10.1.0.0/16", true),
        ("! 10.1.0.0/16 = 10.1.7.0/24", true),
        ("! 10.1.8.0/24 = 10.1.0.0/16", false),
        ("= 10.2.7.0/24 = 10.2.0.0/16", false),
    ] {
        assert_eq!(ours.owns(Family::V4, Chain::Masquerade, &parse(rule)), want, "{rule}");
        assert!(!ours.owns(Family::V6, Chain::Masquerade, &parse(rule)), "{rule}");
        assert!(Ours::AnyRange.owns(Family::V4, Chain::Masquerade, &parse(rule)), "{rule}");
    }
}

proptest! {
    #[test]
    fn never_panics(text in ".*", kind in "(chain|rule|table|set)", key in "[a-z]{1,5}", value in "[0-9a-z.:/]{0,9}") {
        let _ = table(Family::V4, &text);
        let listing = json!({"nftables": [{kind: {"name": "forward", "chain": "forward", "handle": 1, key: value}}]});
        let _ = table(Family::V6, &listing.to_string());
    }
}
