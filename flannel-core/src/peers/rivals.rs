//! This node's own record as other nodes see it: which leases conflict with it, and who has precedence.

use std::collections::BTreeSet;

use super::precedence::precedence;
use super::{Claim, Grounds, PeerTable, Side, Standing};
use crate::lease::{Field, LeaseKey};

/// A lease that conflicts with this node's own record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rival {
    /// The key of that lease.
    pub key: LeaseKey,
    /// The claim of this node that conflicts.
    pub ours: Claim,
    /// The claim of the lease that conflicts.
    pub theirs: Claim,
    /// Whether the lease has precedence over this node's record.
    pub wins: bool,
    /// Why the winner has precedence.
    pub grounds: Grounds,
    /// Whether the lease's record is younger than this node's.
    pub is_younger: bool,
}

impl Rival {
    /// The part of this node's record that the conflict is about.
    pub fn field(&self) -> Field {
        self.ours.field()
    }

    /// The text about a rival that wins: which value of this node it has.
    pub fn tell(&self) -> String {
        self.ours.against(self.theirs, &format_args!("lease {}, {}", self.key, self.grounds))
    }
}

impl PeerTable {
    /// The leases that conflict with this node's own record, by key, with the first conflict for each field. `claims`
    /// are those of the record as it is in the store. Its underlay addresses count as claims, too.
    pub fn rivals(&self, key: LeaseKey, standing: Standing, claims: &[Claim]) -> Vec<Rival> {
        let us = Side { key, standing, claims };
        let mut others = BTreeSet::new();
        for index in [&self.index, &self.refused] {
            others.append(&mut index.contradicting(&key, claims));
            for claim in claims {
                if let Claim::Underlay(addr) = claim {
                    others.extend(index.at(*addr));
                }
            }
        }
        let others = others.into_iter().filter_map(|key| Some(self.entries.get(&key)?.side(key)));
        others.flat_map(|them| rivals(&us, &them)).collect()
    }
}

/// Whether a claim of this node's record and a claim of another lease conflict.
fn is_contested(ours: Claim, theirs: Claim) -> bool {
    matches!((ours, theirs), (Claim::Underlay(a), Claim::Underlay(b)) if a == b) || ours.excludes(theirs)
}

/// Whether a lease with the claims `theirs` can be a rival of a record with the claims `ours`.
pub fn may_be_rivals(ours: &[Claim], theirs: &[Claim]) -> bool {
    ours.iter().any(|ours| theirs.iter().any(|theirs| is_contested(*ours, *theirs)))
}

fn rivals(us: &Side<'_>, them: &Side<'_>) -> Vec<Rival> {
    let mut found: Vec<Rival> = Vec::new();
    for (ours, theirs) in
        us.claims.iter().flat_map(|ours| them.claims.iter().map(move |theirs| (*ours, *theirs)))
    {
        if !is_contested(ours, theirs) {
            continue;
        }
        let (we_win, grounds) = precedence(us, ours, them, theirs);
        let is_younger = us.is_older_than(them);
        let rival = Rival { key: them.key, ours, theirs, wins: !we_win, grounds, is_younger };
        if !found.iter().any(|known| (known.field(), known.wins) == (rival.field(), rival.wins)) {
            found.push(rival);
        }
    }
    found
}
