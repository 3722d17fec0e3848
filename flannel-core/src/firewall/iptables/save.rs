//! Parses the output of `iptables-save`, as far as it matters here. Pure.

use super::rule_text::words;

/// All tables of a family.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Dump<'a> {
    tables: Vec<Table<'a>>,
    /// Tables whose rules were not printed, since nft made rules that iptables can't express.
    hidden: Vec<&'a str>,
}

/// One table.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Table<'a> {
    name: &'a str,
    /// The names of its chains.
    chains: Vec<&'a str>,
    /// All rules in their order: chain and arguments.
    rules: Vec<(&'a str, &'a str)>,
}

impl<'a> Dump<'a> {
    /// Parses a dump. The error says why it can't be complete.
    pub(super) fn parse(text: &'a str) -> Result<Self, String> {
        let (mut dump, mut open) = (Self::default(), None::<Table<'_>>);
        for line in text.lines().map(str::trim_end) {
            if let Some(name) = line.strip_prefix('*') {
                if open.is_some() {
                    break;
                }
                open = Some(Table { name, ..Table::default() });
            } else if line == "COMMIT" {
                dump.tables.extend(open.take());
            } else if let Some(name) = hidden_table(line) {
                dump.hidden.push(name);
            } else if let Some(table) = &mut open {
                table.read(line);
            }
        }
        match open {
            Some(table) => Err(format!("table {} has no end", table.name)),
            None => Ok(dump),
        }
    }

    /// One table's chains and rules; `None` if there is no such table.
    pub(super) fn table(&self, name: &str) -> Option<&Table<'a>> {
        self.tables.iter().find(|table| table.name == name)
    }

    /// Whether a table has rules that were not printed.
    pub(super) fn hides(&self, table: &str) -> bool {
        self.hidden.contains(&table)
    }

    /// The arguments of all rules.
    pub(super) fn rules(&self) -> impl Iterator<Item = &'a str> {
        self.tables.iter().flat_map(|table| table.rules.iter().map(|(_, rule)| *rule))
    }
}

impl<'a> Table<'a> {
    fn read(&mut self, line: &'a str) {
        if let Some(chain) = line.strip_prefix(':') {
            self.chains.extend(chain.split(' ').next());
        } else if let Some((chain, rule)) =
            without_counters(line).strip_prefix("-A ").map(|rest| rest.split_once(' ').unwrap_or((rest, "")))
        {
            self.rules.push((chain, rule));
        }
    }

    /// Whether there is such a chain.
    pub(super) fn has(&self, chain: &str) -> bool {
        self.chains.contains(&chain)
    }

    /// The arguments of a chain's rules.
    pub(super) fn rules_of(&self, chain: &str) -> Vec<&'a str> {
        self.rules.iter().filter(|(of, _)| *of == chain).map(|(_, rule)| *rule).collect()
    }

    /// How many rules, of any chain, jump to `chain`.
    pub(super) fn ways_to(&self, chain: &str) -> usize {
        let leads_there = |rule: &str| {
            let words = words(rule).unwrap_or_default();
            words.windows(2).any(|pair| matches!(pair[0].as_str(), "-j" | "-g") && pair[1] == chain)
        };
        self.rules.iter().filter(|(_, rule)| leads_there(rule)).count()
    }
}

/// The line without the `[packets:bytes]` that may be before it.
fn without_counters(line: &str) -> &str {
    line.strip_prefix('[').and_then(|rest| rest.split_once("] ")).map_or(line, |(_, rest)| rest)
}

/// The table in a remark of iptables-nft-save.
fn hidden_table(line: &str) -> Option<&str> {
    line.strip_prefix("# Table `")?.strip_suffix("' is incompatible, use 'nft' tool.")
}
