//! The real programs, in both variants and both families, in namespaces.

use std::process::Command;
use std::time::Duration;

use flannel_lab::golden::Golden;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use nix::sched::{CloneFlags, unshare};

use super::super::Iptables;
use super::super::variant::{Kind, legacy_tables};
use super::*;
use crate::addr::Family;
use crate::firewall::rules::Ours;
use crate::firewall::{FirewallError, Plan, RuleManager};
use crate::netns::Netns;

/// What happens to a node's rules, to be put right in one go.
struct Case {
    name: &'static str,
    /// What others have beforehand. A shell runs it for each family, with its ranges as `N` and `S`; `I` is
    /// iptables.
    others: &'static str,
    /// What then happens.
    damage: &'static str,
    /// Whether something foreign stays in our chains, so that these can't go.
    keeps_chains: bool,
}

const OTHERS: &str = "$I -A FORWARD -i eth7 -j ACCEPT; $I -N DOCKER; $I -A FORWARD -j DOCKER
    $I -A DOCKER -s $S -p tcp -m tcp --dport 80 -m comment --comment \"it's \\\"quoted\\\"\" -j RETURN
    $I -t nat -A POSTROUTING -o eth7 -j MASQUERADE; $I -t nat -N KUBE-POSTROUTING
    $I -t nat -I POSTROUTING 1 -m comment --comment 'kubernetes postrouting rules' -j KUBE-POSTROUTING";

const EMPTY: &str = "for table in nat filter mangle; do $I -t $table -F; $I -t $table -X; done";

const CASES: &[Case] = &[
    Case { name: "one lost", others: "", damage: "$I -t nat -D FLANNEL-POSTRTG 2; $I -D FLANNEL-FWD 1", keeps_chains: false },
    Case {
        name: "two swapped",
        others: OTHERS,
        damage: "$I -D FLANNEL-FWD 1; $I -A FLANNEL-FWD -s $N -m comment --comment 'flanneld forward' -j ACCEPT
            $I -t nat -D FLANNEL-POSTRTG 1
            $I -t nat -I FLANNEL-POSTRTG 4 -m mark --mark 0x4000/0x4000 -m comment --comment 'flanneld masq' -j RETURN",
        keeps_chains: false,
    },
    Case {
        name: "doubled",
        others: OTHERS,
        damage: "$I -A FLANNEL-FWD -s $N -m comment --comment 'flanneld forward' -j ACCEPT
            $I -t nat -I FLANNEL-POSTRTG 1 -s $N -d $S -m comment --comment 'flanneld masq' -j RETURN",
        keeps_chains: false,
    },
    Case {
        name: "no way to them",
        others: OTHERS,
        damage: "$I -D FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD
            $I -t nat -D POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG",
        keeps_chains: false,
    },
    Case {
        name: "two ways to them",
        others: OTHERS,
        damage: "$I -I FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD
            $I -t nat -A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG",
        keeps_chains: false,
    },
    Case { name: "chains emptied", others: OTHERS, damage: "$I -t nat -F FLANNEL-POSTRTG; $I -F FLANNEL-FWD", keeps_chains: false },
    Case { name: "tables emptied", others: OTHERS, damage: "$I -t nat -F; $I -F", keeps_chains: false },
    Case { name: "all gone", others: OTHERS, damage: "$I -t nat -F; $I -F; $I -t nat -X; $I -X", keeps_chains: false },
    Case {
        name: "without random ports, as an older iptables wrote",
        others: "",
        damage: "$I -t nat -R FLANNEL-POSTRTG 6 ! -s $N -d $N -m comment --comment 'flanneld masq' -j MASQUERADE; $I -F FLANNEL-FWD",
        keeps_chains: false,
    },
    Case {
        name: "others around and between",
        others: OTHERS,
        damage: "$I -A FORWARD -o eth9 -j DROP; $I -t nat -A POSTROUTING -o eth9 -j ACCEPT
            $I -I FLANNEL-FWD 1 -p tcp -j RETURN; $I -I FLANNEL-FWD 3 -m limit --limit 1/sec -j ACCEPT; $I -A FLANNEL-FWD -j RETURN
            $I -t nat -I FLANNEL-POSTRTG 3 -p udp -m udp --dport 53 -j RETURN; $I -t nat -A FLANNEL-POSTRTG -o eth9 -j MASQUERADE
            $I -t nat -D FLANNEL-POSTRTG 2; $I -t nat -D FLANNEL-POSTRTG 5; $I -D FLANNEL-FWD 4",
        keeps_chains: true,
    },
];

pub(super) fn command(kind: Kind, family: Family) -> String {
    let program = if family == Family::V4 { "iptables" } else { "ip6tables" };
    format!("{program}-{kind}")
}

/// Runs a script with `I`, `N` and `S` of a family.
pub(super) fn sh(kind: Kind, family: Family, script: &str) {
    let range = golden_ranges().get(family).copied().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", script]).env("I", command(kind, family));
    shell.env("N", range.network.to_string()).env("S", range.subnet.to_string());
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(super) fn sh_both(kind: Kind, script: &str) {
    for family in Family::ALL {
        sh(kind, family, script);
    }
}

/// Everything there is, but for the time and the counters.
pub(super) fn dump(kind: Kind, family: Family) -> Vec<String> {
    let output = Command::new(command(kind, family) + "-save").output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(" [").next().unwrap().to_owned()).collect()
}

fn dumps(kind: Kind) -> Vec<Vec<String>> {
    Family::ALL.into_iter().map(|family| dump(kind, family)).collect()
}

fn is_ours(line: &str) -> bool {
    line.contains("flanneld") || line.starts_with(":FLANNEL-")
}

fn without_ours(mut dumps: Vec<Vec<String>>) -> Vec<Vec<String>> {
    for dump in &mut dumps {
        dump.retain(|line| !is_ours(line));
    }
    dumps
}

/// The rules that a Go node has, which are ours, too.
fn assert_golden(kind: Kind, case: &str) {
    let golden = Golden::named("vxlan-dual");
    for (family, lines) in [(Family::V4, golden.lines("iptables")), (Family::V6, golden.lines("ip6tables"))] {
        let rules = |lines: Vec<String>| {
            let mut rules: Vec<_> = lines.into_iter().filter(|line| line.contains("flanneld")).collect();
            // Which table comes first is chance.
            rules.sort_by_key(|rule| rule.contains("flanneld masq"));
            rules
        };
        assert_eq!(rules(dump(kind, family)), rules(lines), "{case}");
    }
}

/// A manager that has chosen `kind`, since somebody has a rule there.
pub(super) async fn open(kind: Kind) -> Iptables {
    open_every(kind, Duration::from_secs(5)).await
}

/// Opens the manager of a variant that others use, with this resync interval.
pub(super) async fn open_every(kind: Kind, resync: Duration) -> Iptables {
    sh_both(kind, "$I -t mangle -A INPUT -i eth7 -j ACCEPT");
    let manager = Iptables::open(&Netns::current().unwrap(), &Family::ALL, resync).await.unwrap();
    assert!(manager.choice().contains(&format!("({kind})")), "{}", manager.choice());
    manager
}

pub(super) fn ours() -> Ours {
    Ours::Of(vec![golden_ranges()])
}

/// Plans and does it. What was done is all that there was to do.
pub(super) async fn reconcile(manager: &mut Iptables, want: &Wanted, ours: &Ours) -> Plan {
    let plan = manager.plan(want, ours).await.unwrap();
    for step in &plan.steps {
        step.run(&Netns::current().unwrap()).await.unwrap_or_else(|error| panic!("{error}\n{step:?}"));
    }
    assert_eq!(manager.plan(want, ours).await.unwrap().steps, []);
    plan
}

/// A sandbox for a test of everything there is of a variant.
pub(super) fn with(test: &str, body: impl AsyncFnOnce()) {
    in_sandbox(test, || {
        // The names of the legacy tables can only be read in a namespace that was made by who is root in it.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(body());
    });
}

/// How many processes began while `body` ran: pids are given in turn, and no other test has this namespace.
async fn processes_of<T>(body: impl Future<Output = T>) -> (u32, T) {
    let next_pid = || {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    };
    let before = next_pid();
    let value = body.await;
    (next_pid() - before - 1, value)
}

async fn all_cases(kind: Kind) {
    let want = all_of(golden_ranges());
    for case in CASES {
        let name = case.name;
        sh_both(kind, EMPTY);
        let mut manager = open(kind).await;
        // Both tables are there, since no program can make one go.
        sh_both(kind, "$I -P FORWARD ACCEPT; $I -t nat -P POSTROUTING ACCEPT");
        sh_both(kind, case.others);
        let before = dumps(kind);
        assert_eq!(reconcile(&mut manager, &want, &ours()).await.steps.len(), 2, "{name}");
        assert_golden(kind, name);
        assert_eq!(without_ours(dumps(kind)), before, "{name}");

        sh_both(kind, case.damage);
        let others = without_ours(dumps(kind));
        let plan = reconcile(&mut manager, &want, &ours()).await;
        assert_eq!(plan.steps.len(), 2, "{name}");
        assert_golden(kind, name);
        assert_eq!(without_ours(dumps(kind)), others, "{name}");
        assert_eq!(plan.notes, [""; 0], "{name}");

        let plan = reconcile(&mut manager, &Wanted::default(), &ours()).await;
        assert_eq!(plan.notes.len(), if case.keeps_chains { 4 } else { 0 }, "{name}: {:?}", plan.notes);
        if case.keeps_chains {
            assert_eq!(without_ours(dumps(kind)), others, "{name}");
        } else {
            assert_eq!(dumps(kind), others, "{name}");
        }
        // Now that all is known to be gone, nobody looks any more.
        let (processes, plan) = processes_of(manager.plan(&Wanted::default(), &ours())).await;
        assert_eq!((processes, plan.unwrap().steps.len()), (0, 0), "{name}");
    }
}

#[test]
fn whatever_happens_is_put_right_in_nft() {
    with(test_name!(), async || all_cases(Kind::Nft).await);
}

#[test]
fn whatever_happens_is_put_right_in_legacy() {
    with(test_name!(), async || all_cases(Kind::Legacy).await);
}

/// The golden scripts do the same when run by hand, line by line, as `commands` says.
#[test]
fn the_commands_do_what_the_script_does() {
    with(test_name!(), async || {
        for kind in [Kind::Nft, Kind::Legacy] {
            let mut manager = open(kind).await;
            let want = all_of(golden_ranges());
            let plan = manager.plan(&want, &ours()).await.unwrap();
            for command in plan.steps.iter().flat_map(|step| &step.commands) {
                assert!(command.contains(&format!("-{kind} -w 5 -t ")), "{command}");
                sh(kind, Family::V4, command);
            }
            assert_golden(kind, "by hand");
            assert_eq!(manager.plan(&want, &ours()).await.unwrap(), Plan::default());
            sh_both(kind, EMPTY);
        }
    });
}

#[test]
fn a_look_is_two_processes() {
    with(test_name!(), async || {
        for kind in [Kind::Nft, Kind::Legacy] {
            let mut manager = open(kind).await;
            let want = all_of(golden_ranges());
            reconcile(&mut manager, &want, &ours()).await;
            let (processes, plan) = processes_of(manager.plan(&want, &ours())).await;
            assert_eq!((processes, plan.unwrap()), (2, Plan::default()));
            // IPv6 is turned off: its rules go, somebody looks whether they are gone, and then nobody does.
            let only_v4 = PerFamily { v6: None, ..golden_ranges() };
            let plan = reconcile(&mut manager, &all_of(only_v4), &ours()).await;
            assert_eq!(plan.steps.len(), 1);
            assert!(!dump(kind, Family::V6).iter().any(|line| is_ours(line)));
            let (processes, plan) = processes_of(manager.plan(&all_of(only_v4), &ours())).await;
            assert_eq!((processes, plan.unwrap()), (1, Plan::default()));
            // It comes back.
            assert_eq!(reconcile(&mut manager, &want, &ours()).await.steps.len(), 1);
            reconcile(&mut manager, &Wanted::default(), &ours()).await;
            sh_both(kind, "$I -t mangle -F");
        }
    });
}

#[test]
fn a_changed_subnet_replaces_its_own_rules_only() {
    with(test_name!(), async || {
        let mut manager = open(Kind::Nft).await;
        reconcile(&mut manager, &all_of(golden_ranges()), &ours()).await;
        let third = PerFamily { v4: Some(range("172.30.0.0/16", "172.30.3.0/24")), v6: None };
        // Another agent of this host.
        let mut other =
            Iptables::open(&Netns::current().unwrap(), &Family::ALL, Duration::from_secs(5)).await.unwrap();
        reconcile(&mut other, &all_of(third), &Ours::Of(vec![third])).await;
        let new = PerFamily {
            v4: Some(range("10.244.0.0/16", "10.244.5.0/24")),
            v6: Some(range("fd00:10:244::/56", "fd00:10:244:7::/64")),
        };
        let both = Ours::Of(vec![new, golden_ranges()]);
        let plan = reconcile(&mut manager, &all_of(new), &both).await;
        assert_eq!(plan.notes.len(), 2, "{:?}", plan.notes);
        assert!(
            plan.notes.iter().all(|note| note.starts_with("iptables-nft: table ") && note.contains("172.30"))
        );
        let rules = dumps(Kind::Nft).concat();
        assert!(!rules.iter().any(|line| line.contains("10.244.87.0") || line.contains("fd00:10:244:3d::")));
        assert_eq!(rules.iter().filter(|line| line.contains("172.30.")).count(), 7);
        // The two don't quarrel.
        assert_eq!(other.plan(&all_of(third), &Ours::Of(vec![third])).await.unwrap().steps, []);
        assert_eq!(manager.plan(&all_of(new), &both).await.unwrap().steps, []);
        // Who cleans up takes them all.
        let plan = reconcile(&mut manager, &Wanted::default(), &Ours::AnyRange).await;
        assert_eq!(plan.notes, [""; 0]);
        assert!(!dumps(Kind::Nft).concat().iter().any(|line| is_ours(line)));
    });
}

#[test]
fn what_was_left_in_the_other_variant_goes_after_the_new_rules_came() {
    with(test_name!(), async || {
        for (kind, other) in [(Kind::Nft, Kind::Legacy), (Kind::Legacy, Kind::Nft)] {
            sh_both(other, OTHERS);
            let before = dumps(other);
            let mut old = Iptables::open(&Netns::current().unwrap(), &Family::ALL, Duration::from_secs(5))
                .await
                .unwrap();
            assert!(old.choice().contains(&format!("({other})")), "{}", old.choice());
            reconcile(&mut old, &all_of(golden_ranges()), &ours()).await;
            // Now somebody has more rules in the other one.
            sh_both(kind, "for i in 1 2 3 4 5 6 7 8 9; do $I -t mangle -A INPUT -i eth$i -j ACCEPT; done");
            let mut manager = open(kind).await;
            let plan = manager.plan(&all_of(golden_ranges()), &ours()).await.unwrap();
            let programs: Vec<_> = plan.steps.iter().map(|step| program(step).to_owned()).collect();
            let programs_of = |kind| Family::ALL.map(|family| command(kind, family) + "-restore");
            assert_eq!(programs, [programs_of(kind), programs_of(other)].concat());
            reconcile(&mut manager, &all_of(golden_ranges()), &ours()).await;
            assert_golden(kind, "chosen");
            assert_eq!(dumps(other), before);
            let (processes, plan) = processes_of(manager.plan(&all_of(golden_ranges()), &ours())).await;
            assert_eq!((processes, plan.unwrap()), (2, Plan::default()));
            reconcile(&mut manager, &Wanted::default(), &ours()).await;
            for kind in [kind, other] {
                sh_both(kind, EMPTY);
            }
        }
    });
}

#[test]
fn looking_makes_no_tables() {
    with(test_name!(), async || {
        let mut manager =
            Iptables::open(&Netns::current().unwrap(), &Family::ALL, Duration::from_secs(5)).await.unwrap();
        let plan = manager.plan(&all_of(golden_ranges()), &ours()).await.unwrap();
        assert_eq!(plan.steps.len(), 2);
        assert_eq!(manager.plan(&Wanted::default(), &Ours::AnyRange).await.unwrap(), Plan::default());
        for family in Family::ALL {
            assert_eq!(legacy_tables(&Netns::current().unwrap(), family).unwrap(), [""; 0]);
            assert_eq!(dump(Kind::Nft, family), [""; 0]);
        }
    });
}

#[test]
fn a_table_that_only_nft_can_show_is_an_error_and_not_doubled_rules() {
    with(test_name!(), async || {
        let mut manager = open(Kind::Nft).await;
        let want = all_of(golden_ranges());
        reconcile(&mut manager, &want, &ours()).await;
        let nft =
            Command::new("nft").args("add rule ip filter FORWARD ct state new accept".split(' ')).status();
        assert!(nft.unwrap().success());
        let error = manager.plan(&want, &ours()).await.unwrap_err();
        assert!(
            matches!(&error, FirewallError::Unreadable { why, .. } if why.contains("table filter")),
            "{error}"
        );
        // The other family does not wait for it.
        sh(Kind::Nft, Family::V6, "$I -F FLANNEL-FWD");
        let plan = manager.plan(&want, &ours()).await.unwrap();
        assert_eq!(plan.steps.iter().map(program).collect::<Vec<_>>(), ["ip6tables-nft-restore"]);
        assert_eq!(plan.notes, [error.to_string()]);
        // Who wants nothing is told that something may be left.
        let only_v6 = Wanted { ranges: PerFamily { v4: None, ..golden_ranges() }, ..want };
        let plan = reconcile(&mut manager, &only_v6, &ours()).await;
        assert_eq!(plan.notes.len(), 1);
        assert!(plan.notes[0].starts_with("iptables-nft: table filter: "), "{:?}", plan.notes);
    });
}

#[test]
fn a_held_lock_is_named_and_does_no_harm() {
    with(test_name!(), async || {
        let mut manager = open(Kind::Legacy).await;
        let want = Wanted { ranges: PerFamily { v6: None, ..golden_ranges() }, ..all_of(golden_ranges()) };
        let lock = std::fs::File::create("/run/xtables.lock").unwrap();
        lock.lock().unwrap();
        let plan = manager.plan(&want, &ours()).await.unwrap();
        let [step] = &plan.steps[..] else { panic!("{plan:?}") };
        let error = step.run(&Netns::current().unwrap()).await.unwrap_err();
        assert!(matches!(error, FirewallError::Failed { .. }));
        let said = error.to_string();
        assert!(
            said.contains("iptables-legacy-restore --noflush -w 5") && said.contains("xtables"),
            "{said}"
        );
        drop(lock);
        reconcile(&mut manager, &want, &ours()).await;
        assert!(dump(Kind::Legacy, Family::V4).iter().any(|line| is_ours(line)));
    });
}
