//! What was repaired, and how long it took: from the kernel's notification (or, if there was none, from the read that
//! found the damage) to the last acknowledgement.

use std::time::Duration;

use tokio::time::Instant;

use crate::dataplane::NamedObject;
use crate::events::{NetworkEvent, RepairCause};
use crate::status::{RepairCounts, RepairKind};

/// The repair in progress, if any.
#[derive(Debug, Default)]
pub(super) struct Repair {
    since: Option<(Instant, RepairCause)>,
    objects: usize,
    object: Option<NamedObject>,
    device: bool,
    /// How many things of each kind.
    kinds: Tally,
}

/// How many things of each kind, in the order of [`RepairKind::ALL`].
pub(super) type Tally = [u64; RepairKind::ALL.len()];

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
    pub(super) fn add(&mut self, objects: usize, object: Option<NamedObject>, kinds: &Tally) {
        self.objects += objects;
        self.object = self.object.take().or(object);
        self.kinds.iter_mut().zip(kinds).for_each(|(all, more)| *all += more);
    }

    /// Adds a repaired device.
    pub(super) fn add_device(&mut self) {
        self.device = true;
        self.kinds[RepairKind::Device as usize] += 1;
    }

    /// Ends the repair when nothing is left to do, and counts it in `all`. Returns what was repaired in what time; `None`
    /// if nothing was.
    pub(super) fn end(&mut self, now: Instant, all: &mut RepairCounts) -> Option<(NetworkEvent, Duration)> {
        let Self { since, objects, object, device, kinds } = std::mem::take(self);
        let (since, cause) = since.filter(|_| objects > 0 || device)?;
        let took = now.saturating_duration_since(since);
        RepairKind::ALL.iter().zip(kinds).for_each(|(kind, count)| all.add(*kind, cause, count));
        Some((NetworkEvent::Repaired { objects, object, device, cause, took }, took))
    }
}
