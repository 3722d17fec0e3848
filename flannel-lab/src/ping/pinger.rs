//! The thread that sends echoes at a steady pace and takes in the replies.

use std::net::IpAddr;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Echo, Journal, PingOptions, PingReport};
use crate::LabError;
use crate::netns::Netns;
use crate::wait::{patiently, wait_for};

/// How long the thread sleeps at most before it looks whether to stop.
const NAP: Duration = Duration::from_millis(50);

/// Pings in the background until stopped or dropped.
#[derive(Debug)]
pub struct Pinger {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    start: Instant,
    stop: AtomicBool,
    journal: Mutex<Journal>,
}

impl Shared {
    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pinger {
    /// Starts to send an echo every interval from a namespace, without end.
    pub fn start(netns: &Netns, dst: IpAddr, options: PingOptions) -> Result<Self, LabError> {
        Self::start_counted(netns, dst, options, u64::MAX)
    }

    pub(super) fn start_counted(
        netns: &Netns,
        dst: IpAddr,
        options: PingOptions,
        count: u64,
    ) -> Result<Self, LabError> {
        let echo = Echo::open(netns, dst, &options)?;
        let shared = Arc::new(Shared {
            start: Instant::now(),
            stop: AtomicBool::new(false),
            journal: Mutex::new(Journal::counting(options.latest.map(patiently))),
        });
        let theirs = Arc::clone(&shared);
        let thread = thread::spawn(move || run(echo, &options, count, &theirs));
        Ok(Self { shared, thread: Some(thread) })
    }

    /// How many were sent and how many answered so far. The last ones may still be on their way.
    pub fn counts(&self) -> (u64, u64) {
        self.shared.journal().counts()
    }

    /// Waits until this many more replies came: for "it works again", or "it has begun".
    pub fn wait_for_replies(&self, more: u64, deadline: Duration) -> Result<(), LabError> {
        let wanted = self.counts().1 + more;
        wait_for(deadline, &format!("{more} more echo replies"), || match self.counts() {
            (_, received) if received >= wanted => Ok(()),
            (sent, received) => Err(format!("{received} of {sent} answered")),
        })
    }

    /// Sends no more, waits for the replies on their way, the time-out at most, and reports.
    pub fn stop(self) -> PingReport {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.finish()
    }

    /// Waits until all are sent and answered or given up, and reports.
    pub(super) fn finish(mut self) -> PingReport {
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            resume_unwind(panic);
        }
        self.shared.journal().report(self.shared.start.elapsed())
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        // The thread ends by itself soon.
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn run(mut echo: Echo, options: &PingOptions, count: u64, shared: &Shared) {
    let mut next = shared.start;
    let mut last = shared.start;
    let mut number = 0;
    let timeout = patiently(options.timeout);
    loop {
        let stopped = number >= count || shared.stop.load(Ordering::Relaxed);
        let now = Instant::now();
        if !stopped && now >= next {
            // The journal is written first, so that a reply can't come before its entry.
            shared.journal().sent(now - shared.start);
            if let Err(error) = echo.send(number) {
                shared.journal().last_error = Some(error.to_string());
            }
            number += 1;
            last = now;
            // After a delay there is no burst: it would be answered at once and hide the delay.
            next = (next + options.interval).max(now);
        }
        receive_replies(&mut echo, shared);
        let (sent, received) = shared.journal().counts();
        let give_up = last + timeout;
        if stopped && (sent == received || Instant::now() >= give_up) {
            return;
        }
        let until = if stopped { give_up } else { next };
        echo.wait(until.saturating_duration_since(Instant::now()).min(NAP));
    }
}

fn receive_replies(echo: &mut Echo, shared: &Shared) {
    loop {
        match echo.receive() {
            Ok(Some(number)) => {
                let at = shared.start.elapsed();
                shared.journal().received(number, at);
            }
            Ok(None) => return,
            // An error stands for one ICMP message, of an unreachable host say; the next may be a
            // reply.
            Err(error) => shared.journal().last_error = Some(error.to_string()),
        }
    }
}
