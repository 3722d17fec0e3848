//! How others see this node's own record: which leases contradict it, and who has precedence.

use std::collections::BTreeSet;

use super::precedence::precedence;
use super::{Claim, Grounds, PeerTable, Side, Standing};
use crate::lease::{Field, LeaseKey};

/// A lease that contradicts this node's own record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rival {
    /// Which one.
    pub key: LeaseKey,
    /// What both can't have.
    pub ours: Claim,
    /// What the lease says.
    pub theirs: Claim,
    /// Whether the lease has precedence over this node's record.
    pub wins: bool,
    /// Why the one that has precedence does.
    pub grounds: Grounds,
    /// Whether the lease's record is younger than this node's.
    pub is_younger: bool,
}

impl Rival {
    /// The part of this node's record that the conflict is about.
    pub fn field(&self) -> Field {
        self.ours.field()
    }

    /// What a rival that wins has of this node's.
    pub fn tell(&self) -> String {
        self.ours.against(self.theirs, &format_args!("lease {}, {}", self.key, self.grounds))
    }
}

impl PeerTable {
    /// The leases that contradict this node's own record, by their keys, with the first reason of each kind. `claims`
    /// are what the record says as it is in the store. Nobody else can publish its underlay addresses, either.
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

/// Whether two nodes can't have both, where one of them is this node as its record says.
fn is_contested(ours: Claim, theirs: Claim) -> bool {
    matches!((ours, theirs), (Claim::Underlay(a), Claim::Underlay(b)) if a == b) || ours.excludes(theirs)
}

/// Whether a lease with such claims can be a rival of a record with these.
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
