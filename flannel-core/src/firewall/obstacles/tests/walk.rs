//! Single rules, and the limits of what is known.

use proptest::prelude::*;
use serde_json::json;

use super::super::chain::{Chain, Policy, Side, Test};
use super::super::nft;
use super::super::packet::{End, LinkName, Packet, Role, Truth};
use super::*;

/// Where FORWARD's policy is DROP, a rule that surely accepts pods helps; one that may does not accuse.
#[test]
fn rules_before_a_drop() {
    let cut = "filter FORWARD by policy 4:oiw";
    for (rules, want) in [
        (&[][..], Some(cut)),
        (&["-A FORWARD -j ACCEPT"], None),
        (&["-A FORWARD -s 10.244.0.0/16 -j ACCEPT", "-A FORWARD -d 10.244.0.0/16 -j ACCEPT"], None),
        // Only what pods send, and no answer from the world.
        (&["-A FORWARD -s 10.244.0.0/16 -j ACCEPT"], Some("filter FORWARD by policy 4:w")),
        (
            &[
                "-A FORWARD -s 10.244.0.0/16 -j ACCEPT",
                "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            ],
            None,
        ),
        (
            &["-A FORWARD -s 10.244.7.0/24 -j ACCEPT", "-A FORWARD -m state --state ESTABLISHED -j ACCEPT"],
            Some("filter FORWARD by policy 4:i"),
        ),
        (&["-A FORWARD -i docker0 -j ACCEPT"], Some(cut)),
        (&["-A FORWARD -i cni0 -j ACCEPT", "-A FORWARD -o cni0 -j ACCEPT"], None),
        (
            &["-A FORWARD -i flannel+ -j ACCEPT", "-A FORWARD -o flannel+ -j ACCEPT"],
            Some("filter FORWARD by policy 4:w"),
        ),
        (&["-A FORWARD ! -i docker0 -j ACCEPT"], None),
        (&["-A FORWARD -p udp -j ACCEPT"], Some(cut)),
        (&["-A FORWARD -p icmp -m icmp --icmp-type 8 -j ACCEPT"], Some(cut)),
        (&["-A FORWARD -p tcp -j ACCEPT"], None),
        (&["-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT"], None),
        (&["-A FORWARD -s 10.244.7.9/32 -j ACCEPT", "-A FORWARD -d 10.244.7.9/32 -j ACCEPT"], None),
        (&["-A FORWARD -s 172.17.0.0/16 -j ACCEPT"], None),
        (&["-A FORWARD -m set --match-set friends src -j ACCEPT"], None),
        (&["-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT"], Some(cut)),
        (&["-A FORWARD -m connmark --mark 0x4000/0x4000 -j ACCEPT"], None),
        (
            &[
                "-A FORWARD -j MARK --set-xmark 0x4000/0x4000",
                "-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
            ],
            None,
        ),
        (&["-A FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT"], None),
        (&["-A FORWARD -m addrtype --dst-type LOCAL -j ACCEPT"], Some(cut)),
        (&["-A FORWARD -m rpfilter -j ACCEPT"], None),
        (&[r#"-A FORWARD -m comment --comment "-j ACCEPT" -j LOG"#], Some(cut)),
        (&["-A FORWARD -j NFQUEUE --queue-num 1"], None),
        (&["-A FORWARD -m limit --limit 3/min -j ACCEPT"], None),
        (&["-A FORWARD -j USER", "-A USER -j RETURN", "-A USER -j ACCEPT"], Some(cut)),
        (&["-A FORWARD -g USER", "-A USER -p udp -j ACCEPT", "-A FORWARD -j ACCEPT"], Some(cut)),
        (&["-A FORWARD -j USER", "-A USER -p udp -j ACCEPT", "-A FORWARD -j ACCEPT"], None),
        // A circle, which the kernel refuses.
        (&["-A FORWARD -j A", "-A A -j B", "-A B -j A"], None),
    ] {
        let want: Vec<_> = want.into_iter().map(str::to_owned).collect();
        // Not the world, of which 172.17.0.0/16 is a part.
        let found = said(&forward("DROP", rules));
        if rules == ["-A FORWARD -s 172.17.0.0/16 -j ACCEPT"] {
            assert_eq!(found, [cut], "what comes from Docker's network is no answer of pods");
        } else {
            assert_eq!(found, want, "{rules:?}");
        }
    }
}

/// A rule that cuts matters if it surely is about all of the traffic.
#[test]
fn rules_that_cut() {
    let by_rule = |what: &str| Some(format!("filter FORWARD by rule of FORWARD 4:{what}"));
    for (rule, want) in [
        ("-A FORWARD -j DROP", by_rule("oiw")),
        (r#"-A FORWARD -m comment --comment "the end" -j DROP"#, by_rule("oiw")),
        ("-A FORWARD -i eth7 -j DROP", None),
        ("-A FORWARD -i eth0 -j DROP", None),
        ("-A FORWARD -i cni0 -j DROP", by_rule("oiw")),
        ("-A FORWARD -s 10.244.0.0/16 -d 10.244.0.0/16 -j REJECT", by_rule("oi")),
        ("-A FORWARD -s 10.0.0.0/8 -j DROP", by_rule("oiw")),
        ("-A FORWARD -s 10.244.7.3/32 -j DROP", None),
        ("-A FORWARD -s 10.244.7.0/24 ! -d 10.244.0.0/16 -j DROP", by_rule("w")),
        ("-A FORWARD -d 10.0.0.0/8 ! -s 10.244.0.0/16 -j DROP", by_rule("w")),
        ("-A FORWARD -m conntrack --ctstate INVALID -j DROP", None),
        ("-A FORWARD -m conntrack --ctstate NEW -j DROP", by_rule("oiw")),
        ("-A FORWARD -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP", by_rule("oiw")),
        ("-A FORWARD -p tcp -m tcp --dport 25 -j DROP", None),
        ("-A FORWARD -m limit --limit 3/min -j DROP", None),
    ] {
        assert_eq!(said(&forward("ACCEPT", &[rule])), want.into_iter().collect::<Vec<_>>(), "{rule}");
    }
}

/// Accepted in one base chain is not accepted in the others.
#[test]
fn each_base_chain_decides_for_itself() {
    let mut tables = forward("ACCEPT", &["-A FORWARD -j ACCEPT"]);
    tables.extend(saved(
        "*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT DROP [0:0]\nCOMMIT\n",
    ));
    tables.extend(saved("*nat\n:PREROUTING DROP [0:0]\nCOMMIT\n*raw\n:PREROUTING DROP [0:0]\nCOMMIT\n"));
    let want = ["mangle FORWARD by policy 4:oiw", "raw PREROUTING by policy 4:oiw"];
    assert_eq!(said(&tables), want);
}

#[test]
fn before_there_are_pods_or_without_an_overlay_device_names_of_others_still_decide() {
    let found = |is_gone: fn(&Role) -> bool, rules: &[&str]| {
        let Links(mut known) = links();
        known.retain(|(_, role)| !is_gone(role));
        find(&forward("DROP", rules), &ranges(), &Links(known)).len()
    };
    let no_pods = |role: &Role| *role == Role::Pods;
    let no_overlay = |role: &Role| matches!(role, Role::Pods | Role::Overlay(_));
    for is_gone in [no_pods, no_overlay] {
        assert_eq!(found(is_gone, &["-A FORWARD -i docker0 -j ACCEPT"]), 1);
        let bridge = ["-A FORWARD -i br7 -j ACCEPT", "-A FORWARD -o br7 -j ACCEPT"];
        assert_eq!(found(is_gone, &bridge), 0, "it may become the pods'");
    }
    assert_eq!(found(|_| true, &["-A FORWARD -i docker0 -j ACCEPT"]), 0, "nothing is known");
}

#[test]
fn chains_that_forwarded_packets_enter() {
    let chain = |family: &str, kind: &str, hook: &str, policy: &str| {
        json!({"chain": {"family": family, "table": "t", "name": "c", "handle": 1, "type": kind,
                         "hook": hook, "prio": 0, "policy": policy}})
    };
    let listing = json!({"nftables": [
        {"metainfo": {"version": "1.0.6"}},
        chain("ip", "filter", "forward", "drop"),
        chain("ip", "filter", "input", "drop"),
        chain("inet", "filter", "postrouting", "accept"),
        chain("bridge", "filter", "forward", "drop"),
        chain("ip6", "nat", "postrouting", "drop"),
        {"chain": {"family": "ip", "table": "filter", "name": "plain"}},
    ]});
    let bases = nft::bases(&listing.to_string()).unwrap();
    let bases: Vec<_> = bases.iter().map(|base| (base.family.as_str(), base.drops)).collect();
    assert_eq!(bases, [("ip", true), ("inet", false)]);
    assert!(nft::bases("[").is_err() && nft::bases("").unwrap().is_empty());
}

/// Conditions of nftables, and whether they hold for what a pod sends to a peer first.
#[test]
fn conditions_of_nftables() {
    let payload = |protocol: &str, field: &str| json!({"payload": {"protocol": protocol, "field": field}});
    let meta = |key: &str| json!({"meta": {"key": key}});
    let ct = |key: &str| json!({"ct": {"key": key}});
    let prefix = |addr: &str, len: u8| json!({"prefix": {"addr": addr, "len": len}});
    let (links, truths) = (links(), [Truth::No, Truth::Maybe, Truth::Yes]);
    let [no, maybe, yes] = truths;
    let packet = Packet {
        family: Family::V4,
        range: ranges().v4.unwrap(),
        from: End::Pod,
        to: End::Peer,
        is_new: true,
        links: &links,
    };
    for (left, op, right, want) in [
        (payload("ip", "saddr"), "==", prefix("10.244.0.0", 16), yes),
        (payload("ip", "saddr"), "!=", prefix("10.244.0.0", 16), no),
        (payload("ip", "saddr"), "==", json!("10.244.7.3"), maybe),
        (payload("ip", "daddr"), "==", prefix("10.244.7.0", 24), no),
        (payload("ip", "daddr"), "==", json!({"set": ["10.9.9.9", prefix("10.244.0.0", 16)]}), yes),
        (payload("ip", "daddr"), "==", json!("@friends"), maybe),
        (payload("ip", "daddr"), "==", json!({"range": ["10.0.0.1", "10.0.0.9"]}), maybe),
        (payload("ip6", "daddr"), "!=", prefix("fd00::", 8), no),
        (payload("ip", "protocol"), "==", json!("tcp"), yes),
        (payload("ip", "protocol"), "==", json!({"set": ["udp", "sctp"]}), no),
        (payload("tcp", "dport"), "==", json!(22), maybe),
        (payload("udp", "dport"), "==", json!(53), no),
        (meta("l4proto"), "==", json!({"set": ["tcp", "udp"]}), yes),
        (meta("l4proto"), "!=", json!("tcp"), no),
        (meta("nfproto"), "==", json!("ipv4"), yes),
        (meta("nfproto"), "!=", json!("ipv4"), no),
        (meta("protocol"), "==", json!("ip6"), no),
        (meta("iifname"), "==", json!("cni0"), yes),
        (meta("iifname"), "==", json!({"set": ["eth0", "docker0"]}), no),
        (meta("oifname"), "==", json!("flannel*"), yes),
        (meta("oif"), "!=", json!("eth0"), yes),
        (meta("iifkind"), "==", json!("veth"), maybe),
        (meta("mark"), "==", json!(0x4000), maybe),
        (json!({"&": [meta("mark"), 0x4000]}), "==", json!(0x4000), no),
        (ct("state"), "in", json!("new"), yes),
        (ct("state"), "in", json!(["established", "related"]), no),
        (ct("state"), "!=", json!("new"), no),
        (ct("status"), "in", json!("dnat"), no),
        (ct("mark"), "==", json!(5), maybe),
        (json!({"fib": {"result": "type", "flags": ["daddr"]}}), "==", json!("local"), no),
        (json!({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}), "==", json!(false), maybe),
        (payload("ip", "ttl"), "<", json!(9), maybe),
    ] {
        let condition = json!({"match": {"left": left, "op": op, "right": right}});
        let rule = json!({"rule": {"handle": 1, "expr": [condition, {"accept": null}]}});
        let (rules, _) = nft::rules(&json!({"nftables": [rule]}).to_string()).unwrap();
        assert_eq!(rules[0].is_about(&packet, false), want, "{condition}");
    }
}

#[test]
fn addresses_that_are_partly_meant() {
    let links = links();
    let packet = |from, to| Packet {
        family: Family::V4,
        range: ranges().v4.unwrap(),
        from,
        to,
        is_new: true,
        links: &links,
    };
    for (end, of, want) in [
        (End::Pod, "10.244.7.0/25", Truth::Maybe),
        (End::Peer, "10.244.0.0/16", Truth::Yes),
        (End::Peer, "10.244.7.0/24", Truth::No),
        (End::Peer, "10.244.9.0/24", Truth::Maybe),
        (End::World, "0.0.0.0/0", Truth::Yes),
        (End::World, "10.244.9.0/24", Truth::No),
        (End::World, "10.0.0.0/8", Truth::Maybe),
        (End::World, "::/0", Truth::No),
    ] {
        assert_eq!(packet(end, end).address_in(end, subnet(of)), want, "{end:?} {of}");
    }
    let test =
        Test::Link { side: Side::Source, among: vec![LinkName::Prefix(String::new())], inverted: false };
    assert_eq!(test.holds(&packet(End::World, End::Pod), false), Truth::Yes);
}

/// Ten thousand rules are walked once for each kind of packet, and chains that multiply ways have an end.
#[test]
fn large_and_tangled_rule_sets_cost_little() {
    let many: Vec<_> =
        (0..10_000).map(|n| format!("-A FORWARD -s 192.0.{}.{}/32 -j ACCEPT", n / 250, n % 250)).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert_eq!(said(&forward("DROP", &many)).len(), 1);
    // Each chain leads to the next one four times, perhaps.
    let tangled: Vec<_> = (0..14)
        .flat_map(|n| [0; 4].map(|_| format!("-A C{n} -p tcp -m tcp --dport 9 -j C{}", n + 1)))
        .chain(["-A FORWARD -j C0".to_owned(), "-A C14 -j RETURN".to_owned()])
        .collect();
    let tangled: Vec<_> = tangled.iter().map(String::as_str).collect();
    assert_eq!(said(&forward("DROP", &tangled)), [""; 0], "nobody knows");
}

proptest! {
    #[test]
    fn never_panics(text in ".*", rule in "(-[sdijgmp]|! -s|--mark|--ctstate|-j) [ -~]{0,20}", key in "[a-z]{1,8}", value in "[0-9a-z.:/@*]{0,9}") {
        let _ = (nft::bases(&text), nft::rules(&text), saved(&text));
        let _ = said(&forward("DROP", &[&format!("-A FORWARD {rule}")]));
        let expressions = json!([{"match": {"op": "==", "left": {"meta": {"key": &key}}, "right": &value}},
            {"vmap": {"key": {"payload": {"protocol": "ip", "field": &key}}, "data": {"set": [[&value, {&key: null}]]}}}, {&key: &value}]);
        let rule = json!({"nftables": [{"rule": {"handle": 1, "expr": expressions}}]});
        let (rules, _) = nft::rules(&rule.to_string()).unwrap();
        let name = TableName { realm: Realm::NfTables, family: "inet".into(), name: "t".into() };
        let _ = said(&[Table { name, chains: vec![Chain { name: "c".into(), policy: Some(Policy::Drop), rules }] }]);
    }
}
