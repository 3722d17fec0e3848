//! By which ways nodes behind NATs reach each other, as their status has it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::Fallible;
use crate::action::Victim;
use crate::changes::cause::{Pair, pair};
use crate::lab::Lab;

/// The ways of all pairs behind NATs: what either end says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Paths(BTreeMap<Pair, BTreeMap<u8, Value>>);

impl Paths {
    /// As they are now.
    pub(super) fn read(lab: &Lab, flanneld: &Path, behind: &[u8]) -> Fallible<Self> {
        let mut paths = Self::default();
        for from in behind {
            let status = crate::changes::status(lab, flanneld, *from)?;
            for to in behind.iter().filter(|to| *to != from) {
                let path = path(&status, &key(lab, *to)?);
                paths.0.entry(pair(*from, *to)).or_default().insert(*from, path);
            }
        }
        Ok(paths)
    }

    /// The pairs of which an end sends by this relay.
    pub(super) fn relayed_by(&self, relay: &str) -> BTreeSet<Pair> {
        let is_by = |ends: &BTreeMap<u8, Value>| ends.values().any(|path| path["relay"] == relay);
        self.0.iter().filter(|(_, ends)| is_by(ends)).map(|(pair, _)| *pair).collect()
    }

    /// The pairs that have other ways now than `before`.
    pub(super) fn changed_since(&self, before: &Self) -> BTreeSet<Pair> {
        self.0
            .iter()
            .filter(|(pair, ends)| before.0.get(*pair) != Some(*ends))
            .map(|(pair, _)| *pair)
            .collect()
    }
}

/// The key of a node's lease.
pub(super) fn key(lab: &Lab, number: u8) -> Fallible<String> {
    let lease = lab.lease(Victim::Node(number)).ok_or_else(|| format!("node{number} has no lease"))?;
    Ok(lease.key())
}

/// The way to a peer in a status; null if it is straight.
fn path(status: &Value, lease: &str) -> Value {
    let sessions = status["network"]["sessions"].as_array().into_iter().flatten();
    let mut paths = sessions.filter(|session| session["lease"] == lease).map(|session| &session["path"]);
    paths.next().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pairs_are_relayed_if_one_end_says_so() {
        let sessions = json!([{ "lease": "a", "path": "nat" }, { "lease": "b", "path": { "relay": "r" } }]);
        let status = json!({ "network": { "sessions": sessions } });
        assert_eq!((path(&status, "a"), path(&status, "c")), (json!("nat"), Value::Null));
        let of = |one: &Value, other: &Value| BTreeMap::from([(3, one.clone()), (4, other.clone())]);
        let (nat, relayed) = (json!("nat"), path(&status, "b"));
        let before = Paths(BTreeMap::from([([3, 4], of(&nat, &nat)), ([3, 5], of(&nat, &nat))]));
        let after = Paths(BTreeMap::from([([3, 4], of(&nat, &relayed)), ([3, 5], of(&nat, &nat))]));
        assert_eq!(after.relayed_by("r"), BTreeSet::from([[3, 4]]));
        assert_eq!(after.relayed_by("s"), BTreeSet::new());
        assert_eq!(after.changed_since(&before), BTreeSet::from([[3, 4]]));
    }
}
