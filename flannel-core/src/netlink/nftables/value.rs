//! The parts of our `nf_tables` tables, as values. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::addr::{Family, Subnet, Vni};

/// The family of a table, which decides which packets its chains see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableFamily {
    /// IPv4 and IPv6 packets on their way through the stack.
    Inet,
    /// All frames that come in by one link.
    Netdev,
}

/// A desired table, without the elements of its sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    /// Its family. Tables of two families can have the same name.
    pub(crate) family: TableFamily,
    /// Its name.
    pub(crate) name: String,
    /// Its sets.
    pub(crate) sets: Vec<Set>,
    /// Its chains; a chain comes before those that jump to it.
    pub(crate) chains: Vec<Chain>,
}

/// A set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    /// Its name.
    pub(crate) name: String,
    /// The type of its elements.
    pub(crate) key: Key,
    /// For a set that packets fill: the maximum number of elements, and after how many milliseconds without a packet
    /// one is removed.
    pub(crate) dynamic: Option<(u32, u64)>,
}

/// The type of a set's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// An address.
    Addr(Family),
    /// Two addresses: source and destination.
    Pair(Family),
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Its name.
    pub(crate) name: String,
    /// Its hook; `None` for a chain that others jump to.
    pub(crate) hook: Option<Hook>,
    /// Its rules: terms that must all match, in this order.
    pub(crate) rules: Vec<Vec<Term>>,
}

/// The hook of a chain of type `filter` with policy `accept`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hook {
    /// `NF_INET_*` (1 is `NF_INET_LOCAL_IN`), or `NF_NETDEV_INGRESS` (0) in [`TableFamily::Netdev`].
    pub(crate) number: u32,
    /// Its priority among the chains of the hook; the smallest comes first.
    pub(crate) priority: i32,
    /// The link whose frames it sees, in [`TableFamily::Netdev`].
    pub(crate) link: Option<String>,
}

/// One term of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Term {
    /// The packet is of this family, in [`TableFamily::Inet`].
    Family(Family),
    /// The frame carries a packet of this family, in [`TableFamily::Netdev`].
    Carries(Family),
    /// It is UDP to this port.
    UdpPort(u16),
    /// The VXLAN header has this VNI.
    Vni(Vni),
    /// Its source is in this subnet.
    Src(Subnet),
    /// Its destination is in this subnet.
    Dst(Subnet),
    /// Its source is in this set.
    SrcInSet(Family, String),
    /// The packet would not be forwarded as unicast: its destination is this host, a group, or unreachable.
    StaysHere,
    /// Counts the packets that match so far.
    Count,
    /// Adds the packet's key to a set, which counts packets for each element.
    Note(Key, String),
    /// The verdict.
    Then(Verdict),
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It returns to the chain that jumped here, or is accepted.
    Return,
    /// It is dropped.
    Drop,
    /// It continues in another chain.
    Jump(String),
}

/// The text as `nft` would write it. It is the comment of a rule, by which the rule is recognised.
impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Family(family) | Self::Carries(family) => write!(f, "{family}"),
            Self::UdpPort(port) => write!(f, "udp dport {port}"),
            Self::Vni(vni) => write!(f, "vni {vni}"),
            Self::Src(subnet) => write!(f, "saddr {subnet}"),
            Self::Dst(subnet) => write!(f, "daddr {subnet}"),
            Self::SrcInSet(_, set) => write!(f, "saddr @{set}"),
            Self::StaysHere => f.write_str("not forwarded"),
            Self::Count => f.write_str("count"),
            Self::Note(_, set) => write!(f, "note in @{set}"),
            Self::Then(Verdict::Return) => f.write_str("return"),
            Self::Then(Verdict::Drop) => f.write_str("drop"),
            Self::Then(Verdict::Jump(chain)) => write!(f, "jump {chain}"),
        }
    }
}

/// The comment of a rule.
pub(crate) fn comment(rule: &[Term]) -> String {
    let terms: Vec<String> = rule.iter().map(Term::to_string).collect();
    format!("flannel: {}", terms.join(" "))
}

/// How an observed chain gets its packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// From other chains.
    Jumped,
    /// From a hook, as our chains do.
    Hooked(Hook),
    /// From a hook, in a way that we never use.
    Otherwise,
}

/// An observed table, without the elements of its sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Whether its chains are switched off.
    pub(crate) is_dormant: bool,
    /// Its chains by name.
    pub(crate) chains: Vec<(String, Place)>,
    /// Its sets; `None` for one that can't be ours.
    pub(crate) sets: Vec<Option<Set>>,
    /// The comments of the rules of each chain.
    pub(crate) rules: BTreeMap<String, Vec<String>>,
}

impl Seen {
    /// Whether it has the chains and sets of `table` and no others.
    pub(crate) fn is_built_as(&self, table: &Table) -> bool {
        let chains = |(name, place): &(String, Place)| {
            let is = |chain: &Chain| {
                chain.name == *name && chain.hook.clone().map_or(Place::Jumped, Place::Hooked) == *place
            };
            table.chains.iter().any(is)
        };
        let sets = |set: &Option<Set>| set.as_ref().is_some_and(|set| table.sets.contains(set));
        !self.is_dormant
            && self.chains.len() == table.chains.len()
            && self.sets.len() == table.sets.len()
            && self.chains.iter().all(chains)
            && self.sets.iter().all(sets)
    }

    /// Whether its rules are also those of `table`.
    pub(crate) fn is(&self, table: &Table) -> bool {
        let none = Vec::new();
        let same = |chain: &Chain| {
            let seen = self.rules.get(&chain.name).unwrap_or(&none);
            seen.iter().eq(chain.rules.iter().map(|rule| comment(rule)).collect::<Vec<_>>().iter())
        };
        self.is_built_as(table) && table.chains.iter().all(same)
    }
}

/// One change of a transaction.
#[derive(Debug, Clone)]
pub(crate) enum Change<'a> {
    /// Makes a table with its sets, chains and rules.
    Create(&'a Table),
    /// Removes a table with everything in it.
    Delete(TableFamily, &'a str),
    /// Replaces the rules of all chains of a table.
    Rules(&'a Table),
    /// Adds elements to a set of a table of family `inet`. Existing ones stay.
    AddElements {
        /// The table.
        table: &'a str,
        /// The set.
        set: &'a str,
        /// The elements.
        addrs: &'a [IpAddr],
    },
    /// Removes elements that are in a set of a table of family `inet`.
    DeleteElements {
        /// The table.
        table: &'a str,
        /// The set.
        set: &'a str,
        /// The elements.
        addrs: &'a [IpAddr],
    },
}

/// An element of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Its address, or the first one.
    pub(crate) addr: IpAddr,
    /// The second one of a pair.
    pub(crate) other: Option<IpAddr>,
    /// The number of packets that it counted; 0 if it does not count.
    pub(crate) packets: u64,
}
