//! Reads chains from the output of `iptables-save`, in both variants. Pure.

use super::chain::{Chain, Does, Policy, Rule, RuleName, Side, Table, TableName, Test};
use super::packet::{LinkName, Truth};
use crate::addr::{Family, Subnet};
use crate::firewall::iptables::words;

/// The chains that forwarded packets enter. Those of the table `nat` get only the first packet of a connection, and
/// nobody filters there.
const BASES: [&str; 3] = ["PREROUTING", "FORWARD", "POSTROUTING"];

/// Targets after which the packet continues with the next rule.
const GO_ON: [&str; 24] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "DSCP",
    "ECN",
    "HL",
    "HMARK",
    "IDLETIMER",
    "LED",
    "LOG",
    "MARK",
    "NFLOG",
    "NOTRACK",
    "RATEEST",
    "SECMARK",
    "SET",
    "TCPMSS",
    "TOS",
    "TRACE",
    "TTL",
    "ULOG",
];

/// Extensions that match nothing by themselves, only by their options.
const PLAIN: [&str; 7] = ["addrtype", "comment", "conntrack", "mark", "state", "tcp", "udp"];

/// Whether an extension of this name decides about a packet in a way that is unknown here.
pub(super) fn is_terminal(target: &str) -> bool {
    !GO_ON.contains(&target)
}

/// The tables of a dump, without those for address translation.
pub(super) fn tables(dump: &str, name: impl Fn(&str) -> TableName, family: Family) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for line in dump.lines().map(str::trim_end) {
        if let Some(table) = line.strip_prefix('*') {
            tables.push(Table { name: name(table), chains: Vec::new() });
        } else if let Some(table) = tables.last_mut() {
            read(table, line, family);
        }
    }
    tables.retain(|table| table.name.name != "nat");
    tables
}

fn read(table: &mut Table, line: &str, family: Family) {
    if let Some(chain) = line.strip_prefix(':') {
        let mut words = chain.split(' ');
        let Some(name) = words.next() else { return };
        let policy = match words.next() {
            Some("ACCEPT") => Some(Policy::Accept),
            Some("DROP") => Some(Policy::Drop),
            _ => None,
        };
        let policy = policy.filter(|_| BASES.contains(&name));
        table.chains.push(Chain { name: name.to_owned(), policy, rules: Vec::new() });
        return;
    }
    let line = line.strip_prefix('[').and_then(|rest| rest.split_once("] ")).map_or(line, |(_, rest)| rest);
    let Some(rest) = line.strip_prefix("-A ") else { return };
    let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
    let rule = rule(text, family, |target| table.chain(target).is_some());
    if let Some(chain) = table.chains.iter_mut().find(|chain| chain.name == name) {
        chain.rules.push(rule);
    }
}

/// A rule by its arguments.
fn rule(text: &str, family: Family, is_chain: impl Fn(&str) -> bool) -> Rule {
    let name = RuleName::Text(text.to_owned());
    let Some(words) = words(text) else {
        return Rule { tests: vec![Test::Known(Truth::Maybe)], marks: false, does: Does::Unknown, name };
    };
    let (mut tests, mut does, mut marks) = (Vec::new(), Does::Nothing, false);
    let mut words = words.iter().map(String::as_str).peekable();
    let (mut inverted, mut extension) = (false, "");
    while let Some(option) = words.next() {
        match option {
            "!" => {
                inverted = true;
                continue;
            }
            "--comment" => {
                words.next();
                continue;
            }
            _ => {}
        }
        let mut values = Vec::new();
        while let Some(value) = words.next_if(|word| !word.starts_with('-') && *word != "!") {
            values.push(value);
        }
        let value = values.first().copied().unwrap_or_default();
        match option {
            // All that follows is about the target.
            "-j" | "-g" => {
                marks = value.ends_with("MARK");
                does = match (value, option) {
                    _ if is_chain(value) && option == "-g" => Does::Goto(value.to_owned()),
                    _ if is_chain(value) => Does::Jump(value.to_owned()),
                    ("ACCEPT", _) => Does::Accept,
                    ("DROP" | "REJECT", _) => Does::Cut,
                    ("RETURN", _) => Does::Return,
                    _ if is_terminal(value) => Does::Unknown,
                    _ => Does::Nothing,
                };
                break;
            }
            "-m" => {
                extension = value;
                // Some extensions match by their name alone.
                tests.extend((!PLAIN.contains(&value)).then_some(Test::Known(Truth::Maybe)));
            }
            "--mark" if extension != "mark" => tests.push(Test::Known(Truth::Maybe)),
            _ => tests.push(test(option, value, inverted, family).unwrap_or(Test::Known(Truth::Maybe))),
        }
        inverted = false;
    }
    Rule { tests, marks, does, name }
}

/// The condition of an option; `None` if it is unknown.
fn test(option: &str, value: &str, inverted: bool, family: Family) -> Option<Test> {
    let side = match option {
        "-s" | "-i" | "--src-type" => Side::Source,
        _ => Side::Destination,
    };
    match option {
        "-s" | "-d" => Some(Test::Address { side, among: vec![subnet(value, family)?], inverted }),
        "-i" | "-o" => Some(Test::Link { side, among: vec![LinkName::parse(value, '+')], inverted }),
        "-p" => match value {
            "all" => Some(Test::is_tcp(!inverted)),
            _ => Some(Test::is_tcp(["tcp", "6"].contains(&value) != inverted)),
        },
        "--ctstate" | "--state" => {
            let has = |state| value.split(',').any(|it| it == state);
            Some(Test::State { new: has("NEW"), established: has("ESTABLISHED"), inverted })
        }
        "--mark" => {
            let number = |text: &str| match text.strip_prefix("0x") {
                Some(hex) => u32::from_str_radix(hex, 16).ok(),
                None => text.parse().ok(),
            };
            let (value, mask) =
                value.split_once('/').map_or((value, None), |(value, mask)| (value, Some(mask)));
            let mask = mask.map_or(Some(u32::MAX), number)?;
            Some(Test::Mark { mask, value: number(value)?, inverted })
        }
        // Pods' addresses are not local to this namespace.
        "--src-type" | "--dst-type" if value == "LOCAL" => Some(Test::Known(Truth::from(inverted))),
        _ => None,
    }
}

fn subnet(text: &str, family: Family) -> Option<Subnet> {
    match text.parse() {
        Ok(subnet) => Some(subnet),
        Err(_) => Subnet::exact(text.parse().ok()?, family.bits()),
    }
}
