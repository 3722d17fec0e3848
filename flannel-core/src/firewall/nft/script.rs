//! The changes that lead from an observed table to the desired one, as a script that `nft -f` runs in one transaction.
//! Pure.

use std::fmt::Write;

use super::super::edit::{Edit, edit};
use super::super::rules::{Chain, KUBE_MARK, Mark, Ours, Rule, Side, Verdict, Wanted};
use super::listing::{Base, SeenChain, SeenTable};
use crate::addr::Family;

/// The script for one family, and what an operator should know.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Script {
    /// One command a line.
    pub(super) lines: Vec<String>,
    /// Notes about rules and chains of others.
    pub(super) notes: Vec<String>,
}

/// The name of a family in nft.
pub(super) fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// The name of a family's table, which is upstream's.
pub(super) fn table_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "flannel-ipv4",
        Family::V6 => "flannel-ipv6",
    }
}

/// Upstream's name of a chain, its comment, and its hook.
struct Declared {
    name: &'static str,
    comment: &'static str,
    kind: &'static str,
    hook: &'static str,
    priority: (&'static str, i64),
}

fn declared(chain: Chain) -> Declared {
    match chain {
        Chain::Masquerade => Declared {
            name: "postrtg",
            comment: "chain to manage traffic masquerading by flannel",
            kind: "nat",
            hook: "postrouting",
            priority: ("srcnat", 100),
        },
        Chain::Forward => Declared {
            name: "forward",
            comment: "chain to accept flannel traffic",
            kind: "filter",
            hook: "forward",
            priority: ("filter", 0),
        },
    }
}

impl Declared {
    fn is_hooked_as(&self, base: &Base) -> bool {
        (base.kind.as_str(), base.hook.as_str(), base.priority) == (self.kind, self.hook, self.priority.1)
    }
}

/// The script that turns the observed table of a family into the desired one.
pub(super) fn script(
    family: Family,
    want: &Wanted,
    can_be_random: bool,
    seen: Option<&SeenTable>,
    ours: &Ours,
) -> Script {
    let mut script = Script::default();
    let table = format!("{} {}", family_name(family), table_name(family));
    let wanted = Chain::ALL.map(|chain| (chain, want.rules(family, chain, can_be_random)));
    if seen.is_none() && wanted.iter().any(|(_, rules)| rules.is_some()) {
        let comment = table_name(family);
        script.lines.push(format!("add table {table} {{ comment \"rules for {comment}\" ; }}"));
    }
    let mut empties = seen.is_some_and(|seen| !seen.other);
    for (chain, rules) in &wanted {
        let declared = declared(*chain);
        let seen = seen.and_then(|seen| seen.chains.iter().find(|chain| chain.name == declared.name));
        let place = format!("{table} {}", declared.name);
        let own = |rule: &Rule| ours.owns(family, *chain, rule);
        match (rules, seen) {
            (None, None) => {}
            (None, Some(seen)) => empties &= script.remove(&place, seen, own),
            (Some(rules), None) => script.create(&place, &declared, rules),
            (Some(rules), Some(seen)) => script.change(&place, &declared, seen, rules, own),
        }
        empties &= rules.is_none();
    }
    let known = |name: &str| Chain::ALL.iter().any(|chain| declared(*chain).name == name);
    empties &= seen.is_some_and(|seen| seen.chains.iter().all(|chain| known(&chain.name)));
    if empties {
        // This also deletes its chains and their rules.
        script.lines = vec![format!("delete table {table}")];
    }
    script
}

impl Script {
    fn create(&mut self, place: &str, declared: &Declared, rules: &[Rule]) {
        self.declare(place, declared);
        self.lines.extend(rules.iter().map(|rule| format!("add rule {place} {}", text(rule))));
    }

    fn declare(&mut self, place: &str, declared: &Declared) {
        let Declared { comment, kind, hook, priority: (priority, _), .. } = declared;
        self.lines.push(format!(
            "add chain {place} {{ type {kind} hook {hook} priority {priority} ; policy accept ; comment \"{comment}\" ; }}"
        ));
    }

    /// Deletes our rules of a chain, and the chain if no rules are left. Returns whether it deleted the chain.
    fn remove(&mut self, place: &str, seen: &SeenChain, own: impl Fn(&Rule) -> bool) -> bool {
        let is_own = |rule: &Option<Rule>| rule.as_ref().is_some_and(&own);
        let (mine, others): (Vec<_>, Vec<_>) = seen.rules.iter().partition(|rule| is_own(&rule.rule));
        self.lines.extend(mine.iter().map(|rule| format!("delete rule {place} handle {}", rule.handle)));
        if others.is_empty() {
            self.lines.push(format!("delete chain {place}"));
        } else {
            self.note_others(place, others.iter().map(|rule| rule.handle));
        }
        others.is_empty()
    }

    fn change(
        &mut self,
        place: &str,
        declared: &Declared,
        seen: &SeenChain,
        rules: &[Rule],
        own: impl Fn(&Rule) -> bool,
    ) {
        let ours: Vec<_> = seen.rules.iter().map(|rule| rule.rule.filter(&own)).collect();
        let others =
            || seen.rules.iter().zip(&ours).filter(|(_, own)| own.is_none()).map(|(it, _)| it.handle);
        match &seen.base {
            Some(base) if declared.is_hooked_as(base) => {
                if base.policy != "accept" {
                    self.declare(place, declared);
                }
            }
            // A hook can't be changed, so the chain is deleted and created again in the same transaction.
            _ if others().next().is_none() => {
                self.lines.push(format!("flush chain {place}"));
                self.lines.push(format!("delete chain {place}"));
                return self.create(place, declared, rules);
            }
            _ => self.notes.push(format!(
                "chain {place} is not hooked in as {} of {}, and rules in it are not ours, so it is left alone; \
                 `nft delete chain {place}` lets it be made anew",
                declared.kind, declared.hook
            )),
        }
        self.note_others(place, others());
        let handle = |number: usize| seen.rules[number].handle;
        for edit in edit(rules, &ours) {
            self.lines.push(match edit {
                Edit::Delete(number) => format!("delete rule {place} handle {}", handle(number)),
                Edit::InsertBefore(number, rule) => {
                    format!("insert rule {place} handle {} {}", handle(number), text(&rule))
                }
                Edit::Append(rule) => format!("add rule {place} {}", text(&rule)),
            });
        }
    }

    fn note_others(&mut self, place: &str, handles: impl Iterator<Item = u64>) {
        let handles: Vec<_> = handles.map(|handle| handle.to_string()).collect();
        if !handles.is_empty() {
            self.notes.push(format!(
                "chain {place} has rules that are not ours and stay (handle {}); `nft -a list chain {place}` shows them",
                handles.join(", ")
            ));
        }
    }
}

/// A rule as nft reads it.
pub(super) fn text(rule: &Rule) -> String {
    let mut text = String::new();
    match rule.mark {
        Some(Mark::Bit) => _ = write!(text, "meta mark & {KUBE_MARK:#x} == {KUBE_MARK:#x} "),
        Some(Mark::Exact) => _ = write!(text, "meta mark {KUBE_MARK:#x} "),
        None => {}
    }
    for (side, field) in [(rule.src, "saddr"), (rule.dst, "daddr")] {
        if let Some(Side { subnet, outside }) = side {
            let not = if outside { "!= " } else { "" };
            _ = write!(text, "{} {field} {not}{subnet} ", family_name(subnet.family()));
        }
    }
    text.push_str(match rule.verdict {
        Verdict::Return => "return",
        Verdict::Accept => "accept",
        Verdict::Masquerade { fully_random: true } => "masquerade fully-random",
        Verdict::Masquerade { fully_random: false } => "masquerade",
    });
    text
}
