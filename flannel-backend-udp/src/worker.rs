//! The loop that moves the packets, run by one thread for both directions, by one for each, or by one that gets help
//! under high load.
//!
//! All memory is allocated before the first packet. A loop waits only in `poll`, except for a moment when a socket
//! buffer is full.

mod errors;
mod gso_memory;
mod handover;
mod rx;
mod train;
mod tx;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use flannel_core::addr::{Family, PerFamily};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use self::errors::{ErrorSender, Report};
use self::handover::Balance;
pub(crate) use self::handover::{Handover, Place};
use self::rx::RxPath;
use self::tx::TxPath;
use crate::counters::{Counters, Tally};
use crate::packet::IpHeader;
use crate::packet::icmp::IcmpError;
use crate::passage::{Batch, Passage};
use crate::socket::{ErrorSocket, UnderlaySocket};
use crate::tun::Tun;

/// What the threads share.
#[derive(Debug)]
pub(crate) struct Io {
    pub(crate) tun: Arc<Tun>,
    pub(crate) sockets: PerFamily<Arc<UnderlaySocket>>,
    pub(crate) errors: PerFamily<ErrorSocket>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) stop: EventFd,
    /// Present if two threads share the TUN.
    pub(crate) handover: Option<Handover>,
}

/// Which way a thread moves packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ways {
    Both,
    FromTun,
    ToTun,
    /// One or both, depending on the load.
    Shared(Place),
}

/// Why a loop ended.
#[derive(Debug)]
pub(crate) enum End {
    Stopped,
    TunGone,
    Failed(io::Error),
}

/// What a batch needs besides its own buffers.
pub(crate) struct Context<'a> {
    pub(crate) io: &'a Io,
    pub(crate) tally: &'a mut Tally,
    pub(crate) errors: &'a mut ErrorSender,
    pub(crate) now_ms: u64,
}

impl Context<'_> {
    /// Reports an error about a packet that was dropped, and counts that.
    fn report<B: Batch>(&mut self, error: Option<IcmpError>, packet: &[u8], ip: &IpHeader, batch: &B) {
        let Some(error) = error else { return };
        let from = batch.error_source(ip.family());
        match self.errors.send(error, packet, ip, from, self.io, self.now_ms) {
            Report::Sent => self.tally.errors_sent += 1,
            Report::Withheld => self.tally.errors_withheld += 1,
            Report::None => {}
        }
    }
}

/// One thread's loop.
pub(crate) struct Worker<'a, P> {
    io: &'a Io,
    passage: P,
    tx: Option<TxPath>,
    rx: Option<RxPath>,
    balance: Option<Balance>,
    errors: ErrorSender,
    tally: Tally,
    started: Instant,
}

impl<'a, P: Passage> Worker<'a, P> {
    pub(crate) fn new(io: &'a Io, passage: P, ways: Ways) -> Self {
        let now = Instant::now();
        let (sends, receives, place) = match ways {
            Ways::Both => (true, true, None),
            Ways::FromTun => (true, false, None),
            Ways::ToTun => (false, true, None),
            Ways::Shared(place) => (true, place == Place::First, Some(place)),
        };
        Self {
            io,
            passage,
            tx: sends.then(|| TxPath::new(io, P::SEALS)),
            rx: receives.then(|| RxPath::new(io, P::SEALS)),
            balance: place.map(|place| Balance::new(place, now)),
            errors: ErrorSender::new(),
            tally: Tally::default(),
            started: now,
        }
    }

    /// Moves packets until told to stop, or until it can't.
    pub(crate) fn run(mut self) -> End {
        loop {
            match self.turn(PollTimeout::NONE) {
                Ok(true) => {}
                Ok(false) => return End::Stopped,
                Err(error) => {
                    // EBADFD: the descriptor is no longer attached to anything.
                    let gone = matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV));
                    return if gone { End::TunGone } else { End::Failed(error) };
                }
            }
        }
    }

    /// Waits for work and does one batch of each kind; false when told to stop.
    pub(crate) fn turn(&mut self, timeout: PollTimeout) -> io::Result<bool> {
        let io = self.io;
        let shared = self.balance.as_ref().map(Balance::place).zip(io.handover.as_ref());
        // It is asked for before the wait and passed on after the batch, so no batch is read without it.
        let held = shared.and_then(|(place, handover)| handover.held(place));
        let reads_tun = self.tx.is_some() && (shared.is_none() || held.is_some());
        let tun = if reads_tun { PollFlags::POLLIN } else { PollFlags::empty() };
        // For a missing socket the event is polled twice.
        let socket = |family| io.sockets.get(family).map_or(io.stop.as_fd(), |socket| socket.as_fd());
        let waker = shared.map_or(io.stop.as_fd(), |(place, handover)| handover.waker(place));
        let mut fds = [
            PollFd::new(io.stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(io.tun.as_fd(), tun),
            PollFd::new(waker, PollFlags::POLLIN),
            PollFd::new(socket(Family::V4), PollFlags::POLLIN),
            PollFd::new(socket(Family::V6), PollFlags::POLLIN),
        ];
        // A thread without this direction must not poll the sockets at all: an error would wake it, and it could not
        // clear the error.
        let watched = if self.rx.is_some() { 5 } else { 3 };
        let before = self.balance.is_some().then(Instant::now);
        match poll(&mut fds[..watched], timeout) {
            Ok(0) | Err(nix::Error::EINTR) => return Ok(true),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if !ready[0].is_empty() {
            return Ok(false);
        }
        let now = Instant::now();
        if let (Some(balance), Some(before)) = (&mut self.balance, before) {
            let to_tun = !ready[3].is_empty() || !ready[4].is_empty();
            balance.note(now - before, !ready[1].is_empty(), to_tun);
        }
        if let Some((place, handover)) = shared.filter(|_| !ready[2].is_empty()) {
            handover.awoken(place);
        }
        let mut batch = self.passage.begin(now);
        let now_ms = u64::try_from((now - self.started).as_millis()).unwrap_or(u64::MAX);
        let mut context = Context { io, tally: &mut self.tally, errors: &mut self.errors, now_ms };
        let mut result = Ok(());
        if let Some(rx) = &mut self.rx {
            for (family, ready) in Family::ALL.into_iter().zip(&ready[3..]) {
                if let Some(socket) = io.sockets.get(family).filter(|_| !ready.is_empty()) {
                    rx.turn(socket, &mut batch, &mut context);
                }
            }
        }
        if let Some(tx) = self.tx.as_mut().filter(|_| reads_tun)
            && !ready[1].is_empty()
        {
            result = tx.turn(&mut batch, &mut context);
        } else if ready[1].contains(PollFlags::POLLERR) {
            result = Err(io::Error::from_raw_os_error(libc::EBADFD));
        }
        self.tally.publish(&io.counters);
        if let (Some(balance), Some(handover)) = (&mut self.balance, &io.handover) {
            balance.settle(handover, held, Instant::now());
        }
        result.map(|()| true)
    }
}

#[cfg(test)]
mod tests;
