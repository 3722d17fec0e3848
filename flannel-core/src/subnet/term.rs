//! The time for which a store keeps a lease.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::times::instant;

/// Two terms count as the same if their times differ by no more than this: stores count in whole seconds, and requests
/// take time.
const TOLERANCE: Duration = Duration::from_secs(2);

/// When a lease was renewed last and when it ends, by this host's wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LeaseTerm {
    /// When it was created or renewed last.
    #[serde(serialize_with = "instant")]
    pub renewed: SystemTime,
    /// When it ends, and others may take its subnets, unless it is renewed before.
    #[serde(serialize_with = "instant")]
    pub expires: SystemTime,
}

impl LeaseTerm {
    /// The term of a lease that ends `left` after `now`, where a renewal extends it to `whole`.
    pub fn new(now: SystemTime, left: Duration, whole: Duration) -> Self {
        let passed = whole.saturating_sub(left);
        Self {
            renewed: now.checked_sub(passed).unwrap_or(now),
            expires: now.checked_add(left).unwrap_or(now),
        }
    }

    /// Whether both say the same, as exactly as a store counts.
    pub(crate) fn is_about(&self, other: &Self) -> bool {
        let apart = |one: SystemTime, other: SystemTime| {
            one.duration_since(other).unwrap_or_else(|error| error.duration())
        };
        apart(self.renewed, other.renewed) <= TOLERANCE && apart(self.expires, other.expires) <= TOLERANCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_is_told_by_what_is_left() {
        let (start, second) = (SystemTime::UNIX_EPOCH + Duration::from_hours(100), Duration::from_secs(1));
        let day = Duration::from_hours(24);
        let renewed = LeaseTerm::new(start, day, day);
        assert_eq!((renewed.renewed, renewed.expires), (start, start + day));
        let later = LeaseTerm::new(start + 60 * second, 86_339 * second, day);
        assert!(renewed.is_about(&later) && renewed != later, "a store counts whole seconds");
        assert!(!renewed.is_about(&LeaseTerm::new(start + 60 * second, day, day)), "it was renewed");
        // A record that is dated ahead lives longer than a renewal would let it.
        let ahead = LeaseTerm::new(start, 2 * day, day);
        assert_eq!((ahead.renewed, ahead.expires), (start, start + 2 * day));
        let json = serde_json::to_string(&LeaseTerm::new(SystemTime::UNIX_EPOCH + day, day, day)).unwrap();
        assert_eq!(json, r#"{"renewed":"1970-01-02T00:00:00.000Z","expires":"1970-01-03T00:00:00.000Z"}"#);
    }
}
