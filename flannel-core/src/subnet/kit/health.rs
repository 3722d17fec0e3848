//! The status of a store, shared by all its tasks.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::lease::{UnreadableRecord, UnreadableRecords};
use crate::subnet::{LeaseTerm, StoreRequests, StoreStatus};
use crate::told::Told;

/// If a store becomes unavailable more often than this, the log names it once in this time.
const QUIET: Duration = Duration::from_secs(30);
/// How many missing leases are shown by name.
const SHOWN: usize = 20;

/// The status of a store, shared by all its calls, watches and renewals. It publishes [`StoreStatus`], and logs one line
/// when the store breaks and one when it is back.
#[derive(Debug)]
pub struct Health {
    store: &'static str,
    status: watch::Sender<StoreStatus>,
    requests: StoreRequests,
    log: Mutex<Log>,
    /// The records that the log named recently.
    skipped: Mutex<Told>,
}

/// How often readers are notified that the store still answers.
const CONFIRM: Duration = Duration::from_secs(10);

/// What the log said last.
#[derive(Debug, Default)]
struct Log {
    is_down: bool,
    /// When it last said that the store is unavailable.
    broke: Option<Instant>,
    /// When readers were notified last that the store answered.
    confirmed: Option<Instant>,
}

impl Health {
    /// The status before the first contact. `store` names the store in the log.
    pub fn new(store: &'static str) -> Self {
        let status = StoreStatus::unknown();
        let (requests, status) = (status.requests.clone(), watch::Sender::new(status));
        Self { store, status, requests, log: Mutex::default(), skipped: Mutex::default() }
    }

    /// What [`SubnetManager::status`](crate::subnet::SubnetManager::status) returns.
    pub fn subscribe(&self) -> watch::Receiver<StoreStatus> {
        self.status.subscribe()
    }

    /// Counts a request that began at `began` and has ended. `request` says what was asked, such as `list leases`; the
    /// names are few. Whether the store answered is recorded by [`Self::succeed`] and [`Self::fail`].
    pub fn count(&self, request: &'static str, began: Instant, is_answered: bool) {
        self.requests.record(request, began.elapsed(), is_answered);
    }

    /// Records that the store answered. Readers are notified of a change at once, and of a new time of confirmation every
    /// 10 s at most.
    pub fn succeed(&self) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = log.confirmed.is_none_or(|told| told.elapsed() >= CONFIRM);
        if self.status.send_if_modified(|status| status.succeed() || is_due) {
            log.confirmed = Some(Instant::now());
        }
        if std::mem::take(&mut log.is_down) {
            info!(store = self.store, "store is back");
        }
    }

    /// Records an outage: the store did not answer, or answered with a temporary error. `problem` says what was tried,
    /// where, and why it failed.
    pub fn fail(&self, problem: String) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if !log.is_down && log.broke.is_none_or(|broke| broke.elapsed() > QUIET) {
            warn!(store = self.store, error = problem, "store unavailable");
            (log.is_down, log.broke) = (true, Some(Instant::now()));
        } else {
            debug!(store = self.store, error = problem, "store unavailable");
        }
        drop(log);
        self.status.send_if_modified(|status| status.fail(problem));
    }

    /// Sets the unreadable records. The status shows a count and a sample; the log names new ones in the sample.
    pub fn set_unreadable(&self, records: &UnreadableRecords) {
        let sample = records.sample();
        self.status.send_if_modified(|status| {
            if status.unreadable == sample {
                return false;
            }
            let told = &status.unreadable.records;
            sample
                .records
                .iter()
                .filter(|record| !told.contains(record))
                .for_each(|it| self.name_skipped(it));
            status.unreadable = sample;
            true
        });
    }

    /// Sets what is wrong with the clocks that date leases; `None` if nothing is.
    pub fn set_clock(&self, problem: Option<String>) {
        self.status.send_if_modified(|status| {
            let is_new = status.clock.is_none();
            if let Some(problem) = problem.as_ref().filter(|_| is_new) {
                warn!(store = self.store, problem, "clocks are not in step");
            }
            let news = status.clock != problem;
            status.clock = problem;
            news
        });
    }

    /// Names an unreadable record in the log. One that keeps changing is named only now and then.
    pub fn name_skipped(&self, record: &UnreadableRecord) {
        let mut skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left_out) = skipped.news(&record.key, Instant::now()) {
            let left_out = (left_out > 0).then_some(left_out);
            warn!(store = self.store, error = %record, left_out, "record skipped");
        }
    }

    /// Sets why the own lease is lost, or `None` if it is ours. A store sets the former when it returns
    /// [`SubnetError::LeaseLost`](crate::subnet::SubnetError::LeaseLost), and the latter when a lease was acquired.
    pub fn set_lost(&self, holder: Option<String>) {
        self.status.send_if_modified(|status| {
            let news = status.lease_lost != holder;
            if holder.is_some() {
                status.lease_term = None;
            }
            status.lease_lost = holder;
            news
        });
    }

    /// Says that the own lease was renewed now, and lives for `whole` from now on.
    pub fn set_renewed(&self, whole: Duration) {
        let term = LeaseTerm::new(SystemTime::now(), whole, whole);
        self.status.send_modify(|status| status.lease_term = Some(term));
    }

    /// Says how much is left of the own lease now, of the `whole` time that a renewal gives it; `None` if it has no end, or
    /// is no more. It is announced if it is another term than the one that was said before.
    pub fn set_left(&self, left: Option<Duration>, whole: Duration) {
        let term = left.map(|left| LeaseTerm::new(SystemTime::now(), left, whole));
        self.status.send_if_modified(|status| {
            let news = match (&status.lease_term, &term) {
                (Some(before), Some(now)) => !before.is_about(now),
                (before, now) => before != now,
            };
            if news {
                status.lease_term = term;
            }
            news
        });
    }

    /// Whether the last request succeeded.
    pub fn is_connected(&self) -> bool {
        self.status.borrow().connected
    }

    /// Sets which leases are missing since the store was restored or replaced, and are kept: their number, and their
    /// names, of which the status shows 20.
    pub fn set_missing<'a>(&self, count: usize, names: impl Iterator<Item = &'a String>) {
        let names: Vec<String> = names.take(SHOWN).cloned().collect();
        self.status.send_if_modified(|status| {
            let news = (status.missing_count, &status.missing) != (count, &names);
            if count > status.missing_count {
                let examples = names.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
                warn!(
                    store = self.store,
                    leases = count,
                    examples,
                    "the store was set up anew or restored; leases are missing and kept"
                );
            } else if news && count == 0 {
                info!(store = self.store, "no lease is missing any more");
            }
            (status.missing_count, status.missing) = (count, names);
            news
        });
    }

    /// Sets why the own lease can't be renewed or put back although the store answers; `None` if it can.
    pub fn set_unkept(&self, problem: Option<String>) {
        self.status.send_if_modified(|status| {
            let news = status.lease_unkept != problem;
            if let Some(problem) = problem.as_ref().filter(|_| news) {
                warn!(store = self.store, error = problem, "the own lease can't be kept");
            }
            status.lease_unkept = problem;
            news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn readers_learn_that_a_healthy_store_still_answers() {
        let health = Health::new("test");
        let mut status = health.subscribe();
        health.succeed();
        assert!(status.has_changed().unwrap() && status.borrow_and_update().connected);
        tokio::time::advance(CONFIRM / 2).await;
        health.succeed();
        assert!(!status.has_changed().unwrap(), "too soon for news that change nothing");
        tokio::time::advance(CONFIRM).await;
        health.succeed();
        assert!(status.has_changed().unwrap());
        assert_eq!(status.borrow_and_update().confirmed, Some(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn no_term_is_too_long() {
        let health = Health::new("test");
        health.set_renewed(Duration::MAX);
        health.set_left(Some(Duration::MAX), Duration::MAX);
        assert!(health.subscribe().borrow().lease_term.is_some());
    }
}
