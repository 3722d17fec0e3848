//! What a repair was, and how long it took: from the kernel's notification (or, where there was none, from the look
//! that found the damage) to the last acknowledgement.

use std::time::Duration;

use tokio::time::Instant;

use crate::dataplane::ObjectKey;
use crate::events::{NetworkEvent, RepairCause};

/// The repair that is going on, if any.
#[derive(Debug, Default)]
pub(super) struct Repair {
    since: Option<(Instant, RepairCause)>,
    objects: usize,
    object: Option<ObjectKey>,
    device: bool,
}

impl Repair {
    /// The loop woke. Until it has nothing left to do, what it repairs counts from the first time.
    pub(super) fn begin(&mut self, now: Instant, cause: RepairCause) {
        self.since.get_or_insert((now, cause));
    }

    /// The resync is the reason for what is found now, unless something else was before.
    pub(super) fn found_by_resync(&mut self) {
        if let Some((_, cause @ RepairCause::Retry)) = &mut self.since {
            *cause = RepairCause::Resync;
        }
    }

    /// Objects were repaired, this one among them.
    pub(super) fn add(&mut self, objects: usize, object: Option<ObjectKey>) {
        self.objects += objects;
        self.object = self.object.or(object);
    }

    /// A device was repaired.
    pub(super) fn add_device(&mut self) {
        self.device = true;
    }

    /// Nothing is left to do: what was repaired, and in what time. `None` if nothing was.
    pub(super) fn end(&mut self, now: Instant) -> Option<(NetworkEvent, Duration)> {
        let Self { since, objects, object, device } = std::mem::take(self);
        let (since, cause) = since.filter(|_| objects > 0 || device)?;
        let took = now.saturating_duration_since(since);
        Some((NetworkEvent::Repaired { objects, object, device, cause, took }, took))
    }
}
