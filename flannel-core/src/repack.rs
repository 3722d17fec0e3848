//! Ordered collections that were filled in order.

/// Builds a tree anew, with full nodes: one that was filled in the order of its keys splits its last node in
/// halves again and again and leaves each half as it is, so nearly half of its memory is unused.
pub fn repack<T: Default + IntoIterator + FromIterator<T::Item>>(tree: &mut T) {
    *tree = std::mem::take(tree).into_iter().collect();
}
