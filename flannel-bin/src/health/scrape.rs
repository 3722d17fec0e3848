//! Answers to `/metrics`. Anybody who can reach the port may ask, so what many requests cost is bounded, too: an answer is
//! given again for a second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use flannel_metrics::{AgentMetrics, Format};
use hyper::body::Bytes;

/// How old an answer may be. Prometheus asks every fifteen seconds or so.
const FRESH: Duration = Duration::from_secs(1);

/// The metrics of the agent, and the answers that were made last.
#[derive(Debug)]
pub(crate) struct Scrapes {
    metrics: AgentMetrics,
    open: Mutex<Option<Made>>,
    classic: Mutex<Option<Made>>,
}

/// An answer, and when it was begun.
type Made = (Instant, Bytes);

impl Scrapes {
    pub(crate) fn new(metrics: AgentMetrics) -> Self {
        Self { metrics, open: Mutex::default(), classic: Mutex::default() }
    }

    /// The answer in a format. Requests at the same time wait for one answer.
    pub(super) fn answer(&self, format: Format, now: Instant) -> Bytes {
        let last = match format {
            Format::OpenMetrics => &self.open,
            Format::Prometheus => &self.classic,
        };
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((made, answer)) if now.saturating_duration_since(*made) < FRESH => answer.clone(),
            _ => {
                let answer = Bytes::from(self.metrics.render(format));
                *last = Some((now, answer.clone()));
                answer
            }
        }
    }
}
