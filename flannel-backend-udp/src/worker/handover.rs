//! Decides which thread reads the TUN, where a second one may help: one thread under low load, one for each direction
//! under high load.
//!
//! The thread that reads the TUN passes it on between two batches, never within one, so packets to one peer stay in
//! order. The first thread passes it to the second when both directions keep it busy; the second passes it back when
//! one thread can do the work of both.

mod baton;
mod sync {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering};
}

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use self::baton::Baton;
pub(crate) use self::baton::{Held, Place};

/// Load is measured over windows of this length.
const WINDOW: Duration = Duration::from_millis(5);
/// Busy for this share of a window, and with work in both directions, the first thread gets help: in percent.
const SPLIT: u32 = 70;
/// The sum of the threads' shares, in percent, below which one thread does all the work again. It is well below
/// `SPLIT`, so that they don't oscillate.
const JOIN: u32 = 35;
/// If the first thread's share is below this, in percent, all work is in one direction, and there is nothing to share.
const ALONE: u32 = 5;
/// How many windows in a row must be that quiet.
const QUIET_WINDOWS: u32 = 20;

/// What the two threads share.
#[derive(Debug)]
pub(crate) struct Handover {
    baton: Baton,
    /// How busy the first thread was in its last window, in percent.
    first_load: AtomicU32,
    /// When that window ended, in milliseconds since `started`.
    first_until: AtomicU64,
    started: Instant,
    to_first: EventFd,
    to_second: EventFd,
    /// How often the TUN changed hands, where a test has it change hands after each batch.
    #[cfg(test)]
    pub(super) restless: Option<AtomicU64>,
}

impl Handover {
    pub(crate) fn new() -> std::io::Result<Self> {
        let event = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        Ok(Self {
            baton: Baton::new(),
            first_load: AtomicU32::new(0),
            first_until: AtomicU64::new(0),
            started: Instant::now(),
            to_first: event()?,
            to_second: event()?,
            #[cfg(test)]
            restless: None,
        })
    }

    /// The right to read the TUN, if the thread in this place has it.
    pub(super) fn held(&self, place: Place) -> Option<Held<'_>> {
        self.baton.held(place)
    }

    /// Readable when the thread in this place has got the TUN.
    pub(super) fn waker(&self, place: Place) -> BorrowedFd<'_> {
        match place {
            Place::First => self.to_first.as_fd(),
            Place::Second => self.to_second.as_fd(),
        }
    }

    /// Resets the waker.
    pub(super) fn awoken(&self, place: Place) {
        let event = match place {
            Place::First => &self.to_first,
            Place::Second => &self.to_second,
        };
        // It fails only if it was reset already.
        let _ = event.read();
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    fn note_first(&self, load: u32, now: Instant) {
        self.first_load.store(load, Ordering::Relaxed);
        self.first_until.store(self.millis(now), Ordering::Relaxed);
    }

    /// The first thread's load; zero if it has closed no window for long, since then it sleeps.
    fn first_load(&self, now: Instant) -> u32 {
        let age = self.millis(now).saturating_sub(self.first_until.load(Ordering::Relaxed));
        if u128::from(age) > 4 * WINDOW.as_millis() { 0 } else { self.first_load.load(Ordering::Relaxed) }
    }

    /// Passes the TUN on, and wakes the thread that has it now.
    fn give(&self, from: Place, held: Held<'_>) {
        held.give();
        let event = if from == Place::First { &self.to_second } else { &self.to_first };
        // It fails only if the counter is full, and then it is readable.
        let _ = event.write(1);
    }
}

/// Measures one thread's load and decides when to pass the TUN on.
#[derive(Debug)]
pub(super) struct Balance {
    place: Place,
    since: Instant,
    waited: Duration,
    from_tun: bool,
    to_tun: bool,
    quiet: u32,
}

impl Balance {
    pub(super) fn new(place: Place, now: Instant) -> Self {
        Self { place, since: now, waited: Duration::ZERO, from_tun: false, to_tun: false, quiet: 0 }
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Records a wait, and in which directions there was work after it.
    pub(super) fn note(&mut self, waited: Duration, from_tun: bool, to_tun: bool) {
        self.waited += waited;
        self.from_tun |= from_tun;
        self.to_tun |= to_tun;
    }

    /// Closes the window if it is over, and passes the TUN on if that is better and this thread has it. What was read until
    /// now must have been sent.
    pub(super) fn settle(&mut self, handover: &Handover, held: Option<Held<'_>>, now: Instant) {
        #[cfg(test)]
        if let Some(given) = &handover.restless {
            if let Some(held) = held {
                given.fetch_add(1, Ordering::Relaxed);
                handover.give(self.place, held);
            }
            return;
        }
        let window = now.saturating_duration_since(self.since);
        if window < WINDOW {
            return;
        }
        let load = share(window.saturating_sub(self.waited), window);
        let both = self.from_tun && self.to_tun;
        *self = Self { quiet: self.quiet, ..Self::new(self.place, now) };
        match self.place {
            Place::First => {
                handover.note_first(load, now);
                if both
                    && load >= SPLIT
                    && let Some(held) = held
                {
                    handover.give(Place::First, held);
                }
            }
            Place::Second => {
                let first = handover.first_load(now);
                let quiet = first <= ALONE || load + first <= JOIN;
                // A window that was mostly a long sleep stands for many.
                let windows = u32::try_from(window.as_nanos() / WINDOW.as_nanos()).unwrap_or(u32::MAX);
                self.quiet = if quiet { self.quiet.saturating_add(windows) } else { 0 };
                if self.quiet >= QUIET_WINDOWS
                    && let Some(held) = held
                {
                    self.quiet = 0;
                    handover.give(Place::Second, held);
                }
            }
        }
    }
}

/// Percent.
fn share(part: Duration, of: Duration) -> u32 {
    u32::try_from(part.as_nanos() * 100 / of.as_nanos().max(1)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Windows of equal load, one after the other.
    fn windows(balance: &mut Balance, handover: &Handover, count: u32, load: u32, ways: (bool, bool)) {
        for _ in 0..count {
            balance.note(WINDOW * (100 - load) / 100, ways.0, ways.1);
            balance.settle(handover, handover.held(balance.place), balance.since + WINDOW);
        }
    }

    /// Windows of both threads, side by side.
    fn both(threads: &mut [Balance; 2], handover: &Handover, count: u32, loads: [u32; 2]) {
        threads[0].since = threads[1].since;
        for _ in 0..count {
            windows(&mut threads[0], handover, 1, loads[0], (false, true));
            windows(&mut threads[1], handover, 1, loads[1], (true, false));
        }
    }

    fn reads(handover: &Handover, place: Place) -> bool {
        handover.held(place).is_some()
    }

    /// The first thread passes the TUN on.
    fn pass(handover: &Handover) {
        handover.give(Place::First, handover.held(Place::First).unwrap());
    }

    fn threads() -> (Handover, [Balance; 2]) {
        let handover = Handover::new().unwrap();
        let now = handover.started;
        (handover, [Place::First, Place::Second].map(|place| Balance::new(place, now)))
    }

    #[test]
    fn the_tun_changes_hands_with_the_load() {
        let (handover, mut threads) = threads();
        let first = &mut threads[0];
        windows(first, &handover, 50, 60, (true, true));
        assert!(reads(&handover, Place::First) && !reads(&handover, Place::Second));
        windows(first, &handover, 50, 100, (true, false));
        assert!(reads(&handover, Place::First), "one direction is nothing to share");
        windows(first, &handover, 1, 100, (true, true));
        assert!(reads(&handover, Place::Second) && !reads(&handover, Place::First));
        assert_eq!(handover.to_second.read(), Ok(1));
        threads[1].since = threads[0].since;
        both(&mut threads, &handover, 100, [30, 30]);
        assert!(reads(&handover, Place::Second), "together too much for one that also has to answer soon");
        both(&mut threads, &handover, QUIET_WINDOWS - 1, [10, 10]);
        both(&mut threads, &handover, 1, [10, 90]);
        assert!(reads(&handover, Place::Second), "quiet has to last");
        both(&mut threads, &handover, QUIET_WINDOWS, [10, 10]);
        assert!(reads(&handover, Place::First));
        assert_eq!(handover.to_first.read(), Ok(1));
    }

    #[test]
    fn one_direction_is_not_shared() {
        for first in [Some(1), None] {
            let (handover, mut threads) = threads();
            pass(&handover);
            both(&mut threads, &handover, 50, [20, 100]);
            assert!(reads(&handover, Place::Second));
            match first {
                Some(load) => both(&mut threads, &handover, QUIET_WINDOWS, [load, 100]),
                // It sleeps, and its last word says nothing any more.
                None => windows(&mut threads[1], &handover, QUIET_WINDOWS + 5, 100, (true, false)),
            }
            assert!(reads(&handover, Place::First), "{first:?}");
        }
    }

    #[test]
    fn a_long_sleep_is_quiet_enough() {
        let (handover, [_, mut second]) = threads();
        pass(&handover);
        let slept = WINDOW * (QUIET_WINDOWS + 1);
        second.note(slept, true, false);
        second.settle(&handover, handover.held(Place::Second), handover.started + slept);
        assert!(reads(&handover, Place::First));
    }
}
