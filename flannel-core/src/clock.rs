//! Time for leases: it counts on while this machine is suspended.
//!
//! Tokio's timers run on `CLOCK_MONOTONIC`, which stands still during suspend, while the lease of a node expires in the
//! store. So ages and expiry of leases are counted in boot time (`CLOCK_BOOTTIME`), and code that waits for hours is
//! woken by a [`Jump`]. The kernel reports a jump by a timer that it cancels when `CLOCK_REALTIME` is set, and at each
//! resume (`timerfd_create(2)`, `TFD_TIMER_CANCEL_ON_SET`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId as Posix, clock_gettime};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

/// A shorter suspend is no jump: every timer may be late by that.
const SHORTEST: Duration = Duration::from_secs(1);
/// How often boot time is compared where the kernel can't report a jump.
const LOOK: Duration = Duration::from_secs(60);

/// The clocks of this machine, or those of a test.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<watch::Receiver<Shift>>);

/// How far the clocks of a test are ahead.
#[derive(Debug, Clone, Copy, Default)]
struct Shift {
    suspended: Duration,
    /// How far the wall clock is ahead of other hosts'.
    wall_ahead: Duration,
    /// How far the clock of the file system is ahead of this host's.
    files_ahead: Duration,
}

/// Why a timer that was set before can't be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jump {
    /// The machine was suspended for this long.
    Suspended(Duration),
    /// The wall clock was set.
    WallClockSet,
}

/// A moment in boot time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootInstant(Instant);

impl std::ops::Add<Duration> for BootInstant {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0 + time)
    }
}

impl BootInstant {
    /// The time from an earlier moment to this one; zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }
}

impl Clock {
    /// The present boot time. On a runtime with paused time it is the runtime's time.
    pub fn now(&self) -> BootInstant {
        BootInstant(Instant::now() + self.suspended())
    }

    /// The present wall-clock time, in which file times are given.
    pub(crate) fn wall(&self) -> SystemTime {
        let shift = self.0.as_ref().map(|shift| *shift.borrow()).unwrap_or_default();
        SystemTime::now() + shift.suspended + shift.wall_ahead
    }

    /// The time to set on a file; `None` for the present time of its file system's clock.
    pub(crate) fn file_time(&self) -> Option<SystemTime> {
        let shift = *self.0.as_ref()?.borrow();
        Some(SystemTime::now() + shift.suspended + shift.files_ahead)
    }

    /// Watches for jumps from now on.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time.
    pub fn jumps(&self) -> Jumps {
        let timer = if self.0.is_none() { Timer::new() } else { Err(Errno::ENOTSUP.into()) };
        let timer = timer
            .inspect_err(
                |error| debug!(%error, "no timer for clock jumps; boot time is compared once a minute"),
            )
            .ok();
        Jumps { suspended: self.suspended(), clock: self.clone(), timer }
    }

    /// How long this machine was suspended since it started, plus a constant.
    fn suspended(&self) -> Duration {
        if let Some(shift) = &self.0 {
            return shift.borrow().suspended;
        }
        let read = |clock| clock_gettime(clock).map(Duration::from).unwrap_or_default();
        let awake = read(Posix::CLOCK_MONOTONIC);
        read(Posix::CLOCK_BOOTTIME).saturating_sub(awake)
    }
}

/// Reports jumps of the clock. Each task that waits for long has its own.
#[derive(Debug)]
pub struct Jumps {
    clock: Clock,
    suspended: Duration,
    timer: Option<AsyncFd<Timer>>,
}

impl Jumps {
    /// Waits for the next jump. Dropping the future loses none.
    pub async fn next(&mut self) -> Jump {
        loop {
            match (&mut self.clock.0, &self.timer) {
                // The test has dropped its [`ClockHand`], so there will be no more jumps.
                (Some(shift), _) => match shift.changed().await {
                    Ok(()) => return self.compare().unwrap_or(Jump::WallClockSet),
                    Err(_) => std::future::pending().await,
                },
                (None, Some(timer)) => {
                    let Ok(mut ready) = timer.readable().await else {
                        self.timer = None;
                        continue;
                    };
                    ready.clear_ready();
                    drop(ready);
                }
                (None, None) => tokio::time::sleep(LOOK).await,
            }
            if let Some(jump) = self.take() {
                return jump;
            }
        }
    }

    /// Waits until the machine was suspended; whether the wall clock is set does not matter.
    pub async fn suspended(&mut self) -> Duration {
        loop {
            if let Jump::Suspended(time) = self.next().await {
                return time;
            }
        }
    }

    /// The jump that happened since the last one, if any; does not wait.
    pub fn take(&mut self) -> Option<Jump> {
        let was_set = match (&mut self.clock.0, &self.timer) {
            (Some(shift), _) => {
                let changed = shift.has_changed().unwrap_or(false);
                shift.mark_unchanged();
                changed
            }
            (None, Some(timer)) => timer.get_ref().was_cancelled(),
            (None, None) => false,
        };
        self.compare().or(was_set.then_some(Jump::WallClockSet))
    }

    fn compare(&mut self) -> Option<Jump> {
        let now = self.clock.suspended();
        let time = now.saturating_sub(self.suspended);
        if time < SHORTEST {
            return None;
        }
        self.suspended = now;
        Some(Jump::Suspended(time))
    }
}

/// A timer that never ends, but is cancelled when the wall clock jumps.
#[derive(Debug)]
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    fn new() -> io::Result<AsyncFd<Self>> {
        let timer =
            TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        timer.set(
            Expiration::OneShot(TimeSpec::new(i64::MAX, 0)),
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET,
        )?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; `Timer` owns its descriptor and never changes it"
        )]
        AsyncFd::new(Self(timer))
    }

    /// Whether it was cancelled since the last call; the kernel arms it again by itself.
    fn was_cancelled(&self) -> bool {
        self.0.wait() == Err(Errno::ECANCELED)
    }
}

/// Moves the clocks of a test.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug)]
pub struct ClockHand(watch::Sender<Shift>);

#[cfg(any(test, feature = "testing"))]
impl Clock {
    /// Clocks that jump when a test says so.
    pub fn with_hand() -> (Self, ClockHand) {
        let (hand, shift) = watch::channel(Shift::default());
        (Self(Some(shift)), ClockHand(hand))
    }
}

#[cfg(any(test, feature = "testing"))]
impl ClockHand {
    /// Simulates a suspend: boot time and wall clock advance, timers do not.
    pub fn suspend(&self, time: Duration) {
        self.0.send_modify(|shift| shift.suspended += time);
    }

    /// Sets this host's wall clock ahead of those of other hosts and of file systems.
    pub fn set_wall_ahead(&self, time: Duration) {
        self.0.send_modify(|shift| shift.wall_ahead = time);
    }

    /// Sets the clock of a file server ahead, which no host notices.
    pub fn set_file_clock_ahead(&self, time: Duration) {
        self.0.send_if_modified(|shift| {
            shift.files_ahead = time;
            false
        });
    }

    /// Simulates that the wall clock was set, to the same time.
    pub fn set_wall_clock(&self) {
        self.0.send_modify(|_| ());
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn boot_time_goes_on_in_suspend_and_whoever_waits_learns_of_it_once() {
        let (clock, hand) = Clock::with_hand();
        let (mut jumps, begin) = (clock.jumps(), clock.now());
        let mut late = clock.jumps();
        assert_eq!(jumps.next().now_or_never(), None);
        tokio::time::advance(Duration::from_secs(5)).await;
        let day = Duration::from_hours(24);
        hand.suspend(day);
        assert_eq!(clock.now().since(begin), day + Duration::from_secs(5));
        assert_eq!(jumps.next().await, Jump::Suspended(day));
        assert_eq!((jumps.next().now_or_never(), jumps.take()), (None, None));
        hand.set_wall_clock();
        assert_eq!(jumps.next().await, Jump::WallClockSet);
        assert_eq!(jumps.suspended().now_or_never(), None);
        // A task that did not wait gets all jumps as one.
        assert_eq!((late.take(), late.take()), (Some(Jump::Suspended(day)), None));
        // Nobody hears of a moment.
        hand.suspend(Duration::from_millis(900));
        assert_eq!(jumps.next().await, Jump::WallClockSet);
    }

    /// What the kernel takes; that it cancels the timer is in no test's power, since that needs a clock to be set.
    #[tokio::test(start_paused = true)]
    async fn the_kernels_timer_is_armed_and_silent() {
        let clock = Clock::default();
        let (mut jumps, begin) = (clock.jumps(), clock.now());
        assert!(jumps.timer.is_some());
        assert!(tokio::time::timeout(Duration::from_hours(48), jumps.next()).await.is_err());
        assert_eq!(jumps.take(), None);
        let passed = clock.now().since(begin);
        // The machine may be suspended right now, too.
        assert!(passed > Duration::from_hours(47), "{passed:?}");
    }
}
