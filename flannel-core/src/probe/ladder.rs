//! Finds the largest packet that passes. Pure.
//!
//! It is a bisection with many steps at a time: each round sends a ladder of sizes, and the next one looks between the
//! largest that was answered and the next larger one. Three rounds are enough for an MTU of 1500, four for 9000.

/// How many sizes a round has.
const RUNGS: u32 = 12;

/// What is known of the largest size that passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ladder {
    /// A size that passes.
    low: u32,
    /// A larger one that doesn't.
    high: u32,
}

impl Ladder {
    /// Between a size that passes and one that doesn't.
    pub(super) fn new(passes: u32, lost: u32) -> Self {
        Self { low: passes, high: lost.max(passes + 1) }
    }

    /// The sizes of the next round, in order; `None` once the largest is known. In the last round each is there twice,
    /// since there is no other that would make up for a lost one.
    pub(super) fn sizes(self) -> Option<Vec<u32>> {
        let gap = self.high - self.low;
        if gap <= 1 {
            return None;
        }
        if gap <= RUNGS + 1 {
            return Some((self.low + 1..self.high).flat_map(|size| [size, size]).collect());
        }
        Some((1..=RUNGS).map(|rung| self.low + gap * rung / (RUNGS + 1)).collect())
    }

    /// Takes in which of the sizes of a round were answered.
    pub(super) fn climb(self, sizes: &[u32], answered: impl Fn(u32) -> bool) -> Self {
        let low = sizes.iter().copied().filter(|size| answered(*size)).fold(self.low, u32::max);
        let high = sizes.iter().copied().filter(|size| *size > low).fold(self.high, u32::min);
        Self { low, high }
    }

    /// The largest size that passes, as far as it is known.
    pub(super) fn largest(self) -> u32 {
        self.low
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn measure(low: u32, high: u32, limit: u32) -> (u32, usize) {
        let (mut ladder, mut rounds) = (Ladder::new(low, high), 0);
        while let Some(sizes) = ladder.sizes() {
            ladder = ladder.climb(&sizes, |size| size <= limit);
            rounds += 1;
        }
        (ladder.largest(), rounds)
    }

    #[test]
    fn three_rounds_are_enough_for_1500() {
        assert_eq!(measure(52, 1450, 1350), (1350, 3));
        assert_eq!(measure(52, 8950, 1450), (1450, 4));
        assert_eq!(measure(52, 53, 52), (52, 0));
    }

    proptest! {
        #[test]
        fn the_largest_is_found_exactly(high in 100_u32..10_000, at in 0_u32..10_000) {
            let limit = 52 + at % (high - 52);
            let (largest, rounds) = measure(52, high, limit);
            prop_assert_eq!(largest, limit.min(high - 1));
            prop_assert!(rounds <= 4);
        }
    }
}
