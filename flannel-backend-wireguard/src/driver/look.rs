//! The cheap look between two resyncs: whether the devices count more errors than before.

use std::time::Duration;

use flannel_core::status::Counters;
use tokio::time::Instant;

/// How often the errors that the devices count are looked at. They grow when packets meet a peer that is gone or lost
/// an address, of which the kernel sends no notification.
const LOOK: Duration = Duration::from_secs(2);
/// The longest time between two looks while errors grow and nothing is found.
const LONGEST_LOOK: Duration = Duration::from_secs(60);

/// The cheap look between two resyncs.
pub(super) struct Look {
    /// When it is due.
    pub(super) next: Instant,
    every: Duration,
    /// The errors that the devices had counted at the last look.
    errors: Option<u64>,
    counters: Counters,
}

impl Look {
    /// A look at what these count.
    pub(super) fn new(counters: Counters) -> Self {
        Self { next: Instant::now() + LOOK, every: LOOK, errors: None, counters }
    }

    /// Looks, and says whether there are more errors than at the last look.
    pub(super) fn finds_more_errors(&mut self) -> bool {
        let counted = self.counters.read();
        let dropped = counted.iter().flat_map(|counters| &counters.dropped);
        let errors = dropped.filter(|it| it.reason.ends_with("_errors")).map(|it| it.packets).sum();
        let before = self.errors.replace(errors);
        let grew = before.is_some_and(|before| errors > before);
        self.every = if grew { (self.every * 2).min(LONGEST_LOOK) } else { LOOK };
        self.next = Instant::now() + self.every;
        grew
    }
}
