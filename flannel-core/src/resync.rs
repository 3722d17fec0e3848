//! When everything is read again although nothing was announced: notifications get lost, and some changes have none.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::jitter;

/// How often at most everything is read again, give or take a tenth.
pub(crate) const PERIOD: Duration = Duration::from_secs(60);

/// When the resync after one at `now` is due. The jitter keeps nodes that start together from reading together.
pub(crate) fn next(now: Instant) -> Instant {
    now + jitter(PERIOD, 0.1)
}
