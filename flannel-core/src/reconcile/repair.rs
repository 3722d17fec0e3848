//! What was repaired, and how long it took: from the kernel's notification (or, if there was none, from the read that
//! found the damage) to the last acknowledgement.

use std::time::Duration;

use tokio::time::Instant;

use crate::dataplane::ObjectKey;
use crate::events::{NetworkEvent, RepairCause};

/// The repair in progress, if any.
#[derive(Debug, Default)]
pub(super) struct Repair {
    since: Option<(Instant, RepairCause)>,
    objects: usize,
    object: Option<ObjectKey>,
    device: bool,
}

impl Repair {
    /// Starts the time of a repair, when the loop wakes. Further calls until [`Self::end`] change nothing.
    pub(super) fn begin(&mut self, now: Instant, cause: RepairCause) {
        self.since.get_or_insert((now, cause));
    }

    /// Makes the resync the cause, unless there was another one before.
    pub(super) fn found_by_resync(&mut self) {
        if let Some((_, cause @ RepairCause::Retry)) = &mut self.since {
            *cause = RepairCause::Resync;
        }
    }

    /// Adds repaired objects, of which `object` is one.
    pub(super) fn add(&mut self, objects: usize, object: Option<ObjectKey>) {
        self.objects += objects;
        self.object = self.object.or(object);
    }

    /// Adds a repaired device.
    pub(super) fn add_device(&mut self) {
        self.device = true;
    }

    /// Ends the repair when nothing is left to do. Returns what was repaired in what time; `None` if nothing was.
    pub(super) fn end(&mut self, now: Instant) -> Option<(NetworkEvent, Duration)> {
        let Self { since, objects, object, device } = std::mem::take(self);
        let (since, cause) = since.filter(|_| objects > 0 || device)?;
        let took = now.saturating_duration_since(since);
        Some((NetworkEvent::Repaired { objects, object, device, cause, took }, took))
    }
}
