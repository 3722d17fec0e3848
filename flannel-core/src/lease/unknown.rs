//! Leases whose records are unreadable and of which no earlier value is known.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::LeaseKey;
use crate::addr::{Family, Subnet};
use crate::repack::repack;

/// Such leases, found by their subnets without looking at all of them.
#[derive(Debug, Clone, Default)]
pub struct Unknown {
    keys: BTreeSet<LeaseKey>,
    /// How many of them have a subnet.
    subnets: BTreeMap<Subnet, u32>,
    /// How many have become known, or went.
    resolved: u64,
}

impl Unknown {
    /// Adds a lease.
    pub(crate) fn insert(&mut self, key: LeaseKey) {
        if self.keys.insert(key) {
            for (_, subnet) in key.subnets().iter() {
                *self.subnets.entry(*subnet).or_default() += 1;
            }
        }
    }

    /// Removes a lease that is known now or gone.
    pub(crate) fn remove(&mut self, key: &LeaseKey) {
        if self.keys.remove(key) {
            self.resolved += 1;
            for (_, subnet) in key.subnets().iter() {
                match self.subnets.get_mut(subnet) {
                    Some(count) if *count > 1 => *count -= 1,
                    _ => _ = self.subnets.remove(subnet),
                }
            }
        }
    }

    /// Replaces all by these.
    pub(crate) fn replace(&mut self, keys: impl Iterator<Item = LeaseKey>) {
        let before = std::mem::take(self);
        keys.for_each(|key| self.insert(key));
        self.resolved = before.resolved + u64::from(!before.keys.is_subset(&self.keys));
        repack(&mut self.keys);
        repack(&mut self.subnets);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = LeaseKey> + '_ {
        self.keys.iter().copied()
    }

    /// A number that changes when one of them becomes known or goes.
    pub fn resolved(&self) -> u64 {
        self.resolved
    }

    /// Whether one of these leases has exactly this subnet.
    pub fn has_subnet(&self, subnet: Subnet) -> bool {
        self.subnets.contains_key(&subnet)
    }

    /// Whether one of these leases has a subnet that begins with this address.
    pub fn has_base(&self, base: IpAddr) -> bool {
        let Some(last) = Subnet::containing(base, Family::of(base).bits()) else { return false };
        // Subnets of the same base are ordered by prefix length. So the greatest one up to the full length has this
        // base, if any has it.
        self.subnets.range(..=last).next_back().is_some_and(|(subnet, _)| subnet.base() == base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_by_subnet_and_by_its_first_address() {
        let keys = ["10.5.0.0-16", "10.5.0.0-24", "10.5.7.0-24&fd00::-64", "10.5.7.0-24"];
        let keys = keys.map(|text| text.parse::<LeaseKey>().unwrap());
        let mut unknown = Unknown::default();
        for key in keys {
            unknown.insert(key);
        }
        unknown.insert(keys[0]);
        let has = |unknown: &Unknown| {
            let subnets =
                ["10.5.0.0/16", "10.5.0.0/24", "10.5.7.0/24", "fd00::/64", "10.5.7.0/25", "10.5.6.0/24"];
            let bases = ["10.5.0.0", "10.5.7.0", "fd00::", "10.5.7.1", "10.4.0.0", "fd00::1"];
            (
                subnets.map(|subnet| unknown.has_subnet(subnet.parse().unwrap())),
                bases.map(|base| unknown.has_base(base.parse().unwrap())),
            )
        };
        assert_eq!(
            has(&unknown),
            ([true, true, true, true, false, false], [true, true, true, false, false, false])
        );
        unknown.remove(&keys[2]);
        assert!(unknown.has_subnet("10.5.7.0/24".parse().unwrap()), "another has it, too");
        unknown.remove(&keys[3]);
        unknown.remove(&keys[0]);
        unknown.remove(&keys[0]);
        assert_eq!(
            has(&unknown),
            ([false, true, false, false, false, false], [true, false, false, false, false, false])
        );
        assert_eq!(unknown.resolved(), 3);
        unknown.replace([keys[1], keys[2]].into_iter());
        assert_eq!((unknown.resolved(), unknown.iter().count()), (3, 2), "none went");
        unknown.replace([keys[2]].into_iter());
        assert_eq!((unknown.resolved(), unknown.is_empty()), (4, false));
    }
}
