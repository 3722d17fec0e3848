//! The packets that must get through, described by ranges of addresses and sets of links. Pure.

use crate::addr::{Family, PerFamily, Subnet};
use crate::firewall::rules::Range;

/// Whether something is true for a packet that is only partly known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Truth {
    /// For no such packet.
    No,
    /// For some of them, or unknown.
    Maybe,
    /// For every such packet.
    Yes,
}

impl Truth {
    pub(super) fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Maybe => Self::Maybe,
            Self::Yes => Self::No,
        }
    }

    pub(super) fn not_if(self, inverted: bool) -> Self {
        if inverted { self.not() } else { self }
    }

    /// Whether any of several is true.
    pub(super) fn any(truths: impl IntoIterator<Item = Self>) -> Self {
        truths.into_iter().max().unwrap_or(Self::No)
    }
}

impl From<bool> for Truth {
    fn from(known: bool) -> Self {
        if known { Self::Yes } else { Self::No }
    }
}

/// One end of a packet's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// A pod of this node.
    Pod,
    /// A pod of another node.
    Peer,
    /// An address outside of the overlay network.
    World,
}

/// A TCP packet that this node forwards.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet<'a> {
    pub(super) family: Family,
    pub(super) range: Range,
    pub(super) from: End,
    pub(super) to: End,
    /// Whether it opens a connection; otherwise it is an answer.
    pub(super) is_new: bool,
    pub(super) links: &'a Links,
}

impl Packet<'_> {
    /// Whether the address of an end is in `subnet`.
    pub(super) fn address_in(&self, end: End, subnet: Subnet) -> Truth {
        let Range { network, subnet: own } = self.range;
        if subnet.family() != self.family {
            return Truth::No;
        }
        let (inside, without) = match end {
            End::Pod => (Some(own), None),
            End::Peer => (Some(network), Some(own)),
            End::World => (None, Some(network)),
        };
        let covers_all = inside.map_or(subnet.prefix() == 0, |inside| subnet.covers(inside));
        let covers_none = inside.is_some_and(|inside| !subnet.overlaps(inside))
            || without.is_some_and(|without| without.covers(subnet));
        match (covers_all, covers_none) {
            (_, true) => Truth::No,
            (true, false) => Truth::Yes,
            (false, false) => Truth::Maybe,
        }
    }

    /// Whether the link of an end has one of these names.
    pub(super) fn link_among(&self, end: End, names: &[LinkName]) -> Truth {
        let candidates = self.links.of(end, self.family);
        Truth::any(names.iter().map(|name| candidates.have(name)))
    }
}

/// How a rule names links: by a name or a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LinkName {
    /// The whole name.
    Exact(String),
    /// What comes before `+` or `*`.
    Prefix(String),
}

impl LinkName {
    /// Reads `eth0`, or `eth+` if `wildcard` is `+`.
    pub(super) fn parse(text: &str, wildcard: char) -> Self {
        match text.strip_suffix(wildcard) {
            Some(prefix) => Self::Prefix(prefix.to_owned()),
            None => Self::Exact(text.to_owned()),
        }
    }

    fn is(&self, link: &str) -> bool {
        match self {
            Self::Exact(name) => name == link,
            Self::Prefix(prefix) => link.starts_with(prefix),
        }
    }
}

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Has an address of our subnet, so it is the gateway of pods.
    Pods,
    /// Has the overlay's own address of a family: packets to peers leave by it.
    Overlay(Family),
    /// Has addresses, and none of the overlay: the underlay, another bridge ..
    Other,
    /// Never forwards.
    Loopback,
    /// Unknown. It may belong to a pod.
    Unknown,
}

/// The links of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Links(pub(super) Vec<(String, Role)>);

/// The links that a packet can use.
struct Candidates<'a> {
    names: Vec<&'a str>,
    /// If set, it may also be any other link except these.
    or_any_but: Option<Vec<&'a str>>,
}

impl Links {
    /// Sorts links by their addresses.
    pub(super) fn new<'a>(
        links: impl IntoIterator<Item = (&'a str, bool, Vec<std::net::IpAddr>)>,
        ranges: &PerFamily<Range>,
    ) -> Self {
        let role = |loopback, addresses: &[std::net::IpAddr]| {
            if loopback {
                return Role::Loopback;
            }
            let in_range = |addr: &std::net::IpAddr| {
                ranges.iter().find(|(_, range)| range.subnet.contains(*addr)).map(|(family, range)| {
                    if range.subnet.base() == *addr { Role::Overlay(family) } else { Role::Pods }
                })
            };
            let roles: Vec<_> = addresses.iter().filter_map(in_range).collect();
            match roles.first() {
                Some(role) => *role,
                None if addresses.is_empty() => Role::Unknown,
                None => Role::Other,
            }
        };
        let links = links.into_iter();
        Self(links.map(|(name, loopback, addresses)| (name.to_owned(), role(loopback, &addresses))).collect())
    }

    fn with(&self, is: impl Fn(Role) -> bool) -> Vec<&str> {
        self.0.iter().filter(|(_, role)| is(*role)).map(|(name, _)| name.as_str()).collect()
    }

    fn of(&self, end: End, family: Family) -> Candidates<'_> {
        let pods = self.with(|role| role == Role::Pods);
        let overlay = self.with(|role| role == Role::Overlay(family));
        match end {
            End::Pod if !pods.is_empty() => Candidates { names: pods, or_any_but: None },
            // The CNI plugin creates the bridge with the first pod.
            End::Pod => {
                let no_pods = self.with(|role| !matches!(role, Role::Pods | Role::Unknown));
                Candidates { names: Vec::new(), or_any_but: Some(no_pods) }
            }
            End::Peer if !overlay.is_empty() => Candidates { names: overlay, or_any_but: None },
            // With host-gw packets to peers leave by the underlay, which is one of these links, as do packets to the
            // world.
            End::Peer | End::World if !self.0.is_empty() => Candidates {
                names: self.with(|role| matches!(role, Role::Other | Role::Unknown)),
                or_any_but: None,
            },
            End::Peer | End::World => Candidates { names: Vec::new(), or_any_but: Some(Vec::new()) },
        }
    }
}

impl Candidates<'_> {
    /// Whether the packet's link has this name.
    fn have(&self, name: &LinkName) -> Truth {
        match (&self.or_any_but, name) {
            (_, LinkName::Prefix(prefix)) if prefix.is_empty() => Truth::Yes,
            (None, _) => match self.names.iter().filter(|link| name.is(link)).count() {
                0 => Truth::No,
                all if all == self.names.len() => Truth::Yes,
                _ => Truth::Maybe,
            },
            (Some(never), LinkName::Exact(name)) if never.contains(&name.as_str()) => Truth::No,
            (Some(_), _) => Truth::Maybe,
        }
    }
}
