//! Which of two conflicting leases has precedence. Pure, and for one pair at a time.

use super::Claim;
use crate::addr::Family;
use crate::lease::{AgedLease, Ages, Field, LeaseKey};

/// What decides precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// When this node first saw the values of the lease.
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

    /// Whether the record is the older one, which decides between values that were seen together.
    pub(super) fn is_older_than(&self, other: &Self) -> bool {
        (self.standing.created, self.key) < (other.standing.created, other.key)
    }

    /// Whether the lease had its present backend data when it appeared.
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
    /// Its value was seen first.
    First,
    /// Both were seen together, and its record is the older one.
    Older,
    /// Both were seen together, and it is the lease to which the store assigned the subnet that contains the other's
    /// address.
    Assigned,
    /// Both belong to one node, which published this one later.
    Renewed,
}

/// Whether the claim of `a` has precedence over the conflicting claim of `b`, and the grounds of the one that has
/// precedence.
pub(super) fn precedence(a: &Side<'_>, mine: Claim, b: &Side<'_>, theirs: Claim) -> (bool, Grounds) {
    if mine.is_of_backend()
        && theirs.is_of_backend()
        && let Some(at) = mine.underlay()
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

/// For two leases with one VTEP MAC or public key at two addresses of `family`: whether `a` is the one that their node published
/// later; `None` if they may belong to two nodes.
///
/// The same at the same address in the other family proves that they belong to one node. A record that copied
/// another's data and address later is no successor: otherwise that would be a way to take a node's traffic.
fn is_successor(a: &Side<'_>, b: &Side<'_>, family: Family) -> Option<bool> {
    let is_shared = |claim: &Claim| claim.is_of_backend() && b.claims.contains(claim);
    if !a.claims.iter().any(is_shared) {
        return None;
    }
    let (ours, theirs) = (a.age_of(Field::PublicIp(family)), b.age_of(Field::PublicIp(family)));
    let is_later = if ours == theirs { b.is_older_than(a) } else { ours > theirs };
    let successor = if is_later { a } else { b };
    successor.is_of_one_piece(family).then_some(is_later)
}
