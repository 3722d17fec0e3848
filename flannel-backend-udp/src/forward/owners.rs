//! Which prefix of the overlay belongs to whom: a longest-prefix match for both families.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use flannel_core::addr::Subnet;

use super::ranges::{Prefix, Ranges};

/// Prefixes of both families, each with an owner, which is a number of the caller's. Immutable once built.
#[derive(Debug, Clone)]
pub struct Owners {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

impl Default for Owners {
    fn default() -> Self {
        Self { v4: Ranges::flatten(Vec::new()), v6: Ranges::flatten(Vec::new()) }
    }
}

impl Owners {
    /// Prefixes with their owners. Of two owners of one prefix the first gets it.
    pub fn new(prefixes: impl IntoIterator<Item = (Subnet, u32)>) -> Self {
        let mut builder = Self::builder();
        for (subnet, owner) in prefixes {
            builder.claim(subnet, owner);
        }
        builder.flatten()
    }

    /// Prefixes that all have one owner.
    pub(super) fn one(prefixes: &[Subnet]) -> Self {
        Self::new(prefixes.iter().map(|subnet| (*subnet, 0)))
    }

    pub(super) fn builder() -> Builder {
        Builder::default()
    }

    /// The owner of the longest prefix that contains an address.
    pub fn owner(&self, addr: IpAddr) -> Option<u32> {
        match addr {
            IpAddr::V4(addr) => self.v4.find(addr.to_bits()).map(|(_, owner)| owner),
            IpAddr::V6(addr) => self.v6.find(addr.to_bits()).map(|(_, owner)| owner),
        }
    }

    /// A look-up that remembers its last answers.
    pub fn lookup(&self) -> OwnerLookup<'_> {
        OwnerLookup { owners: self, v4: None, v6: None }
    }
}

/// Looks up owners, and remembers the last answer for each family.
///
/// Most packets of a batch go to one peer, so most searches are saved.
#[derive(Debug)]
pub struct OwnerLookup<'t> {
    owners: &'t Owners,
    v4: Option<(RangeInclusive<u32>, u32)>,
    v6: Option<(RangeInclusive<u128>, u32)>,
}

impl OwnerLookup<'_> {
    /// The owner of the longest prefix that contains an address.
    pub fn owner(&mut self, addr: IpAddr) -> Option<u32> {
        match addr {
            IpAddr::V4(addr) => {
                let addr = addr.to_bits();
                if !matches!(&self.v4, Some((range, _)) if range.contains(&addr)) {
                    self.v4 = self.owners.v4.find(addr);
                }
                self.v4.as_ref().map(|(_, owner)| *owner)
            }
            IpAddr::V6(addr) => {
                let addr = addr.to_bits();
                if !matches!(&self.v6, Some((range, _)) if range.contains(&addr)) {
                    self.v6 = self.owners.v6.find(addr);
                }
                self.v6.as_ref().map(|(_, owner)| *owner)
            }
        }
    }
}

/// Prefixes of both families that are being collected, each with one owner.
#[derive(Debug, Default)]
pub(super) struct Builder {
    owners: HashMap<Subnet, u32>,
}

impl Builder {
    /// Gives a subnet to `owner`; false if another owner has it already.
    pub(super) fn claim(&mut self, subnet: Subnet, owner: u32) -> bool {
        *self.owners.entry(subnet).or_insert(owner) == owner
    }

    pub(super) fn flatten(self) -> Owners {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (subnet, owner) in self.owners {
            match (subnet.base(), subnet.last()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => {
                    v4.push(Prefix { first: first.to_bits(), last: last.to_bits(), owner });
                }
                (IpAddr::V6(first), IpAddr::V6(last)) => {
                    v6.push(Prefix { first: first.to_bits(), last: last.to_bits(), owner });
                }
                _ => unreachable!("a subnet is of one family"),
            }
        }
        Owners { v4: Ranges::flatten(v4), v6: Ranges::flatten(v6) }
    }
}
