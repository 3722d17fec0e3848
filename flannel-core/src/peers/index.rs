//! Finds the leases whose claims conflict with given ones, without looking at all leases.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Claim;
use super::few::{Few, Removed};
use crate::addr::{Family, LinkIndex, MacAddr, PrefixLengths, Subnet};
use crate::lease::LeaseKey;
use crate::repack::repack;

/// Where the node of a public key receives: address and UDP port.
type Receiver = (IpAddr, u16);

/// A public key on a device.
type KeyOn = (LinkIndex, [u8; 32]);

/// The leases by claim.
#[derive(Debug, Clone, Default)]
pub(super) struct ClaimIndex {
    subnets: BTreeMap<Subnet, Few<LeaseKey>>,
    lengths: PrefixLengths,
    vteps: BTreeMap<(LinkIndex, MacAddr), Few<(LeaseKey, IpAddr)>>,
    keys: BTreeMap<KeyOn, Few<(LeaseKey, Receiver)>>,
    underlays: BTreeMap<IpAddr, Few<LeaseKey>>,
}

impl ClaimIndex {
    pub(super) fn add(&mut self, key: LeaseKey, claims: &[Claim]) {
        for claim in claims {
            match *claim {
                Claim::Subnet(subnet) => {
                    if add(&mut self.subnets, subnet, key) {
                        self.lengths.add(subnet);
                    }
                }
                Claim::Vtep(link, mac, at) => _ = add(&mut self.vteps, (link, mac), (key, at)),
                Claim::Key(link, public, at, port) => {
                    _ = add(&mut self.keys, (link, public), (key, (at, port)));
                }
                Claim::Underlay(addr) => _ = add(&mut self.underlays, addr, key),
            }
        }
    }

    /// See [`repack`].
    pub(super) fn repack(&mut self) {
        let Self { subnets, lengths: _, vteps, keys, underlays } = self;
        repack(subnets);
        repack(vteps);
        repack(keys);
        repack(underlays);
    }

    pub(super) fn remove(&mut self, key: &LeaseKey, claims: &[Claim]) {
        for claim in claims {
            match *claim {
                Claim::Subnet(subnet) => {
                    if remove(&mut self.subnets, &subnet, key) {
                        self.lengths.remove(subnet);
                    }
                }
                Claim::Vtep(link, mac, at) => _ = remove(&mut self.vteps, &(link, mac), &(*key, at)),
                Claim::Key(link, public, at, port) => {
                    _ = remove(&mut self.keys, &(link, public), &(*key, (at, port)));
                }
                Claim::Underlay(addr) => _ = remove(&mut self.underlays, &addr, key),
            }
        }
    }

    /// The other leases with a claim that conflicts with one of these.
    pub(super) fn contradicting(&self, key: &LeaseKey, claims: &[Claim]) -> BTreeSet<LeaseKey> {
        let mut found = BTreeSet::new();
        for claim in claims {
            match *claim {
                Claim::Subnet(subnet) => {
                    found.extend(self.overlapping(subnet));
                    let inside = self.underlays.range(subnet.base()..=subnet.last());
                    found.extend(inside.flat_map(|(_, users)| users.iter()).copied());
                }
                Claim::Vtep(link, mac, at) => {
                    let users = self.vteps.get(&(link, mac)).into_iter().flat_map(Few::iter);
                    found.extend(users.filter(|(_, other)| *other != at).map(|(key, _)| *key));
                }
                Claim::Key(link, public, at, port) => {
                    let users = self.keys.get(&(link, public)).into_iter().flat_map(Few::iter);
                    found.extend(users.filter(|(_, other)| *other != (at, port)).map(|(key, _)| *key));
                }
                Claim::Underlay(addr) => {
                    let host = Subnet::containing(addr, Family::of(addr).bits());
                    found.extend(self.overlapping(host.expect("a full-length prefix fits")));
                }
            }
        }
        found.remove(key);
        found
    }

    /// The leases of exactly this subnet.
    pub(super) fn with_subnet(&self, subnet: Subnet) -> impl Iterator<Item = LeaseKey> + '_ {
        self.subnets.get(&subnet).into_iter().flat_map(Few::iter).copied()
    }

    /// The leases of subnets that begin with this address.
    pub(super) fn with_base(&self, base: IpAddr) -> impl Iterator<Item = LeaseKey> + '_ {
        let around = self.lengths.around(base, Family::of(base).bits());
        let subnets = around.filter(move |subnet| subnet.base() == base);
        subnets.flat_map(|subnet| self.with_subnet(subnet))
    }

    /// The leases with this VTEP at this underlay address.
    pub(super) fn with_vtep(
        &self,
        link: LinkIndex,
        mac: MacAddr,
        at: IpAddr,
    ) -> impl Iterator<Item = LeaseKey> + '_ {
        let users = self.vteps.get(&(link, mac)).into_iter().flat_map(Few::iter);
        users.filter(move |(_, theirs)| *theirs == at).map(|(key, _)| *key)
    }

    /// The leases at an underlay address.
    pub(super) fn at(&self, addr: IpAddr) -> impl Iterator<Item = LeaseKey> + '_ {
        self.underlays.get(&addr).into_iter().flat_map(Few::iter).copied()
    }

    /// The leases of subnets that overlap this one.
    pub(super) fn overlapping(&self, subnet: Subnet) -> impl Iterator<Item = LeaseKey> + '_ {
        let family = subnet.family();
        let shorter = subnet.prefix().checked_sub(1);
        let covering =
            shorter.into_iter().flat_map(move |longest| self.lengths.around(subnet.base(), longest));
        let covering = covering.filter_map(|subnet| self.subnets.get(&subnet));
        let last = Subnet::containing(subnet.last(), family.bits()).expect("a full-length prefix fits");
        let inside = self.subnets.range(subnet..=last).map(|(_, users)| users);
        covering.chain(inside).flat_map(Few::iter).copied()
    }
}

/// Adds a user; false if it was one.
fn add<K: Ord, T: Ord + Copy>(users: &mut BTreeMap<K, Few<T>>, of: K, user: T) -> bool {
    match users.entry(of) {
        Entry::Vacant(entry) => {
            entry.insert(Few::One(user));
            true
        }
        Entry::Occupied(mut entry) => entry.get_mut().insert(user),
    }
}

/// Removes a user; false if it was none.
fn remove<K: Ord, T: Ord + Copy>(users: &mut BTreeMap<K, Few<T>>, of: &K, user: &T) -> bool {
    let Some(found) = users.get_mut(of) else { return false };
    let removed = found.remove(user);
    if removed == Removed::Last {
        users.remove(of);
    }
    removed != Removed::None
}
