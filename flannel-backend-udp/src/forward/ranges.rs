//! Longest-prefix match as a search in disjoint ranges.
//!
//! Overlapping prefixes are flattened once, when the table is built: each address is then in at most one range, which
//! belongs to the longest prefix that contains it. A look-up is a binary search, and a caller that next asks for an
//! address in the same range need not search again.

use std::ops::RangeInclusive;

/// A prefix as numbers, and its owner.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prefix<A> {
    pub(super) first: A,
    pub(super) last: A,
    pub(super) owner: u32,
}

/// Disjoint ranges in ascending order.
#[derive(Debug, Clone)]
pub(super) struct Ranges<A> {
    firsts: Vec<A>,
    rest: Vec<(A, u32)>,
}

/// A number that can be an address.
pub(super) trait Bits: Copy + Ord {
    fn next(self) -> Self;
    fn previous(self) -> Self;
}

impl Bits for u32 {
    fn next(self) -> Self {
        self + 1
    }
    fn previous(self) -> Self {
        self - 1
    }
}

impl Bits for u128 {
    fn next(self) -> Self {
        self + 1
    }
    fn previous(self) -> Self {
        self - 1
    }
}

impl<A: Bits> Ranges<A> {
    /// Flattens prefixes, of which no two are equal. Being prefixes, two are disjoint or nested.
    pub(super) fn flatten(mut prefixes: Vec<Prefix<A>>) -> Self {
        // An outer prefix comes before those inside it.
        prefixes.sort_by(|a, b| a.first.cmp(&b.first).then(b.last.cmp(&a.last)));
        let mut flat = Self { firsts: Vec::new(), rest: Vec::new() };
        let mut open: Vec<Prefix<A>> = Vec::new();
        for prefix in prefixes {
            flat.close_before(&mut open, Some(prefix.first));
            if let Some(outer) = open.last_mut() {
                if outer.first < prefix.first {
                    flat.push(outer.first, prefix.first.previous(), outer.owner);
                }
                outer.first = prefix.first;
            }
            open.push(prefix);
        }
        flat.close_before(&mut open, None);
        flat
    }

    /// Closes the open prefixes that end before `limit`, the innermost first; the rest of an outer prefix begins after
    /// the inner one.
    fn close_before(&mut self, open: &mut Vec<Prefix<A>>, limit: Option<A>) {
        while let Some(inner) = open.pop_if(|inner| limit.is_none_or(|limit| inner.last < limit)) {
            self.push(inner.first, inner.last, inner.owner);
            // Outer prefixes that end at the same address have no rest.
            while open.pop_if(|outer| outer.last == inner.last).is_some() {}
            if let Some(outer) = open.last_mut() {
                outer.first = inner.last.next();
            }
        }
    }

    fn push(&mut self, first: A, last: A, owner: u32) {
        self.firsts.push(first);
        self.rest.push((last, owner));
    }

    /// The range around an address, and its owner.
    pub(super) fn find(&self, addr: A) -> Option<(RangeInclusive<A>, u32)> {
        let index = self.firsts.partition_point(|first| *first <= addr).checked_sub(1)?;
        let (last, owner) = self.rest[index];
        (addr <= last).then(|| (self.firsts[index]..=last, owner))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(base: u32, len: u32, owner: u32) -> Prefix<u32> {
        let host = u32::MAX.checked_shr(len).unwrap_or(0);
        Prefix { first: base & !host, last: base | host, owner }
    }

    proptest! {
        #[test]
        fn agrees_with_looking_at_every_prefix(
            mut given in prop::collection::vec((0..64_u32, 0..=32_u32, any::<bool>()), 0..24),
            asked in prop::collection::vec((0..64_u32, any::<bool>(), 0..3_u32), 64),
        ) {
            // A few addresses around both ends of the space, so that prefixes nest and touch.
            let spread = |low: u32, high: bool| if high { u32::MAX - low * 3 } else { low * 3 };
            let mut prefixes: Vec<_> = given
                .drain(..)
                .enumerate()
                .map(|(owner, (base, len, high))| prefix(spread(base, high), len, owner as u32))
                .collect();
            prefixes.sort_by_key(|prefix| (prefix.first, prefix.last));
            prefixes.dedup_by_key(|prefix| (prefix.first, prefix.last));
            let ranges = Ranges::flatten(prefixes.clone());
            for (low, high, step) in asked {
                let addr = spread(low, high).wrapping_add(step);
                let wanted = prefixes
                    .iter()
                    .filter(|prefix| (prefix.first..=prefix.last).contains(&addr))
                    .min_by_key(|prefix| prefix.last - prefix.first)
                    .map(|prefix| prefix.owner);
                prop_assert_eq!(ranges.find(addr).map(|(_, owner)| owner), wanted);
            }
        }
    }
}
