//! A token bucket, for errors that strangers can provoke.

/// Lets `rate` a second through, and bursts of `burst`.
///
/// Time is an argument: milliseconds from any fixed start. It may stand still; should it go back,
/// nothing is refilled.
#[derive(Debug, Clone)]
pub(crate) struct TokenBucket {
    rate: u64,
    /// In thousandths of a token, so that no refill is too small to count.
    level: u64,
    capacity: u64,
    last: u64,
}

impl TokenBucket {
    /// A full bucket.
    pub(crate) fn new(rate: u32, burst: u32) -> Self {
        let capacity = u64::from(burst) * 1000;
        Self { rate: rate.into(), level: capacity, capacity, last: 0 }
    }

    /// Takes one token if there is one.
    pub(crate) fn take(&mut self, now_ms: u64) -> bool {
        let elapsed = now_ms.saturating_sub(self.last);
        self.last = self.last.max(now_ms);
        self.level = self.level.saturating_add(elapsed.saturating_mul(self.rate)).min(self.capacity);
        let has_one = self.level >= 1000;
        if has_one {
            self.level -= 1000;
        }
        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut bucket = TokenBucket::new(10, 3);
        let taken = |bucket: &mut TokenBucket, now| (0..100).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, 0), 3);
        assert_eq!(taken(&mut bucket, 99), 0, "a tenth of a second for each");
        assert_eq!(taken(&mut bucket, 100), 1);
        assert_eq!(taken(&mut bucket, 50), 0, "time that goes back refills nothing");
        assert_eq!(taken(&mut bucket, 100_000), 3, "no more than a burst is saved up");
        assert_eq!(taken(&mut bucket, u64::MAX), 3);
    }
}
