//! The engine for requests: many messages in one datagram, one acknowledgement, failures matched by sequence number.
//!
//! The kernel processes the whole datagram before `send` returns. It goes on after a message that fails, and answers
//! every failure. It answers success only if asked to, and only the last message asks. So the answer to the last
//! message, ACK or error, ends the batch.
//!
//! If a caller drops the future between `send` and the answers, the operations are done but the answers are not read.
//! The next request finds them in the socket and skips them, since their sequence numbers are not its own. So no
//! background task is needed.

use tokio::time::Instant;
use tracing::debug;

use super::encode;
use super::message::{Datagram, Message, UnreadableMessage, Verdict, split};
use super::next_hops::NextHops;
use super::socket::{DEADLINE, Socket, failed};
use crate::dataplane::{NextHop, Object, Op, Route, Through};
use crate::kernel::{KernelError, Refusal};

/// The number of messages in one datagram. Larger numbers are not faster; this one takes 1 ms, and its failures fit
/// into the default receive buffer.
const BATCH: usize = 192;

/// How many times new ids are tried for next-hop objects.
const TRIES: usize = 16;

/// The socket for requests that are answered once.
pub(super) struct Requests {
    socket: Socket,
    next: u32,
}

impl Requests {
    /// Opens the socket.
    pub(super) fn open(receive_buffer: usize) -> Result<Self, KernelError> {
        let socket = Socket::open(&[], receive_buffer)?;
        socket.ask_for_texts();
        Ok(Self { socket, next: 1 })
    }

    /// Reserves `count` consecutive sequence numbers, none of them 0, and returns the first.
    fn numbers(&mut self, count: u32) -> u32 {
        let first = if self.next.checked_add(count).is_some() { self.next } else { 1 };
        self.next = first + count;
        first
    }

    /// The socket's port id (`nl_pid`), which notifications of our own changes carry.
    pub(super) fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Tries every operation and returns those that failed.
    pub(super) async fn execute(
        &mut self,
        ops: &[Op],
        next_hops: &mut NextHops,
    ) -> Result<Vec<Refusal>, KernelError> {
        let mut refusals = Vec::new();
        let mut rest = ops;
        while !rest.is_empty() {
            let (batch, more) = rest.split_at(batch_len(rest));
            rest = more;
            let mut again = self.attempt(batch, next_hops, &mut refusals).await?;
            for _ in 1..TRIES {
                if again.is_empty() {
                    break;
                }
                next_hops.jump();
                again = self.attempt(&again, next_hops, &mut refusals).await?;
            }
            let reason = || format!("no free number was found in {TRIES} tries");
            refusals.extend(again.into_iter().map(|op| Refusal {
                op,
                errno: libc::EEXIST,
                reason: reason(),
            }));
        }
        debug!(ops = ops.len(), refused = refusals.len(), "operations carried out");
        Ok(refusals)
    }

    /// Sends one batch. Returns the next-hop objects whose new ids are already in use.
    async fn attempt(
        &mut self,
        batch: &[Op],
        next_hops: &mut NextHops,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Vec<Op>, KernelError> {
        let mut sent: Vec<(Op, Option<u32>)> = Vec::with_capacity(batch.len());
        for op in batch {
            match numbered(op, next_hops) {
                Numbered::With(number) => sent.push((*op, number)),
                Numbered::Done => {}
                Numbered::Impossible(refusal) => refusals.push(refusal),
            }
        }
        if sent.is_empty() {
            return Ok(Vec::new());
        }
        let what = || format!("carry out {} operations", batch.len());
        let first = self.numbers(sent.len() as u32);
        let mut datagram = Datagram::default();
        for (seq, (op, number)) in (first..).zip(&sent) {
            encode::op(&mut datagram, op, *number, seq, seq - first + 1 == sent.len() as u32);
        }
        let (mut again, mut errnos) = (Vec::new(), vec![0; sent.len()]);
        self.exchange(&datagram, first, sent.len(), &what, |at, reply| {
            if let Some(verdict) = reply.verdict()? {
                let (op, _) = sent[at];
                errnos[at] = verdict.errno;
                match op {
                    Op::Create(Object::NextHop(_)) | Op::Replace(Object::NextHop(_))
                        if verdict.errno == libc::EEXIST =>
                    {
                        again.push(op);
                    }
                    _ => refusals.extend(refusal(op, verdict)),
                }
            }
            Ok(())
        })
        .await?;
        for ((op, number), errno) in sent.into_iter().zip(errnos) {
            match (op, number, errno) {
                (Op::Create(Object::NextHop(it)) | Op::Replace(Object::NextHop(it)), Some(number), 0) => {
                    next_hops.created(number, it);
                }
                (Op::Delete(Object::NextHop(_)), Some(number), 0 | libc::ENOENT) => {
                    _ = next_hops.forget(number);
                }
                _ => {}
            }
        }
        Ok(again)
    }

    /// Sends one request, and reads its answer, a message or a verdict.
    pub(super) async fn ask<T>(
        &mut self,
        what: impl Fn() -> String,
        encode: impl FnOnce(&mut Datagram, u32),
        mut decode: impl FnMut(&Message<'_>) -> Result<T, UnreadableMessage>,
    ) -> Result<Answer<T>, KernelError> {
        let seq = self.numbers(1);
        let mut datagram = Datagram::default();
        encode(&mut datagram, seq);
        let mut answer = None;
        self.exchange(&datagram, seq, 1, &what, |_, reply| {
            answer = Some(match reply.verdict()? {
                Some(verdict) => Answer::Verdict(verdict),
                None => Answer::Message(decode(reply)?),
            });
            Ok(())
        })
        .await?;
        Ok(answer.expect("the exchange ends with the answer"))
    }

    /// Sends a datagram of `count` messages numbered from `first`, and passes on each answer with the position of its
    /// request, until the last is answered.
    async fn exchange(
        &mut self,
        datagram: &Datagram,
        first: u32,
        count: usize,
        what: &impl Fn() -> String,
        mut answered: impl FnMut(usize, &Message<'_>) -> Result<(), UnreadableMessage>,
    ) -> Result<(), KernelError> {
        let unreadable = |error: UnreadableMessage| KernelError::Unreadable {
            what: "a request",
            detail: error.to_string(),
        };
        self.socket.send(datagram.bytes()).await.map_err(|error| failed(error, "send", &what()))?;
        let deadline = Instant::now() + DEADLINE;
        let port = self.socket.port();
        loop {
            let replies = self.socket.receive_until(deadline).await;
            let replies = replies.map_err(|error| failed(error, "receive", &what()))?;
            let mut last = false;
            for reply in split(replies) {
                let reply = reply.map_err(unreadable)?;
                let at = reply.seq.wrapping_sub(first) as usize;
                if reply.port == port && at < count {
                    answered(at, &reply).map_err(unreadable)?;
                    last |= at + 1 == count;
                }
            }
            if last {
                return Ok(());
            }
        }
    }
}

/// What the kernel answered.
pub(super) enum Answer<T> {
    /// A message with the requested data.
    Message(T),
    /// Success without a message, or a failure.
    Verdict(Verdict),
}

/// How many operations go into the next datagram. Routes come in a later datagram than the next-hop objects that they
/// go through: if an object's id turned out to be in use, they would go through somebody else's object.
fn batch_len(ops: &[Op]) -> usize {
    let mut creates = false;
    for (at, op) in ops.iter().enumerate().take(BATCH) {
        match op {
            Op::Create(Object::NextHop(_)) | Op::Replace(Object::NextHop(_)) => creates = true,
            Op::Create(Object::Route(_)) | Op::Replace(Object::Route(_)) if creates => return at,
            _ => {}
        }
    }
    ops.len().min(BATCH)
}

/// What to do with an operation, with regard to next-hop objects.
enum Numbered {
    /// Send it, with the id of its next-hop object.
    With(Option<u32>),
    /// Nothing: the object to delete does not exist.
    Done,
    /// It can't be sent.
    Impossible(Refusal),
}

fn numbered(op: &Op, next_hops: &mut NextHops) -> Numbered {
    let of = |route: &Route, next_hops: &NextHops| {
        let spare = if let Through::Spare(number) = route.through { Some(number) } else { None };
        let next_hop = NextHop { link: route.link?, gateway: route.via?, spare };
        next_hops.number_of(&next_hop)
    };
    match op {
        Op::Create(Object::NextHop(_)) | Op::Replace(Object::NextHop(_)) => {
            Numbered::With(Some(next_hops.new_number()))
        }
        Op::Delete(Object::NextHop(it)) => {
            next_hops.number_of(it).map_or(Numbered::Done, |number| Numbered::With(Some(number)))
        }
        Op::Delete(Object::Route(route)) => Numbered::With(of(route, next_hops)),
        Op::Create(Object::Route(route)) | Op::Replace(Object::Route(route)) => {
            match (route.through, of(route, next_hops)) {
                (Through::Itself | Through::Nowhere, _) => Numbered::With(None),
                (_, Some(number)) => Numbered::With(Some(number)),
                (_, None) => Numbered::Impossible(Refusal {
                    op: *op,
                    errno: libc::EINVAL,
                    reason: "its next-hop object does not exist".to_owned(),
                }),
            }
        }
        _ => Numbered::With(None),
    }
}

fn refusal(op: Op, verdict: Verdict) -> Option<Refusal> {
    let absent = match op {
        Op::Delete(Object::Address(_)) => {
            matches!(verdict.errno, libc::EADDRNOTAVAIL | libc::ENOENT | libc::ESRCH)
        }
        Op::Delete(_) => matches!(verdict.errno, libc::ENOENT | libc::ESRCH),
        _ => false,
    };
    (verdict.errno != 0 && !absent).then(|| Refusal { op, errno: verdict.errno, reason: verdict.reason() })
}
