//! The texts: rules, dumps, scripts, versions. Pure.

use proptest::prelude::*;

use super::super::rule_text::{Home, Read, words};
use super::super::save::Dump;
use super::super::script::{self, Changes, Want};
use super::super::variant::{Kind, Usage, Version, choose, usage_of, version};
use super::*;
use crate::addr::{Family, Subnet};
use crate::firewall::rules::{Chain, Mark, Ours, Rule, Side, Verdict};

fn want(wanted: &Wanted, family: Family) -> Want {
    Chain::ALL.map(|chain| (chain, wanted.rules(family, chain, true)))
}

fn plan(dump: &str, wanted: &Wanted, ours: &Ours) -> Changes {
    let dump = Dump::parse(dump).unwrap();
    script::plan(&dump, &want(wanted, Family::V4), |chain, rule| ours.owns(Family::V4, chain, rule))
}

/// A plan for the golden ranges, where a dump of nat and filter has these rules.
fn plan_for(nat: &[&str], filter: &[&str], wanted: &Wanted, ours: &Ours) -> Changes {
    let table = |name: &str, chain: &str, rules: &[&str]| {
        format!("*{name}\n:{chain} - [0:0]\n{}\nCOMMIT\n", rules.join("\n"))
    };
    let dump = table("filter", "FLANNEL-FWD", filter) + &table("nat", "FLANNEL-POSTRTG", nat);
    plan(&dump, wanted, ours)
}

fn ours() -> Ours {
    Ours::Of(vec![golden_ranges()])
}

#[test]
fn fresh_rules_are_as_the_golden_scripts_say() {
    for (family, golden) in
        [(Family::V4, include_str!("fresh.v4.txt")), (Family::V6, include_str!("fresh.v6.txt"))]
    {
        let changes = script::plan(&Dump::default(), &want(&all_of(golden_ranges()), family), |_, _| false);
        assert_eq!(changes.input(), golden);
        assert_eq!(changes.notes, [""; 0]);
    }
}

#[test]
fn the_rules_are_in_the_words_of_the_go_agent() {
    let nat = Home::of(Chain::Masquerade);
    assert_eq!(nat.jump(), r#"-m comment --comment "flanneld masq" -j FLANNEL-POSTRTG"#);
    let rules = all_of(golden_ranges()).rules(Family::V4, Chain::Masquerade, true).unwrap();
    let texts: Vec<_> = rules.iter().map(|rule| nat.render(rule)).collect();
    let comment = r#"-m comment --comment "flanneld masq""#;
    let (n, s) = ("10.244.0.0/16", "10.244.87.0/24");
    assert_eq!(
        texts,
        [
            format!("-m mark --mark 0x4000/0x4000 {comment} -j RETURN"),
            format!("-s {s} -d {n} {comment} -j RETURN"),
            format!("-s {n} -d {s} {comment} -j RETURN"),
            format!("! -s {n} -d {s} {comment} -j RETURN"),
            format!("-s {n} ! -d 224.0.0.0/4 {comment} -j MASQUERADE --random-fully"),
            format!("! -s {n} -d {n} {comment} -j MASQUERADE --random-fully"),
        ]
    );
    let forward = Home::of(Chain::Forward);
    let rules = all_of(golden_ranges()).rules(Family::V4, Chain::Forward, true).unwrap();
    let texts: Vec<_> = rules.iter().map(|rule| forward.render(rule)).collect();
    let comment = r#"-m comment --comment "flanneld forward""#;
    assert_eq!(texts, [format!("-s {n} {comment} -j ACCEPT"), format!("-d {n} {comment} -j ACCEPT")]);
}

#[test]
fn what_none_of_ours_can_say_is_not_understood() {
    for text in [
        r"-p tcp -m tcp --dport 80 -j ACCEPT",
        r"-i eth0 -j ACCEPT",
        r"-m mark ! --mark 0x4000/0x4000 -j RETURN",
        r"-m mark --mark 0x8000/0x8000 -j RETURN",
        r"-s 10.244.0.0/255.0.255.0 -j ACCEPT",
        r"-s 10.244.0.1/16 -j ACCEPT",
        r"-s 10.0.0.0/8 -s 10.0.0.0/8 -j ACCEPT",
        r#"-m comment --comment "open -j ACCEPT"#,
        r"-j",
        r"!",
    ] {
        assert_eq!(Read::parse(text).and_then(|read| read.rule()), None, "{text}");
    }
    for text in ["-j DROP", "-j REJECT --reject-with icmp-port-unreachable", "-j RETURN --random-fully", ""] {
        let read = Read::parse(text).unwrap();
        assert!(read.is_unconditional(), "{text}");
        assert_eq!(read.rule(), None, "{text}");
    }
}

#[test]
fn quotes_are_read_as_iptables_restore_does() {
    let cases: [(&str, Option<&[&str]>); 5] = [
        (r"-j ACCEPT", Some(&["-j", "ACCEPT"])),
        (r#"--comment "two words"  x"#, Some(&["--comment", "two words", "x"])),
        (r#""it\'s \"x\" \\ y" """#, Some(&[r#"it's "x" \ y"#, ""])),
        (r#""open"#, None),
        ("", Some(&[])),
    ];
    for (line, told) in cases {
        let told = told.map(|words| words.iter().map(ToString::to_string).collect());
        assert_eq!(words(line), told, "{line}");
    }
}

#[test]
fn dumps_may_have_counters_and_must_have_an_end() {
    let text = "# made by hand\n*nat\n:POSTROUTING ACCEPT [5:6]\n[7:8] -A POSTROUTING -j X\n-A POSTROUTING\nCOMMIT\n";
    let dump = Dump::parse(text).unwrap();
    let nat = dump.table("nat").unwrap();
    assert!(nat.has("POSTROUTING") && !nat.has("FLANNEL-POSTRTG"));
    assert_eq!(nat.rules_of("POSTROUTING"), ["-j X", ""]);
    assert_eq!(nat.ways_to("X"), 1);
    assert!(dump.table("filter").is_none());
    for cut in ["*nat\n", "*nat\n-A POSTROUTING -j X\n", "*nat\n*filter\nCOMMIT\n"] {
        assert_eq!(Dump::parse(cut), Err("table nat has no end".to_owned()), "{cut}");
    }
}

#[test]
fn a_table_that_cannot_be_read_is_no_empty_table() {
    let text = "# Table `nat' is incompatible, use 'nft' tool.\n";
    let changes = plan(text, &all_of(golden_ranges()), &ours());
    assert_eq!(changes.hidden_table, Some("nat"));
    let changes = plan(text, &Wanted::default(), &ours());
    assert_eq!((changes.hidden_table, changes.notes.len(), changes.is_empty()), (None, 1, true));
}

#[test]
fn rules_are_inserted_where_they_belong_by_numbers_that_hold_after_the_deletions() {
    let golden = include_str!("fresh.v4.txt");
    let rule = |number: usize| {
        golden.lines().filter(|line| line.starts_with("-A FLANNEL-POSTRTG")).nth(number).unwrap()
    };
    let jump = golden.lines().find(|line| line.starts_with("-A POSTROUTING")).unwrap();
    let foreign = "-A FLANNEL-POSTRTG -p tcp -j RETURN";
    let old = r#"-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE"#;
    let wanted = Wanted { forward: false, ..all_of(golden_ranges()) };
    // The second is missing, the fifth is one without random ports.
    let nat = [old, foreign, rule(0), foreign, rule(2), rule(3), rule(5), jump];
    let changes = plan_for(&nat, &[], &wanted, &ours());
    let lines = changes.input();
    let lines: Vec<_> = lines.lines().take_while(|line| *line != "COMMIT").collect();
    assert_eq!(
        lines,
        [
            "*nat",
            &old.replace("-A ", "-D "),
            &rule(1).replace("-A FLANNEL-POSTRTG", "-I FLANNEL-POSTRTG 4"),
            &rule(4).replace("-A FLANNEL-POSTRTG", "-I FLANNEL-POSTRTG 7"),
        ]
    );
    assert_eq!(
        changes.commands("iptables-nft -w 5")[0],
        format!("iptables-nft -w 5 -t nat {}", old.replace("-A ", "-D "))
    );
}

#[test]
fn rules_that_cannot_be_told_apart_are_all_put_anew() {
    let golden = include_str!("fresh.v4.txt");
    let own: Vec<_> = golden.lines().filter(|line| line.starts_with("-A FLANNEL-FWD")).collect();
    let jump = golden.lines().find(|line| line.starts_with("-A FORWARD")).unwrap();
    let wanted = Wanted { masquerade: false, ..all_of(golden_ranges()) };
    let changes = plan_for(&[], &[own[1], own[0], own[1], jump], &wanted, &ours());
    let lines: Vec<_> = [own[1], own[0], own[1]].iter().map(|line| line.replace("-A ", "-D ")).collect();
    let nat = "*nat\n-X FLANNEL-POSTRTG\nCOMMIT\n";
    let filter = format!("*filter\n{}\n{}\n{}\nCOMMIT\n", lines.join("\n"), own[0], own[1]);
    assert_eq!(changes.input(), nat.to_owned() + &filter);
}

#[test]
fn what_others_have_in_our_chain_stays_in_force_when_ours_goes() {
    let golden = include_str!("fresh.v4.txt");
    let own: Vec<_> = golden.lines().filter(|line| line.starts_with("-A FLANNEL-FWD")).collect();
    let jump = golden.lines().find(|line| line.starts_with("-A FORWARD")).unwrap();
    let other = "-A FLANNEL-FWD -p tcp -j DROP";
    let changes = plan_for(&[], &[own[0], other, own[1], jump], &Wanted::default(), &ours());
    let lines = own.iter().map(|line| line.replace("-A ", "-D ")).collect::<Vec<_>>().join("\n");
    assert!(changes.input().ends_with(&format!("*filter\n{lines}\nCOMMIT\n")), "{}", changes.input());
    assert_eq!(changes.notes.len(), 1);
    assert!(changes.notes[0].contains("`-p tcp -j DROP`"), "{:?}", changes.notes);
    // A way from elsewhere, which can't be left without its end.
    let changes = plan_for(&[], &["-A DOCKER-USER -j FLANNEL-FWD", jump], &Wanted::default(), &ours());
    let jump = jump.replace("-A ", "-D ");
    assert!(changes.input().ends_with(&format!("*filter\n{jump}\nCOMMIT\n")), "{}", changes.input());
    assert_eq!(changes.notes.len(), 1);
}

#[test]
fn rules_of_another_network_stay_and_are_named() {
    let golden = include_str!("fresh.v4.txt");
    let lines: Vec<_> = golden.lines().filter(|line| line.starts_with("-A F")).collect();
    let (filter, nat): (Vec<&str>, Vec<&str>) = lines.iter().partition(|line| line.contains("forward"));
    let nat =
        [&nat[..], &[r#"-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG"#]].concat();
    let third = PerFamily { v4: Some(range("172.30.0.0/16", "172.30.3.0/24")), v6: None };
    let changes = plan_for(&nat, &filter, &all_of(third), &Ours::Of(vec![third]));
    // All agents of a host share the rule about kube-proxy's mark.
    let deleted = changes.input().lines().filter(|line| line.starts_with("-D")).count();
    assert_eq!(deleted, 0, "{}", changes.input());
    assert_eq!(changes.notes.len(), 2);
    assert!(changes.notes[0].starts_with("table nat, chain FLANNEL-POSTRTG: 5 rules of another network"));
    assert!(changes.notes[1].starts_with("table filter, chain FLANNEL-FWD: 2 rules of another network"));
    // Who cleans up takes them all.
    let changes = plan_for(&nat, &filter, &Wanted::default(), &Ours::AnyRange);
    assert_eq!(changes.input().lines().filter(|line| line.starts_with("-D")).count(), 10);
    assert_eq!(changes.input().lines().filter(|line| line.starts_with("-X")).count(), 2);
    assert_eq!(changes.notes, [""; 0]);
}

#[test]
fn versions_are_read_and_rubbish_is_none() {
    for (said, told) in [
        ("iptables v1.8.9 (nf_tables)\n", Some(((true, true), Kind::Nft))),
        ("iptables v1.8.9 (legacy)", Some(((true, true), Kind::Legacy))),
        ("iptables v1.6.2", Some(((true, true), Kind::Legacy))),
        ("ip6tables v1.6.0", Some(((false, false), Kind::Legacy))),
        ("iptables v1.10", Some(((true, true), Kind::Legacy))),
        ("iptables v2.0.0-rc1 (nf_tables)", Some(((true, true), Kind::Nft))),
        ("iptables 1.8.9", None),
        ("iptables vvv", None),
        ("v", None),
        ("", None),
    ] {
        let can = |version| (version >= Version::RANDOM_FULLY, version >= Version::WAIT);
        assert_eq!(version(said).map(|(version, kind)| (can(version), kind)), told, "{said}");
    }
}

#[test]
fn the_variant_is_the_one_that_others_use() {
    let of = |rules| Some(Usage { has_kubelet_chains: false, rules });
    let kubelet = Some(Usage { has_kubelet_chains: true, rules: 1 });
    for (nft, legacy, plain, chosen) in [
        (kubelet, of(100), Some(Kind::Legacy), Kind::Nft),
        (of(100), kubelet, Some(Kind::Nft), Kind::Legacy),
        (kubelet, kubelet, Some(Kind::Legacy), Kind::Nft),
        (of(2), of(1), Some(Kind::Legacy), Kind::Nft),
        (of(1), of(2), Some(Kind::Nft), Kind::Legacy),
        (of(2), of(2), Some(Kind::Legacy), Kind::Legacy),
        (of(0), of(0), Some(Kind::Nft), Kind::Nft),
        (of(0), of(0), None, Kind::Nft),
        (None, of(0), Some(Kind::Nft), Kind::Legacy),
        (of(0), None, Some(Kind::Legacy), Kind::Nft),
    ] {
        assert_eq!(choose(nft, legacy, plain).0, chosen, "{nft:?} {legacy:?} {plain:?}");
    }
}

#[test]
fn our_own_rules_do_not_say_what_others_use() {
    let golden = include_str!("fresh.v4.txt");
    assert_eq!(usage_of(golden), Usage::default());
    let text = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n-A X -j ACCEPT\nCOMMIT\n";
    assert_eq!(usage_of(text), Usage { has_kubelet_chains: true, rules: 1 });
}

fn subnet() -> impl Strategy<Value = Subnet> {
    prop_oneof![
        (any::<[u8; 4]>(), 0..=32_u8)
            .prop_map(|(addr, prefix)| Subnet::containing(addr.into(), prefix).unwrap()),
        (any::<[u16; 8]>(), 0..=128_u8)
            .prop_map(|(addr, prefix)| Subnet::containing(addr.into(), prefix).unwrap()),
    ]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let side = || {
        proptest::option::of((subnet(), any::<bool>()).prop_map(|(subnet, outside)| Side { subnet, outside }))
    };
    let verdict = prop_oneof![
        Just(Verdict::Return),
        Just(Verdict::Accept),
        any::<bool>().prop_map(|fully_random| Verdict::Masquerade { fully_random }),
    ];
    let mark = proptest::option::of(prop_oneof![Just(Mark::Bit), Just(Mark::Exact)]);
    (mark, side(), side(), verdict).prop_map(|(mark, src, dst, verdict)| Rule { mark, src, dst, verdict })
}

/// Pieces of dumps, to be put together as chance will have it.
fn piece() -> impl Strategy<Value = String> {
    let known = [
        "*nat\n",
        "*filter\n",
        "COMMIT\n",
        ":FLANNEL-FWD - [0:0]\n",
        "-A FLANNEL-FWD ",
        "-A FORWARD ",
        "-s ",
        "! ",
        "-d ",
        "10.244.0.0/16 ",
        "-m ",
        "mark ",
        "comment ",
        "--comment ",
        "\"flanneld forward\" ",
        "\"",
        "\\",
        "-j ",
        "ACCEPT",
        "FLANNEL-FWD",
        "DROP",
        "\n",
        "[1:2] ",
        "--mark ",
        "0x4000/0x4000 ",
        "# Table `nat' is incompatible, use 'nft' tool.\n",
    ];
    prop_oneof![4 => proptest::sample::select(known.to_vec()).prop_map(str::to_owned), 1 => ".{0,6}"]
}

proptest! {
    #[test]
    fn a_rule_reads_as_it_was_written(rule in any_rule()) {
        for chain in Chain::ALL {
            let home = Home::of(chain);
            let read = Read::parse(&home.render(&rule)).unwrap();
            prop_assert_eq!(read.rule(), Some(rule));
            prop_assert_eq!(&read.comment, home.comment);
        }
    }

    #[test]
    fn no_dump_is_too_odd(pieces in proptest::collection::vec(piece(), 0..60), wants in any::<bool>()) {
        let wanted = if wants { all_of(golden_ranges()) } else { Wanted::default() };
        if let Ok(dump) = Dump::parse(&pieces.concat()) {
            let changes = script::plan(&dump, &want(&wanted, Family::V4), |chain, rule| ours().owns(Family::V4, chain, rule));
            // Whatever it says, only what carries our comment goes.
            let mut deleted = changes.input().lines().filter(|line| line.starts_with("-D")).map(str::to_owned).collect::<Vec<_>>();
            deleted.retain(|line| !line.contains("flanneld forward"));
            prop_assert_eq!(deleted, [""; 0]);
        }
    }
}
