//! Rules in the real kernel, of which the real nft is the judge.

use std::process::Command;
use std::time::Duration;

use flannel_lab::golden::Golden;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::patiently;
use tokio_util::sync::CancellationToken;

use super::super::Nftables;
use super::super::command::text;
use super::super::seen::{read, rule};
use crate::addr::{Family, PerFamily};
use crate::firewall::rules::{Ours, Range, Rule, Wanted};
use crate::firewall::{Firewall, FirewallError, Managers, Plan, RuleManager};
use crate::netlink::nftables::NfTables;
use crate::netns::Netns;

/// Rules of others around and among the names of ours.
const FOREIGN: &str = "
table ip nat { chain POSTROUTING { type nat hook postrouting priority 100; policy accept;
 ip saddr 192.0.2.0/24 counter masquerade
 } 
}
table inet firewall { set s { type ipv4_addr
 elements = { 192.0.2.7 } 
 }
 chain forward { type filter hook forward priority 0; policy accept; ct state invalid counter drop
 }
}
";

fn nft(input: &str) {
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), input).unwrap();
    let output = Command::new("nft").arg("-f").arg(script.path()).output().unwrap();
    assert!(output.status.success(), "{input}: {}", String::from_utf8_lossy(&output.stderr));
}

fn ruleset() -> String {
    let output = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn ranges(v4: (&str, &str), v6: (&str, &str)) -> PerFamily<Range> {
    let range = |(network, subnet): (&str, &str)| {
        Some(Range { network: network.parse().unwrap(), subnet: subnet.parse().unwrap() })
    };
    PerFamily { v4: range(v4), v6: range(v6) }
}

/// What node 1 of the golden state has.
fn golden_ranges() -> PerFamily<Range> {
    ranges(("10.244.0.0/16", "10.244.16.0/24"), ("fd00:10:244::/56", "fd00:10:244:10::/64"))
}

fn all(ranges: PerFamily<Range>) -> Wanted {
    Wanted { ranges, masquerade: true, fully_random: true, forward: true }
}

fn ours() -> Ours {
    Ours::Of(vec![golden_ranges()])
}

async fn apply(nftables: &mut Nftables, want: &Wanted, ours: &Ours) -> Plan {
    let plan = nftables.plan(want, ours).await.unwrap();
    assert!(plan.steps.len() <= 1, "one transaction: {plan:?}");
    for step in &plan.steps {
        step.run(&Netns::current().unwrap()).await.unwrap();
    }
    let again = nftables.plan(want, ours).await.unwrap();
    assert_eq!(again.steps, [], "the rules read back as they were written");
    plan
}

fn with_nft<F: Future<Output = ()>>(test: &str, body: impl FnOnce() -> F) {
    in_sandbox(test, || {
        nft(FOREIGN);
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body());
    });
}

/// What Go's nodes have, with its two faults mended. Order of the chains is no matter.
fn golden_tables() -> Vec<String> {
    let lines = Golden::named("vxlan-dual-nftables").lines("nft");
    let mended = lines.iter().map(|line| match line.as_str() {
        "meta mark 0x00004000 return" => "meta mark & 0x00004000 == 0x00004000 return",
        "ip saddr != 10.244.16.0/24 ip daddr 10.244.0.0/16 return" => {
            "ip saddr != 10.244.0.0/16 ip daddr 10.244.16.0/24 return"
        }
        "ip6 saddr != fd00:10:244:10::/64 ip6 daddr fd00:10:244::/56 return" => {
            "ip6 saddr != fd00:10:244::/56 ip6 daddr fd00:10:244:10::/64 return"
        }
        other => other,
    });
    mended.map(str::to_owned).collect()
}

fn our_tables() -> Vec<String> {
    let tables = [("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6")].map(|(family, table)| {
        let output = Command::new("nft").args(["list", "table", family, table]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    });
    tables.concat().lines().map(|line| line.trim().to_owned()).collect()
}

/// Lines in their order, but chains in theirs by name.
fn chains(lines: &[String]) -> Vec<Vec<&str>> {
    let text: Vec<_> = lines.iter().map(String::as_str).filter(|line| !line.is_empty()).collect();
    let mut chains: Vec<Vec<_>> = text.split(|line| *line == "}").map(<[_]>::to_vec).collect();
    for chain in &mut chains {
        chain.retain(|line| !line.starts_with("table") && !line.contains("rules for"));
    }
    chains.retain(|chain| !chain.is_empty());
    chains.sort();
    chains
}

#[test]
fn the_rules_are_those_of_go_without_its_faults() {
    with_nft(test_name!(), || async {
        let before = ruleset();
        let mut nftables = Nftables::open(&Netns::current().unwrap());
        apply(&mut nftables, &all(golden_ranges()), &ours()).await;
        let (got, want) = (our_tables(), golden_tables());
        assert_eq!(chains(&got), chains(&want));
        assert!(ruleset().starts_with(&before), "the others are as they were");
        apply(&mut nftables, &Wanted::default(), &ours()).await;
        assert_eq!(ruleset(), before, "nothing is left");
    });
}

#[test]
fn the_tables_of_a_go_node_are_taken_over_by_the_fewest_changes() {
    with_nft(test_name!(), || async {
        nft(&Golden::named("vxlan-dual-nftables").lines("nft").join("\n"));
        let mut nftables = Nftables::open(&Netns::current().unwrap());
        let plan = apply(&mut nftables, &all(golden_ranges()), &ours()).await;
        assert_eq!(plan.steps[0].commands.len(), 8, "two of each family go, two come: {plan:?}");
        assert_eq!(chains(&our_tables()), chains(&golden_tables()));
    });
}

#[test]
fn every_damage_is_mended() {
    with_nft(test_name!(), || async {
        let want = all(golden_ranges());
        let mut nftables = Nftables::open(&Netns::current().unwrap());
        apply(&mut nftables, &want, &ours()).await;
        let whole = chains(&our_tables()).concat().join("\n");
        for damage in [
            "flush ruleset",
            "delete table ip flannel-ipv4",
            "flush table ip6 flannel-ipv6",
            "flush chain ip flannel-ipv4 postrtg",
            "flush chain ip6 flannel-ipv6 forward; delete chain ip6 flannel-ipv6 forward",
            "add rule ip flannel-ipv4 postrtg ip saddr 10.244.16.0/24 ip daddr 10.244.0.0/16 return",
            "insert rule ip flannel-ipv4 postrtg ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade",
            "add chain ip flannel-ipv4 forward { policy drop; }",
            "flush chain ip flannel-ipv4 forward; delete chain ip flannel-ipv4 forward; \
             add chain ip flannel-ipv4 forward { type filter hook forward priority 5; policy accept; }",
            "flush chain ip flannel-ipv4 forward; delete chain ip flannel-ipv4 forward; add chain ip flannel-ipv4 forward",
        ] {
            nft(&format!("{damage}\n"));
            let plan = apply(&mut nftables, &want, &ours()).await;
            assert_eq!(plan.steps.len(), 1, "{damage}");
            assert_eq!(chains(&our_tables()).concat().join("\n"), whole, "{damage}");
        }
    });
}

#[test]
fn rules_of_others_in_our_chains_stay_where_they_are() {
    with_nft(test_name!(), || async {
        let want = all(golden_ranges());
        let mut nftables = Nftables::open(&Netns::current().unwrap());
        apply(&mut nftables, &want, &ours()).await;
        nft("insert rule ip flannel-ipv4 forward ip saddr 192.0.2.1 counter drop\n\
             add rule ip flannel-ipv4 forward ip saddr 10.9.0.0/16 accept\n\
             add set ip flannel-ipv4 theirs { type ipv4_addr; }\n\
             add chain ip flannel-ipv4 theirs\n");
        let theirs = || {
            let lines = our_tables();
            lines
                .into_iter()
                .filter(|line| line.contains("192.0.2.1") || line.contains("10.9.0.0"))
                .collect::<Vec<_>>()
        };
        let before = theirs();
        let plan = apply(&mut nftables, &want, &ours()).await;
        assert_eq!(plan.steps, []);
        assert!(plan.notes.iter().any(|note| note.contains("ip flannel-ipv4 forward")), "{plan:?}");
        // Another subnet: what was written for the last one goes.
        let now = ranges(("10.244.0.0/16", "10.244.99.0/24"), ("fd00:10:244::/56", "fd00:10:244:99::/64"));
        let both = Ours::Of(vec![now, golden_ranges()]);
        apply(&mut nftables, &all(now), &both).await;
        let text = our_tables().join("\n");
        assert!(text.contains("10.244.99.0/24") && !text.contains("10.244.16.0/24"), "{text}");
        apply(&mut nftables, &Wanted::default(), &both).await;
        assert_eq!(theirs(), before, "all that is left");
        assert!(ruleset().contains("chain theirs") && !ruleset().contains("10.244."));
    });
}

/// Reads the only rule of our chain for masquerading.
async fn only_rule(text: &str) -> Option<Rule> {
    let chain = "ip flannel-ipv4 postrtg";
    nft(&format!(
        "add table ip flannel-ipv4\nadd chain {chain} {{ type nat hook postrouting priority 100; }}\n\
         add set ip flannel-ipv4 s {{ type ipv4_addr; }}\nflush chain {chain}\nadd rule {chain} {text}\n"
    ));
    let mut kernel = NfTables::open().unwrap();
    let seen = read(&mut kernel, Family::V4).await.unwrap().expect("there is a table");
    assert!(seen.other, "the set is not ours");
    let [chain] = &seen.chains[..] else { panic!("{seen:?}") };
    let [seen] = &chain.rules[..] else { panic!("{seen:?}") };
    rule(Family::V4, seen)
}

#[test]
fn rules_in_the_form_of_ours_are_recognised_and_no_others() {
    with_nft(test_name!(), || async {
        for ours in [
            "return",
            "meta mark 0x4000 return",
            "meta mark & 0x4000 == 0x4000 return",
            "ip saddr 10.1.7.9 accept",
            "ip saddr 10.1.7.0/24 ip daddr 10.1.0.0/16 return",
            "ip saddr != 10.1.16.0/20 ip daddr 10.0.0.0/8 return",
            "ip daddr != 224.0.0.0/4 masquerade",
            "ip saddr 10.1.0.0/17 masquerade fully-random",
        ] {
            let rule = only_rule(ours).await.unwrap_or_else(|| panic!("{ours}"));
            assert_eq!(text(&rule).replace("/32 ", " "), ours);
        }
        for others in [
            "counter accept",
            "drop",
            "ip saddr 10.0.0.1",
            "ip saddr < 10.0.0.1 accept",
            "ip saddr 10.0.0.1-10.0.0.9 accept",
            "ip saddr @s accept",
            "ip saddr { 10.0.0.1, 10.0.0.2 } accept",
            "ip saddr 10.0.0.1 ip saddr 10.0.0.1 accept",
            "ip saddr & 255.0.255.0 == 10.0.7.0 accept",
            "ip protocol tcp accept",
            "meta mark 0x8000 return",
            "meta mark != 0x4000 return",
            "meta mark & 0xc000 == 0x4000 return",
            "meta oif lo return",
            "masquerade random",
            "masquerade random,fully-random",
            "ip protocol tcp masquerade to :1024",
            "log return",
            "snat to 192.0.2.1",
            "jump postrtg2",
        ] {
            nft("add table ip flannel-ipv4; add chain ip flannel-ipv4 postrtg2\n");
            assert_eq!(only_rule(others).await, None, "{others}");
        }
    });
}

/// Chains of a dormant table are switched off.
#[test]
fn a_dormant_table_is_switched_on() {
    with_nft(test_name!(), || async {
        let mut nftables = Nftables::open(&Netns::current().unwrap());
        apply(&mut nftables, &all(golden_ranges()), &ours()).await;
        nft("add table ip flannel-ipv4 { flags dormant; }\n");
        let plan = apply(&mut nftables, &all(golden_ranges()), &ours()).await;
        assert_eq!(plan.steps[0].commands.len(), 1, "{plan:?}");
        assert!(!ruleset().contains("dormant"));
    });
}

/// What was planned before somebody's change is not carried out after it, but planned anew.
#[test]
fn an_outdated_plan_is_refused() {
    with_nft(test_name!(), || async {
        let (want, ours) = (all(golden_ranges()), ours());
        let mut nftables = Nftables::open(&Netns::current().unwrap());
        let plan = nftables.plan(&want, &ours).await.unwrap();
        nft("add table inet other\n");
        let refused = nftables.apply(&plan.steps[0]).await.unwrap_err();
        assert!(matches!(refused, FirewallError::Outdated), "{refused}");
        assert!(!ruleset().contains("flannel"));
        apply(&mut nftables, &want, &ours).await;
    });
}

#[test]
fn changes_of_others_do_not_wake_us() {
    with_nft(test_name!(), || async {
        let mut nftables = Nftables::open(&Netns::current().unwrap());
        nft(
            "add rule ip nat POSTROUTING ip saddr 192.0.2.9 accept\nadd element inet firewall s { 192.0.2.8 }\n",
        );
        assert!(tokio::time::timeout(Duration::from_millis(300), nftables.changed()).await.is_err());
        nft("add table ip flannel-ipv4\n");
        tokio::time::timeout(patiently(Duration::from_secs(10)), nftables.changed())
            .await
            .expect("announced");
    });
}

#[test]
fn the_loop_puts_back_what_a_flush_took() {
    with_nft(test_name!(), || async {
        let nftables = Box::new(Nftables::open(&Netns::current().unwrap()));
        let managers = Managers::new(Some(nftables), Vec::new(), "nftables");
        let firewall = Firewall::new(managers, all(golden_ranges()), ours());
        let mut status = firewall.status();
        let cancel = CancellationToken::new();
        let task = tokio::spawn(firewall.run(cancel.clone()));
        status.wait_for(|status| status.in_place).await.unwrap();
        let whole = chains(&our_tables()).concat().join("\n");
        for round in 1..=5 {
            nft("flush ruleset\n");
            status.wait_for(|status| status.repairs == round).await.unwrap();
            assert_eq!(chains(&our_tables()).concat().join("\n"), whole);
        }
        assert!(status.borrow().last_repair.is_some() && status.borrow().problem.is_none());
        cancel.cancel();
        task.await.unwrap();
        assert_eq!(chains(&our_tables()).concat().join("\n"), whole, "the rules stay");
    });
}
