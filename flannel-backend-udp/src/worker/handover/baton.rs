//! Which of two threads may read the TUN.
//!
//! `tests/handover.rs` compiles this file, too, with loom's atomics in place of the real ones, and tries all
//! interleavings.

use super::sync::{AtomicBool, Ordering};

/// Which of the two threads this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Receives datagrams, and reads the TUN under low load.
    First,
    /// Reads the TUN under high load, and sleeps otherwise.
    Second,
}

/// The right to read the TUN, which one of the two threads has.
#[derive(Debug)]
pub(crate) struct Baton {
    second_has_it: AtomicBool,
}

/// The right in the hands of one thread. While there is one, the other thread reads nothing, and what it read before went
/// out before.
#[derive(Debug)]
pub(crate) struct Held<'a>(&'a Baton, Place);

impl Baton {
    /// The first thread has it.
    pub(crate) fn new() -> Self {
        Self { second_has_it: AtomicBool::new(false) }
    }

    /// The right, if the thread in this place has it. Only that thread may ask, and for one turn at a time.
    pub(crate) fn held(&self, place: Place) -> Option<Held<'_>> {
        // Acquire: what the other thread sent before it gave the right away went out first.
        let second = self.second_has_it.load(Ordering::Acquire);
        (second == (place == Place::Second)).then_some(Held(self, place))
    }
}

impl Held<'_> {
    /// Passes it on. What was read until now must have been sent.
    pub(crate) fn give(self) {
        self.0.second_has_it.store(self.1 == Place::First, Ordering::Release);
    }
}
