//! The commands for a fresh table, and whose rules are ours.

use super::super::plan::changes;
use crate::addr::{Family, PerFamily};
use crate::firewall::rules::{Chain, Ours, Range, Rule, Side, Verdict, Wanted};

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

#[test]
fn fresh_commands_for_each_family() {
    let want = Wanted { ranges: ranges(), masquerade: true, fully_random: true, forward: true };
    let ours = Ours::Of(vec![ranges()]);
    let lines = |family, want: &Wanted| {
        let commands = changes(family, want, None, &ours).commands;
        commands.iter().map(|command| command.to_string() + "\n").collect::<String>()
    };
    assert_eq!(lines(Family::V4, &want), include_str!("fresh-ipv4.nft"));
    assert_eq!(lines(Family::V6, &want), include_str!("fresh-ipv6.nft"));
    let plain = lines(Family::V4, &Wanted { fully_random: false, ..want });
    assert!(plain.contains("masquerade") && !plain.contains("fully-random"));
    assert_eq!(lines(Family::V4, &Wanted::default()), "");
}

#[test]
fn rules_of_go_and_of_earlier_subnets_are_ours_and_no_others() {
    let ours = Ours::Of(vec![ranges()]);
    let parse = |text: &str| {
        let mut words = text.split(' ');
        let mut subnet = || Some(Side { outside: words.next()? == "!", subnet: words.next()?.parse().ok()? });
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
