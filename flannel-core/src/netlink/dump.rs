//! Dumps: lists that the kernel sends in many datagrams.
//!
//! A dump is collected completely before anything is returned, and repeated if the kernel says that the list changed
//! meanwhile (`NLM_F_DUMP_INTR`). Kernels do not always notice. On 6.18, while somebody removes FDB entries, one dump
//! in twenty skips up to a third of the others. Neighbours that are removed in *any* namespace sometimes hide one of
//! ours, since all namespaces share one table. So a list is no proof: an object that it lacks may exist, and one that
//! it has may be gone.

use neli::consts::nl::NlmF;
use neli::consts::rtnl::Rtm;
use neli::{Size, ToBytes};
use tokio::time::Instant;
use tracing::debug;

use super::message::{Datagram, Message, UnreadableMessage, Verdict, split};
use super::socket::{DEADLINE, Socket, failed, is_lost};
use crate::kernel::KernelError;

/// How many times a dump that changes interrupt is tried.
const TRIES: u32 = 10;

/// The socket for dumps.
pub(super) struct Dumps {
    socket: Socket,
    next: u32,
    /// The dump whose end was not read. The kernel starts no other one before.
    unfinished: Option<u32>,
}

enum Attempt<T> {
    Complete(Vec<T>),
    Interrupted,
    Refused(Verdict),
}

impl Dumps {
    /// Opens the socket.
    pub(super) fn open(receive_buffer: usize) -> Result<Self, KernelError> {
        let socket = Socket::open(&[], receive_buffer)?;
        socket.ask_for_texts();
        Ok(Self { socket, next: 1, unfinished: None })
    }

    /// Reads a list. `what` is a verb phrase for errors, `filter` the request, and `all` the request without a filter,
    /// for kernels that do not know the filter. So `decode` must filter again.
    pub(super) async fn dump<T, P: Size + ToBytes>(
        &mut self,
        what: &'static str,
        kind: Rtm,
        filter: impl Fn() -> P,
        all: impl Fn() -> P,
        decode: impl Fn(&Message<'_>) -> Result<Option<T>, UnreadableMessage>,
    ) -> Result<Vec<T>, KernelError> {
        let mut strict = true;
        for _ in 0..TRIES {
            strict = self.socket.be_strict(strict);
            let body = if strict { filter() } else { all() };
            match self.attempt(what, kind, body, &decode).await? {
                Attempt::Complete(list) => return Ok(list),
                Attempt::Interrupted => debug!(what, "list changed while it was read, reading it again"),
                Attempt::Refused(Verdict { errno: libc::EINVAL | libc::EOPNOTSUPP, .. }) if strict => {
                    debug!(what, "the kernel knows no such filter, reading all");
                    strict = false;
                }
                Attempt::Refused(verdict) => return Err(verdict.refused(what.to_owned())),
            }
        }
        Err(KernelError::Lost { what: what.to_owned() })
    }

    async fn attempt<T, P: Size + ToBytes>(
        &mut self,
        what: &'static str,
        kind: Rtm,
        body: P,
        decode: &impl Fn(&Message<'_>) -> Result<Option<T>, UnreadableMessage>,
    ) -> Result<Attempt<T>, KernelError> {
        self.finish().await?;
        let seq = self.next;
        self.next = self.next.checked_add(1).unwrap_or(1);
        let mut datagram = Datagram::default();
        datagram.push(kind, NlmF::DUMP, seq, body);
        self.socket.send(datagram.bytes()).await.map_err(|error| failed(error, "send", what))?;
        // Set only now, since a future that is dropped while it waits to send has started nothing.
        self.unfinished = Some(seq);

        let unreadable =
            |error: UnreadableMessage| KernelError::Unreadable { what, detail: error.to_string() };
        let (mut list, mut interrupted) = (Vec::new(), false);
        loop {
            let port = self.socket.port();
            let messages = self.socket.receive_until(Instant::now() + DEADLINE).await;
            for message in split(messages.map_err(|error| failed(error, "receive", what))?) {
                let message = message.map_err(unreadable)?;
                if message.seq != seq || message.port != port {
                    continue;
                }
                interrupted |= message.flags.contains(NlmF::DUMP_INTR);
                let Some(verdict) = message.verdict().map_err(unreadable)? else {
                    list.extend(decode(&message).map_err(unreadable)?);
                    continue;
                };
                self.unfinished = None;
                return Ok(match verdict.errno {
                    0 if interrupted => Attempt::Interrupted,
                    0 => Attempt::Complete(list),
                    _ => Attempt::Refused(verdict),
                });
            }
        }
    }

    /// Reads to the end of a dump that a dropped future or an error left unfinished.
    async fn finish(&mut self) -> Result<(), KernelError> {
        while let Some(seq) = self.unfinished {
            match self.socket.receive_until(Instant::now() + DEADLINE).await {
                Ok(messages) => {
                    let ended = |message: Message<'_>| message.seq == seq && message.verdict() != Ok(None);
                    if split(messages).any(|message| message.is_ok_and(ended)) {
                        self.unfinished = None;
                    }
                }
                // Nothing more will come.
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => self.unfinished = None,
                Err(error) if is_lost(&error) => {}
                Err(error) => return Err(failed(error, "receive", "finish a list")),
            }
        }
        Ok(())
    }
}
