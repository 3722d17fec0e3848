//! The store's part: its connection, requests, and how long it keeps the lease.

use std::time::{Duration, SystemTime};

use flannel_core::subnet::{RequestCount, StoreStatus};
use tokio::time::Instant;

use crate::catalogue as all;
use crate::output::{Output, Written};

/// The lease of this node. What is left is counted by this host's clock, so that the clock of the reader does not matter.
pub(super) fn lease(out: &mut Output<'_>, store: &StoreStatus, wall: SystemTime) -> Written {
    let left = store.lease_term.map(|term| term.expires.duration_since(wall).unwrap_or(Duration::ZERO));
    out.values(&all::LEASE_REMAINING, left.map(|left| ([], left.as_secs_f64())))
}

pub(super) fn store(out: &mut Output<'_>, store: &StoreStatus, now: Instant, wall: SystemTime) -> Written {
    out.value(&all::STORE_CONNECTED, u32::from(store.connected))?;
    let answered = store.confirmed.and_then(|confirmed| {
        let ago = now.saturating_duration_since(confirmed);
        wall.checked_sub(ago)?.duration_since(SystemTime::UNIX_EPOCH).ok()
    });
    out.values(&all::STORE_ANSWER, answered.map(|since| ([], since.as_secs_f64())))?;
    let requests = store.requests.read();
    out.counts(
        &all::STORE_REQUESTS,
        requests.iter().map(|RequestCount { request, sent, .. }| ([*request], *sent)),
    )?;
    let failures = requests.iter().map(|RequestCount { request, failed, .. }| ([*request], *failed));
    out.counts(&all::STORE_FAILURES, failures)?;
    out.durations(&all::STORE_REQUEST, &store.requests.took())
}
