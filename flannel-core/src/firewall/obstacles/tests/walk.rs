//! Single rules, and the limits of what is known.

use flannel_lab::test_name;
use proptest::prelude::*;

use super::super::chain::{Side, Test};
use super::super::nft;
use super::super::packet::{End, LinkName, Packet, Role, Truth};
use super::*;
use crate::netlink::nftables::{Hook, HookKind, TableFamily};

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
    let base = |family, kind, number, drops| {
        let hook = Hook { kind, number, priority: 0, link: None, drops };
        nft::base(family, "t".to_owned(), "c".to_owned(), Some(&hook)).map(|base| base.drops)
    };
    let (filter, forward) = (HookKind::Filter, 2);
    assert_eq!(base(TableFamily::Ip, filter, forward, true), Some(true));
    assert_eq!(base(TableFamily::Ip, filter, 1, true), None, "what is for this host");
    assert_eq!(base(TableFamily::Inet, filter, 4, false), Some(false));
    assert_eq!(base(TableFamily::Netdev, filter, 0, true), None);
    assert_eq!(base(TableFamily::Ip6, HookKind::Nat, 4, true), None);
    assert_eq!(nft::base(TableFamily::Ip, "t".to_owned(), "c".to_owned(), None), None);
}

/// Conditions of nftables, and whether they hold for what a pod sends to a peer first.
#[test]
fn conditions_of_nftables() {
    const CONDITIONS: [(&str, Truth); 53] = [
        ("ip saddr 10.244.0.0/16", Truth::Yes),
        ("ip saddr != 10.244.0.0/16", Truth::No),
        ("ip saddr 10.244.7.3", Truth::Maybe),
        ("ip saddr 10.244.0.0/18", Truth::Yes),
        ("ip saddr & 255.255.0.255 == 10.244.0.1", Truth::Maybe),
        ("ip daddr 10.244.7.0/24", Truth::No),
        ("ip daddr { 10.9.9.9, 10.244.0.0/16 }", Truth::Yes),
        ("ip daddr != { 10.9.9.9, 10.244.0.0/16 }", Truth::No),
        ("ip daddr { 10.8.0.0-10.9.255.255, 10.244.0.0/16 }", Truth::Yes),
        ("ip daddr { 10.9.9.9, 10.9.9.11 }", Truth::No),
        ("ip daddr { 10.9.0.5-10.9.0.9, 10.244.0.0/16 }", Truth::Maybe),
        ("ip saddr 10.244.7.3 ip daddr 10.9.9.9", Truth::No),
        ("ip saddr 10.244.7.3 ip daddr 10.244.8.3", Truth::Maybe),
        ("ip saddr . ip daddr { 10.9.9.9 . 10.9.9.8 }", Truth::Maybe),
        ("ip daddr @friends", Truth::Maybe),
        ("ip daddr 10.0.0.1-10.0.0.9", Truth::Maybe),
        ("ip6 daddr != fd00::/8", Truth::No),
        ("ip protocol tcp", Truth::Yes),
        ("ip protocol { udp, sctp }", Truth::No),
        ("tcp dport 22", Truth::Maybe),
        ("tcp dport { 22, 80 }", Truth::Maybe),
        ("udp dport 53", Truth::No),
        ("meta l4proto { tcp, udp }", Truth::Yes),
        ("meta l4proto != tcp", Truth::No),
        ("meta nfproto ipv4", Truth::Yes),
        ("meta nfproto != ipv4", Truth::No),
        ("meta protocol ip6", Truth::No),
        ("iifname cni0", Truth::Yes),
        ("iifname { eth0, docker0 }", Truth::No),
        ("iifname != { eth0, docker0 }", Truth::Yes),
        ("oifname \"flannel*\"", Truth::Yes),
        ("oifname \"f*\" iifname \"eth*\"", Truth::No),
        ("oif != eth0", Truth::Yes),
        ("iif cni0", Truth::Yes),
        ("iif { cni0, eth0 }", Truth::Yes),
        ("meta iifkind \"veth\"", Truth::Maybe),
        ("meta mark 0x4000", Truth::Maybe),
        ("meta mark & 0x4000 == 0x4000", Truth::No),
        ("meta mark & 0x4000 == 0", Truth::Yes),
        ("meta mark | 0x4000 == 0x4000", Truth::Maybe),
        ("ct state new", Truth::Yes),
        ("ct state established,related", Truth::No),
        ("ct state != new", Truth::No),
        ("ct state { new, established }", Truth::Yes),
        ("ct status dnat", Truth::No),
        ("ct mark 5", Truth::Maybe),
        ("ct original ip saddr 10.244.7.3", Truth::Maybe),
        ("fib daddr type local", Truth::No),
        ("fib daddr type != local", Truth::Yes),
        ("fib saddr . iif oif missing", Truth::Maybe),
        ("ip ttl < 9", Truth::Maybe),
        ("limit rate 3/minute", Truth::Maybe),
        ("counter log prefix \"x\" meta mark set 0 ct mark set 7", Truth::Yes),
    ];
    with_tables(test_name!(), async |host| {
        let links = links();
        let packet = Packet {
            family: Family::V4,
            range: ranges().v4.unwrap(),
            from: End::Pod,
            to: End::Peer,
            is_new: true,
            links: &links,
        };
        for (condition, want) in CONDITIONS {
            let script = format!(
                "table inet t {{ set friends {{ type ipv4_addr; }}\n \
                 chain c {{ type filter hook forward priority 0; policy drop; {condition} accept\n}}\n }}"
            );
            let tables = host.tables(&script).await;
            let rule = &tables[0].chains[0].rules[0];
            assert_eq!(rule.is_about(&packet, false), want, "{condition}: {rule:?}");
        }
    });
}

/// Maps of verdicts are as many rules as they have elements.
#[test]
fn maps_of_verdicts() {
    with_tables(test_name!(), async |host| {
        for (rules, want) in [
            ("ct state vmap { established : accept, new : accept, invalid : drop }", &[][..]),
            ("ct state vmap { established : accept, invalid : drop }", &["t c by policy 4:oiw 6:oiw"]),
            ("ip saddr vmap { 10.244.0.0/16 : accept, * : accept }", &["t c by policy 6:oiw"]),
            ("iifname vmap { docker0 : accept, eth7 : accept }", &["t c by policy 4:oiw 6:oiw"]),
            (
                "iifname vmap { docker0 : accept, cni0 : goto last, flannel.1 : goto last }",
                &["t c by rule of last 4:oiw 6:oiw"],
            ),
            ("tcp dport vmap { 22 : accept, 80 : jump last }", &[]),
            ("ip daddr vmap @known", &["t c by policy 6:oiw"]),
        ] {
            let script = format!(
                "table inet t {{ map known {{ type ipv4_addr : verdict; }}\n chain last {{ drop\n}}\n \
                 chain c {{ type filter hook forward priority 0; policy drop; {rules}\n}}\n }}"
            );
            assert_eq!(said(&host.tables(&script).await), want, "{rules}");
        }
    });
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
    fn never_panics(text in ".*", rule in "(-[sdijgmp]|! -s|--mark|--ctstate|-j) [ -~]{0,20}") {
        let _ = (saved(&text), said(&forward("DROP", &[&format!("-A FORWARD {rule}")])));
    }
}
