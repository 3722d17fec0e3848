//! Counts what happened, by name.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use flannel_core::agent::{AgentEvent, AgentEvents};
use serde_json::Value;

/// The events of one agent so far.
#[derive(Debug, Default)]
pub(crate) struct EventCounts(Mutex<Counted>);

#[derive(Debug, Default, Clone)]
pub(crate) struct Counted {
    /// By name.
    pub(crate) named: BTreeMap<String, u64>,
    /// How many came while the reader was behind.
    pub(crate) missed: u64,
}

impl EventCounts {
    /// Counts events until the agent has ended.
    pub(crate) async fn follow(&self, mut events: AgentEvents) {
        while let Some(event) = events.recv().await {
            self.add(&event.event);
        }
    }

    fn add(&self, event: &AgentEvent) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let AgentEvent::LeftOut { events } = event {
            counted.missed += events;
        } else if let Some(name) = name(event) {
            *counted.named.entry(name).or_default() += 1;
        }
    }

    pub(crate) fn read(&self) -> Counted {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The name that the text form has. There are as many names as there are kinds of events.
fn name(event: &AgentEvent) -> Option<String> {
    let json = serde_json::to_value(event).ok()?;
    json.get("event").and_then(Value::as_str).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use flannel_core::events::NetworkEvent;

    use super::*;

    #[test]
    fn events_count_by_the_name_of_their_text_form() {
        let counts = EventCounts::default();
        for event in [
            AgentEvent::Ready,
            AgentEvent::Network(NetworkEvent::DevicesReady),
            AgentEvent::Ready,
            AgentEvent::LeftOut { events: 7 },
        ] {
            counts.add(&event);
        }
        let Counted { named, missed } = counts.read();
        let named: Vec<_> = named.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!((named, missed), (vec![("devices-ready", 1), ("ready", 2)], 7));
    }
}
