//! Chains of others that drop what ours accept.
//!
//! A packet has to be accepted by every base chain of its hook, in nftables and in legacy iptables: what one
//! drops, no other can undo. All that can be done is to name it.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

use super::manager::{FirewallError, run};
use super::nft::listing::{base, entries, text};
use super::rules::Wanted;
use crate::addr::Family;

/// A base chain for forwarded packets that drops what no rule of it accepts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Dropping {
    /// `ip`, `ip6` or `inet`; `legacy ip` or `legacy ip6`.
    pub(super) family: String,
    /// Its table.
    pub(super) table: String,
    /// Its name.
    pub(super) chain: String,
}

impl Dropping {
    /// Whether packets that rules are wanted for come by.
    pub(super) fn concerns(&self, want: &Wanted) -> bool {
        let is = |family: Family| {
            let name = if family == Family::V4 { "ip" } else { "ip6" };
            ["inet", name].contains(&self.family.as_str()) || self.family == format!("legacy {name}")
        };
        want.forward && want.ranges.families().any(is)
    }
}

impl fmt::Display for Dropping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, table, chain } = self;
        write!(
            f,
            "chain {chain} of table {family} {table} drops forwarded packets that it does not accept itself, which no \
             other table can undo; accept the pod network there, or set its policy to accept"
        )
    }
}

/// Those of nftables, and so of iptables' nft variant, that are not in `ours` (families and tables).
pub(super) async fn in_nftables(ours: &[(&str, &str)]) -> Result<Vec<Dropping>, FirewallError> {
    let json = match run("nft", &["-j", "list", "chains"], "").await {
        Ok(json) => json,
        // Nobody to ask, and the rules themselves are another's.
        Err(FirewallError::Missing { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let is_ours = |family: &str, table: &str| ours.contains(&(family, table));
    listed(&json, is_ours)
        .map_err(|why| FirewallError::Unreadable { command: "nft -j list chains".to_owned(), why })
}

/// Those in what `nft -j list chains` prints.
pub(super) fn listed(json: &str, ours: impl Fn(&str, &str) -> bool) -> Result<Vec<Dropping>, String> {
    let chains = entries(json)?;
    let chains = chains.iter().filter_map(|entry| entry.get("chain"));
    let drops = chains.filter(|chain: &&Value| {
        base(chain).is_some_and(|base| base.hook == "forward" && base.policy == "drop")
            && text(chain, "family").is_some_and(|family| ["ip", "ip6", "inet"].contains(&family))
    });
    let named = drops.filter_map(|chain| {
        let [family, table, chain] = ["family", "table", "name"].map(|key| text(chain, key));
        Some(Dropping { family: family?.into(), table: table?.into(), chain: chain?.into() })
    });
    Ok(named.filter(|chain| !ours(&chain.family, &chain.table)).collect())
}

/// Those of iptables' legacy variant, where that is in use. Looking makes no table.
pub(super) async fn in_legacy_iptables() -> BTreeSet<Dropping> {
    let mut found = BTreeSet::new();
    for (family, program) in [(Family::V4, "iptables-legacy-save"), (Family::V6, "ip6tables-legacy-save")] {
        let tables = super::iptables::legacy_tables(family).unwrap_or_default();
        if !tables.iter().any(|table| table == "filter") {
            continue;
        }
        // What can't be read can't be named, and matters to nothing else.
        let text = run(program, &["-t", "filter"], "").await.unwrap_or_default();
        if text.lines().any(|line| line.starts_with(":FORWARD DROP")) {
            let name = if family == Family::V4 { "ip" } else { "ip6" };
            let family = format!("legacy {name}");
            found.insert(Dropping { family, table: "filter".to_owned(), chain: "FORWARD".to_owned() });
        }
    }
    found
}
