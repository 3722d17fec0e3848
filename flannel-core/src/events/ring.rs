//! The ring of the last events of one part: who sends into it, and who reads from it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use futures::Stream;
use futures::stream::unfold;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// How many events a reader may be behind before it misses some.
pub const KEPT: usize = 256;

/// What a part of an agent sends: [`NetworkEvent`](super::NetworkEvent),
/// [`FirewallEvent`](crate::firewall::FirewallEvent) or [`MemoryEvent`](super::MemoryEvent).
pub trait Event: Clone + Send + 'static {
    /// The event for a reader who was too slow and missed this many.
    fn left_out(events: u64) -> Self;

    /// Writes the log line of the event. Operators search for these messages.
    fn log(&self);
}

/// An event and when it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timed<E> {
    /// When it happened, by the wall clock.
    pub time: SystemTime,
    /// What happened.
    pub event: E,
}

impl<E> Timed<E> {
    /// An event that happens now.
    pub fn now(event: E) -> Self {
        Self { time: SystemTime::now(), event }
    }
}

/// Reads the events of one part of an agent. A part without events returns [`Self::none`], which ends at once.
#[derive(Debug)]
pub struct EventReader<E>(Option<broadcast::Receiver<Timed<E>>>);

impl<E: Event> EventReader<E> {
    /// The reader of a part that has no events.
    pub fn none() -> Self {
        Self(None)
    }

    /// Waits for the next event; `None` once the part has ended. Dropping the future loses none.
    pub async fn recv(&mut self) -> Option<E> {
        self.recv_timed().await.map(|timed| timed.event)
    }

    /// The same with the time at which the event happened. If events were missed, that is now.
    pub async fn recv_timed(&mut self) -> Option<Timed<E>> {
        match self.0.as_mut()?.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(events)) => Some(Timed::now(E::left_out(events))),
            Err(RecvError::Closed) => None,
        }
    }

    /// The events as a stream, which ends with the part.
    pub fn into_stream(self) -> impl Stream<Item = E> + Send {
        unfold(self, |mut events| async { events.recv().await.map(|event| (event, events)) })
    }
}

/// Logs the events of one part of an agent, and sends them to its readers. A clone sends to the same readers.
#[derive(Clone)]
pub struct EventSender<E> {
    sender: broadcast::Sender<Timed<E>>,
    /// The first reader, which also has the events before it was asked for.
    first: Arc<Mutex<Option<EventReader<E>>>>,
    /// Gets each event at once.
    sink: Option<Arc<Sink<E>>>,
}

type Sink<E> = dyn Fn(Timed<E>) + Send + Sync;

impl<E> fmt::Debug for EventSender<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventSender")
    }
}

impl<E: Event> Default for EventSender<E> {
    fn default() -> Self {
        let (sender, first) = broadcast::channel(KEPT);
        Self { sender, first: Arc::new(Mutex::new(Some(EventReader(Some(first))))), sink: None }
    }
}

impl<E: Event> EventSender<E> {
    /// A sender that also passes each event to a function, which must not block. Unlike a reader it misses none.
    pub fn forwarding(sink: impl Fn(Timed<E>) + Send + Sync + 'static) -> Self {
        Self { sink: Some(Arc::new(sink)), ..Self::default() }
    }

    /// Logs an event, and sends it with the present time. It does not fail without a reader.
    pub fn send(&self, event: E) {
        event.log();
        let event = Timed::now(event);
        if let Some(sink) = &self.sink {
            sink(event.clone());
        }
        // It fails only without a reader.
        let _ = self.sender.send(event);
    }

    /// Returns a reader. The first one has all events so far, further ones have those from now on.
    pub fn subscribe(&self) -> EventReader<E> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.unwrap_or_else(|| EventReader(Some(self.sender.subscribe())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{NetworkEvent, NetworkEventSender, NetworkEvents};
    use super::*;

    fn accepted(leases: usize) -> NetworkEvent {
        NetworkEvent::LeasesAccepted { leases }
    }

    #[tokio::test]
    async fn a_slow_reader_learns_how_much_he_missed_and_the_first_one_has_what_was_before_him() {
        let sender = NetworkEventSender::default();
        sender.send(accepted(0));
        let (mut first, mut second) = (sender.subscribe(), sender.subscribe());
        assert_eq!(first.recv().await, Some(accepted(0)));
        for n in 0..KEPT + 3 {
            sender.send(accepted(n));
        }
        drop(sender);
        for reader in [&mut first, &mut second] {
            assert_eq!(reader.recv().await, Some(NetworkEvent::LeftOut { events: 3 }));
            for n in 3..KEPT + 3 {
                assert_eq!(reader.recv().await, Some(accepted(n)));
            }
            assert_eq!(reader.recv().await, None);
        }
        assert_eq!(NetworkEvents::none().recv().await, None);
    }

    #[tokio::test]
    async fn an_event_has_the_time_when_it_was_sent() {
        let sender = NetworkEventSender::default();
        let before = SystemTime::now();
        sender.send(accepted(1));
        let sent = SystemTime::now();
        let timed = sender.subscribe().recv_timed().await.unwrap();
        assert!((before..=sent).contains(&timed.time));
    }
}
