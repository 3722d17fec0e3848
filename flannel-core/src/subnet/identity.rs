//! Decides which records are this node's, even if its address has changed. Pure.
//!
//! A record has its node's address and, with most backends, data that only this node has, such as the VTEP MAC. An
//! address proves little: addresses are reassigned, and while two nodes swap theirs, each finds the other's record by
//! address. So what the node stored itself counts first: its state file, and the subnet file together with the backend
//! data.

use std::net::IpAddr;

use serde::Deserialize;

use crate::addr::{Family, MacAddr, PerFamily};
use crate::lease::{Lease, LeaseAttrs, LeaseKey};
use crate::state_file::{State, StoredOn};

/// What a node knows of itself before the first request to the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The subnets that it had before a restart, by its subnet file. It gets them again if they are free.
    pub subnets: Option<LeaseKey>,
    /// The lease that it published, by its state file.
    pub published: Option<Lease>,
    /// Other underlay addresses that it has published.
    pub former_ips: Vec<IpAddr>,
    /// The addresses that its host has now, without those of the overlay.
    pub host_ips: Vec<IpAddr>,
}

impl From<LeaseKey> for Identity {
    /// A node of which only the subnets are known.
    fn from(subnets: LeaseKey) -> Self {
        Self { subnets: Some(subnets), ..Self::default() }
    }
}

/// How two records compare in the backend data that only one node can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    /// The same in each family that both have, so they belong to one node.
    Same,
    /// Neither has any, which proves nothing.
    Without,
    Other,
}

impl Identity {
    /// What a state file proves in the store at this [place](super::SubnetManager::place): nothing if it is of another
    /// store, or was stored on another machine.
    pub fn of_state(state: &State, place: &str, stored_on: StoredOn) -> Self {
        if state.store != place || stored_on == StoredOn::AnotherHost {
            return Self::default();
        }
        let (published, former_ips) = (state.own.clone(), state.former_ips.clone());
        Self { published, former_ips, ..Self::default() }
    }

    /// The subnets that it had before, the most certain first.
    pub fn wishes(&self) -> impl Iterator<Item = LeaseKey> {
        let published = self.published.as_ref().map(|lease| lease.key);
        self.subnets.into_iter().chain(published.filter(|key| Some(*key) != self.subnets))
    }

    fn names(&self, key: LeaseKey) -> bool {
        self.wishes().any(|wish| wish == key)
    }

    /// Whether a record is proven to be that of this node, which is about to publish `attrs`.
    pub fn proves(&self, record: &Lease, attrs: &LeaseAttrs) -> bool {
        if !self.names(record.key) {
            return false;
        }
        if is_same_node(&record.attrs, attrs) || compare(&record.attrs, attrs) == Data::Same {
            return true;
        }
        let stored = self.published.as_ref().filter(|own| own.key == record.key);
        let by_state = stored.is_some_and(|own| match compare(&record.attrs, &own.attrs) {
            Data::Same => true,
            Data::Without => {
                is_same_node(&record.attrs, &own.attrs) || has_one_of(&record.attrs, &self.former_ips)
            }
            Data::Other => false,
        });
        // Without backend data, it is ours if one of our files names it and one of its addresses is on this host, maybe
        // on another interface.
        let is_here = || has_one_of(&record.attrs, &self.host_ips) || shares_address(&record.attrs, attrs);
        by_state || !has_data(&record.attrs) && is_here()
    }

    /// Whether a record with this node's address is proven to be another node's: the state file says what this node
    /// published, and the record differs.
    pub fn disproves(&self, record: &Lease) -> bool {
        let is_another = |own: &Lease| {
            has_data(&own.attrs)
                && own.attrs.backend_type == record.attrs.backend_type
                && compare(&own.attrs, &record.attrs) == Data::Other
        };
        !self.names(record.key) && has_data(&record.attrs) && self.published.as_ref().is_some_and(is_another)
    }

    /// Whether a record other than the one under `own` is proven to be a former record of this node: it equals the
    /// lease in the state file, or it has this node's backend data and an address that this node has or had.
    pub fn is_former(&self, record: &Lease, own: Option<LeaseKey>, attrs: &LeaseAttrs) -> bool {
        if Some(record.key) == own {
            return false;
        }
        let published = self.published.as_ref();
        let by_state = published.is_some_and(|stored| {
            stored.key == record.key
                && is_same_node(&stored.attrs, &record.attrs)
                && compare(&stored.attrs, &record.attrs) != Data::Other
        });
        let has_ours = |known: &LeaseAttrs| compare(&record.attrs, known) == Data::Same;
        let was_here = || {
            let stored = published.is_some_and(|stored| is_same_node(&record.attrs, &stored.attrs));
            let known = self.former_ips.iter().chain(&self.host_ips);
            stored || is_same_node(&record.attrs, attrs) || has_one_of(&record.attrs, known)
        };
        let is_ours = || has_ours(attrs) || published.is_some_and(|stored| has_ours(&stored.attrs));
        // The comparison of addresses is cheaper and comes first, since there may be ten thousand records.
        by_state || was_here() && is_ours()
    }
}

/// Whether two records belong to one node, by the IPv4 underlay address if there is one.
pub fn is_same_node(a: &LeaseAttrs, b: &LeaseAttrs) -> bool {
    match (a.public_ips.v4, b.public_ips.v4) {
        (None, None) => a.public_ips.v6.is_some() && a.public_ips.v6 == b.public_ips.v6,
        (a, b) => a == b,
    }
}

/// Whether the record under our key is still ours: it has our address, or, if somebody changed the address, our backend
/// data, or, without any, our address of the other family. A record of another node that took the key has none of
/// these.
pub fn is_ours(there: &LeaseAttrs, own: &LeaseAttrs) -> bool {
    is_same_node(there, own)
        || match compare(there, own) {
            Data::Same => true,
            Data::Without => shares_address(there, own),
            Data::Other => false,
        }
}

/// The families in which two records have the same backend data that only one node can have.
pub(crate) fn shared_data(a: &LeaseAttrs, b: &LeaseAttrs) -> impl Iterator<Item = Family> {
    Family::ALL.into_iter().filter(|family| shares_data(a, b, *family))
}

/// Whether two records have the same backend data in a family, of a kind that only one node can have.
pub(crate) fn shares_data(a: &LeaseAttrs, b: &LeaseAttrs, family: Family) -> bool {
    let both = || token(a, family).zip(token(b, family));
    a.backend_type == b.backend_type && both().is_some_and(|(a, b)| a == b)
}

/// Whether two records have the same underlay address in some family.
fn shares_address(a: &LeaseAttrs, b: &LeaseAttrs) -> bool {
    let same = |(family, ip): (Family, &IpAddr)| b.public_ips.get(family) == Some(ip);
    a.public_ips.iter().any(same)
}

fn compare(a: &LeaseAttrs, b: &LeaseAttrs) -> Data {
    if !has_data(a) && !has_data(b) {
        return Data::Without;
    }
    if a.backend_type != b.backend_type {
        return Data::Other;
    }
    let both = Family::ALL.into_iter().filter_map(|family| token(a, family).zip(token(b, family)));
    let equal: Vec<bool> = both.map(|(a, b)| a == b).collect();
    if !equal.is_empty() && equal.iter().all(|equal| *equal) { Data::Same } else { Data::Other }
}

/// Whether attributes have backend data that only one node can have.
pub(super) fn has_data(attrs: &LeaseAttrs) -> bool {
    Family::ALL.into_iter().any(|family| token(attrs, family).is_some())
}

/// The part of a family's backend data that only one node can have: the VTEP MAC of vxlan, the public key of wireguard.
/// Other data, such as the port of udp, may be the same on all nodes.
fn token(attrs: &LeaseAttrs, family: Family) -> Option<String> {
    #[derive(Deserialize)]
    struct Wire {
        #[serde(rename = "VtepMAC")]
        vtep_mac: Option<String>,
        #[serde(rename = "PublicKey")]
        public_key: Option<String>,
    }
    let wire: Wire = attrs.backend_data.get(family)?.decode().ok()?;
    let mac = wire.vtep_mac.map(|text| text.parse().map_or(text, |mac: MacAddr| mac.to_string()));
    mac.or(wire.public_key)
}

/// Whether the address that identifies the node of a record is one of these.
fn has_one_of<'a>(attrs: &LeaseAttrs, ips: impl IntoIterator<Item = &'a IpAddr>) -> bool {
    let PerFamily { v4, v6 } = attrs.public_ips;
    v4.or(v6).is_some_and(|ip| ips.into_iter().any(|known| *known == ip))
}
