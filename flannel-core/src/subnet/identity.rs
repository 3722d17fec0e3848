//! Which records are this node's, though its address is another one now. Pure.
//!
//! A record says where its node is and, with most backends, something that is this node's alone, such as the VTEP MAC.
//! An address proves little: it is handed on, and while two nodes swap theirs each finds the other's record by it. So
//! what the node stored itself comes first: its state file, and the subnet file together with the backend data.

use std::net::IpAddr;

use serde_json::Value;

use super::allocate::is_same_node;
use crate::addr::{Family, PerFamily};
use crate::lease::{BackendData, Lease, LeaseAttrs, LeaseKey};
use crate::state_file::{State, StoredOn};

/// What a node knows of itself before it asks the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The subnets that it had before a restart, as its subnet file says. It gets them again if they are free.
    pub subnets: Option<LeaseKey>,
    /// The lease that it published, as its state file says.
    pub published: Option<Lease>,
    /// Other underlay addresses that it has published.
    pub former_ips: Vec<IpAddr>,
    /// The addresses that its host has now, without those of the overlay.
    pub host_ips: Vec<IpAddr>,
}

impl From<LeaseKey> for Identity {
    /// A node of which no more than its subnets is known.
    fn from(subnets: LeaseKey) -> Self {
        Self { subnets: Some(subnets), ..Self::default() }
    }
}

/// How what two records publish for their backend compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    /// The same in each family that both have: one node's, since only one can have it.
    Same,
    /// Neither has any: it proves nothing.
    Without,
    Other,
}

impl Identity {
    /// What a state file proves in the store of this [place](super::SubnetManager::place). Nothing if it is of
    /// another store, or was stored on another machine.
    pub fn of_state(state: &State, place: &str, stored_on: StoredOn) -> Self {
        if state.store != place || stored_on == StoredOn::AnotherHost {
            return Self::default();
        }
        let (published, former_ips) = (state.own.clone(), state.former_ips.clone());
        Self { published, former_ips, ..Self::default() }
    }

    /// The subnets that it had, the surest first.
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
        // Without data: the subnet file names it, and its address is here, on another interface.
        by_state || !has_data(&record.attrs) && has_one_of(&record.attrs, &self.host_ips)
    }

    /// Whether a record with this node's address is proven to be another's all the same: what this node publishes
    /// is known, and it is not that.
    pub fn disproves(&self, record: &Lease) -> bool {
        let is_another = |own: &Lease| {
            has_data(&own.attrs)
                && own.attrs.backend_type == record.attrs.backend_type
                && compare(&own.attrs, &record.attrs) == Data::Other
        };
        !self.names(record.key) && has_data(&record.attrs) && self.published.as_ref().is_some_and(is_another)
    }

    /// Whether a record besides the one under `own` is proven to be a former one of this node: it says what its
    /// state file says, or it has its backend data and an address that it has or had.
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
        let is_ours = has_ours(attrs) || published.is_some_and(|stored| has_ours(&stored.attrs));
        by_state || is_ours && was_here()
    }
}

/// Whether the record under our key still is ours: it has our address, or it has our backend data and somebody changed
/// its address. Another node that took the key has other data.
pub(super) fn is_ours(there: &LeaseAttrs, own: &LeaseAttrs) -> bool {
    is_same_node(there, own) || compare(there, own) == Data::Same
}

/// The family in which two records publish the same for their backend, if there is one.
pub(super) fn shared_data(a: &LeaseAttrs, b: &LeaseAttrs) -> Option<Family> {
    let both = |family: &Family| a.backend_data.get(*family).zip(b.backend_data.get(*family));
    let equal = |family: &Family| both(family).is_some_and(|(a, b)| is_equal(a, b));
    Family::ALL.into_iter().find(|family| a.backend_type == b.backend_type && equal(family))
}

fn compare(a: &LeaseAttrs, b: &LeaseAttrs) -> Data {
    if !has_data(a) && !has_data(b) {
        return Data::Without;
    }
    if a.backend_type != b.backend_type {
        return Data::Other;
    }
    let both = Family::ALL.into_iter().filter_map(|it| a.backend_data.get(it).zip(b.backend_data.get(it)));
    let equal: Vec<bool> = both.map(|(a, b)| is_equal(a, b)).collect();
    if !equal.is_empty() && equal.iter().all(|equal| *equal) { Data::Same } else { Data::Other }
}

fn has_data(attrs: &LeaseAttrs) -> bool {
    !attrs.backend_data.is_empty()
}

/// Whether two texts are the same JSON, but for order and space. Only what weighs the same is decoded: there may be
/// ten thousand.
fn is_equal(a: &BackendData, b: &BackendData) -> bool {
    let weight = |data: &BackendData| {
        let bytes = data.as_str().bytes().filter(|byte| !byte.is_ascii_whitespace());
        bytes.fold(0_u64, |sum, byte| sum + u64::from(byte))
    };
    let value = |data: &BackendData| data.decode::<Value>().ok();
    a.as_str() == b.as_str() || weight(a) == weight(b) && value(a).is_some_and(|a| Some(a) == value(b))
}

/// Whether the address that a node is known by is one of these.
fn has_one_of<'a>(attrs: &LeaseAttrs, ips: impl IntoIterator<Item = &'a IpAddr>) -> bool {
    let PerFamily { v4, v6 } = attrs.public_ips;
    v4.or(v6).is_some_and(|ip| ips.into_iter().any(|known| *known == ip))
}
