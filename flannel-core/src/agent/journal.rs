//! Where the parts of the agent leave what happens.

use std::sync::{Mutex, PoisonError};

use tokio::sync::broadcast;

use super::event::{AgentEvent, AgentEvents};
use super::log;

/// How many events wait at most for a reader: those of the network, and as many of the agent's own.
const ROOM: usize = 2 * crate::events::KEPT;

/// Where the parts of the agent leave what happens: it is logged, and told to those who follow.
#[derive(Debug)]
pub(super) struct Journal {
    /// `None` once the agent has ended.
    sender: Mutex<Option<broadcast::Sender<AgentEvent>>>,
    /// The receiver of the first reader, which has all events since the start.
    first: Mutex<Option<broadcast::Receiver<AgentEvent>>>,
}

impl Journal {
    pub(super) fn new() -> Self {
        let (sender, first) = broadcast::channel(ROOM);
        Self { sender: Mutex::new(Some(sender)), first: Mutex::new(Some(first)) }
    }

    pub(super) fn emit(&self, event: AgentEvent) {
        log::write(&event);
        if let Some(sender) = &*self.sender.lock().unwrap_or_else(PoisonError::into_inner) {
            // It fails only without a reader.
            let _ = sender.send(event);
        }
    }

    /// Ends the streams of all readers.
    pub(super) fn close(&self) {
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Returns a reader: the first has all events since the start, others those from now on.
    pub(super) fn events(&self) -> AgentEvents {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = first.or_else(|| Some(sender.as_ref()?.subscribe()));
        receiver.map_or_else(AgentEvents::none, AgentEvents::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remark(number: usize) -> AgentEvent {
        AgentEvent::AddressAmongPods { remark: number.to_string() }
    }

    #[tokio::test]
    async fn the_first_follower_hears_all_and_others_what_comes() {
        let journal = Journal::new();
        journal.emit(remark(1));
        let (mut first, mut second) = (journal.events(), journal.events());
        journal.emit(remark(2));
        journal.close();
        journal.emit(remark(3));
        assert_eq!(journal.events().recv().await, None, "it has ended");
        assert_eq!(first.recv().await, Some(remark(1)));
        assert_eq!((first.recv().await, second.recv().await), (Some(remark(2)), Some(remark(2))));
        assert_eq!((first.recv().await, second.recv().await), (None, None));
    }

    #[tokio::test]
    async fn who_is_slow_is_told_how_many_are_left_out() {
        let journal = Journal::new();
        let mut slow = journal.events();
        (0..ROOM + 3).for_each(|number| journal.emit(remark(number)));
        assert_eq!(slow.recv().await, Some(AgentEvent::LeftOut { events: 3 }));
        assert_eq!(slow.recv().await, Some(remark(3)), "those that are left are in order");
    }

    #[test]
    fn events_are_told_by_name() {
        let json = serde_json::to_string(&AgentEvent::StoreLost { problem: "refused".into() }).unwrap();
        assert_eq!(json, r#"{"event":"store-lost","problem":"refused"}"#);
        assert_eq!(serde_json::to_string(&AgentEvent::Ready).unwrap(), r#"{"event":"ready"}"#);
    }
}
