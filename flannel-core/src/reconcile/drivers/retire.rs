//! The end of a backend that nothing needs any more.

use std::time::Duration;

use tokio::time::Instant;

use super::Drivers;
use crate::events::NetworkEvent;
use crate::lease::LeaseAttrs;
use crate::status::Counters;

/// How long no packet must have come by a backend, after no record in the store offers it any more, before it ends. Peers move
/// their routes within milliseconds of a record; those without a connection to the store go on sending.
const QUIET: Duration = Duration::from_secs(10);
/// How often the counters are looked at meanwhile.
const LOOK: Duration = Duration::from_secs(1);

/// How far the end of a backend is.
pub(super) struct Leaving {
    /// Reads what its devices receive. A backend without a device of its own has none.
    counters: Counters,
    packets: Option<u64>,
    /// Since when nothing came; `None` while the store still offers it.
    quiet: Option<Instant>,
    /// When to look again.
    pub(super) look_at: Instant,
}

impl Leaving {
    fn new(counters: Counters) -> Self {
        Self { counters, packets: None, quiet: None, look_at: Instant::now() + LOOK }
    }

    /// Looks at the counters. Returns whether the backend may end. `is_withdrawn` tells whether no record in the store offers
    /// it, this node's among them.
    fn look(&mut self, is_withdrawn: bool, now: Instant) -> bool {
        self.look_at = now + LOOK;
        let packets = Some(self.counters.read().iter().map(|it| it.received.packets).sum());
        let is_busy = std::mem::replace(&mut self.packets, packets) != packets;
        if is_busy || !is_withdrawn {
            self.quiet = None;
        } else {
            self.quiet.get_or_insert(now);
        }
        self.quiet.is_some_and(|since| now >= since + QUIET)
    }
}

impl Drivers {
    /// Goes on with the end of the backends that are not among the wanted ones. Returns whether one ended.
    pub(super) fn retire(&mut self, wanted: &[&str]) -> bool {
        let now = Instant::now();
        let (record, netns) = (self.record.clone(), self.workshop.as_ref().map(|it| it.netns.clone()));
        let mut ended = Vec::new();
        for slot in &mut self.slots {
            if wanted.contains(&slot.kind) {
                slot.leaving = None;
                continue;
            }
            let names = slot.made.iter().map(|device| device.name.clone()).collect();
            let leaving = slot.leaving.get_or_insert_with(|| {
                let of_kernel = netns.clone().map(|netns| Counters::of_devices(netns, names));
                Leaving::new(of_kernel.unwrap_or_default().and(slot.counters.clone()))
            });
            let offers = |it: &LeaseAttrs| {
                it.backend_type == slot.published_type || it.receives.iter().any(|it| it.kind == slot.kind)
            };
            // A node whose record still has it may not know that it is over: its agent may be down, and its kernel send.
            let is_known = self.census.further(slot.kind) == 0;
            let is_withdrawn = is_known && record.as_ref().is_some_and(|record| !offers(record));
            if now >= leaving.look_at && leaving.look(is_withdrawn, now) {
                ended.push(slot.kind);
            }
        }
        self.slots.retain(|slot| !ended.contains(&slot.kind));
        for kind in &ended {
            self.events.push(NetworkEvent::BackendEnded { backend: (*kind).to_owned() });
        }
        !ended.is_empty()
    }
}
