//! The chosen underlay, which carries the traffic between nodes.

use std::net::IpAddr;

use crate::addr::{Family, LinkIndex, Mtu, PerFamily};

/// The link and addresses that carry encapsulated packets between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
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
pub struct NoAddress {
    /// The family.
    pub family: Family,
    /// The name of the underlay's link.
    pub link: String,
}

impl Underlay {
    /// The local and the published address of a family that is enabled.
    pub fn addresses(&self, family: Family) -> Result<(IpAddr, IpAddr), NoAddress> {
        let both = self.local.get(family).zip(self.published.get(family));
        both.map(|(local, published)| (*local, *published))
            .ok_or_else(|| NoAddress { family, link: self.name.clone() })
    }
}
