//! Memory of ordered collections that were filled in order.

/// Rebuilds a tree with full nodes. A tree that is filled in the order of its keys splits its last node in halves again
/// and again, so nearly half of its memory is unused.
pub fn repack<T: Default + IntoIterator + FromIterator<T::Item>>(tree: &mut T) {
    *tree = std::mem::take(tree).into_iter().collect();
}
