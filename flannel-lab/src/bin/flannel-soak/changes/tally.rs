//! What happened and what it cost.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use super::cause::{Cause, Outage, Why, why};
use super::traffic::Losses;

/// Counts and times.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) rounds: u32,
    actions: BTreeMap<&'static str, u32>,
    sent: u64,
    costs: BTreeMap<Why, Cost>,
    without_cause: u64,
}

/// What a cause cost.
#[derive(Debug, Default, Clone, Copy)]
struct Cost {
    lost: u64,
    longest: Duration,
}

impl Tally {
    /// An action was done.
    pub(super) fn act(&mut self, name: &'static str) {
        *self.actions.entry(name).or_default() += 1;
    }

    /// Takes the pings of a round, and returns a line for each outage that has no cause.
    pub(super) fn judge(&mut self, losses: Losses, causes: &[Cause]) -> Vec<String> {
        self.sent += losses.sent;
        let mut lines = Vec::new();
        for outage in losses.outages {
            if let Some(why) = why(causes, &outage) {
                let cost = self.costs.entry(why).or_default();
                cost.lost += outage.lost;
                cost.longest = cost.longest.max(outage.lasted);
            } else {
                self.without_cause += outage.lost;
                lines.push(describe(&outage));
            }
        }
        lines
    }

    /// All of it.
    pub(super) fn show(&self) -> String {
        let lost = self.costs.values().map(|cost| cost.lost).sum::<u64>() + self.without_cause;
        let mut text = format!(
            "{} rounds, {} actions; {} pings, {lost} lost in all, {} of them without a cause\n",
            self.rounds,
            self.actions.values().sum::<u32>(),
            self.sent,
            self.without_cause
        );
        let mut line = |text_of: std::fmt::Arguments<'_>| {
            text.write_fmt(text_of).expect("writing to a string can't fail");
        };
        line(format_args!("{:<22}{:>6}\n", "action", "count"));
        for (name, count) in &self.actions {
            line(format_args!("{name:<22}{count:>6}\n"));
        }
        line(format_args!("{:<22}{:>6}   longest outage (ms)\n", "cause", "lost"));
        for (why, Cost { lost, longest }) in &self.costs {
            line(format_args!("{:<22}{lost:>6}{:>9}\n", why.name(), longest.as_millis()));
        }
        text
    }
}

fn describe(Outage { pair: [a, b], v6, lost, first, lasted, .. }: &Outage) -> String {
    let family = if *v6 { 6 } else { 4 };
    let at = SystemTime::now() - first.elapsed();
    let ms = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let [hours, minutes, seconds] = [3_600_000, 60_000, 1_000].map(|unit| ms % (24 * 3_600_000) / unit);
    format!(
        "node{a} and node{b} lost {lost} pings over IPv{family} without a cause, from {hours:02}:{:02}:{:02}.{:03} UTC on for \
         {} ms",
        minutes % 60,
        seconds % 60,
        ms % 1_000,
        lasted.as_millis()
    )
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::cause::pairs_of;
    use super::*;

    #[test]
    fn losses_are_counted_by_their_causes() {
        let now = Instant::now() + Duration::from_secs(60);
        let causes = [Cause::new(Why::AgentAway, pairs_of(1, [2, 3]), now, now + Duration::from_millis(500))];
        let outage = |pair, lost| {
            let lasted = Duration::from_millis(lost * 100);
            Outage { pair, v6: true, lost, first: now, last: now + lasted, lasted }
        };
        let mut tally = Tally::default();
        tally.act("switch");
        tally.act("switch");
        let outages = vec![outage([1, 2], 3), outage([1, 3], 5), outage([2, 3], 7), outage([1, 2], 11)];
        let lines = tally.judge(Losses { sent: 100, outages }, &causes);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("node2 and node3 lost 7 pings over IPv6"), "{}", lines[0]);
        let text = tally.show();
        let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect::<Vec<_>>();
        assert!(text.starts_with("0 rounds, 2 actions; 100 pings, 26 lost in all, 18 of them"), "{text}");
        assert_eq!(rows[2], ["switch", "2"]);
        assert_eq!(rows[4], ["agent", "away", "8", "500"]);
    }
}
