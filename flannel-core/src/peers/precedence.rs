//! Who has precedence where two leases exclude each other. Pure, and for one pair at a time.

use super::Claim;
use crate::addr::Family;
use crate::lease::{AgedLease, Ages, Field, LeaseKey};

/// What precedence is decided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// When what the lease says was first seen.
    pub ages: Ages,
    /// When the record was created, in the store's own count.
    pub created: u64,
}

impl From<&AgedLease> for Standing {
    fn from(lease: &AgedLease) -> Self {
        Self { ages: lease.ages, created: lease.created }
    }
}

/// One side of a conflict.
#[derive(Debug, Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) key: LeaseKey,
    pub(super) standing: Standing,
    pub(super) claims: &'a [Claim],
}

impl Side<'_> {
    fn age(&self, claim: Claim) -> u32 {
        self.standing.ages.of(claim.field())
    }

    /// The age of the oldest claim.
    pub(super) fn oldest(&self) -> u32 {
        self.claims.iter().map(|claim| self.age(*claim)).min().unwrap_or(u32::MAX)
    }

    /// Whether the record is the older one: what decides among what was seen together.
    pub(super) fn is_older_than(&self, other: &Self) -> bool {
        (self.standing.created, self.key) < (other.standing.created, other.key)
    }

    /// Whether a lease has appeared with the backend data that it has.
    fn is_of_one_piece(&self, family: Family) -> bool {
        self.age_of(Field::BackendData(family)) == self.age_of(Field::Subnet(family))
    }

    fn age_of(&self, field: Field) -> u32 {
        self.standing.ages.of(field)
    }
}

/// Why one of two claims has precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grounds {
    /// Its value was there first.
    First,
    /// Both were first seen together, and its record is the older one.
    Older,
    /// Both were first seen together, and the store assigned the subnet in which the other's address lies.
    Assigned,
    /// Both are of one node, and this is what that node published later.
    Renewed,
}

/// Whether the claim of `a` has precedence over that of `b` which it excludes, and why the one that has it does.
pub(super) fn precedence(a: &Side<'_>, mine: Claim, b: &Side<'_>, theirs: Claim) -> (bool, Grounds) {
    if let (Claim::Vtep(_, _, at), Claim::Vtep(..)) = (mine, theirs)
        && let Some(wins) = is_successor(a, b, Family::of(at))
    {
        return (wins, Grounds::Renewed);
    }
    let (ours, other) = (a.age(mine), b.age(theirs));
    if ours != other {
        return (ours < other, Grounds::First);
    }
    match (mine, theirs) {
        (Claim::Subnet(_), Claim::Underlay(_)) => (true, Grounds::Assigned),
        (Claim::Underlay(_), Claim::Subnet(_)) => (false, Grounds::Assigned),
        _ => (a.is_older_than(b), Grounds::Older),
    }
}

/// Whether two leases with one VTEP MAC at two addresses of `family` are of one node, and then whether `a` is the
/// one that the node published later; `None` if they may be of two nodes.
///
/// That they are of one node is proved by the same MAC at the same address in the other family. A record that
/// took another's MAC and address over later is no successor: it would be a way to take a node's traffic.
fn is_successor(a: &Side<'_>, b: &Side<'_>, family: Family) -> Option<bool> {
    let is_shared = |claim: &Claim| matches!(claim, Claim::Vtep(..)) && b.claims.contains(claim);
    if !a.claims.iter().any(is_shared) {
        return None;
    }
    let (ours, theirs) = (a.age_of(Field::PublicIp(family)), b.age_of(Field::PublicIp(family)));
    let is_later = if ours == theirs { b.is_older_than(a) } else { ours > theirs };
    let successor = if is_later { a } else { b };
    successor.is_of_one_piece(family).then_some(is_later)
}
