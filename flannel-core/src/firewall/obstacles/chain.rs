//! Chains of rules as far as they decide about a packet, whoever printed them. Pure.

use super::packet::{End, LinkName, Packet, Truth};
use crate::addr::{Family, Subnet};
use crate::firewall::rules::KUBE_MARK;

/// The bit by which kube-proxy asks for a drop.
const KUBE_DROP_MARK: u32 = 0x8000;

/// Whose tables they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Realm {
    /// `nf_tables`: nft, and iptables' nft variant.
    NfTables,
    /// `ip_tables` and `ip6_tables`: iptables' legacy variant.
    Legacy,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TableName {
    pub(super) realm: Realm,
    /// `ip`, `ip6` or `inet`.
    pub(super) family: String,
    pub(super) name: String,
}

impl TableName {
    /// Whether packets of a family come by.
    pub(super) fn is_for(&self, family: Family) -> bool {
        let own = if family == Family::V4 { "ip" } else { "ip6" };
        self.family == "inet" || self.family == own
    }
}

/// The chains of a table that were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: TableName,
    pub(super) chains: Vec<Chain>,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: String,
    /// What a base chain, which forwarded packets enter, does with those that no rule decides about.
    pub(super) policy: Option<Policy>,
    pub(super) rules: Vec<Rule>,
}

/// What a base chain does at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    Accept,
    Drop,
}

/// Conditions that must all hold, and what is done then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) tests: Vec<Test>,
    /// Whether it changes the packet's mark.
    pub(super) marks: bool,
    pub(super) does: Does,
    pub(super) name: RuleName,
}

/// How to name a rule to an operator.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RuleName {
    /// By its text.
    Text(String),
    /// By its number, by which nft tells the text.
    Handle(u64),
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Does {
    /// The next rule looks at it.
    Nothing,
    Accept,
    /// It ends here: dropped or rejected.
    Cut,
    Return,
    Jump(String),
    Goto(String),
    /// Something that is not understood, which may let it pass.
    Unknown,
}

/// Which side of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

impl Side {
    fn of(self, packet: &Packet<'_>) -> End {
        match self {
            Self::Source => packet.from,
            Self::Destination => packet.to,
        }
    }
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Test {
    /// The packet is of this family.
    Family(Family),
    /// An address is in one of these subnets.
    Address { side: Side, among: Vec<Subnet>, inverted: bool },
    /// A link has one of these names.
    Link { side: Side, among: Vec<LinkName>, inverted: bool },
    /// The state of the connection: whether one that begins, and one that goes on, is meant.
    State { new: bool, established: bool, inverted: bool },
    /// The mark, of which these bits are looked at.
    Mark { mask: u32, value: u32, inverted: bool },
    /// Known by itself.
    Known(Truth),
}

impl Test {
    /// Whether it is about TCP.
    pub(super) fn is_tcp(known: bool) -> Self {
        Self::Known(known.into())
    }

    /// Whether it holds. `is_marked` says whether a rule before may have set the mark.
    pub(super) fn holds(&self, packet: &Packet<'_>, is_marked: bool) -> Truth {
        match self {
            Self::Family(family) => (*family == packet.family).into(),
            Self::Address { side, among, inverted } => {
                // One about another family is no match, inverted or not.
                if among.iter().any(|subnet| subnet.family() != packet.family) {
                    return Truth::No;
                }
                let end = side.of(packet);
                Truth::any(among.iter().map(|subnet| packet.address_in(end, *subnet))).not_if(*inverted)
            }
            Self::Link { side, among, inverted } => {
                packet.link_among(side.of(packet), among).not_if(*inverted)
            }
            Self::State { new, established, inverted } => {
                Truth::from(if packet.is_new { *new } else { *established }).not_if(*inverted)
            }
            // Nobody but kube-proxy sets its bits, and for services only. Of others nobody knows.
            Self::Mark { mask, value, inverted } => {
                let is_known = !is_marked && mask & !(KUBE_MARK | KUBE_DROP_MARK) == 0;
                if is_known { Truth::from(*value == 0).not_if(*inverted) } else { Truth::Maybe }
            }
            Self::Known(truth) => *truth,
        }
    }
}

impl Rule {
    /// Whether it is about a packet.
    pub(super) fn is_about(&self, packet: &Packet<'_>, is_marked: bool) -> Truth {
        self.tests.iter().map(|test| test.holds(packet, is_marked)).min().unwrap_or(Truth::Yes)
    }
}

impl Table {
    pub(super) fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }
}
