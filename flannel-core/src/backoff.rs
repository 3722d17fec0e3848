//! How long to wait before the next attempt, and jitter that keeps many nodes apart.
//!
//! The rules are pure: the caller can pass the random number, from 0 (inclusive) to 1 (exclusive). The caller also does
//! the waiting.

use std::time::Duration;

/// The largest part by which jitter makes a delay longer or shorter.
const SPREAD: f64 = 0.25;

/// The delays between attempts: they double with each failure in a row, from the first one to the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delays {
    first: Duration,
    longest: Duration,
}

impl Delays {
    /// Delays from `first` to `longest`, which the jitter makes longer or shorter by a quarter at most.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest }
    }

    /// The delay after a failure that follows `earlier` others in a row, without jitter.
    pub fn after(self, earlier: u32) -> Duration {
        let factor = 1_u32.checked_shl(earlier).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest)
    }

    /// The same delay with jitter, so that nodes that fail together don't retry together.
    pub fn jittered(self, earlier: u32) -> Duration {
        jitter(self.after(earlier), SPREAD)
    }
}

/// Counts the failures of one thing in a row, and returns growing delays between attempts.
#[derive(Debug, Clone)]
pub struct Backoff {
    delays: Delays,
    failures: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

impl Backoff {
    /// Delays from 100 ms to 5 s, for requests to a server that many clients use. Upstream:
    /// `pkg/subnet/etcd/registry.go`, the watch's back-off.
    pub const fn new() -> Self {
        Self::with(Delays::new(Duration::from_millis(100), Duration::from_secs(5)))
    }

    /// A backoff with these delays.
    pub const fn with(delays: Delays) -> Self {
        Self { delays, failures: 0 }
    }

    /// Counts one more failure, and returns how long to wait before the next attempt.
    pub fn pause(&mut self) -> Duration {
        let delay = self.delays.jittered(self.failures);
        self.failures = self.failures.saturating_add(1);
        delay
    }

    /// Resets the count, after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// How many failures in a row there were.
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

/// `period`, randomly longer or shorter by at most the part `spread` of it (0.1: a tenth), so that nodes that start
/// together drift apart.
pub fn jitter(period: Duration, spread: f64) -> Duration {
    jitter_by(period, spread, fastrand::f64())
}

/// [`jitter`] with the random number as an argument: 0 gives the shortest period, almost 1 the longest.
pub fn jitter_by(period: Duration, spread: f64, chance: f64) -> Duration {
    period.mul_f64(1.0 + spread.clamp(0.0, 1.0) * (2.0 * chance.clamp(0.0, 1.0) - 1.0))
}

/// A random delay from zero to `most`, which spreads nodes that would act at the same instant.
pub fn up_to(most: Duration) -> Duration {
    most.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAYS: Delays = Delays::new(Duration::from_millis(100), Duration::from_secs(5));

    #[test]
    fn delays_double_up_to_the_longest_however_many_failures_there_were() {
        for (earlier, millis) in
            [(0, 100), (1, 200), (5, 3200), (6, 5000), (31, 5000), (32, 5000), (u32::MAX, 5000)]
        {
            assert_eq!(DELAYS.after(earlier), Duration::from_millis(millis), "{earlier}");
        }
    }

    #[test]
    fn a_success_starts_over() {
        let mut backoff = Backoff::with(DELAYS);
        let delays: Vec<Duration> = (0..10).map(|_| backoff.pause()).collect();
        assert!(
            delays[0] <= Duration::from_millis(125) && delays[9] >= Duration::from_millis(3750),
            "{delays:?}"
        );
        assert_eq!(backoff.failures(), 10);
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(125));
    }

    #[test]
    fn jitter_stays_in_its_bounds_and_reaches_both() {
        let minute = Duration::from_secs(60);
        for (spread, chance, seconds) in
            [(0.1, 0.0, 54), (0.1, 0.5, 60), (0.1, 1.0, 66), (0.0, 0.9, 60), (1.0, 0.0, 0), (7.0, 9.0, 120)]
        {
            let got = jitter_by(minute, spread, chance).as_secs_f64();
            assert!((got - f64::from(seconds)).abs() < 1e-6, "{spread} {chance}: {got}");
        }
        for _ in 0..1000 {
            let got = jitter(minute, 0.1);
            assert!(got >= Duration::from_secs(54) && got <= Duration::from_secs(66), "{got:?}");
            assert!(up_to(minute) < minute);
        }
    }
}
