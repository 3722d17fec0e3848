//! Leases in the exact wire forms of Go flannel: the key `10.5.52.0-24&fd00:5:52::-64` and the JSON value.
//! Upstream: `pkg/subnet/subnet.go`, `pkg/lease/lease.go`.

mod ages;
mod attrs;
mod field;
mod key;
mod table;
#[cfg(test)]
mod tests;
mod unknown;
mod unreadable;

use std::fmt;

pub use ages::{AgedLease, Ages, is_same_data};
pub use attrs::{AttrsError, BackendData, LeaseAttrs, NodeAddressError, Reception, UnusableAddress};
pub use field::Field;
pub use key::{LeaseKey, LeaseKeyError};
pub use table::{LeaseChange, LeaseTable};
pub use unknown::Unknown;
pub use unreadable::{UnreadableRecord, UnreadableRecords, UnreadableSample, brief};

use crate::addr::{Family, Subnet};
use crate::error::chain;

/// A node's claim on its pod subnets, with what it publishes about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The subnets, which are also the identity of the lease.
    pub key: LeaseKey,
    /// Where the node is, and its backend data.
    pub attrs: LeaseAttrs,
    /// When the record was created, in the store's own count (etcd: create revision). It decides between conflicting
    /// leases that were first seen together; see [`Ages`].
    pub created: u64,
}

impl Lease {
    /// Reads a record of a store: its key below `subnets/`, its value, and when it was created.
    pub fn decode(key: &str, value: &[u8], created: u64) -> Result<Self, UnreadableRecord> {
        let bad = |reason: String| UnreadableRecord { key: key.to_owned(), reason };
        let lease_key = key.parse().map_err(|error: LeaseKeyError| bad(error.to_string()))?;
        let text = std::str::from_utf8(value);
        let text = text.map_err(|error| bad(format!("the value is not text: {error}")))?;
        let attrs = LeaseAttrs::from_json(text).map_err(|error| bad(chain(&error)))?;
        Ok(Self { key: lease_key, attrs, created })
    }

    /// The subnet of one family.
    pub fn subnet(&self, family: Family) -> Option<Subnet> {
        self.key.subnet(family)
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}

/// One message of a lease watch. The first of a store is a `Snapshot`, and so is the first after a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseUpdate {
    /// All leases of the store, as the store itself listed them.
    Snapshot {
        /// The leases.
        leases: Vec<Lease>,
        /// Unreadable records: their last good state stays.
        unreadable: UnreadableRecords,
    },
    /// The leases that an earlier run knew, while the store does not answer. It is not a snapshot: a lease that is
    /// missing here is not deleted.
    Recalled {
        /// The leases.
        leases: Vec<Lease>,
        /// When they were stored, in seconds since 1970.
        saved: u64,
    },
    /// A lease was created or changed.
    Put(Lease),
    /// The record with this key (below `subnets/`, as the store had it) was deleted.
    Removed(String),
    /// An unreadable record was written: the last good state of its lease stays.
    Unreadable(UnreadableRecord),
}
