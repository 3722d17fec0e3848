//! The changes that lead from an observed table to the desired one. Pure.

use super::command::{Command, Declared, Does, declared, family_of, table_name};
use super::seen::{SeenChain, SeenTable, rule};
use crate::addr::Family;
use crate::firewall::edit::{Edit, edit};
use crate::firewall::rules::{Chain, Ours, Rule, Wanted};

/// The changes of one family's table, and what an operator should know.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// In this order, in one transaction.
    pub(super) commands: Vec<Command>,
    /// Notes about rules and chains of others.
    pub(super) notes: Vec<String>,
}

/// The changes that turn the observed table of a family into the desired one.
pub(super) fn changes(family: Family, want: &Wanted, seen: Option<&SeenTable>, ours: &Ours) -> Changes {
    let mut plan = Planner { family, changes: Changes::default() };
    // Every kernel that we support chooses source ports at random.
    let wanted = Chain::ALL.map(|chain| (chain, want.rules(family, chain, true)));
    let lacks_table = seen.is_none_or(|seen| seen.is_dormant);
    if lacks_table && wanted.iter().any(|(_, rules)| rules.is_some()) {
        plan.add(Does::AddTable);
    }
    let mut empties = seen.is_some_and(|seen| !seen.other);
    for (chain, rules) in &wanted {
        let declared = declared(*chain);
        let seen = seen.and_then(|seen| seen.chains.iter().find(|it| it.chain == *chain));
        let own = |rule: &Rule| ours.owns(family, *chain, rule);
        match (rules, seen) {
            (None, None) => {}
            (None, Some(seen)) => empties &= plan.remove(declared, seen, own),
            (Some(rules), None) => plan.create(declared, rules),
            (Some(rules), Some(seen)) => plan.change(declared, seen, rules, own),
        }
        empties &= rules.is_none();
    }
    if empties {
        // This also deletes its chains and their rules.
        plan.changes.commands.clear();
        plan.add(Does::DeleteTable);
    }
    plan.changes
}

struct Planner {
    family: Family,
    changes: Changes,
}

impl Planner {
    fn add(&mut self, does: Does) {
        self.changes.commands.push(Command { family: self.family, does });
    }

    fn create(&mut self, declared: &'static Declared, rules: &[Rule]) {
        self.add(Does::AddChain(declared));
        for rule in rules {
            self.add(Does::AddRule(declared.name, None, *rule));
        }
    }

    /// Deletes our rules of a chain, and the chain if no rules are left. Returns whether it deleted the chain.
    fn remove(&mut self, declared: &Declared, seen: &SeenChain, own: impl Fn(&Rule) -> bool) -> bool {
        let is_own = |it| rule(self.family, it).as_ref().is_some_and(&own);
        let (mine, others): (Vec<_>, Vec<_>) = seen.rules.iter().partition(|it| is_own(it));
        for rule in mine {
            self.add(Does::DeleteRule(declared.name, rule.handle));
        }
        if others.is_empty() {
            self.add(Does::DeleteChain(declared.name));
        } else {
            self.note_others(declared, others.iter().map(|rule| rule.handle));
        }
        others.is_empty()
    }

    fn change(
        &mut self,
        declared: &'static Declared,
        seen: &SeenChain,
        rules: &[Rule],
        own: impl Fn(&Rule) -> bool,
    ) {
        let ours: Vec<_> = seen.rules.iter().map(|it| rule(self.family, it).filter(&own)).collect();
        let others =
            || seen.rules.iter().zip(&ours).filter(|(_, own)| own.is_none()).map(|(it, _)| it.handle);
        let wanted = declared.hook();
        match &seen.hook {
            Some(hook) if *hook == wanted => {}
            Some(hook)
                if (hook.kind, hook.number, hook.priority)
                    == (wanted.kind, wanted.number, wanted.priority) =>
            {
                self.add(Does::AddChain(declared));
            }
            // A hook can't be changed, so the chain is deleted and created again in the same transaction.
            _ if others().next().is_none() => {
                self.add(Does::FlushChain(declared.name));
                self.add(Does::DeleteChain(declared.name));
                return self.create(declared, rules);
            }
            _ => {
                let (place, [kind, hook, _]) = (self.place(declared), declared.words);
                self.changes.notes.push(format!(
                    "chain {place} is not hooked in as {kind} of {hook}, and rules in it are not ours, so it is left alone; \
                     `nft delete chain {place}` lets it be made anew"
                ));
            }
        }
        self.note_others(declared, others());
        let handle = |number: usize| seen.rules[number].handle;
        for edit in edit(rules, &ours) {
            self.add(match edit {
                Edit::Delete(number) => Does::DeleteRule(declared.name, handle(number)),
                Edit::InsertBefore(number, rule) => Does::AddRule(declared.name, Some(handle(number)), rule),
                Edit::Append(rule) => Does::AddRule(declared.name, None, rule),
            });
        }
    }

    /// A chain as an operator names it.
    fn place(&self, declared: &Declared) -> String {
        format!("{} {} {}", family_of(self.family).name(), table_name(self.family), declared.name)
    }

    fn note_others(&mut self, declared: &Declared, handles: impl Iterator<Item = u64>) {
        let handles: Vec<_> = handles.map(|handle| handle.to_string()).collect();
        if !handles.is_empty() {
            let place = self.place(declared);
            self.changes.notes.push(format!(
                "chain {place} has rules that are not ours and stay (handle {}); `nft -a list chain {place}` shows them",
                handles.join(", ")
            ));
        }
    }
}
