//! What happened to an agent: the journal logs each event, keeps the last ones, and wakes those who read them.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::SystemTime;

use futures::Stream;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;

use super::event::{AgentEvent, TimedEvent};
use super::log;
use crate::events::Timed;

/// How many events an agent keeps at most.
pub const KEPT_EVENTS: usize = 1000;

/// How many bytes the kept events may have as JSON. An event has some 200; only hundreds of unusually long ones reach
/// this, and then fewer than [`KEPT_EVENTS`] are kept.
pub const KEPT_BYTES: usize = 1 << 20;

/// Logs what happens to an agent, keeps it, and tells those who follow.
#[derive(Debug)]
pub(super) struct Journal {
    history: Arc<Mutex<History>>,
    /// Notified after each event.
    news: watch::Sender<()>,
}

/// The last events.
#[derive(Debug, Default)]
struct History {
    /// The events, and how many bytes each has as JSON.
    events: VecDeque<(Arc<TimedEvent>, usize)>,
    /// The bytes of all of them.
    bytes: usize,
    /// The number of the last event.
    last: u64,
    has_ended: bool,
}

impl History {
    fn push(&mut self, time: SystemTime, event: AgentEvent) {
        self.last += 1;
        let event = TimedEvent::new(self.last, time, event);
        let bytes = json_bytes(&event);
        self.bytes += bytes;
        self.events.push_back((Arc::new(event), bytes));
        while self.events.len() > KEPT_EVENTS || (self.bytes > KEPT_BYTES && self.events.len() > 1) {
            self.bytes -= self.events.pop_front().map_or(0, |(_, bytes)| bytes);
        }
    }

    /// The event that follows number `seq`, or what says that it is no longer kept.
    fn after(&self, seq: u64) -> Option<TimedEvent> {
        let (oldest, _) = self.events.front()?;
        if seq >= self.last {
            return None;
        }
        let next = seq + 1;
        if next < oldest.seq {
            let left_out = AgentEvent::LeftOut { events: oldest.seq - next };
            return Some(TimedEvent::new(oldest.seq - 1, oldest.time, left_out));
        }
        let (event, _) = self.events.get(usize::try_from(next - oldest.seq).ok()?)?;
        Some(TimedEvent::clone(event))
    }
}

fn json_bytes(event: &TimedEvent) -> usize {
    struct Count(usize);
    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // It can't fail: the writer takes everything, and the keys of all events are text.
    let _ = serde_json::to_writer(&mut count, event);
    count.0
}

fn lock(history: &Mutex<History>) -> MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    pub(super) fn new() -> Self {
        Self { history: Arc::default(), news: watch::Sender::new(()) }
    }

    /// Logs, keeps and announces an event of the agent itself, which happens now.
    pub(super) fn emit(&self, event: AgentEvent) {
        self.forward(Timed::now(event));
    }

    /// The same for an event of a part of the agent, with the time at which it happened.
    pub(super) fn forward(&self, event: Timed<impl Into<AgentEvent>>) {
        let (time, event) = (event.time, event.event.into());
        log::write(&event);
        let mut history = lock(&self.history);
        if !history.has_ended {
            history.push(time, event);
            drop(history);
            self.news.send_replace(());
        }
    }

    /// Ends the streams of all readers once they have read what happened so far.
    pub(super) fn close(&self) {
        lock(&self.history).has_ended = true;
        self.news.send_replace(());
    }

    /// The kept events, the oldest first.
    pub(super) fn recent(&self) -> Vec<Arc<TimedEvent>> {
        lock(&self.history).events.iter().map(|(event, _)| Arc::clone(event)).collect()
    }

    /// Returns a reader of the events that follow number `seq`, which is 0 for all.
    pub(super) fn events_after(&self, seq: u64) -> AgentEvents {
        AgentEvents::new(Reader { history: Arc::clone(&self.history), news: self.news.subscribe(), seq })
    }
}

/// Reads one event after the other.
struct Reader {
    history: Arc<Mutex<History>>,
    news: watch::Receiver<()>,
    /// The number of the event that was read last.
    seq: u64,
}

impl Reader {
    async fn next(mut self) -> Option<(TimedEvent, Self)> {
        loop {
            let (event, has_ended) = {
                let history = lock(&self.history);
                (history.after(self.seq), history.has_ended)
            };
            if let Some(event) = event {
                self.seq = event.seq;
                return Some((event, self));
            }
            // An agent that was given up without an end has no journal any more.
            if has_ended || self.news.changed().await.is_err() {
                return None;
            }
        }
    }
}

/// The events of an agent, as a stream that ends with the agent. A reader who is more than [`KEPT_EVENTS`] behind learns
/// how many events it missed ([`AgentEvent::LeftOut`]).
pub struct AgentEvents(BoxStream<'static, TimedEvent>);

impl fmt::Debug for AgentEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentEvents")
    }
}

impl AgentEvents {
    fn new(reader: Reader) -> Self {
        Self(stream::unfold(reader, Reader::next).boxed())
    }

    /// Waits for the next event; `None` once the agent has ended. Dropping the future loses none.
    pub async fn recv(&mut self) -> Option<TimedEvent> {
        self.0.next().await
    }
}

impl Stream for AgentEvents {
    type Item = TimedEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TimedEvent>> {
        self.0.poll_next_unpin(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remark(text: impl Into<String>) -> AgentEvent {
        AgentEvent::AddressAmongPods { remark: text.into() }
    }

    fn number(number: usize) -> AgentEvent {
        remark(number.to_string())
    }

    async fn next(reader: &mut AgentEvents) -> Option<(u64, AgentEvent)> {
        reader.recv().await.map(|it| (it.seq, it.event))
    }

    #[tokio::test]
    async fn every_reader_hears_all_from_its_number_on() {
        let journal = Journal::new();
        journal.emit(number(1));
        let mut readers = [journal.events_after(0), journal.events_after(0)];
        journal.emit(number(2));
        let late = journal.events_after(1);
        journal.close();
        journal.emit(number(3));
        for reader in &mut readers {
            assert_eq!(next(reader).await, Some((1, number(1))));
        }
        for mut reader in readers.into_iter().chain([late]) {
            assert_eq!(next(&mut reader).await, Some((2, number(2))));
            assert_eq!(reader.recv().await, None, "it has ended");
        }
        let kept: Vec<_> = journal.recent().iter().map(|it| it.seq).collect();
        assert_eq!(kept, [1, 2], "the history stays after the end");
    }

    #[tokio::test]
    async fn who_is_slow_is_told_how_many_are_left_out_and_any_number_can_be_read_again() {
        let journal = Journal::new();
        let mut slow = journal.events_after(0);
        (0..KEPT_EVENTS + 3).for_each(|n| journal.emit(number(n)));
        assert_eq!(next(&mut slow).await, Some((3, AgentEvent::LeftOut { events: 3 })));
        assert_eq!(next(&mut slow).await, Some((4, number(3))), "those that are left are in order");
        assert_eq!(journal.recent().len(), KEPT_EVENTS);
        assert_eq!(journal.recent()[0].seq, 4);
        let mut again = journal.events_after(KEPT_EVENTS as u64 + 1);
        assert_eq!(next(&mut again).await, Some((KEPT_EVENTS as u64 + 2, number(KEPT_EVENTS + 1))));
    }

    /// A reader waits without being woken for nothing, and dropping its future loses no event.
    #[tokio::test]
    async fn a_reader_that_waits_is_woken() {
        let journal = Journal::new();
        let mut reader = journal.events_after(0);
        assert!(futures::FutureExt::now_or_never(reader.recv()).is_none());
        journal.emit(number(1));
        assert_eq!(next(&mut reader).await, Some((1, number(1))));
        drop(journal);
        assert_eq!(reader.recv().await, None, "the agent was given up");
    }

    #[test]
    fn long_events_push_out_more_than_one_and_the_last_one_always_stays() {
        let journal = Journal::new();
        let long = "x".repeat(KEPT_BYTES / 4);
        (0..10).for_each(|_| journal.emit(remark(long.clone())));
        assert_eq!(journal.recent().iter().map(|it| it.seq).collect::<Vec<_>>(), [8, 9, 10]);
        journal.emit(remark("x".repeat(2 * KEPT_BYTES)));
        assert_eq!(journal.recent().len(), 1);
        journal.emit(AgentEvent::Ready);
        assert_eq!(journal.recent().len(), 1, "the long one goes");
        let kept = json_bytes(&journal.recent()[0]);
        assert_eq!(lock(&journal.history).bytes, kept);
    }

    #[test]
    fn events_are_flat_and_have_their_name_and_time() {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_500);
        let json = |event| serde_json::to_string(&TimedEvent::new(7, time, event)).unwrap();
        let (lease, underlay) = ("10.5.2.0-24".parse().unwrap(), crate::addr::PerFamily::default());
        for (event, text) in [
            (
                AgentEvent::StoreLost { problem: "refused".into() },
                r#""event":"store-lost","problem":"refused"}"#,
            ),
            (AgentEvent::Ready, r#""event":"ready"}"#),
            (
                crate::events::NetworkEvent::PeerAdded { lease, underlay }.into(),
                r#""event":"peer-added","lease":"10.5.2.0-24","underlay":{}}"#,
            ),
        ] {
            assert_eq!(json(event), format!(r#"{{"seq":7,"time":"1970-01-01T00:00:01.500Z",{text}"#));
        }
    }
}
