//! Why a lease is not programmed because of others, and the text about it.

use std::fmt;

use super::{Claim, Grounds};
use crate::lease::LeaseKey;
use crate::subnet::Remedy;

/// Who has the other claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// This node.
    Us,
    /// A programmed lease, and why it has precedence; `None` if precedence goes in a circle.
    Lease(LeaseKey, Option<Grounds>),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Us => f.write_str("this node"),
            Self::Lease(key, None) => write!(f, "lease {key}, which is programmed"),
            Self::Lease(key, Some(grounds)) => write!(f, "lease {key}, {grounds}"),
        }
    }
}

impl fmt::Display for Grounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "which claimed it first",
            Self::Older => "whose record is older",
            Self::Assigned => "to which the store gave it",
            Self::Renewed => "which its node published later",
        })
    }
}

/// Why this lease must not be programmed: its conflict with this node or with a programmed lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Conflict {
    pub(super) claim: Claim,
    pub(super) other: Claim,
    pub(super) holder: Holder,
}

impl Conflict {
    /// Whether the conflict cuts off pods that should be reached. It does not if the lease conflicts with this node, or
    /// if it is a former lease of a node that is reached by another one.
    pub(super) fn cuts(&self) -> bool {
        matches!(self.holder, Holder::Lease(_, grounds) if grounds != Some(Grounds::Renewed))
    }

    /// What is wrong with the lease `key`, and what an operator should do.
    pub(super) fn tell(&self, key: LeaseKey, remedy: &Remedy) -> String {
        let why = self.claim.against(self.other, &self.holder);
        match self.holder {
            Holder::Lease(_, Some(Grounds::Renewed)) => {
                format!("{why}: a former record of one node, of which no pod is left; it goes with its lease")
            }
            _ => format!("{why}; {}", remedy.advise(key, self.claim.field())),
        }
    }
}
