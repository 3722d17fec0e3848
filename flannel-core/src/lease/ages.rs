//! When this node first saw the values of a lease, which decides between conflicting leases.
//!
//! An age is not a time. It is the number of the watch message in which this node first saw *this value* at *this
//! lease*. All values of one snapshot have the same number, since the snapshot does not show which of them came first.
//! The state file keeps ages over restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hash, RandomState};
use std::ops::Deref;
use std::sync::Arc;

use serde_json::Value;

use super::{BackendData, Field, Lease, LeaseKey};
use crate::addr::{Family, PerFamily};

/// The ages of the parts of one lease. The smaller number is the older claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Ages {
    subnet: u32,
    /// IPv4, IPv6.
    public_ips: [u32; 2],
    backend_data: [u32; 2],
}

impl Ages {
    /// All parts were first seen together.
    pub fn all(age: u32) -> Self {
        Self { subnet: age, public_ips: [age; 2], backend_data: [age; 2] }
    }

    /// The age of one part. The subnets of both families are one part: the key.
    pub fn of(&self, field: Field) -> u32 {
        match field {
            Field::Subnet(_) => self.subnet,
            Field::PublicIp(family) => self.public_ips[at(family)],
            Field::BackendData(family) => self.backend_data[at(family)],
        }
    }

    /// The ages of the next version of a lease: values that are the same keep their age.
    pub(crate) fn follow(self, before: &Lease, after: &Lease, now: u32) -> Self {
        let (was, is) = (&before.attrs, &after.attrs);
        let public_ip = |family| was.public_ips.get(family) == is.public_ips.get(family);
        let data = |family| is_same_data(was.backend_data.get(family), is.backend_data.get(family));
        self.keep(now, PerFamily::from_fn(|family| Some((public_ip(family), data(family)))))
    }

    /// The ages for the next version. `same` says for each family whether underlay address and backend data are the
    /// same.
    fn keep(self, now: u32, same: PerFamily<(bool, bool)>) -> Self {
        let mut next = self;
        for (family, (public_ip, data)) in same.iter() {
            if !public_ip {
                next.public_ips[at(family)] = now;
            }
            if !data {
                next.backend_data[at(family)] = now;
            }
        }
        next
    }

    /// All five ages, in the order in which they are stored.
    pub(crate) fn to_array(self) -> [u32; 5] {
        let ([ip4, ip6], [data4, data6]) = (self.public_ips, self.backend_data);
        [self.subnet, ip4, ip6, data4, data6]
    }

    pub(crate) fn from_array([subnet, ip4, ip6, data4, data6]: [u32; 5]) -> Self {
        Self { subnet, public_ips: [ip4, ip6], backend_data: [data4, data6] }
    }

    fn map(self, change: impl Fn(u32) -> u32) -> Self {
        Self::from_array(self.to_array().map(change))
    }
}

fn at(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

/// Whether both mean the same to a node that reads them.
pub fn is_same_data(a: Option<&BackendData>, b: Option<&BackendData>) -> bool {
    a == b || matches!((a, b), (Some(a), Some(b)) if canonical(a) == canonical(b))
}

/// The text without differences that mean nothing: white space and the order of members.
fn canonical(data: &BackendData) -> String {
    data.decode::<Value>().map_or_else(|_| data.as_str().to_owned(), |value| value.to_string())
}

/// A lease and its ages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgedLease {
    /// The lease.
    pub lease: Lease,
    /// When its values were first seen.
    pub ages: Ages,
}

impl Deref for AgedLease {
    type Target = Lease;

    fn deref(&self) -> &Lease {
        &self.lease
    }
}

impl From<Lease> for AgedLease {
    /// A lease of unknown age, which is older than all that were numbered.
    fn from(lease: Lease) -> Self {
        Self { lease, ages: Ages::default() }
    }
}

/// The ages of leases that an earlier run knew and this one has not seen yet. It keeps hashes of their values, which is
/// enough to recognise them, since there may be thousands.
#[derive(Debug, Clone, Default)]
pub(super) struct Remembered {
    hasher: RandomState,
    leases: BTreeMap<LeaseKey, (Ages, PerFamily<(u64, u64)>)>,
}

impl Remembered {
    /// Takes the stored leases and renumbers their ages from 1, in the same order. Returns them with the youngest age.
    pub(super) fn new<'a>(stored: impl Iterator<Item = (&'a Lease, Ages)> + Clone) -> (Self, u32) {
        let ages: BTreeSet<u32> = stored.clone().flat_map(|(_, ages)| ages.to_array()).collect();
        let ages: Vec<u32> = ages.into_iter().collect();
        let number = |age| ages.partition_point(|known| *known <= age);
        let number = |age| u32::try_from(number(age)).unwrap_or(u32::MAX);
        let mut remembered = Self::default();
        for (lease, ages) in stored {
            let known = (ages.map(number), remembered.values(lease));
            remembered.leases.insert(lease.key, known);
        }
        (remembered, u32::try_from(ages.len()).unwrap_or(u32::MAX))
    }

    fn values(&self, lease: &Lease) -> PerFamily<(u64, u64)> {
        let data = |family| lease.attrs.backend_data.get(family).map(canonical);
        let hash = |family| (self.hash(&lease.attrs.public_ips.get(family)), self.hash(&data(family)));
        PerFamily::from_fn(|family| Some(hash(family)))
    }

    fn hash(&self, value: &impl Hash) -> u64 {
        self.hasher.hash_one(value)
    }

    /// The ages of a lease that this run sees for the first time. They are forgotten here by that.
    pub(super) fn recall(&mut self, lease: &Lease, now: u32) -> Option<Ages> {
        let (ages, were) = self.leases.remove(&lease.key)?;
        let are = self.values(lease);
        let same = |family| {
            let (were, are) = were.get(family).zip(are.get(family))?;
            Some((were.0 == are.0, were.1 == are.1))
        };
        Some(ages.keep(now, PerFamily::from_fn(same)))
    }

    /// Forgets all leases but those for which `is_such` is true.
    pub(super) fn retain(&mut self, is_such: impl Fn(&LeaseKey) -> bool) {
        self.leases.retain(|key, _| is_such(key));
    }

    /// Forgets a lease.
    pub(super) fn forget(&mut self, key: &LeaseKey) {
        self.leases.remove(key);
    }
}

/// Shares a lease with its ages.
pub(super) fn shared(lease: Lease, ages: Ages) -> Arc<AgedLease> {
    Arc::new(AgedLease { lease, ages })
}
