//! Finds the leases whose claims contradict given ones without looking at all leases.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Claim;
use crate::addr::{Family, LinkIndex, MacAddr, Subnet};
use crate::lease::LeaseKey;

/// Who claims what.
#[derive(Debug, Clone, Default)]
pub(super) struct ClaimIndex {
    subnets: BTreeMap<Subnet, BTreeSet<LeaseKey>>,
    /// How many subnets of each length there are. A network has one or two lengths, which makes the search
    /// for covering subnets cheap.
    lengths: BTreeMap<(Family, u8), usize>,
    vteps: BTreeMap<(LinkIndex, MacAddr), BTreeMap<LeaseKey, IpAddr>>,
    underlays: BTreeMap<IpAddr, BTreeSet<LeaseKey>>,
}

impl ClaimIndex {
    pub(super) fn add(&mut self, key: LeaseKey, claims: &[Claim]) {
        for claim in claims {
            match *claim {
                Claim::Subnet(subnet) => {
                    if self.subnets.entry(subnet).or_default().insert(key) {
                        *self.lengths.entry((subnet.family(), subnet.prefix())).or_default() += 1;
                    }
                }
                Claim::Vtep(link, mac, at) => _ = self.vteps.entry((link, mac)).or_default().insert(key, at),
                Claim::Underlay(addr) => _ = self.underlays.entry(addr).or_default().insert(key),
            }
        }
    }

    pub(super) fn remove(&mut self, key: &LeaseKey, claims: &[Claim]) {
        for claim in claims {
            match *claim {
                Claim::Subnet(subnet) => self.remove_subnet(key, subnet),
                Claim::Vtep(link, mac, _) => {
                    let Some(users) = self.vteps.get_mut(&(link, mac)) else { continue };
                    users.remove(key);
                    if users.is_empty() {
                        self.vteps.remove(&(link, mac));
                    }
                }
                Claim::Underlay(addr) => {
                    let Some(users) = self.underlays.get_mut(&addr) else { continue };
                    users.remove(key);
                    if users.is_empty() {
                        self.underlays.remove(&addr);
                    }
                }
            }
        }
    }

    fn remove_subnet(&mut self, key: &LeaseKey, subnet: Subnet) {
        let Some(users) = self.subnets.get_mut(&subnet) else { return };
        if !users.remove(key) {
            return;
        }
        if users.is_empty() {
            self.subnets.remove(&subnet);
        }
        let length = (subnet.family(), subnet.prefix());
        if let Some(count) = self.lengths.get_mut(&length) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length);
            }
        }
    }

    /// The other leases with a claim that contradicts one of these.
    pub(super) fn contradicting(&self, key: &LeaseKey, claims: &[Claim]) -> BTreeSet<LeaseKey> {
        let mut found = BTreeSet::new();
        for claim in claims {
            match *claim {
                Claim::Subnet(subnet) => {
                    found.extend(self.overlapping(subnet));
                    let inside = self.underlays.range(subnet.base()..=subnet.last());
                    found.extend(inside.flat_map(|(_, users)| users).copied());
                }
                Claim::Vtep(link, mac, at) => {
                    let users = self.vteps.get(&(link, mac)).into_iter().flatten();
                    found.extend(users.filter(|(_, other)| **other != at).map(|(key, _)| *key));
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

    fn overlapping(&self, subnet: Subnet) -> impl Iterator<Item = LeaseKey> + '_ {
        let family = subnet.family();
        let shorter = self.lengths.range((family, 0)..(family, subnet.prefix()));
        let covering = shorter.filter_map(move |((_, prefix), _)| {
            self.subnets.get(&Subnet::containing(subnet.base(), *prefix)?)
        });
        let last = Subnet::containing(subnet.last(), family.bits()).expect("a full-length prefix fits");
        let inside = self.subnets.range(subnet..=last).map(|(_, users)| users);
        covering.chain(inside).flatten().copied()
    }
}
