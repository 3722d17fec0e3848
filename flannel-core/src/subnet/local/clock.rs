//! The clock of the folder's file system (on NFS the server's, else the host's own). Leases are dated by it and
//! compared with it, so a wrong wall clock on one host expires neither its own leases nor those of others.
//!
//! On file systems where each host dates files by its own clock (CIFS, GFS2, OCFS2), the clocks of all hosts must be in
//! step; leases that are dated in the future are reported.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tracing::debug;

use super::files::{Ahead, Folder, TOLERANCE};
use crate::clock::{BootInstant, Clock};
use crate::subnet::allocate::holder;

/// How long the folder's time is computed from boot time before it is read again. To read it, a file is dated.
pub(super) const RECHECK: Duration = Duration::from_secs(60);
/// By how much the wall clock may drift from boot time before the folder's clock is read again.
const SET: Duration = Duration::from_secs(1);

/// The folder's clock.
#[derive(Debug)]
pub(super) struct FolderClock {
    clock: Clock,
    last: Mutex<Option<Reading>>,
    /// When it was last found to have been set.
    set: Mutex<Option<BootInstant>>,
}

/// The times of three clocks at one moment.
#[derive(Debug, Clone, Copy)]
struct Reading {
    folder: SystemTime,
    wall: SystemTime,
    boot: BootInstant,
}

/// A time of the folder's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Now {
    /// The time.
    pub(super) time: SystemTime,
    /// Whether the folder's clock was read just now.
    pub(super) is_fresh: bool,
}

impl FolderClock {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, last: Mutex::default(), set: Mutex::default() }
    }

    /// The present time. It reads the folder's clock if the last reading is too old.
    pub(super) fn now(&self, folder: &Folder) -> Now {
        let (boot, wall) = (self.clock.now(), self.clock.wall());
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last {
            Some(last) if last.is_current(wall, boot) => Now { time: last.at(boot), is_fresh: false },
            _ => self.look(folder),
        }
    }

    /// Reads the folder's clock. If that fails, the time is computed from the last reading, or else is the host's.
    pub(super) fn look(&self, folder: &Folder) -> Now {
        let read = folder.time(self.clock.file_time());
        let (boot, wall) = (self.clock.now(), self.clock.wall());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(time) => {
                if last.is_some_and(|last| apart(last.at(boot), time) > TOLERANCE) {
                    *self.set.lock().unwrap_or_else(PoisonError::into_inner) = Some(boot);
                }
                *last = Some(Reading { folder: time, wall, boot });
                Now { time, is_fresh: true }
            }
            Err(error) => {
                debug!(%error, "the clock of the folder can't be read");
                Now { time: last.map_or(wall, |last| last.at(boot)), is_fresh: false }
            }
        }
    }

    /// When it was last found to have been set.
    pub(super) fn last_set(&self) -> Option<BootInstant> {
        *self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wrong with the clocks, for operators.
    pub(super) fn problem(&self, ahead: &Ahead) -> Option<String> {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let host = last.filter(|last| apart(last.wall, last.folder) > TOLERANCE).map(|last| {
            let side = if last.wall > last.folder { "ahead of" } else { "behind" };
            let apart = apart(last.wall, last.folder).as_secs();
            format!("the clock of this host is {apart} s {side} that of the store's folder, which leases are dated by")
        });
        let Some((lease, by)) = &ahead.farthest else { return host.map(|host| host + IN_STEP) };
        let more = if ahead.count > 1 { format!(" and {} more", ahead.count - 1) } else { String::new() };
        let theirs = format!(
            "lease {} of {}{more} is dated {} s ahead of the folder's clock",
            lease.key,
            holder(&lease.attrs),
            by.as_secs()
        );
        Some(host.into_iter().chain([theirs]).collect::<Vec<_>>().join("; ") + IN_STEP)
    }
}

const IN_STEP: &str = "; let all hosts set their clocks by one source (NTP)";

impl Reading {
    fn is_current(&self, wall: SystemTime, boot: BootInstant) -> bool {
        let passed = boot.since(self.boot);
        passed < RECHECK && apart(self.wall + passed, wall) < SET
    }

    fn at(&self, boot: BootInstant) -> SystemTime {
        self.folder + boot.since(self.boot)
    }
}

fn apart(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other).unwrap_or_else(|error| error.duration())
}
