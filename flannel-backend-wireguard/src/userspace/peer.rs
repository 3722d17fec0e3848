//! One peer: its sessions, its endpoint, its counters and its timers.
//!
//! A peer that is quiet costs nothing. The core's timers run for [`QUIET`] after the last packet, long enough for all that
//! a packet can make due; the next packet brings the core's clock up to date before anything else. What is left then is
//! one look after [`FORGET`], which drops the keys of a peer that stayed quiet, and persistent keepalives.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use flannel_backend_udp::datapath::{DropReason, Sealed};

use super::message::{Message, padded};
use super::noise::{Data, Due, Identity, LONGEST_HANDSHAKE, Tunnel};
use crate::device::{PeerChange, PeerState};
use crate::key::{PresharedKey, PublicKey};

/// How often the core's timers of a peer are looked at that is not quiet.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// Without a packet for this long a peer is quiet: longer than `KEEPALIVE_TIMEOUT + REKEY_TIMEOUT` (paper section 6.1).
const QUIET: Duration = Duration::from_secs(20);
/// After this time without a packet all keys are dropped: `REJECT_AFTER_TIME * 3` (paper section 6.3), and a second.
const FORGET: Duration = Duration::from_secs(541);
/// Least time between handshakes that messages of unknown sessions make us begin (`REKEY_TIMEOUT`).
const KNOCK: Duration = Duration::from_secs(5);
/// Packets that wait for a session at most; the core would drop more without a word.
const WAITING: usize = 256;
/// Room for a message that is made here: an initiation, or a packet that waited.
const ROOM: usize = 65536 + 48;

/// Where messages go that nobody waits for.
pub(crate) trait Post {
    /// Sends a message, or drops it.
    fn post(&self, message: &[u8], to: SocketAddr);

    /// A peer's timers have to be looked at again.
    fn arm(&self);
}

/// A peer of a device.
pub(crate) struct Peer {
    pub(crate) key: PublicKey,
    /// The upper 24 bits of the indices of its sessions.
    pub(crate) index: u32,
    inner: Mutex<Inner>,
}

struct Inner {
    tunnel: Option<Tunnel>,
    preshared_key: Option<PresharedKey>,
    endpoint: Option<SocketAddr>,
    keepalive: u16,
    last_handshake: Option<SystemTime>,
    rx_bytes: u64,
    tx_bytes: u64,
    /// Packets that wait for a session.
    waiting: usize,
    /// The index of the newest session of which both sides know that the other has it.
    confirmed: Option<u32>,
    timers: Timers,
}

/// What a peer's timers are counted from.
struct Timers {
    /// The core's clock.
    ticked: Instant,
    /// The last packet in either direction.
    active: Instant,
    /// Whether the core's timers are looked at.
    is_running: bool,
    /// When the keys of a quiet peer are dropped.
    forget: Option<Instant>,
    /// When the last handshake was begun because of an unknown session.
    knocked: Option<Instant>,
    /// When a handshake begins without a packet that asks for one.
    greet: Option<Instant>,
}

impl Peer {
    pub(crate) fn new(key: PublicKey, index: u32, identity: Option<&Identity>, now: Instant) -> Self {
        let timers =
            Timers { ticked: now, active: now, is_running: false, forget: None, knocked: None, greet: None };
        let inner = Inner {
            tunnel: identity.map(|identity| Tunnel::new(identity, key, None, index)),
            preshared_key: None,
            endpoint: None,
            keepalive: 0,
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            waiting: 0,
            confirmed: None,
            timers,
        };
        Self { key, index, inner: Mutex::new(inner) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the part of a change that concerns this peer alone.
    pub(crate) fn change(&self, change: &PeerChange, identity: Option<&Identity>, now: Instant) {
        let mut inner = self.inner();
        if let Some(shared) = &change.preshared_key
            && *shared != inner.preshared_key
        {
            inner.preshared_key.clone_from(shared);
            // The core can't change it; sessions of the former one end.
            inner.begin_again(self.key, self.index, identity);
        }
        if let Some(endpoint) = change.endpoint {
            inner.endpoint = Some(endpoint);
        }
        if let Some(keepalive) = change.keepalive {
            if inner.keepalive == 0 && keepalive > 0 {
                // The first one goes at once, as the kernel's does.
                let long_ago = now.checked_sub(Duration::from_secs(keepalive.into()));
                inner.timers.active = long_ago.unwrap_or(now);
            }
            inner.keepalive = keepalive;
        }
    }

    /// Begins with another key of the device, or with none: the sessions of the former one end.
    pub(crate) fn set_identity(&self, identity: Option<&Identity>) {
        self.inner().begin_again(self.key, self.index, identity);
    }

    /// Where packets for it go now.
    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        self.inner().endpoint
    }

    /// What is known of it, but for the allowed addresses.
    pub(crate) fn state(&self) -> PeerState {
        let inner = self.inner();
        PeerState {
            preshared_key: inner.preshared_key.clone(),
            endpoint: inner.endpoint,
            keepalive: inner.keepalive,
            last_handshake: inner.last_handshake,
            rx_bytes: inner.rx_bytes,
            tx_bytes: inner.tx_bytes,
            ..PeerState::default()
        }
    }

    /// Seals the packet in the first `len` bytes of `packet`; padding may overwrite up to 15 behind it.
    pub(crate) fn seal(
        &self,
        now: Instant,
        packet: &mut [u8],
        (len, mtu): (usize, usize),
        out: &mut [u8],
        post: &dyn Post,
    ) -> Result<Option<Sealed>, DropReason> {
        let mut inner = self.inner();
        let to = inner.endpoint.ok_or(DropReason::NoEndpoint)?;
        inner.catch_up(now, post);
        inner.touch(now, post);
        let Inner { tunnel, waiting, .. } = &mut *inner;
        let tunnel = tunnel.as_mut().ok_or(DropReason::NoSession)?;
        if *waiting >= WAITING && !tunnel.has_session() {
            return Err(DropReason::NoSession);
        }
        let padded = padded(len, mtu);
        packet[len..padded].fill(0);
        let sealed = tunnel.seal(&packet[..padded], out);
        if !sealed.is_some_and(|len| Message::is_data(&out[..len])) {
            *waiting += 1;
        }
        inner.tx_bytes += sealed.unwrap_or(0) as u64;
        Ok(sealed.map(|len| Sealed { len, to }))
    }

    /// Opens a data message of the session `receiver`.
    pub(crate) fn open(
        &self,
        now: Instant,
        from: SocketAddr,
        receiver: u32,
        message: &[u8],
        out: &mut [u8],
        post: &dyn Post,
    ) -> Result<Data, DropReason> {
        let mut inner = self.inner();
        inner.catch_up(now, post);
        let tunnel = inner.tunnel.as_mut().ok_or(DropReason::UnknownSession)?;
        let data = tunnel.open(message, out)?;
        inner.heard(now, from, message.len());
        if data != Data::Keepalive {
            inner.touch(now, post);
        }
        if is_newer(receiver, inner.confirmed) {
            inner.confirm(receiver, post);
        }
        Ok(data)
    }

    /// Reads a handshake message that passed the gate, and answers.
    pub(crate) fn handshake(
        &self,
        now: Instant,
        from: SocketAddr,
        message: &[u8],
        post: &dyn Post,
    ) -> Result<(), DropReason> {
        let mut inner = self.inner();
        inner.catch_up(now, post);
        let tunnel = inner.tunnel.as_mut().ok_or(DropReason::BadHandshake)?;
        let mut out = [0; LONGEST_HANDSHAKE];
        let answer = tunnel.handshake(message, &mut out)?;
        if Message::is_cookie(message) {
            // It is for the next attempt, and its sender isn't authenticated by more than what we sent.
            inner.rx_bytes += message.len() as u64;
            return Ok(());
        }
        inner.heard(now, from, message.len());
        inner.touch(now, post);
        if let Some(len) = answer {
            inner.send(&out[..len], post);
        }
        if Message::is_response(message)
            && let Some(receiver) = message[8..].first_chunk()
        {
            inner.confirm(u32::from_le_bytes(*receiver), post);
        }
        Ok(())
    }

    /// Begins a handshake because somebody at this peer's endpoint still uses a session that we don't have: after a restart
    /// of ours it would notice only after 15 seconds. What that costs is bounded, since nothing about it is authenticated.
    pub(crate) fn knock(&self, now: Instant, post: &dyn Post) {
        let mut inner = self.inner();
        let knocked = inner.timers.knocked;
        if knocked.is_some_and(|knocked| now.saturating_duration_since(knocked) < KNOCK) {
            return;
        }
        inner.timers.knocked = Some(now);
        inner.catch_up(now, post);
        inner.initiate(now, post);
    }

    /// Begins a handshake at this time, unless there is a session by then. The timers must be looked at afterwards.
    pub(crate) fn greet(&self, at: Instant) {
        self.inner().timers.greet = Some(at);
    }

    /// Looks at the timers and returns when they have to be looked at next.
    pub(crate) fn on_time(&self, now: Instant, post: &dyn Post) -> Option<Instant> {
        self.inner().on_time(now, post)
    }
}

impl Inner {
    fn begin_again(&mut self, key: PublicKey, index: u32, identity: Option<&Identity>) {
        let shared = self.preshared_key.as_ref();
        self.tunnel = identity.map(|identity| Tunnel::new(identity, key, shared, index));
        (self.waiting, self.confirmed) = (0, None);
    }

    /// Brings the core's clock up to date, without which it would take old keys for new ones.
    fn catch_up(&mut self, now: Instant, post: &dyn Post) {
        if now.saturating_duration_since(self.timers.ticked) >= TICK {
            self.tick(now, post);
        }
    }

    fn tick(&mut self, now: Instant, post: &dyn Post) {
        self.timers.ticked = now;
        let Some(tunnel) = &mut self.tunnel else { return };
        let mut out = [0; LONGEST_HANDSHAKE];
        match tunnel.tick(&mut out) {
            Due::Nothing => {}
            Due::Expired => self.waiting = 0,
            Due::Send(len) => {
                self.touch(now, post);
                self.send(&out[..len], post);
            }
        }
    }

    /// A packet came or goes after which timers matter. Keepalives are not among those.
    fn touch(&mut self, now: Instant, post: &dyn Post) {
        self.timers.active = now;
        if !self.timers.is_running {
            self.timers.is_running = true;
            post.arm();
        }
    }

    /// An authentic message came. Its sender is where the peer is now.
    fn heard(&mut self, now: Instant, from: SocketAddr, bytes: usize) {
        self.rx_bytes += bytes as u64;
        self.endpoint = Some(from);
        self.timers.active = now;
    }

    /// The session `receiver` is in use on both sides.
    fn confirm(&mut self, receiver: u32, post: &dyn Post) {
        self.confirmed = Some(receiver);
        self.last_handshake = Some(SystemTime::now());
        if std::mem::take(&mut self.waiting) == 0 {
            return;
        }
        // While the lock is held no newer packet overtakes these.
        let mut out = vec![0; ROOM];
        while let Some(len) = self.tunnel.as_mut().and_then(|tunnel| tunnel.next_waiting(&mut out)) {
            self.send(&out[..len], post);
        }
    }

    fn send(&mut self, message: &[u8], post: &dyn Post) {
        if let Some(to) = self.endpoint {
            self.tx_bytes += message.len() as u64;
            post.post(message, to);
        }
    }

    fn initiate(&mut self, now: Instant, post: &dyn Post) {
        let mut out = [0; LONGEST_HANDSHAKE];
        let Some(tunnel) = self.tunnel.as_mut().filter(|tunnel| !tunnel.has_session()) else { return };
        if let Some(len) = tunnel.initiate(&mut out) {
            self.touch(now, post);
            self.send(&out[..len], post);
        }
    }

    fn on_time(&mut self, now: Instant, post: &dyn Post) -> Option<Instant> {
        self.keep_alive(now, post);
        if self.timers.greet.is_some_and(|at| at <= now) {
            self.timers.greet = None;
            self.catch_up(now, post);
            self.initiate(now, post);
        }
        if self.timers.is_running {
            self.catch_up(now, post);
            if now.saturating_duration_since(self.timers.active) >= QUIET {
                self.timers.is_running = false;
                self.timers.forget = Some(self.timers.active + FORGET);
            }
        }
        if self.timers.is_running {
            let tick = now + TICK;
            return Some(self.timers.greet.map_or(tick, |at| at.min(tick)));
        }
        if self.timers.forget.is_some_and(|forget| forget <= now) {
            self.timers.forget = None;
            self.tick(now, post);
        }
        let keepalive = self.keepalive_due();
        [self.timers.forget, keepalive, self.timers.greet].into_iter().flatten().min()
    }

    /// When the next persistent keepalive is due.
    fn keepalive_due(&self) -> Option<Instant> {
        let wanted = self.keepalive > 0 && self.endpoint.is_some() && self.tunnel.is_some();
        wanted.then(|| self.timers.active + Duration::from_secs(self.keepalive.into()))
    }

    fn keep_alive(&mut self, now: Instant, post: &dyn Post) {
        if self.keepalive_due().is_none_or(|due| now < due) {
            return;
        }
        self.catch_up(now, post);
        self.timers.active = now;
        let mut out = [0; LONGEST_HANDSHAKE];
        match &mut self.tunnel {
            Some(tunnel) if tunnel.has_session() => {
                if let Some(len) = tunnel.seal(&[], &mut out) {
                    self.send(&out[..len], post);
                }
            }
            _ => self.initiate(now, post),
        }
    }
}

/// Whether a session began after the newest one that was confirmed. The last byte of an index counts a peer's sessions.
fn is_newer(receiver: u32, confirmed: Option<u32>) -> bool {
    confirmed.is_none_or(|confirmed| (1..128).contains(&(receiver as u8).wrapping_sub(confirmed as u8)))
}
