//! What happened: the journal of actions, and the histogram.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::action::Kind;

/// How much of the journal a violation shows.
const LAST: usize = 30;

/// Lines with their time.
#[derive(Debug)]
pub(crate) struct Journal {
    start: Instant,
    verbose: bool,
    lines: Mutex<VecDeque<String>>,
}

impl Journal {
    /// The clock starts now.
    pub(crate) fn new(verbose: bool) -> Self {
        Self { start: Instant::now(), verbose, lines: Mutex::default() }
    }

    /// Notes what is done at this moment.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        let line = format!("[{:8.2} s] {}", self.start.elapsed().as_secs_f64(), text.as_ref());
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if self.verbose {
            println!("{line}");
        }
        lines.push_back(line);
        if lines.len() > LAST {
            lines.pop_front();
        }
    }

    /// The last lines.
    pub(crate) fn last(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// The time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Counts and times.
#[derive(Debug, Default)]
pub(crate) struct Report {
    kinds: BTreeMap<Kind, Row>,
    sent: u64,
    lost: u64,
    without_cause: u64,
    false_alarms: usize,
    /// Rounds that ended well.
    pub(crate) rounds: u32,
}

#[derive(Debug, Default)]
struct Row {
    count: u32,
    times: Vec<Duration>,
}

impl Report {
    /// An action came and went, and its recovery can't be told from that of others.
    pub(crate) fn done(&mut self, kind: Kind) {
        self.kinds.entry(kind).or_default().count += 1;
    }

    /// An action came and went; this long after its cause had ended all was well.
    pub(crate) fn converged(&mut self, kind: Kind, time: Duration) {
        self.done(kind);
        self.kinds.entry(kind).or_default().times.push(time);
    }

    /// Pings were sent and lost, some of them without a cause.
    pub(crate) fn pings(&mut self, sent: u64, lost: u64, without_cause: u64) {
        self.without_cause += without_cause;
        self.sent += sent;
        self.lost += lost;
    }

    /// So many alarms of probes were false.
    pub(crate) fn alarms(&mut self, false_ones: usize) {
        self.false_alarms += false_ones;
    }

    /// How many actions there were.
    pub(crate) fn actions(&self) -> u32 {
        self.kinds.values().map(|row| row.count).sum()
    }

    /// One line of it.
    pub(crate) fn headline(&self) -> String {
        let Self { rounds, sent, lost, without_cause, false_alarms, .. } = self;
        let actions = self.actions();
        format!(
            "{rounds} rounds, {actions} actions; {sent} pings, {lost} lost in all, {without_cause} \
             of them without a cause; {false_alarms} false alarms"
        )
    }

    /// The histogram: a line a kind. Times are from the end of the cause until the kernel was seen to equal
    /// the model, so they hold the time of a look: some ten milliseconds a node.
    pub(crate) fn show(&self) -> String {
        let mut text = format!(
            "{:<22}{:>6}{:>9}{:>9}{:>9}{:>9}{:>9}   (ms)\n",
            "action", "count", "measured", "min", "median", "p99", "max"
        );
        for (kind, row) in &self.kinds {
            let mut times = row.times.clone();
            times.sort_unstable();
            let ms = |quantile| {
                let time = at(&times, quantile);
                time.map_or_else(|| "-".to_owned(), |time| format!("{:.0}", time.as_secs_f64() * 1e3))
            };
            let [min, median, p99, max] = [0, 50, 99, 100].map(ms);
            let (name, count, measured) = (kind.name(), row.count, times.len());
            writeln!(text, "{name:<22}{count:>6}{measured:>9}{min:>9}{median:>9}{p99:>9}{max:>9}")
                .expect("writing to a string can't fail");
        }
        text
    }
}

/// The smallest of the sorted times that so many percent of them do not exceed.
fn at(times: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (times.len() * percent).div_ceil(100);
    times.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_times_there_are() {
        let times = (1..=200).map(Duration::from_millis).collect::<Vec<_>>();
        for (percent, ms) in [(0, 1), (50, 100), (99, 198), (100, 200)] {
            assert_eq!(at(&times, percent), Some(Duration::from_millis(ms)), "{percent}");
        }
        assert_eq!(at(&times[..1], 99), Some(Duration::from_millis(1)));
        assert_eq!(at(&[], 50), None);
    }

    #[test]
    fn every_kind_has_a_line() {
        let mut report = Report::default();
        report.done(Kind::Drift);
        report.converged(Kind::Drift, Duration::from_millis(40));
        report.done(Kind::NicFlap);
        let text = report.show();
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect::<Vec<_>>();
        assert_eq!(lines[1], ["drift", "2", "1", "40", "40", "40", "40"]);
        assert_eq!(lines[2], ["NIC", "flap", "1", "0", "-", "-", "-", "-"]);
        assert_eq!(report.actions(), 3);
    }

    #[test]
    fn the_journal_keeps_its_end() {
        let journal = Journal::new(false);
        (0..50).for_each(|number| journal.note(number.to_string()));
        let last = journal.last();
        assert_eq!(last.lines().count(), LAST);
        assert!(last.ends_with(" 49") && !last.contains(" 19\n"));
    }
}
