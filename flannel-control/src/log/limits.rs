//! Limits the rate of log lines, so that no kind of line fills the log: after a burst each kind gets a few lines a
//! second, and those left out are counted and reported. A kind is a place in the source.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::callsite::Identifier;
use tracing::field::Field;
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber, warn};
use tracing_subscriber::layer::{Context, Layer};

/// How many lines of a kind may be written at once.
const BURST: u32 = 50;
/// The interval after which one more line of a kind may be written.
const EVERY: Duration = Duration::from_millis(200);
/// How often the lines left out are reported.
const TELL: Duration = Duration::from_secs(10);

/// A layer that passes on to another one only the lines within the limits: of each kind fifty at once, and then five a
/// second. Debug lines are not limited, since the operator asked for them. The lines that were left out are counted, and a
/// warning tells their number every ten seconds, if there is a tokio runtime.
// As a filter it would be asked for each debug line of each library.
#[derive(Debug)]
pub struct Limited<L>(L, Arc<Limits>);

impl<L> Limited<L> {
    /// Limits the lines that a layer gets.
    pub fn new(layer: L) -> Self {
        Self(layer, Arc::default())
    }
}

impl<S: Subscriber, L: Layer<S>> Layer<S> for Limited<L> {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if *event.metadata().level() > Level::INFO || self.1.admit(event) {
            self.0.on_event(event, context);
        }
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.0.on_new_span(attributes, id, context);
    }
}

/// The counts of each kind.
#[derive(Debug, Default)]
struct Limits(Mutex<Kinds>);

#[derive(Debug, Default)]
struct Kinds {
    by: HashMap<Identifier, Kind>,
    /// Whether lines were left out, so that a task is about to report them.
    has_left_out: bool,
    is_telling: bool,
}

#[derive(Debug)]
struct Kind {
    /// When the next line would be due if all so far had kept the interval (a token bucket).
    spent: Instant,
    left_out: u64,
    /// The message of such a line.
    message: String,
}

impl Limits {
    /// Whether a line may be written.
    fn admit(self: &Arc<Self>, event: &Event<'_>) -> bool {
        let now = Instant::now();
        let mut kinds = self.lock();
        let new = || Kind { spent: now, left_out: 0, message: String::new() };
        let kind = kinds.by.entry(event.metadata().callsite()).or_insert_with(new);
        let is_admitted = kind.spent.saturating_duration_since(now) < EVERY * BURST;
        if is_admitted {
            kind.spent = kind.spent.max(now) + EVERY;
        } else {
            if kind.message.is_empty() {
                event.record(&mut |field: &Field, value: &dyn fmt::Debug| {
                    if field.name() == "message" {
                        kind.message = format!("{value:?}");
                    }
                });
            }
            kind.left_out += 1;
            kinds.has_left_out = true;
        }
        if kinds.has_left_out
            && !kinds.is_telling
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            kinds.is_telling = true;
            runtime.spawn(Arc::clone(self).tell());
        }
        is_admitted
    }

    fn lock(&self) -> MutexGuard<'_, Kinds> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports the lines left out, until none are.
    async fn tell(self: Arc<Self>) {
        loop {
            tokio::time::sleep(TELL).await;
            for (kind, lines) in self.left_out() {
                warn!(kind, lines, "log lines left out");
            }
            let mut kinds = self.lock();
            // The lines of this report are a kind, too.
            kinds.has_left_out = kinds.by.values().any(|kind| kind.left_out > 0);
            if !kinds.has_left_out {
                kinds.is_telling = false;
                return;
            }
        }
    }

    /// The lines left out since the last report, by kind.
    fn left_out(&self) -> Vec<(String, u64)> {
        let mut kinds = self.lock();
        let kinds = kinds.by.values_mut().filter(|kind| kind.left_out > 0);
        kinds.map(|kind| (kind.message.clone(), std::mem::take(&mut kind.left_out))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use tracing::{debug, info};
    use tracing_subscriber::filter::LevelFilter;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::{fmt, registry};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        fn count(&self, text: &str) -> usize {
            let log = self.0.lock().unwrap();
            String::from_utf8_lossy(&log).lines().filter(|line| line.contains(text)).count()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_of_line_has_a_burst_and_a_few_a_second_and_the_rest_is_counted() {
        let log = Captured::default();
        let writer = log.clone();
        let layer = fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let layer = Limited::new(layer).with_filter(LevelFilter::DEBUG);
        let _guard = tracing::subscriber::set_default(registry().with(layer));
        // Ten seconds of a flood, and beside it what others say.
        for second in 0..10 {
            for n in 0..1000 {
                warn!(key = n, "record skipped");
                debug!(n, "detail");
            }
            info!(second, "another kind");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(TELL).await;
        assert_eq!(log.count("another kind"), 10, "kinds do not share");
        assert_eq!(log.count("detail"), 10_000, "details are what was asked for");
        let written = log.count("record skipped key=");
        assert_eq!(written, 50 + 9 * 5);
        let left_out = |log: &Captured| -> u64 {
            let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            let lines = text.lines().filter(|line| line.contains("log lines left out"));
            let lines = lines.inspect(|line| assert!(line.contains("kind=\"record skipped\""), "{line}"));
            lines.map(|line| line.split_once(" lines=").unwrap().1.trim().parse::<u64>().unwrap()).sum()
        };
        assert_eq!(left_out(&log) + written as u64, 10_000, "all are accounted for");
        assert!(log.count("log lines left out") <= 3);
    }
}
