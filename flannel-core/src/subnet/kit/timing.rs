//! When to renew a lease. Pure.

use std::time::Duration;

/// The nearest lifetime that a store can grant: a second to ten years. Renewals can't keep up with shorter ones, and the
/// end of much longer ones is beyond what clocks count.
pub fn grantable(ttl: Duration) -> Duration {
    ttl.clamp(Duration::from_secs(1), Duration::from_hours(10 * 365 * 24))
}

/// How long to wait before renewing a lease that has `left` of its `ttl`: until `margin` is left, or earlier by up to a
/// tenth of `margin`, depending on `spread` (0 to 1), so that nodes that started together drift apart. A margin of the
/// whole `ttl` would renew without a pause, so the margin counts as nine tenths of `ttl` at most.
pub fn renew_after(left: Duration, ttl: Duration, margin: Duration, spread: f64) -> Duration {
    let margin = margin.min(ttl / 10 * 9);
    let spread = if spread.is_nan() { 0.0 } else { spread.clamp(0.0, 1.0) };
    // At most a tenth, which a Duration always has room for.
    let early = (margin.min(ttl.saturating_sub(margin)) / 10).mul_f64(spread);
    left.saturating_sub(margin).saturating_sub(early)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renews_before_the_margin_and_never_at_once() {
        let (hour, minute) = (Duration::from_hours(1), Duration::from_mins(1));
        let day = 24 * hour;
        assert_eq!(renew_after(day, day, hour, 0.0), 23 * hour);
        assert_eq!(renew_after(day, day, hour, 1.0), 22 * hour + 54 * minute);
        assert_eq!(renew_after(hour / 2, day, hour, 0.5), Duration::ZERO);
        assert!(renew_after(day, day, 2 * day, 1.0) > 2 * hour);
        for spread in [f64::NAN, f64::INFINITY, -1.0] {
            assert!(renew_after(Duration::MAX, Duration::MAX, Duration::MAX, spread) > day);
            assert_eq!(renew_after(Duration::ZERO, Duration::ZERO, Duration::MAX, spread), Duration::ZERO);
        }
    }
}
