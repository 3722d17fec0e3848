//! The parts of our `nf_tables` tables, as values. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::addr::{Family, Subnet, Vni};

/// The family of a table, which decides which packets its chains see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableFamily {
    /// IPv4 packets on their way through the stack.
    Ip,
    /// IPv6 packets on their way through the stack.
    Ip6,
    /// Packets of both.
    Inet,
    /// All frames that come in by one link.
    Netdev,
}

impl From<Family> for TableFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::Ip,
            Family::V6 => Self::Ip6,
        }
    }
}

impl TableFamily {
    /// All that this crate knows.
    pub(super) const ALL: [Self; 4] = [Self::Ip, Self::Ip6, Self::Inet, Self::Netdev];

    /// Its name in `nft`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Netdev => "netdev",
        }
    }
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

/// The hook of a base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hook {
    /// What its rules can do.
    pub(crate) kind: HookKind,
    /// `NF_INET_*` (1 is `NF_INET_LOCAL_IN`), or `NF_NETDEV_INGRESS` (0) in [`TableFamily::Netdev`].
    pub(crate) number: u32,
    /// Its priority among the chains of the hook; the smallest comes first.
    pub(crate) priority: i32,
    /// The link whose frames it sees, in [`TableFamily::Netdev`].
    pub(crate) link: Option<String>,
    /// Whether it drops packets that no rule decides about, instead of accepting them.
    pub(crate) drops: bool,
}

/// The type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HookKind {
    /// `filter`: it lets packets pass or not.
    Filter,
    /// `nat`: it changes the addresses of connections.
    Nat,
    /// Another one, or one whose hook can't be read.
    Other,
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
    /// Its mark has these bits.
    Marked(u32),
    /// Its source is in this subnet, or outside of it.
    Src(Subnet, Sense),
    /// Its destination is in this subnet, or outside of it.
    Dst(Subnet, Sense),
    /// Its source is in this set.
    SrcInSet(Family, String),
    /// The packet would not be forwarded as unicast: its destination is this host, a group, or unreachable.
    StaysHere,
    /// Counts the packets that match so far.
    Count,
    /// Adds the packet's key to a set, which counts packets for each element.
    Note(Key, String),
    /// Gives the packet an address of this host as its source, with a source port that is chosen at random or kept.
    Masquerade {
        /// Whether it is chosen at random.
        fully_random: bool,
    },
    /// The verdict.
    Then(Verdict),
}

/// Whether what a term says must be true or false.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sense {
    /// It must be true.
    Is,
    /// It must be false.
    Not,
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It passes this base chain.
    Accept,
    /// It is dropped.
    Drop,
    /// It returns to the chain that jumped here, or gets the policy of the base chain.
    Return,
    /// It meets the next rule.
    Continue,
    /// It meets the rules of another chain, and then the next rule here.
    Jump(String),
    /// It meets the rules of another chain instead of those that follow.
    Goto(String),
    /// Something that our rules never do, by its number (`NF_QUEUE` is 3).
    Other(i32),
}

/// The text as `nft` would write it. It is the comment of a rule, by which the rule is recognised.
impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Family(family) | Self::Carries(family) => write!(f, "{family}"),
            Self::UdpPort(port) => write!(f, "udp dport {port}"),
            Self::Vni(vni) => write!(f, "vni {vni}"),
            Self::Marked(bits) => write!(f, "mark & {bits:#x} == {bits:#x}"),
            Self::Src(subnet, sense) => write!(f, "saddr {sense}{subnet}"),
            Self::Dst(subnet, sense) => write!(f, "daddr {sense}{subnet}"),
            Self::SrcInSet(_, set) => write!(f, "saddr @{set}"),
            Self::StaysHere => f.write_str("not forwarded"),
            Self::Count => f.write_str("count"),
            Self::Note(_, set) => write!(f, "note in @{set}"),
            Self::Masquerade { fully_random: true } => f.write_str("masquerade fully-random"),
            Self::Masquerade { fully_random: false } => f.write_str("masquerade"),
            Self::Then(verdict) => write!(f, "{verdict}"),
        }
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Not { "!= " } else { "" })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Continue => f.write_str("continue"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Other(number) => write!(f, "verdict {number}"),
        }
    }
}

/// The comment of a rule.
pub(crate) fn comment(rule: &[Term]) -> String {
    let terms: Vec<String> = rule.iter().map(Term::to_string).collect();
    format!("flannel: {}", terms.join(" "))
}

/// An observed table, without the elements of its sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Whether its chains are switched off.
    pub(crate) is_dormant: bool,
    /// Its chains by name, and the hooks of base chains.
    pub(crate) chains: Vec<(String, Option<Hook>)>,
    /// Its sets; `None` for one that can't be ours.
    pub(crate) sets: Vec<Option<Set>>,
    /// The comments of the rules of each chain.
    pub(crate) rules: BTreeMap<String, Vec<String>>,
}

impl Seen {
    /// Whether it has the chains and sets of `table` and no others.
    pub(crate) fn is_built_as(&self, table: &Table) -> bool {
        let chains = |(name, hook): &(String, Option<Hook>)| {
            table.chains.iter().any(|chain| (&chain.name, &chain.hook) == (name, hook))
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
    /// Makes a table with a comment, unless it is there, in which others may have chains, too.
    Declare(TableFamily, &'a str, &'a str),
    /// Changes one chain of such a table.
    Edit {
        /// The family of the table.
        family: TableFamily,
        /// The table.
        table: &'a str,
        /// The chain.
        chain: &'a str,
        /// The change.
        edit: Edit<'a>,
    },
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

/// A change of one chain.
#[derive(Debug, Clone)]
pub(crate) enum Edit<'a> {
    /// Makes a base chain with a comment, unless it is there, and gives it its policy.
    Declare(Hook, &'a str),
    /// Removes all rules.
    Flush,
    /// Removes the chain, which has no rules.
    Delete,
    /// Adds a rule at the end, or before the rule with this handle.
    Rule(Option<u64>, Vec<Term>),
    /// Removes the rule with this handle.
    DeleteRule(u64),
}

/// A rule as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeenRule {
    /// Its number, which stays the same as long as it is there.
    pub(crate) handle: u64,
    /// What it does, part by part.
    pub(crate) parts: Vec<Part>,
}

/// A part of an observed rule: a condition, or what happens when those before it are true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// A property of the packet, under a mask if there is one, is the value or is not.
    Is {
        /// The property.
        what: What,
        /// Which of its bits count; `None` for all.
        mask: Option<Vec<u8>>,
        /// What it is compared with.
        value: Vec<u8>,
        /// How.
        sense: Sense,
    },
    /// A property is in a set or is not.
    In {
        /// The property.
        what: What,
        /// The set.
        set: String,
        /// How.
        sense: Sense,
    },
    /// A map gives the verdict for a property; without an entry for it the rule does not match.
    Map {
        /// The property.
        what: What,
        /// The map.
        map: String,
    },
    /// The verdict.
    Then(Verdict),
    /// Masquerading, with `NF_NAT_RANGE_*` flags.
    Masquerade {
        /// The flags.
        flags: u32,
    },
    /// It changes the packet's mark.
    SetsMark,
    /// It counts, logs, or changes something else that rules don't ask for here.
    Effect,
    /// An expression of `iptables`, by its name. Only its own programs know more.
    Xt {
        /// Whether it is a target, not a match.
        is_target: bool,
        /// `REJECT`, `conntrack`, ..
        name: String,
    },
    /// Another expression, by its name. It may match or not.
    Other(String),
}

/// A property of a packet that rules compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// `NFT_META_*`.
    Meta(u32),
    /// `NFT_CT_*`, of the connection.
    Ct(u32),
    /// Bytes of a header (`NFT_PAYLOAD_*`).
    Payload {
        /// Which header.
        base: u32,
        /// The first byte.
        offset: u32,
        /// How many.
        len: u32,
    },
    /// What the routing table says, by `NFT_FIB_RESULT_*` and `NFTA_FIB_F_*`.
    Fib {
        /// What is asked for.
        result: u32,
        /// Of which address.
        flags: u32,
    },
    /// Something else, or a combination.
    Unknown,
}

/// An element of an observed set or map, as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    /// Its value; empty for the element that stands for all others.
    pub(crate) key: Vec<u8>,
    /// Whether it is the first value behind an interval, which begins with the element before it.
    pub(crate) is_end: bool,
    /// The verdict, in a map of verdicts.
    pub(crate) verdict: Option<Verdict>,
}

/// An element of a set of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Its address, or the first one.
    pub(crate) addr: IpAddr,
    /// The second one of a pair.
    pub(crate) other: Option<IpAddr>,
    /// The number of packets that it counted; 0 if it does not count.
    pub(crate) packets: u64,
}
