//! Answers to `/metrics`. Anybody who can reach the port may ask, so what many requests cost is bounded, too: an answer is
//! given again for a second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use flannel_metrics::prometheus_client::registry::Registry;
use flannel_metrics::{AgentMetrics, Format, ProcessMetrics, render};
use hyper::body::Bytes;

/// How old an answer may be. Prometheus asks every fifteen seconds or so.
const FRESH: Duration = Duration::from_secs(1);

/// The metrics of agent and process, and the answers that were made last.
#[derive(Debug)]
pub(crate) struct Scrapes {
    registry: Registry,
    open: Mutex<Option<Made>>,
    classic: Mutex<Option<Made>>,
}

/// An answer, and when it was begun.
type Made = (Instant, Bytes);

impl Scrapes {
    pub(crate) fn new(metrics: AgentMetrics) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(metrics));
        registry.register_collector(Box::new(ProcessMetrics::default()));
        Self { registry, open: Mutex::default(), classic: Mutex::default() }
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
                let answer = Bytes::from(render(&self.registry, format));
                *last = Some((now, answer.clone()));
                answer
            }
        }
    }
}
