//! What a repair was, and how long it took: from the kernel's announcement (or, where there was none, from the
//! look that found the damage) to the last acknowledgement.

use std::time::Duration;

use tokio::time::Instant;

/// The repair that is going on, if any.
#[derive(Debug, Default)]
pub(super) struct Repair {
    since: Option<Instant>,
    ops: usize,
    devices: bool,
}

impl Repair {
    /// The loop woke. Until it has nothing left to do, what it repairs counts from the first time.
    pub(super) fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Objects were repaired.
    pub(super) fn add(&mut self, ops: usize) {
        self.ops += ops;
    }

    /// Devices were repaired.
    pub(super) fn add_devices(&mut self) {
        self.devices = true;
    }

    /// Nothing is left to do: how many objects were repaired, and in what time. `None` if nothing was.
    pub(super) fn end(&mut self, now: Instant) -> Option<(usize, Duration)> {
        let Self { since, ops, devices } = std::mem::take(self);
        let since = since.filter(|_| ops > 0 || devices)?;
        Some((ops, now.saturating_duration_since(since)))
    }
}
