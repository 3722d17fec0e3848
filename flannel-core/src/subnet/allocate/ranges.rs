//! Occupied addresses as sorted ranges, and the free subnets between them. Pure.

use std::net::IpAddr;

use super::{CANDIDATES, Listing};
use crate::addr::{Family, PerFamily, Subnet};
use crate::config::SubnetRange;
use crate::lease::LeaseKey;

/// Chooses a random free subnet of one family, which forms a pair with the subnet of the other family if possible.
pub(super) fn choose(
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
pub(super) fn twin(ranges: &PerFamily<SubnetRange>, subnet: Subnet) -> Option<Subnet> {
    let other = if subnet.family() == Family::V4 { Family::V6 } else { Family::V4 };
    let number = ranges.get(subnet.family())?.min.steps_to(subnet)?;
    ranges.get(other)?.nth(number)
}

/// The occupied addresses of each family as sorted ranges that neither overlap nor contain each other.
pub(super) struct TakenRanges {
    v4: Ranges,
    v6: Ranges,
}

impl TakenRanges {
    /// The ranges of all listed records, except the key that will be replaced, and of these underlay addresses.
    pub(super) fn new(
        listing: &Listing,
        replaced: Option<LeaseKey>,
        underlay: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let keys = listing.records.iter().map(|record| record.lease.key);
        let keys: Vec<LeaseKey> = keys
            .filter(|key| Some(*key) != replaced)
            .chain(listing.taken.iter().map(|taken| taken.key))
            .collect();
        let underlay = underlay.into_iter();
        let hosts: Vec<Subnet> =
            underlay.filter_map(|ip| Subnet::containing(ip, Family::of(ip).bits())).collect();
        let of = |family| {
            let subnets = keys.iter().filter_map(|key| key.subnet(family));
            let hosts = hosts.iter().copied().filter(|host| host.family() == family);
            Ranges::new(subnets.chain(hosts).collect())
        };
        Self { v4: of(Family::V4), v6: of(Family::V6) }
    }

    pub(super) fn get(&self, family: Family) -> &Ranges {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// First and last addresses, ascending.
pub(super) struct Ranges(Vec<(IpAddr, IpAddr)>);

impl Ranges {
    fn new(mut subnets: Vec<Subnet>) -> Self {
        subnets.sort_unstable();
        let mut ranges: Vec<(IpAddr, IpAddr)> = Vec::with_capacity(subnets.len());
        for subnet in subnets {
            // Two prefixes either nest or are disjoint, and the wider one sorts first.
            if ranges.last().is_none_or(|(_, last)| *last < subnet.base()) {
                ranges.push((subnet.base(), subnet.last()));
            }
        }
        Self(ranges)
    }

    pub(super) fn is_free(&self, subnet: Subnet) -> bool {
        let next = self.0.partition_point(|(_, last)| *last < subnet.base());
        self.0.get(next).is_none_or(|(first, _)| *first > subnet.last())
    }

    /// The first `limit` free subnets from number `start` on, continuing at the beginning of the range after its end.
    pub(super) fn free(&self, range: &SubnetRange, start: u128, limit: usize) -> Vec<Subnet> {
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
