//! The engine for requests: many messages in one datagram, one answer, failures matched by number.
//!
//! The kernel carries out a whole datagram before `send` returns, goes on after a message that fails, and
//! answers every failure; success it answers only where asked, which is on the last message. So the
//! answer to the last one, ACK or error, ends the batch.
//!
//! A caller that drops the future between `send` and the answers loses the answers, not the work: a
//! datagram that was sent is done. The next request finds them in the socket and skips them, since their
//! numbers are not its own. No task is needed for that.

use tokio::time::Instant;
use tracing::debug;

use super::encode;
use super::message::{Datagram, Message, Undecodable, Verdict, split};
use super::socket::{DEADLINE, Socket, failed};
use crate::dataplane::{Object, Op};
use crate::kernel::{KernelError, Refusal};

/// Messages in one datagram: as fast as any larger number, 1 ms of work, and its failures fit in the
/// default receive buffer.
const BATCH: usize = 192;

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

    /// Takes `count` consecutive numbers, none of them 0, and returns the first.
    fn numbers(&mut self, count: u32) -> u32 {
        let first = if self.next.checked_add(count).is_some() { self.next } else { 1 };
        self.next = first + count;
        first
    }

    /// Tries every operation and returns those that failed.
    pub(super) async fn execute(&mut self, ops: &[Op]) -> Result<Vec<Refusal>, KernelError> {
        let what = || format!("carry out {} operations", ops.len());
        let mut refusals = Vec::new();
        for batch in ops.chunks(BATCH) {
            let first = self.numbers(batch.len() as u32);
            let mut datagram = Datagram::default();
            for (seq, op) in (first..).zip(batch) {
                encode::op(&mut datagram, op, seq, seq - first + 1 == batch.len() as u32);
            }
            self.exchange(&datagram, first, batch.len(), &what, |at, reply| {
                refusals.extend(reply.verdict()?.and_then(|verdict| refusal(batch[at], verdict)));
                Ok(())
            })
            .await?;
        }
        debug!(ops = ops.len(), refused = refusals.len(), "operations carried out");
        Ok(refusals)
    }

    /// Makes one request that is answered by a message or a verdict, and reads the answer.
    pub(super) async fn ask<T>(
        &mut self,
        what: impl Fn() -> String,
        encode: impl FnOnce(&mut Datagram, u32),
        mut decode: impl FnMut(&Message<'_>) -> Result<T, Undecodable>,
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

    /// Sends a datagram of `count` messages numbered from `first`, and hands over each answer with the
    /// place of its request, until that of the last.
    async fn exchange(
        &mut self,
        datagram: &Datagram,
        first: u32,
        count: usize,
        what: &impl Fn() -> String,
        mut answered: impl FnMut(usize, &Message<'_>) -> Result<(), Undecodable>,
    ) -> Result<(), KernelError> {
        let malformed =
            |error: Undecodable| KernelError::Malformed { what: "a request", detail: error.to_string() };
        self.socket.send(datagram.bytes()).await.map_err(|error| failed(error, "send", &what()))?;
        let deadline = Instant::now() + DEADLINE;
        let port = self.socket.port();
        loop {
            let replies = self.socket.receive_until(deadline).await;
            let replies = replies.map_err(|error| failed(error, "receive", &what()))?;
            let mut last = false;
            for reply in split(replies) {
                let reply = reply.map_err(malformed)?;
                let at = reply.seq.wrapping_sub(first) as usize;
                if reply.port == port && at < count {
                    answered(at, &reply).map_err(malformed)?;
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
    /// A message with what was asked for.
    Message(T),
    /// Success without a message, or a failure.
    Verdict(Verdict),
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
