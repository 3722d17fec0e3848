//! Answers to scrapes over a network. Anybody who can reach the port may ask, so what many requests cost is bounded: an
//! answer is given again for a second.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;

use crate::{AgentMetrics, Format, ProcessMetrics, render};

/// How old an answer may be. Prometheus asks every fifteen seconds or so.
const FRESH: Duration = Duration::from_secs(1);

/// A registry, and the answers that were made of it last. A flood of requests costs one answer a second in each format.
#[derive(Debug)]
pub struct Scrapes {
    registry: Registry,
    open: Mutex<Option<Made>>,
    classic: Mutex<Option<Made>>,
}

/// An answer, and when it was begun.
type Made = (Instant, Arc<[u8]>);

impl Scrapes {
    /// Answers with the metrics of a registry.
    pub fn new(registry: Registry) -> Self {
        Self { registry, open: Mutex::default(), classic: Mutex::default() }
    }

    /// Answers with the metrics of one agent and of this process.
    pub fn of(metrics: AgentMetrics) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(metrics));
        registry.register_collector(Box::new(ProcessMetrics::default()));
        Self::new(registry)
    }

    /// The type and the body of an answer to a client with this header `Accept`. Those who ask at the same time wait for
    /// one answer.
    pub fn answer(&self, accept: &str) -> (&'static str, Arc<[u8]>) {
        let format = Format::accepted(accept);
        (format.content_type(), self.at(format, Instant::now()))
    }

    fn at(&self, format: Format, now: Instant) -> Arc<[u8]> {
        let last = match format {
            Format::OpenMetrics => &self.open,
            Format::Prometheus => &self.classic,
        };
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((made, answer)) if now.saturating_duration_since(*made) < FRESH => Arc::clone(answer),
            _ => {
                let answer: Arc<[u8]> = render(&self.registry, format).into_bytes().into();
                *last = Some((now, Arc::clone(&answer)));
                answer
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::agent::{AgentStatus, FirewallOptions, Phase};
    use tokio::sync::watch;

    use super::*;
    use crate::Options;

    /// The answers of an agent that is about to start.
    fn scrapes() -> (watch::Sender<Arc<AgentStatus>>, Scrapes) {
        let (sender, status) = watch::channel(Arc::new(AgentStatus::new(FirewallOptions::default())));
        (sender, Scrapes::of(AgentMetrics::new(status, Options::default())))
    }

    fn text(answer: &[u8]) -> String {
        String::from_utf8(answer.to_vec()).unwrap()
    }

    #[test]
    fn a_client_gets_the_format_that_it_reads() {
        let (_agent, scrapes) = scrapes();
        for (accept, kind, last) in [
            (
                "application/openmetrics-text; version=1.0.0",
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                "# EOF\n",
            ),
            ("text/plain", "text/plain; version=0.0.4; charset=utf-8", "\n"),
            ("", "text/plain; version=0.0.4; charset=utf-8", "\n"),
        ] {
            let (content_type, answer) = scrapes.answer(accept);
            let answer = text(&answer);
            assert_eq!(content_type, kind, "{accept}");
            assert!(answer.contains("\nflannel_phase{phase=\"starting\"} 1\n"), "{answer}");
            assert!(answer.contains("\nprocess_"), "{answer}");
            assert!(answer.ends_with(last), "{answer}");
        }
    }

    /// What a flood of requests costs: one answer a second and format.
    #[test]
    fn an_answer_is_given_again_for_a_second() {
        let (agent, scrapes) = scrapes();
        let ask = |format, now| text(&scrapes.at(format, now));
        let start = Instant::now();
        let first = ask(Format::Prometheus, start);
        agent.send_modify(|status| Arc::make_mut(status).phase = Phase::Stopping);
        assert_eq!(ask(Format::Prometheus, start + FRESH / 2), first);
        assert!(
            ask(Format::OpenMetrics, start + FRESH / 2).contains("{phase=\"stopping\"} 1"),
            "the other format is new"
        );
        assert!(ask(Format::Prometheus, start + FRESH).contains("{phase=\"stopping\"} 1"));
    }
}
