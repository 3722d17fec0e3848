//! The chosen underlay, which carries the traffic between nodes.

use std::net::IpAddr;

use serde::Serialize;

use crate::addr::{Family, LinkIndex, Mtu, PerFamily};

/// The link and addresses that carry encapsulated packets between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Underlay {
    /// The link's name.
    pub name: String,
    /// The link's index.
    pub link: LinkIndex,
    /// The link's MTU.
    pub mtu: Mtu,
    /// The addresses of this host from which encapsulated packets leave.
    pub local: PerFamily<IpAddr>,
    /// The addresses published to peers; they differ from `local` behind NAT.
    pub published: PerFamily<IpAddr>,
    /// Why it was chosen, for the log.
    pub reason: String,
}

/// The underlay has no address of a family that is enabled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{family} is enabled, but underlay link {link} has no {family} address")]
#[non_exhaustive]
pub struct NoAddress {
    /// The family.
    pub family: Family,
    /// The name of the underlay's link.
    pub link: String,
}

impl Underlay {
    /// A link that carries packets from these addresses, which are also the published ones.
    pub fn new(name: impl Into<String>, link: LinkIndex, mtu: Mtu, local: PerFamily<IpAddr>) -> Self {
        Self { name: name.into(), link, mtu, local, published: local, reason: String::new() }
    }

    /// The same behind NAT: peers send to these addresses.
    #[must_use]
    pub fn published(self, published: PerFamily<IpAddr>) -> Self {
        Self { published, ..self }
    }

    /// The local and the published address of a family that is enabled.
    pub fn addresses(&self, family: Family) -> Result<(IpAddr, IpAddr), NoAddress> {
        let both = self.local.get(family).zip(self.published.get(family));
        both.map(|(local, published)| (*local, *published))
            .ok_or_else(|| NoAddress { family, link: self.name.clone() })
    }
}
