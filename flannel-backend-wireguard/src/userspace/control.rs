//! The thread that answers handshakes and looks at timers, so that neither delays packets.
//!
//! It sleeps until there is a handshake message, or until a timer is due. While all peers are quiet and none has a
//! persistent keepalive, no timer is.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use flannel_backend_udp::datapath::{Counters, DropReason, TableCell};

use super::noise::{Admitted, LONGEST_HANDSHAKE, Refused};
use super::peer::Post;
use super::table::Table;

/// Handshake messages that wait. More than this many come only in a flood.
const QUEUE: usize = 1024;

/// What the thread is told by others.
pub(crate) struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    messages: Vec<Letter>,
    timers_changed: bool,
    stops: bool,
}

/// A handshake message, and where it came from.
#[derive(Clone, Copy)]
struct Letter {
    bytes: [u8; LONGEST_HANDSHAKE],
    len: usize,
    from: SocketAddr,
}

impl Default for Inbox {
    fn default() -> Self {
        let state = State { messages: Vec::with_capacity(QUEUE), timers_changed: false, stops: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl Inbox {
    /// Passes on a handshake message; not if too many wait.
    pub(crate) fn push(&self, message: &[u8], from: SocketAddr) -> Result<(), DropReason> {
        let mut letter = Letter { bytes: [0; LONGEST_HANDSHAKE], len: message.len(), from };
        let bytes = letter.bytes.get_mut(..message.len()).ok_or(DropReason::BadMessage)?;
        bytes.copy_from_slice(message);
        self.tell(|state| {
            if state.messages.len() >= QUEUE {
                return Err(DropReason::HandshakeLimit);
            }
            state.messages.push(letter);
            Ok(())
        })
    }

    /// Has timers looked at again.
    pub(crate) fn arm(&self) {
        self.tell(|state| state.timers_changed = true);
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        self.tell(|state| state.stops = true);
    }

    fn tell<T>(&self, what: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = what(&mut state);
        self.changed.notify_one();
        result
    }

    /// Waits until there is something to do, or until `due`; false if the thread is to end. The messages are exchanged for
    /// `messages`, which must be empty.
    fn wait(&self, due: Option<Instant>, messages: &mut Vec<Letter>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.stops {
                return false;
            }
            let is_due = due.is_some_and(|due| due <= Instant::now());
            if !state.messages.is_empty() || std::mem::take(&mut state.timers_changed) || is_due {
                std::mem::swap(&mut state.messages, messages);
                return true;
            }
            state = match due {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let left = due.saturating_duration_since(Instant::now());
                    let woken = self.changed.wait_timeout(state, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// The thread's loop.
pub(crate) fn run(inbox: &Inbox, cell: &Arc<TableCell<Table>>, counters: &Counters, post: &dyn Post) {
    let mut messages = Vec::with_capacity(QUEUE);
    let mut due = None;
    while inbox.wait(due, &mut messages) {
        let (table, now) = (cell.get(), Instant::now());
        for letter in messages.drain(..) {
            let message = &letter.bytes[..letter.len];
            if let Err(reason) = answer(&table, letter.from, message, now, post) {
                counters.dropped(reason, 1);
            }
        }
        due = table.peers().iter().filter_map(|peer| peer.on_time(now, post)).min();
    }
}

/// Checks a handshake message and answers it.
pub(crate) fn answer(
    table: &Table,
    from: SocketAddr,
    message: &[u8],
    now: Instant,
    post: &dyn Post,
) -> Result<(), DropReason> {
    let identity = table.identity.as_ref().ok_or(DropReason::BadHandshake)?;
    identity.replenish();
    let mut reply = [0; LONGEST_HANDSHAKE];
    let peer = match identity.admit(from.ip(), message, &mut reply) {
        Ok(Admitted::Initiation(key)) => table.of_key(&key),
        Ok(Admitted::Answer(receiver)) => table.of_session(receiver).map(|(_, peer)| peer),
        Err(Refused::Invalid) => None,
        Err(Refused::Cookie(len)) => {
            post.post(&reply[..len], from);
            return Err(DropReason::HandshakeLimit);
        }
    };
    peer.ok_or(DropReason::BadHandshake)?.handshake(now, from, message, post)
}
