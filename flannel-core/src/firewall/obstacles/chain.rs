//! Chains of rules, reduced to what decides about a packet, for both nft and iptables. Pure.

use serde::Serialize;

use super::packet::{End, LinkName, Packet, Truth};
use crate::addr::{Family, Subnet};
use crate::firewall::rules::KUBE_MARK;

/// The bit of the mark with which kube-proxy asks for a drop.
const KUBE_DROP_MARK: u32 = 0x8000;

/// Which of the kernel's two rule systems has the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
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
    /// For a base chain that forwarded packets enter: what it does with packets that no rule decides about.
    pub(super) policy: Option<Policy>,
    pub(super) rules: Vec<Rule>,
}

/// What a base chain does at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    Accept,
    Drop,
}

/// Conditions that must all be true, and the action then.
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
    /// By its handle, with which nft prints the text.
    Handle(u64),
}

/// What a rule does with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Does {
    /// It continues with the next rule.
    Nothing,
    Accept,
    /// It is dropped or rejected.
    Cut,
    Return,
    Jump(String),
    Goto(String),
    /// Something unknown, which may let it pass.
    Unknown,
}

/// The source or destination side of a packet.
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
    /// The state of the connection: whether new ones match, and whether established ones match.
    State { new: bool, established: bool, inverted: bool },
    /// The mark, compared under this mask.
    Mark { mask: u32, value: u32, inverted: bool },
    /// A condition with a fixed truth.
    Known(Truth),
}

impl Test {
    /// A condition on the protocol: whether TCP matches.
    pub(super) fn is_tcp(known: bool) -> Self {
        Self::Known(known.into())
    }

    /// Whether the condition is true for a packet. `is_marked` says whether an earlier rule may have set the mark.
    pub(super) fn holds(&self, packet: &Packet<'_>, is_marked: bool) -> Truth {
        match self {
            Self::Family(family) => (*family == packet.family).into(),
            Self::Address { side, among, inverted } => {
                // A condition on another family never matches, inverted or not.
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
            // Only kube-proxy sets its bits, and only for services. Other bits are unknown.
            Self::Mark { mask, value, inverted } => {
                let is_known = !is_marked && mask & !(KUBE_MARK | KUBE_DROP_MARK) == 0;
                if is_known { Truth::from(*value == 0).not_if(*inverted) } else { Truth::Maybe }
            }
            Self::Known(truth) => *truth,
        }
    }
}

impl Rule {
    /// Whether the rule matches a packet.
    pub(super) fn is_about(&self, packet: &Packet<'_>, is_marked: bool) -> Truth {
        self.tests.iter().map(|test| test.holds(packet, is_marked)).min().unwrap_or(Truth::Yes)
    }
}

impl Table {
    pub(super) fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }
}
