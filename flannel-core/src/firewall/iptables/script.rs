//! The changes that lead from the present to the desired rules of a family, as input for `iptables-restore --noflush`.
//! Pure.
//!
//! A line `:CHAIN` would empty an existing chain, so chains are created with `-N`, and only if they don't exist. Rules
//! are deleted by their text: by then a rule number may be that of somebody else's rule.

use super::rule_text::{Home, Read};
use super::save::{Dump, Table};
use crate::firewall::edit::{Edit, edit};
use crate::firewall::rules::{Chain, Rule};

/// The rules of each chain, in the order of the script; `None` for a chain that should be removed.
pub(super) type Want = [(Chain, Option<Vec<Rule>>); 2];

/// The changes, and notes for the operator.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    tables: Vec<(&'static str, Vec<String>)>,
    pub(super) notes: Vec<String>,
    /// A table that should have rules but can't be read.
    pub(super) hidden_table: Option<&'static str>,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// The input for `iptables-restore --noflush`.
    pub(super) fn input(&self) -> String {
        let table = |(table, lines): &(_, Vec<String>)| format!("*{table}\n{}\nCOMMIT\n", lines.join("\n"));
        self.tables.iter().map(table).collect()
    }

    /// The equivalent commands, each beginning with `iptables`.
    pub(super) fn commands(&self, iptables: &str) -> Vec<String> {
        let lines = self.tables.iter().flat_map(|(table, lines)| lines.iter().map(move |line| (table, line)));
        lines.map(|(table, line)| format!("{iptables} -t {table} {line}")).collect()
    }
}

/// Lists the fewest changes.
pub(super) fn plan(dump: &Dump<'_>, want: &Want, owns: impl Fn(Chain, &Rule) -> bool) -> Changes {
    let mut changes = Changes::default();
    for (chain, want) in want {
        let home = Home::of(*chain);
        if dump.hides(home.table) {
            match want {
                Some(_) => changes.hidden_table = Some(home.table),
                None => changes.notes.push(format!(
                    "table {}: it has rules that only `nft list table` can show, so nobody knows whether \
                     rules of ours are left in it",
                    home.table
                )),
            }
            continue;
        }
        let nothing = Table::default();
        let table = dump.table(home.table).unwrap_or(&nothing);
        let seen = Seen::of(table, home, |rule| owns(*chain, rule));
        seen.say_left(&mut changes.notes);
        let lines = match want {
            Some(want) => seen.put(want),
            None => seen.remove(&mut changes.notes),
        };
        if !lines.is_empty() {
            changes.tables.push((home.table, lines));
        }
    }
    changes
}

/// A rule of our chain.
struct SeenRule<'a> {
    text: &'a str,
    /// The rule, if it is ours.
    ours: Option<Rule>,
    /// Whether an agent wrote it for a network that we don't know.
    is_left: bool,
}

/// The present state of one of our chains.
struct Seen<'a> {
    table: &'a Table<'a>,
    home: Home,
    rules: Vec<SeenRule<'a>>,
    /// Our rules that jump to it.
    jumps: Vec<&'a str>,
}

impl<'a> Seen<'a> {
    fn of(table: &'a Table<'a>, home: Home, owns: impl Fn(&Rule) -> bool) -> Self {
        let read = |text: &str| Read::parse(text).filter(|read| read.comment == home.comment);
        let rule = |text: &'a str| {
            let written = read(text).and_then(|read| read.rule());
            let ours = written.filter(&owns);
            SeenRule { text, ours, is_left: written.is_some() && ours.is_none() }
        };
        let is_jump =
            |text: &&str| read(text).is_some_and(|read| read.is_unconditional() && read.target == home.chain);
        Self {
            table,
            home,
            rules: table.rules_of(home.chain).into_iter().map(rule).collect(),
            jumps: table.rules_of(home.from).into_iter().filter(is_jump).collect(),
        }
    }

    fn delete(&self, rule: &SeenRule<'_>) -> String {
        format!("-D {} {}", self.home.chain, rule.text)
    }

    fn append(&self, rule: &Rule) -> String {
        format!("-A {} {}", self.home.chain, self.home.render(rule))
    }

    fn delete_jumps(&self, from: &[&str]) -> impl Iterator<Item = String> {
        from.iter().map(|jump| format!("-D {} {jump}", self.home.from))
    }

    /// The lines that give the chain these rules.
    fn put(&self, want: &[Rule]) -> Vec<String> {
        let Home { chain, from, .. } = self.home;
        let mut lines = Vec::new();
        if !self.table.has(chain) {
            lines.push(format!("-N {chain}"));
        }
        lines.extend(self.edits(want));
        match self.jumps.split_last() {
            Some((_, surplus)) => lines.extend(self.delete_jumps(surplus)),
            None => lines.push(format!("-A {from} {}", self.home.jump())),
        }
        lines
    }

    fn edits(&self, want: &[Rule]) -> Vec<String> {
        let ours: Vec<_> = self.rules.iter().map(|rule| rule.ours).collect();
        let edits = edit(want, &ours);
        // Of two rules with the same text, a deletion always removes the first.
        let is_twice = |text| self.rules.iter().filter(|rule| rule.text == text).count() > 1;
        let is_unclear =
            |edit: &Edit| matches!(edit, Edit::Delete(number) if is_twice(self.rules[*number].text));
        if edits.iter().any(is_unclear) {
            let ours = self.rules.iter().filter(|rule| rule.ours.is_some());
            return ours
                .map(|rule| self.delete(rule))
                .chain(want.iter().map(|rule| self.append(rule)))
                .collect();
        }
        let mut numbers: Vec<_> = (0..self.rules.len()).map(Some).collect();
        let mut line = |edit| match edit {
            Edit::Delete(number) => {
                numbers.retain(|seen| *seen != Some(number));
                self.delete(&self.rules[number])
            }
            Edit::InsertBefore(number, rule) => {
                let at = numbers.iter().position(|seen| *seen == Some(number)).unwrap_or(numbers.len());
                numbers.insert(at, None);
                format!("-I {} {} {}", self.home.chain, at + 1, self.home.render(&rule))
            }
            Edit::Append(rule) => self.append(&rule),
        };
        edits.into_iter().map(&mut line).collect()
    }

    /// The lines that remove the chain, or at least our rules. Rules of others in it stay in force.
    fn remove(&self, notes: &mut Vec<String>) -> Vec<String> {
        let Home { table, chain, .. } = self.home;
        let mut lines: Vec<_> =
            self.rules.iter().filter(|rule| rule.ours.is_some()).map(|rule| self.delete(rule)).collect();
        if let Some(other) = self.rules.iter().find(|rule| rule.ours.is_none()) {
            notes.push(format!(
                "table {table}, chain {chain}: it stays, and so does the way to it, since it has rules that \
                 are not ours, such as `{}`",
                other.text
            ));
            return lines;
        }
        lines.extend(self.delete_jumps(&self.jumps));
        if self.table.ways_to(chain) > self.jumps.len() {
            notes.push(format!(
                "table {table}, chain {chain}: it stays, empty, since a rule that is not ours leads to it"
            ));
        } else if self.table.has(chain) {
            lines.push(format!("-X {chain}"));
        }
        lines
    }

    fn say_left(&self, notes: &mut Vec<String>) {
        let Home { table, chain, .. } = self.home;
        let left: Vec<_> = self.rules.iter().filter(|rule| rule.is_left).collect();
        let Some(first) = left.first() else { return };
        notes.push(format!(
            "table {table}, chain {chain}: {} of another network, left from a lost subnet file or another agent's; \
             if no agent of this host has that network, remove each as by `-t {table} -D {chain} {}`",
            if left.len() == 1 { "1 rule".to_owned() } else { format!("{} rules", left.len()) },
            first.text
        ));
    }
}
