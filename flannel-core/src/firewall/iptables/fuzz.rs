//! What `iptables-save` and `iptables --version` print, as a function of bytes, for fuzzing.

use super::rule_text::{Read, words};
use super::save::Dump;
use super::variant::{usage_of, version};
use crate::firewall::rules::Chain;

/// A dump of all tables.
///
/// # Panics
/// If a rule is counted that a chain does not have.
pub(crate) fn save(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    _ = version(&text);
    let usage = usage_of(&text);
    let Ok(dump) = Dump::parse(&text) else {
        assert_eq!(usage.rules, 0, "half a dump is none");
        return;
    };
    assert!(usage.rules <= dump.rules().count());
    for rule in dump.rules() {
        _ = words(rule);
        if let Some(read) = Read::parse(rule) {
            _ = (read.rule(), read.is_unconditional());
        }
    }
    for name in ["filter", "nat", "mangle"] {
        let Some(table) = dump.table(name) else { continue };
        _ = dump.hides(name);
        for chain in Chain::ALL
            .map(|chain| format!("{chain:?}"))
            .iter()
            .map(String::as_str)
            .chain(["FORWARD", "POSTROUTING"])
        {
            assert!(table.ways_to(chain) + table.rules_of(chain).len() <= 2 * dump.rules().count());
        }
    }
}
