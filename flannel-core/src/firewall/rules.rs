//! The firewall rules for the overlay, as values. Pure.

use crate::addr::{Family, PerFamily, Subnet};

/// The mark with which kube-proxy asks for masquerading, which it does itself, in a chain of its own.
pub const KUBE_MARK: u32 = 0x4000;

/// The addresses of pods, in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Range {
    /// The overlay network.
    pub network: Subnet,
    /// This node's subnet of it.
    pub subnet: Subnet,
}

impl Range {
    /// The pods of a node that has `subnet` of the overlay `network`.
    pub fn new(network: Subnet, subnet: Subnet) -> Self {
        Self { network, subnet }
    }
}

/// What the rules should achieve. [`Wanted::of`] begins with nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wanted {
    /// The pods of each enabled family.
    pub ranges: PerFamily<Range>,
    /// Whether pods should reach the world under this node's address.
    pub masquerade: bool,
    /// Whether masquerading should choose source ports at random, if the host can.
    pub fully_random: bool,
    /// Whether to accept forwarded packets from and to pods.
    pub forward: bool,
}

/// One of the two lists of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chain {
    /// Runs after routing, in the NAT table.
    Masquerade,
    /// Runs for forwarded packets, in the filter table.
    Forward,
}

impl Chain {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Masquerade, Self::Forward];
}

/// Addresses that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Side {
    /// The subnet.
    pub subnet: Subnet,
    /// Whether all addresses outside of the subnet match instead.
    pub outside: bool,
}

/// How a rule matches the packet's mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mark {
    /// The bit [`KUBE_MARK`] is set.
    Bit,
    /// The mark is exactly [`KUBE_MARK`], as in Go's nftables rules, which miss it if other bits are set.
    Exact,
}

/// What happens to a packet that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It leaves the chain unchanged.
    Return,
    /// It is accepted.
    Accept,
    /// It leaves with an address of this node.
    Masquerade {
        /// Whether the source port is chosen at random.
        fully_random: bool,
    },
}

/// A rule of ours: conditions that must all match, and the verdict then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The condition on the packet's mark.
    pub mark: Option<Mark>,
    /// The condition on its source.
    pub src: Option<Side>,
    /// The condition on its destination.
    pub dst: Option<Side>,
    /// The verdict.
    pub verdict: Verdict,
}

impl Rule {
    fn marked(mark: Mark) -> Self {
        Self { mark: Some(mark), src: None, dst: None, verdict: Verdict::Return }
    }

    fn pair(src: Side, dst: Side, verdict: Verdict) -> Self {
        Self { mark: None, src: Some(src), dst: Some(dst), verdict }
    }
}

fn inside(subnet: Subnet) -> Side {
    Side { subnet, outside: false }
}

fn outside(subnet: Subnet) -> Side {
    Side { subnet, outside: true }
}

/// All multicast addresses of a family.
fn multicast(family: Family) -> Subnet {
    match family {
        Family::V4 => Subnet::exact([224, 0, 0, 0].into(), 4),
        Family::V6 => Subnet::exact([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8),
    }
    .expect("no host bits")
}

impl Wanted {
    /// No rule for these pods yet.
    pub fn of(ranges: PerFamily<Range>) -> Self {
        Self { ranges, ..Self::default() }
    }

    /// The same, and pods reach the world under this node's address. `fully_random` says whether masquerading chooses source
    /// ports at random, where the host can.
    #[must_use]
    pub fn masquerading(self, fully_random: bool) -> Self {
        Self { masquerade: true, fully_random, ..self }
    }

    /// The same, and forwarded packets from and to pods are accepted.
    #[must_use]
    pub fn forwarding(self) -> Self {
        Self { forward: true, ..self }
    }

    /// The rules of a chain in their order; `None` if the family has no such chain.
    ///
    /// Packets between pods, and packets that come in for a pod of this node, keep their addresses. Packets of pods to
    /// other destinations leave with an address of this node, except multicast. So do packets of this host to pods of
    /// other nodes, which could not answer to the host's own address.
    ///
    /// `can_be_random` says whether the host can choose ports at random.
    pub fn rules(&self, family: Family, chain: Chain, can_be_random: bool) -> Option<Vec<Rule>> {
        let range = self.ranges.get(family)?;
        match chain {
            Chain::Masquerade => {
                self.masquerade.then(|| masquerade(family, *range, self.fully_random && can_be_random))
            }
            Chain::Forward => self.forward.then(|| forward(*range)),
        }
    }

    /// Whether there is any rule at all.
    pub fn is_empty(&self) -> bool {
        let none = |family| Chain::ALL.iter().all(|chain| self.rules(family, *chain, false).is_none());
        Family::ALL.into_iter().all(none)
    }
}

fn masquerade(family: Family, range: Range, fully_random: bool) -> Vec<Rule> {
    let Range { network, subnet } = range;
    let masquerade = Verdict::Masquerade { fully_random };
    vec![
        Rule::marked(Mark::Bit),
        Rule::pair(inside(subnet), inside(network), Verdict::Return),
        Rule::pair(inside(network), inside(subnet), Verdict::Return),
        Rule::pair(outside(network), inside(subnet), Verdict::Return),
        Rule::pair(inside(network), outside(multicast(family)), masquerade),
        Rule::pair(outside(network), inside(network), masquerade),
    ]
}

fn forward(range: Range) -> Vec<Rule> {
    let accept = |src, dst| Rule { mark: None, src, dst, verdict: Verdict::Accept };
    vec![accept(Some(inside(range.network)), None), accept(None, Some(inside(range.network)))]
}

/// Which of the rules in our chains are ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ours {
    /// The rules that this agent or a Go agent writes for one of these ranges. Others may belong to another agent on
    /// this host.
    Of(Vec<PerFamily<Range>>),
    /// All rules that have the form of ours, for any network, to clean up a host.
    AnyRange,
}

impl Ours {
    /// Whether a rule of one of our chains is ours.
    pub fn owns(&self, family: Family, chain: Chain, rule: &Rule) -> bool {
        match self {
            Self::Of(ranges) => {
                let mut ranges = ranges.iter().filter_map(|ranges| ranges.get(family));
                ranges.any(|range| written_for(family, *range, chain).contains(rule))
            }
            Self::AnyRange => true,
        }
    }
}

/// All rules that any agent writes for a range: with and without random ports, and in the form of Go's nftables rules.
fn written_for(family: Family, range: Range, chain: Chain) -> Vec<Rule> {
    match chain {
        Chain::Masquerade => {
            let mut rules = masquerade(family, range, true);
            rules.extend(masquerade(family, range, false));
            rules.push(Rule::marked(Mark::Exact));
            // In Go's rules subnet and network are swapped.
            rules.push(Rule::pair(outside(range.subnet), inside(range.network), Verdict::Return));
            rules
        }
        Chain::Forward => forward(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_random_where_that_is_wanted_and_possible() {
        let range = Range { network: "10.1.0.0/16".parse().unwrap(), subnet: "10.1.7.0/24".parse().unwrap() };
        let ranges = PerFamily { v4: Some(range), v6: None };
        for (fully_random, can_be_random) in [(true, true), (true, false), (false, true), (false, false)] {
            let want = Wanted { ranges, masquerade: true, fully_random, forward: false };
            let rules = want.rules(Family::V4, Chain::Masquerade, can_be_random).unwrap();
            let masquerade = Verdict::Masquerade { fully_random: fully_random && can_be_random };
            assert_eq!(rules.iter().filter(|rule| rule.verdict == masquerade).count(), 2, "{rules:?}");
            assert_eq!(rules.iter().filter(|rule| rule.verdict == Verdict::Return).count(), 4, "{rules:?}");
        }
    }

    #[test]
    fn what_is_off_has_no_chain() {
        let none = Wanted { masquerade: true, forward: true, ..Wanted::default() };
        assert!(none.is_empty(), "no family has pods");
        let range = Range { network: "fd00::/48".parse().unwrap(), subnet: "fd00::/64".parse().unwrap() };
        let ranges = PerFamily { v4: None, v6: Some(range) };
        for (masquerade, forward) in [(true, false), (false, true), (false, false)] {
            let want = Wanted { ranges, masquerade, forward, ..Wanted::default() };
            assert_eq!(want.rules(Family::V6, Chain::Masquerade, true).is_some(), masquerade);
            assert_eq!(want.rules(Family::V6, Chain::Forward, true).is_some(), forward);
            assert!(Chain::ALL.iter().all(|chain| want.rules(Family::V4, *chain, true).is_none()));
            assert_eq!(want.is_empty(), !masquerade && !forward);
        }
    }
}
