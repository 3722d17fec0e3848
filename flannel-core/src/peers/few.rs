//! A set that nearly always has exactly one member.

use std::collections::BTreeSet;

/// A set that allocates only from the second member on: of thousands of addresses, hardly any is claimed twice. So the
/// members of the others are boxed, to add no more to each than a pointer would.
#[derive(Debug, Clone)]
#[expect(clippy::box_collection, reason = "a set is larger than most members, and hardly ever there")]
pub(super) enum Few<T> {
    One(T),
    Many(Box<BTreeSet<T>>),
}

impl<T: Ord + Copy> Few<T> {
    /// Adds a member; false if it was one.
    pub(super) fn insert(&mut self, member: T) -> bool {
        match self {
            Self::One(only) if *only == member => false,
            Self::One(only) => {
                *self = Self::Many(Box::new(BTreeSet::from([*only, member])));
                true
            }
            Self::Many(members) => members.insert(member),
        }
    }

    /// Removes a member, unless it is the last: then the caller removes the set.
    pub(super) fn remove(&mut self, member: &T) -> Removed {
        match self {
            Self::One(only) if only == member => Removed::Last,
            Self::One(_) => Removed::None,
            Self::Many(members) => {
                if !members.remove(member) {
                    return Removed::None;
                }
                if let (1, Some(only)) = (members.len(), members.first()) {
                    *self = Self::One(*only);
                }
                Removed::One
            }
        }
    }

    /// The members in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let (one, many) = match self {
            Self::One(only) => (Some(only), None),
            Self::Many(members) => (None, Some(&**members)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

/// The result of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removed {
    /// It was no member.
    None,
    /// Others are left.
    One,
    /// It was the only one.
    Last,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_a_set(steps in proptest::collection::vec((any::<bool>(), 0..4_u8), 0..40)) {
            let mut model = BTreeSet::new();
            let mut few: BTreeMap<(), Few<u8>> = BTreeMap::new();
            for (add, member) in steps {
                if add {
                    let new = few.get_mut(&()).map(|few| few.insert(member));
                    few.entry(()).or_insert(Few::One(member));
                    prop_assert_eq!(model.insert(member), new.unwrap_or(true));
                } else {
                    let removed = few.get_mut(&()).map_or(Removed::None, |few| few.remove(&member));
                    if removed == Removed::Last {
                        few.clear();
                    }
                    prop_assert_eq!(model.remove(&member), removed != Removed::None);
                }
                let members = few.values().flat_map(Few::iter).copied();
                prop_assert!(members.eq(model.iter().copied()));
                prop_assert!(model.len() < 2 || few.values().all(|few| matches!(few, Few::Many(_))));
            }
        }
    }
}
