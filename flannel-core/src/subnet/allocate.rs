//! Decides which subnet a node gets, from the records that the store lists. Pure.
//!
//! A node keeps what it has if that still fits. In this order it gets: the record that is proven to be its own
//! ([`Identity`]), a record with its underlay address, the subnets that it had before a restart, a random free subnet.
//! It never gets a subnet that contains an underlay address. Each family is decided for itself, so a network that gains
//! IPv6 keeps its IPv4 subnets. In dual stack, free subnets are chosen as a [pair](is_pair), number n of one range with
//! number n of the other: so nodes that choose different IPv4 subnets also have different IPv6 subnets, without
//! coordination. Upstream: `pkg/subnet/etcd/local_manager.go`.

mod ranges;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::net::IpAddr;

/// The random number generator of [`decide`]; seeded in tests.
pub use fastrand::Rng;

use self::ranges::{TakenRanges, choose, twin};
use super::SubnetError;
pub use super::identity::is_same_node;
use super::identity::{Identity, has_data, shared_data, shares_data};
use crate::addr::{Family, PerFamily, Subnet};
use crate::config::{NetworkConfig, SubnetRange};
use crate::lease::{Lease, LeaseAttrs, LeaseKey, LeaseKeyError};

/// One of this many free subnets, counted from a random place in the range, is chosen at random. Upstream chooses among
/// the first 100 of the range, where a thousand nodes that start at once collide again and again
/// (`pkg/subnet/etcd/local_manager.go`, `allocateSubnet`).
pub const CANDIDATES: usize = 100;

/// A lease as the store lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The lease.
    pub lease: Lease,
    /// Whether it is a reservation: an operator wrote it for its node, and it never expires.
    pub reserved: bool,
}

/// A record with an unreadable value, whose key says which subnets it occupies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupied {
    /// The subnets that it occupies.
    pub key: LeaseKey,
    /// When it was created, in the store's own count.
    pub created: u64,
}

/// All records that a store lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The leases.
    pub records: Vec<Record>,
    /// Other occupied subnets.
    pub taken: Vec<Occupied>,
}

/// How to get a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The record is ours and fits: publish in it.
    Adopt(Record),
    /// Create a record.
    Take(LeaseKey),
    /// The record of the subnets that we had before a restart is unreadable: publish in it again. Another subnet would
    /// cost this node's pods their traffic because of one unreadable value.
    Reclaim(LeaseKey),
    /// Our record no longer fits: replace it by a new one in one transaction.
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

/// The subnets that the text of a key occupies, even if it is not a canonical lease key.
pub fn occupied(text: &str) -> Option<LeaseKey> {
    match text.parse() {
        Ok(key) => Some(key),
        Err(LeaseKeyError::NotCanonical { canonical, .. }) => canonical.parse().ok(),
        Err(LeaseKeyError::Form(_)) => None,
    }
}

/// The node of a record, for the log.
pub fn holder(attrs: &LeaseAttrs) -> String {
    match attrs.public_ips.v4.or(attrs.public_ips.v6) {
        Some(addr) => addr.to_string(),
        None => "a node without an address".to_owned(),
    }
}

/// What the node with these underlay addresses published last: the attributes of its own record, else of one with its
/// address.
pub fn published<'a>(
    leases: impl Iterator<Item = &'a Lease>,
    public_ips: &PerFamily<IpAddr>,
    identity: &Identity,
) -> Option<LeaseAttrs> {
    let leases: Vec<&Lease> = leases.collect();
    let asked = LeaseAttrs { public_ips: *public_ips, ..LeaseAttrs::default() };
    let find = |key| leases.iter().find(|lease| lease.key == key);
    let mut named = identity.wishes().filter_map(find);
    if let Some(own) = named.find(|lease| identity.proves(lease, &asked)) {
        return Some(own.attrs.clone());
    }
    let by = |(family, addr): (Family, &IpAddr)| {
        let mine = leases.iter().filter(|lease| lease.attrs.public_ips.get(family) == Some(addr));
        mine.max_by_key(|lease| (lease.created, lease.key))
    };
    let found = public_ips.iter().find_map(by).filter(|lease| !identity.disproves(lease))?;
    // While nodes swap addresses, the record with our address belongs to another node, whose VTEP MAC we must not take.
    // If a record for our earlier subnet exists, only our device can show which MAC is ours.
    let had_other = identity.subnets.is_some_and(|had| had != found.key && find(had).is_some());
    (!had_other).then(|| found.attrs.clone())
}

/// The node that asks for a lease.
#[derive(Debug, Clone, Copy)]
pub struct Applicant<'a> {
    /// The attributes that it is about to publish.
    pub attrs: &'a LeaseAttrs,
    /// What it knows of itself.
    pub identity: &'a Identity,
    /// Its addresses on the underlay, which behind NAT differ from the published ones.
    pub local: &'a PerFamily<IpAddr>,
}

/// Decides which lease a node should have.
///
/// It returns [`SubnetError::Claimed`] if another node already has the backend data that it is about to publish.
pub fn decide(
    config: &NetworkConfig,
    listing: &Listing,
    applicant: Applicant<'_>,
    rng: &mut Rng,
) -> Result<Decision, SubnetError> {
    let family = identity(config);
    if applicant.attrs.public_ips.get(family).is_none() {
        return Err(SubnetError::Conflict(format!(
            "{family} is enabled in the network config, but this node has no {family} underlay address to publish"
        )));
    }
    let mine = Mine::new(listing, applicant, family);
    let decision = mine.decide(config, listing, rng)?;
    let own = match &decision {
        Decision::Adopt(own) | Decision::Replace { old: own, .. } => Some(own),
        Decision::Take(_) | Decision::Reclaim(_) => None,
    };
    match claimed(listing, own, applicant) {
        Some((key, family)) => Err(SubnetError::Claimed { key, family }),
        None => Ok(decision),
    }
}

/// The records, other than the one under `own`, that are proven to be former records of this node. They may be deleted
/// once `own` is published, except reservations.
pub fn former<'a>(
    listing: &'a Listing,
    own: LeaseKey,
    applicant: Applicant<'a>,
) -> impl Iterator<Item = &'a Record> {
    let is_former = move |lease: &Lease| applicant.identity.is_former(lease, Some(own), applicant.attrs);
    listing.records.iter().filter(move |record| is_former(&record.lease))
}

/// The record of another node with the backend data that this node is about to publish. If this node's own record
/// already has that data, the other one does not count where the state file proves that this node published it, since
/// the running agent then decides by the ages of both claims; without that proof it does not count if the own record is
/// the older one.
fn claimed(listing: &Listing, own: Option<&Record>, applicant: Applicant<'_>) -> Option<(LeaseKey, Family)> {
    let Applicant { attrs, identity, .. } = applicant;
    if !has_data(attrs) {
        return None;
    }
    let own_key = own.map(|own| own.lease.key);
    let says = |lease: &Lease, family| shares_data(&lease.attrs, attrs, family);
    let is_held = |other: &Record, family| {
        let Some(own) = own.filter(|own| says(&own.lease, family)) else { return false };
        match identity.published.as_ref().filter(|stored| stored.key == own.lease.key) {
            Some(stored) => says(stored, family),
            None => age(own) < age(other),
        }
    };
    let others = listing.records.iter().filter(|record| Some(record.lease.key) != own_key);
    others.into_iter().find_map(|other| {
        let is_ours = || identity.is_former(&other.lease, own_key, attrs);
        let mut shared = shared_data(&other.lease.attrs, attrs);
        let family = shared.find(|family| !is_held(other, *family)).filter(|_| !is_ours())?;
        Some((other.lease.key, family))
    })
}

fn age(record: &Record) -> (u64, LeaseKey) {
    (record.lease.created, record.lease.key)
}

/// The records of this node in a listing.
struct Mine<'a> {
    applicant: Applicant<'a>,
    /// The family whose address identifies the node.
    family: Family,
    /// The record that is proven to be this node's.
    proven: Option<&'a Record>,
}

impl<'a> Mine<'a> {
    fn new(listing: &'a Listing, applicant: Applicant<'a>, family: Family) -> Self {
        let Applicant { attrs, identity, .. } = applicant;
        let find = |key| listing.records.iter().find(|record| record.lease.key == key);
        let mut named = identity.wishes().filter_map(find);
        let proven = named.find(|record| identity.proves(&record.lease, attrs));
        let former =
            || listing.records.iter().filter(|record| identity.is_former(&record.lease, None, attrs));
        Self { applicant, family, proven: proven.or_else(|| former().min_by_key(|record| age(record))) }
    }

    fn is_proven(&self, record: &Record) -> bool {
        self.proven.is_some_and(|proven| proven.lease.key == record.lease.key)
    }

    fn has_our_address(&self, record: &Record) -> bool {
        let me = self.applicant.attrs.public_ips.get(self.family);
        record.lease.attrs.public_ips.get(self.family) == me
    }

    /// Whether a record is this node's. If a record with another address is proven, a record with its present address
    /// may belong to the node that had the address before.
    fn has(&self, record: &Record) -> bool {
        let Applicant { attrs, identity, .. } = self.applicant;
        let by_address = || {
            self.proven.is_none_or(|proven| self.has_our_address(proven))
                && self.has_our_address(record)
                && !identity.disproves(&record.lease)
        };
        self.is_proven(record) || by_address() || identity.is_former(&record.lease, None, attrs)
    }

    /// The rank of a record: the proven one first, then the oldest.
    fn rank(&self, record: &Record) -> (bool, (u64, LeaseKey)) {
        (!self.is_proven(record), age(record))
    }

    fn decide(
        &self,
        config: &NetworkConfig,
        listing: &Listing,
        rng: &mut Rng,
    ) -> Result<Decision, SubnetError> {
        let listing = &without_absurd(config, listing, |record| self.has(record));
        let stays = |record: &&Record| {
            fits(config, record.lease.key) && !loses(listing, record, |other| self.has(other))
        };
        let mine = || listing.records.iter().filter(|record| self.has(record));
        if let Some(own) = mine().filter(stays).min_by_key(|record| self.rank(record)) {
            return Ok(Decision::Adopt(own.clone()));
        }
        let old = mine().min_by_key(|record| self.rank(record));
        let is_ours_again = |key: &LeaseKey| old.is_none() && is_unreadable(config, listing, *key);
        if let Some(unreadable) = self.applicant.identity.wishes().find(is_ours_again) {
            return Ok(Decision::Reclaim(unreadable));
        }
        let new = self.new_key(config, listing, old.map(|old| old.lease.key), rng)?;
        Ok(match old {
            Some(old) => Decision::Replace { old: old.clone(), new },
            None => Decision::Take(new),
        })
    }

    /// The subnets for a record that replaces `old`: as far as possible those of `old` and those before a restart, else
    /// free ones.
    fn new_key(
        &self,
        config: &NetworkConfig,
        listing: &Listing,
        old: Option<LeaseKey>,
        rng: &mut Rng,
    ) -> Result<LeaseKey, SubnetError> {
        let Applicant { attrs, identity, local } = self.applicant;
        let ranges = ranges_of(config)?;
        let taken = TakenRanges::new(listing, old, []);
        let own_ips: Vec<IpAddr> = addresses(&attrs.public_ips).chain(addresses(local)).collect();
        let mut subnets = PerFamily::from_fn(|family| {
            let range = ranges.get(family)?;
            let is_free = |subnet: &Subnet| range.contains(*subnet) && taken.get(family).is_free(*subnet);
            let holds_us = |subnet: &Subnet| own_ips.iter().any(|ip| subnet.contains(*ip));
            let kept = old.and_then(|key| key.subnet(family)).filter(is_free);
            let mut wished = identity.wishes().filter_map(|key| key.subnet(family));
            kept.or_else(|| wished.find(|subnet| is_free(subnet) && !holds_us(subnet)))
        });
        if ranges.iter().all(|(family, _)| subnets.get(family).is_some()) {
            return key_of(subnets);
        }
        let published = listing.records.iter().flat_map(|record| addresses(&record.lease.attrs.public_ips));
        let in_network =
            |ip: &IpAddr| config.networks.iter().any(|(_, network)| network.network.contains(*ip));
        let underlay = own_ips.iter().copied().chain(published).filter(in_network);
        let taken = TakenRanges::new(listing, old, underlay);
        for (family, range) in ranges.iter() {
            if subnets.get(family).is_none() {
                let found = choose(&ranges, &taken, &subnets, family, rng);
                let none = SubnetError::OutOfSubnets { family, min: range.min.base(), max: range.max.base() };
                *subnets.get_mut(family) = Some(found.ok_or(none)?);
            }
        }
        key_of(subnets)
    }
}

/// The key of chosen subnets. A caller may have removed all networks from a config in memory.
fn key_of(subnets: PerFamily<Subnet>) -> Result<LeaseKey, SubnetError> {
    let none = || SubnetError::Conflict("the network config has no network to take a subnet from".to_owned());
    LeaseKey::new(subnets).ok_or_else(none)
}

fn addresses(ips: &PerFamily<IpAddr>) -> impl Iterator<Item = IpAddr> {
    ips.v4.into_iter().chain(ips.v6)
}

fn ranges_of(config: &NetworkConfig) -> Result<PerFamily<SubnetRange>, SubnetError> {
    PerFamily::try_from_fn(|family| match config.networks.get(family) {
        None => Ok(None),
        Some(network) if network.range.is_some() => Ok(network.range),
        Some(_) => {
            Err(SubnetError::Conflict(format!("the network config has no {family} range to take from")))
        }
    })
}

/// Whether the two subnets of a key have the same number in their ranges.
pub fn is_pair(config: &NetworkConfig, key: LeaseKey) -> bool {
    let ranges = PerFamily::from_fn(|family| config.networks.get(family)?.range);
    let found = key.subnet(Family::V4).and_then(|subnet| twin(&ranges, subnet));
    found.is_some() && found == key.subnet(Family::V6)
}

/// The listing without records that cover a whole network: no node uses such a record, and it must not keep nodes from
/// getting a subnet. Our own one stays in the listing, to be replaced.
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

/// Whether there is an unreadable record with this key, the key fits, and no other record conflicts with it.
fn is_unreadable(config: &NetworkConfig, listing: &Listing, key: LeaseKey) -> bool {
    fits(config, key)
        && listing.taken.iter().any(|taken| taken.key == key)
        && !listing.taken.iter().any(|taken| taken.key != key && overlaps(taken.key, key))
        && !listing.records.iter().any(|record| overlaps(record.lease.key, key))
}

/// Whether a key has exactly the enabled families, each with a subnet inside the range.
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
