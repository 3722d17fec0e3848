//! The resync: when to read everything again without a notification, since notifications get lost and some changes
//! cause none.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::jitter;

/// The time between two resyncs, before a jitter of a tenth.
pub(crate) const PERIOD: Duration = Duration::from_secs(60);

/// When the next resync after one at `now` is due. The jitter keeps nodes that start together from reading together.
pub(crate) fn next(now: Instant) -> Instant {
    now + jitter(PERIOD, 0.1)
}
