//! What a store says about its servers, this node and this node's rights, for an operator who looks for a fault.

use std::time::{Duration, SystemTime};

use crate::lease::LeaseAttrs;

/// The answers of a store to questions that an agent does not ask in normal operation
/// ([`crate::subnet::SubnetManager::examine`]). [`Examination::default`] is that of a store that can't say more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Examination {
    /// The servers, each asked by itself; empty for a store without servers.
    pub servers: Vec<Server>,
    /// What the store keeps of this node.
    pub node: NodeRecord,
    /// What this node needs to do in the store, and whether it may.
    pub rights: Vec<Right>,
}

impl Examination {
    /// The same, with the answers of servers.
    pub fn servers(self, servers: impl IntoIterator<Item = Server>) -> Self {
        Self { servers: servers.into_iter().collect(), ..self }
    }

    /// The same, with what the store keeps of this node.
    pub fn node(self, node: NodeRecord) -> Self {
        Self { node, ..self }
    }

    /// The same, with rights.
    pub fn rights(self, rights: impl IntoIterator<Item = Right>) -> Self {
        Self { rights: rights.into_iter().collect(), ..self }
    }
}

/// One server of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its URL, without credentials.
    pub name: String,
    /// Its answer, or what was tried and why it failed.
    pub answer: Result<ServerAnswer, String>,
}

/// The answer of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerAnswer {
    /// How long a small request took on an open connection.
    pub took: Duration,
    /// Its version; empty if it does not say.
    pub version: String,
    /// How its clock compares with this host's; `None` if it does not tell the time.
    pub clock: Option<ClockGap>,
}

impl ServerAnswer {
    /// An answer that took this long, of a server with this version.
    pub fn new(took: Duration, version: impl Into<String>) -> Self {
        Self { took, version: version.into(), clock: None }
    }

    /// The same, with the time that the server gave.
    pub fn clock(self, clock: Option<ClockGap>) -> Self {
        Self { clock, ..self }
    }
}

/// The difference between the clock of a server and this host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockGap {
    /// The server's clock is ahead of this host's.
    Ahead(Duration),
    /// The server's clock is behind this host's.
    Behind(Duration),
}

impl ClockGap {
    /// Compares the time that a server gave with the time of this host when it asked and when it had the answer. A
    /// server's time counts whole seconds, so a gap below one second counts as none.
    pub fn between(server: SystemTime, asked: SystemTime, answered: SystemTime) -> Self {
        let second = Duration::from_secs(1);
        match (server.duration_since(answered), asked.duration_since(server)) {
            (Ok(ahead), _) => Self::Ahead(ahead),
            (_, Ok(behind)) if behind > second => Self::Behind(behind.saturating_sub(second)),
            _ => Self::Ahead(Duration::ZERO),
        }
    }

    /// The size of the gap.
    pub fn size(self) -> Duration {
        match self {
            Self::Ahead(gap) | Self::Behind(gap) => gap,
        }
    }
}

/// What a store keeps of this node besides its lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NodeRecord {
    /// The store has no record of nodes, or knows none for this host.
    #[default]
    None,
    /// The record can't be read; the text says what was tried and why it failed.
    Unread(String),
    /// The record.
    Read(NodeFacts),
}

/// The record of a node in a store whose cluster assigns the subnets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeFacts {
    /// The name of the node.
    pub name: String,
    /// The subnets that the cluster assigned to it, as texts of the store, which may be no subnets.
    pub subnets: Vec<String>,
    /// What the node publishes, as far as it can be read; `None` if it takes no part in the network.
    pub published: Option<LeaseAttrs>,
}

impl NodeFacts {
    /// A node with assigned subnets, which publishes nothing.
    pub fn new(name: impl Into<String>, subnets: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { name: name.into(), subnets: subnets.into_iter().map(Into::into).collect(), published: None }
    }

    /// The same, with what the node publishes.
    pub fn published(self, published: Option<LeaseAttrs>) -> Self {
        Self { published, ..self }
    }
}

/// Something that this node needs to do in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Right {
    /// The right, as the store names it: `list nodes`.
    pub what: String,
    /// The store's answer.
    pub answer: RightAnswer,
}

/// Whether this node has a right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RightAnswer {
    /// It has.
    Allowed,
    /// It has not; the store's reason, which may be empty.
    Denied(String),
    /// The store did not say; why not.
    Unknown(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_counts_whole_seconds() {
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        for (server, asked, answered, want) in [
            (5_000, 5_000, 5_010, ClockGap::Ahead(Duration::ZERO)),
            (5_000, 5_990, 5_995, ClockGap::Ahead(Duration::ZERO)),
            (9_000, 5_000, 6_000, ClockGap::Ahead(Duration::from_secs(3))),
            (5_000, 65_000, 65_001, ClockGap::Behind(Duration::from_secs(59))),
        ] {
            let gap = ClockGap::between(at(server), at(asked), at(answered));
            assert_eq!(gap, want, "{server} {asked} {answered}");
        }
    }
}
