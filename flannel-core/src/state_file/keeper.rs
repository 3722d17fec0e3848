//! Keeps the state file in step with the network, so that the next start knows what is ours.

use std::convert::Infallible;
use std::future::pending;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tracing::debug;

use super::State;
use crate::error::chain;
use crate::events::{MemoryEvent, MemoryEventSender};
use crate::subnet::StoreStatus;

/// The pause after a write, so that a burst of leases costs one further write.
const PAUSE: Duration = Duration::from_secs(1);
/// The pause after a failed write.
const RETRY: Duration = Duration::from_secs(10);
/// How often the file gets a new date although nothing changed, as long as the store confirms its content.
const REFRESH: Duration = Duration::from_mins(10);

/// Writes the state whenever it changes, at most once a second.
pub struct Keeper {
    path: PathBuf,
    state: watch::Receiver<State>,
    store: watch::Receiver<StoreStatus>,
    /// Whether there is a newer state that is not written.
    unwritten: bool,
    /// Whether this run wrote the file.
    written: bool,
    /// Whether the present failure was told.
    told: bool,
    events: MemoryEventSender,
}

impl Keeper {
    /// A keeper that has not written yet. `state` is that of the network, `store` that of the store.
    pub fn new(path: PathBuf, state: watch::Receiver<State>, store: watch::Receiver<StoreStatus>) -> Self {
        let events = MemoryEventSender::default();
        Self { path, state, store, unwritten: false, written: false, told: false, events }
    }

    /// Sends what happens to `events` instead of a sender of its own.
    #[must_use]
    pub fn telling(self, events: MemoryEventSender) -> Self {
        Self { events, ..self }
    }

    /// Writes for as long as it is polled.
    pub async fn run(&mut self) -> Infallible {
        loop {
            match tokio::time::timeout(REFRESH, self.state.changed()).await {
                Ok(Ok(())) => {}
                // The network has ended, which is handled elsewhere.
                Ok(Err(_)) => return pending().await,
                Err(_) if self.is_confirmed() => {}
                Err(_) => continue,
            }
            self.unwritten = true;
            while !self.write().await {
                tokio::time::sleep(RETRY).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Writes once more at the end, if the state or its date is not up to date.
    pub async fn finish(mut self) {
        // The network is gone, but its last state may not have been read.
        let news = tokio::time::timeout(Duration::ZERO, self.state.changed()).await;
        if self.unwritten || matches!(news, Ok(Ok(()))) || self.is_confirmed() {
            self.write().await;
        }
    }

    /// Whether the store confirms what was written.
    fn is_confirmed(&self) -> bool {
        self.written && self.store.borrow().connected
    }

    /// Writes once, on a blocking thread. Returns whether it succeeded.
    async fn write(&mut self) -> bool {
        let (path, state) = (self.path.clone(), self.state.borrow_and_update().clone());
        let written = tokio::task::spawn_blocking(move || state.write(&path)).await;
        match written.unwrap_or(Ok(())) {
            Ok(()) => {
                debug!(path = %self.path.display(), "state file written");
                if std::mem::take(&mut self.told) {
                    self.events.send(MemoryEvent::StateFileBack);
                }
                (self.unwritten, self.written) = (false, true);
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    self.events.send(MemoryEvent::StateFileRefused { reason: chain(&error) });
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::state_file::read;

    fn state(backend: &str) -> State {
        State { backend: backend.into(), ..State::default() }
    }

    fn store(connected: bool) -> watch::Sender<StoreStatus> {
        watch::Sender::new(StoreStatus { connected, ..StoreStatus::unknown() })
    }

    fn stored(path: &Path) -> Option<State> {
        read(path).state
    }

    fn backend(path: &Path) -> Option<String> {
        stored(path).map(|state| state.backend)
    }

    #[tokio::test]
    async fn writes_changes_and_the_last_one_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env.state");
        let sender = watch::Sender::new(state("start"));
        let mut keeper = Keeper::new(path.clone(), sender.subscribe(), store(true).subscribe());
        let run = Duration::from_millis;
        let _ = tokio::time::timeout(run(50), keeper.run()).await;
        assert_eq!(stored(&path), None, "nothing was announced yet");
        sender.send_replace(state("first"));
        let _ = tokio::time::timeout(run(200), keeper.run()).await;
        assert_eq!(backend(&path).as_deref(), Some("first"));
        sender.send_replace(state("last"));
        drop(sender);
        keeper.finish().await;
        assert_eq!(backend(&path).as_deref(), Some("last"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_cannot_be_written_is_told_once_and_so_is_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("folder");
        std::fs::write(&blocked, "").unwrap();
        let events = MemoryEventSender::default();
        let (sender, mut told) = (watch::Sender::new(state("start")), events.subscribe());
        let keeper = Keeper::new(blocked.join("state"), sender.subscribe(), store(true).subscribe());
        let mut keeper = keeper.telling(events);
        sender.send_replace(state("first"));
        // Paused time runs on while a write is on its thread, so this waits for what is told.
        let refused = tokio::select! {
            _ = keeper.run() => None,
            event = told.recv() => event,
        };
        assert!(matches!(refused, Some(MemoryEvent::StateFileRefused { .. })), "{refused:?}");
        std::fs::remove_file(&blocked).unwrap();
        keeper.finish().await;
        assert_eq!((told.recv().await, told.recv().await), (Some(MemoryEvent::StateFileBack), None));
    }

    #[tokio::test]
    async fn a_network_that_said_nothing_leaves_the_file_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env.state");
        let sender = watch::Sender::new(state("start"));
        let keeper = Keeper::new(path.clone(), sender.subscribe(), store(true).subscribe());
        drop(sender);
        keeper.finish().await;
        assert!(!path.exists());
    }

    /// Paused time runs on while a write is on its thread, so this counts writes by what was written.
    #[tokio::test(start_paused = true)]
    async fn a_storm_of_leases_costs_one_write_a_second() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env.state");
        let sender = watch::Sender::new(state("start"));
        let mut keeper = Keeper::new(path.clone(), sender.subscribe(), store(true).subscribe());
        let mut files = std::collections::BTreeSet::new();
        let storm = async {
            for round in 0..10_000 {
                sender.send_replace(state(&round.to_string()));
                tokio::time::sleep(Duration::from_millis(1)).await;
                files.extend(backend(&path));
            }
        };
        tokio::select! {
            never = keeper.run() => match never {},
            () = storm => {}
        }
        // Ten seconds and the one at the start.
        assert!((1..=11).contains(&files.len()), "{} writes", files.len());
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_store_confirms_is_dated_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env.state");
        for (connected, is_dated) in [(true, true), (false, false)] {
            let (sender, store) = (watch::Sender::new(state("start")), store(connected));
            let mut keeper = Keeper::new(path.clone(), sender.subscribe(), store.subscribe());
            sender.send_replace(state("first"));
            let _ = tokio::time::timeout(Duration::from_secs(5), keeper.run()).await;
            std::fs::remove_file(&path).unwrap();
            let _ = tokio::time::timeout(Duration::from_secs(700), keeper.run()).await;
            assert_eq!(path.exists(), is_dated);
            let _ = std::fs::remove_file(&path);
            keeper.finish().await;
            assert_eq!(path.exists(), is_dated, "at the end, too");
        }
    }
}
