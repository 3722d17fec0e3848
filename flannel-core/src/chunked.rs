//! An ordered list in chunks: a copy is free, and a change copies one chunk at most.
//!
//! An entry is its own key, so the list takes no more memory than an array of its entries. That is what counts for
//! lists of which an agent has several, with thousands of peers in each. Lists of what is large or owns memory have
//! entries behind an [`Arc`].

use std::sync::Arc;

use crate::lease::LeaseKey;

/// The most entries of a chunk.
const MOST: usize = 64;

/// What a list is ordered by.
pub(crate) trait OfLease {
    /// The lease that it belongs to.
    fn lease(&self) -> &LeaseKey;
}

/// A list of at most one entry for each lease, in their order.
#[derive(Debug)]
pub(crate) struct Chunked<T> {
    /// Chunks with at least one entry each.
    chunks: Arc<Vec<Arc<Vec<Arc<T>>>>>,
    len: usize,
}

impl<T> Clone for Chunked<T> {
    fn clone(&self) -> Self {
        Self { chunks: Arc::clone(&self.chunks), len: self.len }
    }
}

impl<T> Default for Chunked<T> {
    fn default() -> Self {
        Self { chunks: Arc::default(), len: 0 }
    }
}

impl<T: OfLease> Chunked<T> {
    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The entry of a lease.
    pub(crate) fn get(&self, lease: &LeaseKey) -> Option<&Arc<T>> {
        let chunk = self.chunks.get(self.chunk_of(lease))?;
        Some(&chunk[find(chunk, lease).ok()?])
    }

    /// All entries in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// Adds or replaces the entry of a lease. Returns the one that was there.
    pub(crate) fn put(&mut self, entry: Arc<T>) -> Option<Arc<T>> {
        let at = self.chunk_of(entry.lease());
        let chunks = Arc::make_mut(&mut self.chunks);
        // What comes after all others goes to the last chunk, or a new one: so chunks that are filled in order are full.
        if at == chunks.len() {
            match chunks.last_mut().filter(|chunk| chunk.len() < MOST) {
                Some(last) => Arc::make_mut(last).push(entry),
                None => chunks.push(Arc::new(vec![entry])),
            }
            self.len += 1;
            return None;
        }
        let chunk = Arc::make_mut(&mut chunks[at]);
        match find(chunk, entry.lease()) {
            Ok(place) => return Some(std::mem::replace(&mut chunk[place], entry)),
            Err(place) if chunk.len() < MOST => chunk.insert(place, entry),
            Err(place) => {
                let mut rest = chunk.split_off(MOST / 2);
                match place.checked_sub(MOST / 2) {
                    Some(place) => rest.insert(place, entry),
                    None => chunk.insert(place, entry),
                }
                chunks.insert(at + 1, Arc::new(rest));
            }
        }
        self.len += 1;
        None
    }

    /// Removes the entry of a lease and returns it.
    pub(crate) fn remove(&mut self, lease: &LeaseKey) -> Option<Arc<T>> {
        let at = self.chunk_of(lease);
        let place = find(self.chunks.get(at)?, lease).ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let removed = Arc::make_mut(&mut chunks[at]).remove(place);
        self.len -= 1;
        if chunks[at].is_empty() {
            chunks.remove(at);
        }
        for first in [Some(at), at.checked_sub(1)].into_iter().flatten() {
            merge(chunks, first);
        }
        Some(removed)
    }

    /// Which chunk has a lease's entry if there is one; their number if it comes after all.
    fn chunk_of(&self, lease: &LeaseKey) -> usize {
        self.chunks.partition_point(|chunk| chunk.last().is_some_and(|last| last.lease() < lease))
    }
}

/// Makes one chunk of two neighbours, if they fill no more than half of it.
fn merge<T>(chunks: &mut Vec<Arc<Vec<Arc<T>>>>, first: usize) {
    if let Some([one, next]) = chunks.get(first..first + 2)
        && one.len() + next.len() <= MOST / 2
    {
        let next = chunks.remove(first + 1);
        Arc::make_mut(&mut chunks[first]).extend(next.iter().cloned());
    }
}

/// The place of a lease's entry in a chunk, or where it would be.
fn find<T: OfLease>(chunk: &[Arc<T>], lease: &LeaseKey) -> Result<usize, usize> {
    chunk.binary_search_by(|entry| entry.lease().cmp(lease))
}

impl<T: PartialEq> PartialEq for Chunked<T> {
    fn eq(&self, other: &Self) -> bool {
        let (mine, theirs) = (&self.chunks, &other.chunks);
        Arc::ptr_eq(mine, theirs)
            || self.len == other.len
                && mine.iter().flat_map(|it| it.iter()).eq(theirs.iter().flat_map(|it| it.iter()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Entry(LeaseKey, u32);

    impl OfLease for Entry {
        fn lease(&self) -> &LeaseKey {
            &self.0
        }
    }

    fn key(n: u16) -> LeaseKey {
        format!("10.{}.{}.0-24", n >> 8, n & 0xff).parse().unwrap()
    }

    fn values(list: &Chunked<Entry>) -> Vec<(LeaseKey, u32)> {
        list.iter().map(|entry| (entry.0, entry.1)).collect()
    }

    #[test]
    fn what_is_filled_in_order_is_full() {
        let mut list = Chunked::default();
        (0..10 * MOST as u16).for_each(|n| _ = list.put(Arc::new(Entry(key(n), 0))));
        assert_eq!((list.len(), list.chunks.len()), (10 * MOST, 10));
    }

    proptest! {
        /// Most keys are new at first, and most are removed in the end.
        #[test]
        fn is_a_map_whose_copies_do_not_change(
            steps in proptest::collection::vec((0..400_u16, 0..3_u8), 0..1200), copied in 0..1200_usize,
        ) {
            let (mut list, mut model) = (Chunked::default(), BTreeMap::new());
            let mut copy = (list.clone(), Vec::new());
            let half = steps.len() / 2;
            for (at, (n, kind)) in steps.into_iter().enumerate() {
                let is_put = (kind == 0) == (at > half);
                let (before, expected) = if is_put {
                    (list.put(Arc::new(Entry(key(n), at as u32))), model.insert(key(n), at as u32))
                } else {
                    (list.remove(&key(n)), model.remove(&key(n)))
                };
                prop_assert_eq!(before.map(|entry| entry.1), expected);
                prop_assert_eq!(list.get(&key(n)).map(|entry| entry.1), model.get(&key(n)).copied());
                if at == copied {
                    copy = (list.clone(), values(&list));
                }
            }
            prop_assert_eq!(list.len(), model.len());
            prop_assert_eq!(values(&list), model.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(values(&copy.0), copy.1);
            prop_assert!(list.chunks.iter().all(|chunk| (1..=MOST).contains(&chunk.len())));
            prop_assert!(list.chunks.windows(2).all(|it| it[0].len() + it[1].len() > MOST / 2));
        }
    }
}
