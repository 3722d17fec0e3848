//! When to try again and when to renew: the clock is an argument.

use std::time::Duration;

/// The shortest and the longest pause after a failure.
/// Upstream: `pkg/subnet/etcd/registry.go`, the watch's back-off.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Waits that double with each failure, with jitter, so that nodes that lost one server don't return as one.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    rng: fastrand::Rng,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

impl Backoff {
    /// Begins with the shortest wait.
    pub fn new() -> Self {
        Self { next: FIRST, rng: fastrand::Rng::new() }
    }

    /// The pause after one more failure: 100 ms at first, 5 s at most, less up to half of it.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(0.5 + self.rng.f64() / 2.0);
        self.next = (self.next * 2).min(LONGEST);
        pause
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }
}

/// How long to wait before a lease is renewed that has `left` of its `ttl`: until `margin` is left, or up to
/// a tenth of that earlier by `spread` (0 to 1), so that nodes that started together drift apart. A margin of
/// the whole `ttl` would renew without end, so it counts for nine tenths at most.
pub fn renew_after(left: Duration, ttl: Duration, margin: Duration, spread: f64) -> Duration {
    let margin = margin.min(ttl.mul_f64(0.9));
    let early = margin.min(ttl.saturating_sub(margin)).mul_f64(0.1 * spread.clamp(0.0, 1.0));
    left.saturating_sub(margin).saturating_sub(early)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_start_over() {
        let mut backoff = Backoff::new();
        let pauses: Vec<Duration> = (0..10).map(|_| backoff.pause()).collect();
        assert!(pauses[0] >= FIRST / 2 && pauses[0] <= FIRST, "{pauses:?}");
        assert!(pauses[9] >= LONGEST / 2 && pauses[9] <= LONGEST, "{pauses:?}");
        backoff.reset();
        assert!(backoff.pause() <= FIRST);
    }

    #[test]
    fn renews_before_the_margin_and_never_at_once() {
        let (hour, minute) = (Duration::from_hours(1), Duration::from_mins(1));
        let day = 24 * hour;
        assert_eq!(renew_after(day, day, hour, 0.0), 23 * hour);
        assert_eq!(renew_after(day, day, hour, 1.0), 22 * hour + 54 * minute);
        assert_eq!(renew_after(hour / 2, day, hour, 0.5), Duration::ZERO);
        assert!(renew_after(day, day, 2 * day, 1.0) > 2 * hour);
    }
}
