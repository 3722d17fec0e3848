//! Which subnet a node takes: a pure decision over what the store lists.
//!
//! A node keeps what it has wherever that still fits: first its own record, found by its underlay address,
//! then the subnets it had before a restart, then a free one at random. Each family is decided for itself, so
//! a network that gains IPv6 keeps its IPv4 subnets. What is free to choose in dual stack is chosen as a
//! [pair](is_pair), number n of one range with number n of the other: nodes that get different IPv4 subnets
//! then have different IPv6 subnets, too, without a word between them.
//! Upstream: `pkg/subnet/etcd/local_manager.go`.

use std::borrow::Cow;
use std::net::IpAddr;

use super::SubnetError;
use crate::addr::{Family, PerFamily, Subnet};
use crate::config::{NetworkConfig, SubnetRange};
use crate::lease::{Lease, LeaseAttrs, LeaseKey, LeaseKeyError};

/// Of how many free subnets, from a random place of the range on, one is chosen at random. Upstream chooses among
/// the first 100 of the range, where a thousand nodes that start at once collide again and again
/// (`pkg/subnet/etcd/local_manager.go`, `allocateSubnet`).
pub const CANDIDATES: usize = 100;

/// A lease as the store lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The lease.
    pub lease: Lease,
    /// Whether an operator put it there for its node: it never expires and stays that way.
    pub reserved: bool,
}

/// A record whose value can't be read, but whose key says what it occupies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// What it occupies.
    pub key: LeaseKey,
    /// When it was created, in the store's own count.
    pub created: u64,
}

/// All that a store lists under its subnets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The leases.
    pub records: Vec<Record>,
    /// What else is occupied.
    pub taken: Vec<Taken>,
}

/// What to do to get a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The record is ours and fits: publish under it.
    Adopt(Record),
    /// Create a record.
    Take(LeaseKey),
    /// The record of the subnets that we had before a restart is there, but nobody can read it: publish under
    /// it again. Renumbering would cost this node's pods their traffic because of one bad value.
    Reclaim(LeaseKey),
    /// Our record no longer fits: put the new one in its place, in one step.
    Replace {
        /// The record to delete.
        old: Record,
        /// The key to create.
        new: LeaseKey,
    },
}

/// The family whose underlay address identifies a node: IPv4 where it is enabled.
pub fn identity(config: &NetworkConfig) -> Family {
    if config.networks.v4.is_some() { Family::V4 } else { Family::V6 }
}

/// What the text of a key occupies, also where it is not written as a lease key should be.
pub fn occupied(text: &str) -> Option<LeaseKey> {
    match text.parse() {
        Ok(key) => Some(key),
        Err(LeaseKeyError::NotCanonical { canonical, .. }) => canonical.parse().ok(),
        Err(LeaseKeyError::Form(_)) => None,
    }
}

/// Whether two records are one node's: its IPv4 underlay address counts where it has one.
pub fn is_same_node(a: &LeaseAttrs, b: &LeaseAttrs) -> bool {
    match (a.public_ips.v4, b.public_ips.v4) {
        (None, None) => a.public_ips.v6.is_some() && a.public_ips.v6 == b.public_ips.v6,
        (a, b) => a == b,
    }
}

/// The node of a record, for the log.
pub fn holder(attrs: &LeaseAttrs) -> String {
    match attrs.public_ips.v4.or(attrs.public_ips.v6) {
        Some(addr) => addr.to_string(),
        None => "a node without an address".to_owned(),
    }
}

/// What the node with these underlay addresses published last: found by IPv4, else by IPv6.
pub fn published<'a>(
    leases: impl Iterator<Item = &'a Lease>,
    public_ips: &PerFamily<IpAddr>,
) -> Option<LeaseAttrs> {
    let leases: Vec<&Lease> = leases.collect();
    let by = |(family, addr): (Family, &IpAddr)| {
        let mine = leases.iter().filter(|lease| lease.attrs.public_ips.get(family) == Some(addr));
        mine.max_by_key(|lease| (lease.created, lease.key))
    };
    public_ips.iter().find_map(by).map(|lease| lease.attrs.clone())
}

/// Decides which lease the node that publishes `attrs` should have. `previous` is what it had before a
/// restart.
pub fn decide(
    config: &NetworkConfig,
    listing: &Listing,
    attrs: &LeaseAttrs,
    previous: Option<LeaseKey>,
    rng: &mut fastrand::Rng,
) -> Result<Decision, SubnetError> {
    let family = identity(config);
    let Some(me) = attrs.public_ips.get(family) else {
        return Err(SubnetError::Conflict(format!(
            "{family} is enabled in the network config, but this node has no {family} underlay address to publish"
        )));
    };
    let is_mine = |record: &&Record| record.lease.attrs.public_ips.get(family) == Some(me);
    let listing = &without_absurd(config, listing, |record| is_mine(&record));
    let stays =
        |record: &&Record| fits(config, record.lease.key) && !loses(listing, record, |other| is_mine(&other));
    let age = |record: &&Record| (record.lease.created, record.lease.key);
    let mine = || listing.records.iter().filter(is_mine);
    if let Some(own) = mine().filter(stays).min_by_key(age) {
        return Ok(Decision::Adopt(own.clone()));
    }
    let old = mine().min_by_key(age);
    if let Some(garbled) = previous.filter(|key| old.is_none() && is_garbled(config, listing, *key)) {
        return Ok(Decision::Reclaim(garbled));
    }
    let taken = TakenRanges::new(listing, old.map(|old| old.lease.key));
    let wishes = [old.map(|old| old.lease.key), previous];
    let ranges = PerFamily::try_from_fn(|family| match config.networks.get(family) {
        None => Ok(None),
        Some(network) if network.range.is_some() => Ok(network.range),
        Some(_) => {
            Err(SubnetError::Conflict(format!("the network config has no {family} range to take from")))
        }
    })?;
    let mut subnets = PerFamily::from_fn(|family| {
        let range = ranges.get(family)?;
        let mut kept = wishes.iter().flatten().filter_map(|key| key.subnet(family));
        kept.find(|subnet| range.contains(*subnet) && taken.get(family).is_free(*subnet))
    });
    for (family, range) in ranges.iter() {
        if subnets.get(family).is_none() {
            let found = choose(&ranges, &taken, &subnets, family, rng);
            let none = SubnetError::OutOfSubnets { family, min: range.min.base(), max: range.max.base() };
            *subnets.get_mut(family) = Some(found.ok_or(none)?);
        }
    }
    let new = LeaseKey::new(subnets).expect("a config has a family, and its subnets have host bits");
    Ok(match old {
        Some(old) => Decision::Replace { old: old.clone(), new },
        None => Decision::Take(new),
    })
}

/// A free subnet of a family at random, such that both families together are a pair wherever that can be.
fn choose(
    ranges: &PerFamily<SubnetRange>,
    taken: &TakenRanges,
    chosen: &PerFamily<Subnet>,
    family: Family,
    rng: &mut fastrand::Rng,
) -> Option<Subnet> {
    let range = ranges.get(family)?;
    let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
    if let Some(partner) = chosen.get(other)
        && let Some(twin) = twin(ranges, *partner)
        && taken.get(family).is_free(twin)
    {
        return Some(twin);
    }
    let free = taken.get(family).free(range, rng.u128(0..range.count().max(1)), CANDIDATES);
    let has_free_twin =
        |subnet: &&Subnet| twin(ranges, **subnet).is_some_and(|twin| taken.get(other).is_free(twin));
    let paired: Vec<&Subnet> = free.iter().filter(has_free_twin).collect();
    rng.choice(paired).or_else(|| rng.choice(&free)).copied()
}

/// The subnet of the other family that has the same number in its range.
fn twin(ranges: &PerFamily<SubnetRange>, subnet: Subnet) -> Option<Subnet> {
    let other = if subnet.family() == Family::V4 { Family::V6 } else { Family::V4 };
    let number = ranges.get(subnet.family())?.min.steps_to(subnet)?;
    ranges.get(other)?.nth(number)
}

/// Whether the two subnets of a key have the same number in their ranges.
pub fn is_pair(config: &NetworkConfig, key: LeaseKey) -> bool {
    let ranges = PerFamily::from_fn(|family| config.networks.get(family)?.range);
    let found = key.subnet(Family::V4).and_then(|subnet| twin(&ranges, subnet));
    found.is_some() && found == key.subnet(Family::V6)
}

/// The listing without what covers a whole network: no node uses such a record, and it must keep none from a
/// subnet of its own. Our own one stays, to be replaced.
fn without_absurd<'a>(
    config: &NetworkConfig,
    listing: &'a Listing,
    is_mine: impl Fn(&Record) -> bool,
) -> Cow<'a, Listing> {
    let covers_all = |(family, subnet): (Family, &Subnet)| {
        config.networks.get(family).is_some_and(|network| subnet.covers(network.network))
    };
    let absurd = |key: LeaseKey| key.subnets().iter().any(covers_all);
    let drop_record = |record: &Record| absurd(record.lease.key) && !is_mine(record);
    if !listing.records.iter().any(drop_record) && !listing.taken.iter().any(|taken| absurd(taken.key)) {
        return Cow::Borrowed(listing);
    }
    Cow::Owned(Listing {
        records: listing.records.iter().filter(|record| !drop_record(record)).cloned().collect(),
        taken: listing.taken.iter().filter(|taken| !absurd(taken.key)).copied().collect(),
    })
}

/// Whether a key that fits is there with a value that can't be read, and no other record contradicts it.
fn is_garbled(config: &NetworkConfig, listing: &Listing, key: LeaseKey) -> bool {
    fits(config, key)
        && listing.taken.iter().any(|taken| taken.key == key)
        && !listing.taken.iter().any(|taken| taken.key != key && overlaps(taken.key, key))
        && !listing.records.iter().any(|record| overlaps(record.lease.key, key))
}

/// Whether a key has exactly the enabled families, each with a subnet of the range.
pub fn fits(config: &NetworkConfig, key: LeaseKey) -> bool {
    Family::ALL.into_iter().all(|family| match (config.networks.get(family), key.subnet(family)) {
        (Some(network), Some(subnet)) => network.range.is_some_and(|range| range.contains(subnet)),
        (None, None) => true,
        _ => false,
    })
}

/// Whether two keys share an address in any family.
pub fn overlaps(a: LeaseKey, b: LeaseKey) -> bool {
    a.subnets().iter().any(|(family, mine)| b.subnet(family).is_some_and(|other| mine.overlaps(other)))
}

/// Whether another node has an older claim on an address of `own`.
fn loses(listing: &Listing, own: &Record, is_mine: impl Fn(&Record) -> bool) -> bool {
    let (key, age) = (own.lease.key, (own.lease.created, own.lease.key));
    let beats = |other: LeaseKey, created: u64| (created, other) < age && overlaps(other, key);
    listing.records.iter().any(|other| !is_mine(other) && beats(other.lease.key, other.lease.created))
        || listing.taken.iter().any(|other| other.key != key && beats(other.key, other.created))
}

/// The occupied addresses of each family as sorted ranges that neither overlap nor contain each other.
struct TakenRanges {
    v4: Ranges,
    v6: Ranges,
}

impl TakenRanges {
    /// All that is listed, but for the key that is to be replaced.
    fn new(listing: &Listing, replaced: Option<LeaseKey>) -> Self {
        let keys = listing.records.iter().map(|record| record.lease.key);
        let keys: Vec<LeaseKey> = keys
            .filter(|key| Some(*key) != replaced)
            .chain(listing.taken.iter().map(|taken| taken.key))
            .collect();
        let of = |family| Ranges::new(keys.iter().filter_map(|key| key.subnet(family)).collect());
        Self { v4: of(Family::V4), v6: of(Family::V6) }
    }

    fn get(&self, family: Family) -> &Ranges {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// First and last addresses, ascending.
struct Ranges(Vec<(IpAddr, IpAddr)>);

impl Ranges {
    fn new(mut subnets: Vec<Subnet>) -> Self {
        subnets.sort_unstable();
        let mut ranges: Vec<(IpAddr, IpAddr)> = Vec::with_capacity(subnets.len());
        for subnet in subnets {
            // Prefixes either nest or are apart, and the wider sorts first.
            if ranges.last().is_none_or(|(_, last)| *last < subnet.base()) {
                ranges.push((subnet.base(), subnet.last()));
            }
        }
        Self(ranges)
    }

    fn is_free(&self, subnet: Subnet) -> bool {
        let next = self.0.partition_point(|(_, last)| *last < subnet.base());
        self.0.get(next).is_none_or(|(first, _)| *first > subnet.last())
    }

    /// The first `limit` free subnets from number `start` on, past the end of the range from its beginning.
    fn free(&self, range: &SubnetRange, start: u128, limit: usize) -> Vec<Subnet> {
        let mut free = Vec::new();
        self.walk(range, start..range.count(), limit, &mut free);
        self.walk(range, 0..start.min(range.count()), limit, &mut free);
        free
    }

    /// Adds the free subnets of a part of the range until there are `limit`: one walk over both together.
    fn walk(
        &self,
        range: &SubnetRange,
        numbers: std::ops::Range<u128>,
        limit: usize,
        free: &mut Vec<Subnet>,
    ) {
        let Some(first) = range.nth(numbers.start) else { return };
        let mut next = self.0.partition_point(|(_, last)| *last < first.base());
        let mut index = numbers.start;
        while free.len() < limit
            && index < numbers.end
            && let Some(candidate) = range.nth(index)
        {
            while self.0.get(next).is_some_and(|(_, last)| *last < candidate.base()) {
                next += 1;
            }
            match self.0.get(next) {
                Some((first, last)) if *first <= candidate.last() => {
                    let past = Subnet::containing(*last, range.prefix());
                    let past = past.and_then(|past| range.min.steps_to(past));
                    index = past.unwrap_or(index).saturating_add(1);
                }
                _ => {
                    free.push(candidate);
                    index += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
