//! What the demo found, and whether that is as it should be.

use std::time::Duration;

use crate::table::{Align, median, table, time};

/// A repair that takes longer than this counts as failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

/// How one kind of damage went.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    /// The damage.
    pub(crate) fault: String,
    /// From the damage to the repair, once each time.
    pub(crate) repairs: Vec<Duration>,
    /// Echoes between two pods meanwhile, and how many of them were lost.
    pub(crate) sent: u64,
    /// See `sent`.
    pub(crate) lost: u64,
    /// The longest time without an echo answered.
    pub(crate) outage: Duration,
    /// What went wrong, if anything.
    pub(crate) problem: Option<String>,
    /// Why packets may be lost all the same, if they may.
    pub(crate) tolerated: Option<&'static str>,
}

impl Row {
    /// What is wrong with it.
    fn verdict(&self) -> Option<String> {
        let slow = self.repairs.iter().max().filter(|worst| **worst > LIMIT);
        let slow = slow.map(|worst| format!("repaired after {}, limit {}", time(*worst), time(LIMIT)));
        let none = self.repairs.is_empty().then(|| "not repaired".to_owned());
        self.problem.clone().or(slow).or(none).map(|problem| format!("{}: {problem}", self.fault))
    }

    /// Its repair times and losses, in a few words.
    pub(crate) fn headline(&self) -> String {
        let repaired = match self.repairs.as_slice() {
            [] => "not repaired".to_owned(),
            [once] => time(*once),
            many => {
                let worst = many.iter().max().copied().unwrap_or_default();
                format!("{}, worst of {} {}", time(median(many)), many.len(), time(worst))
            }
        };
        let Self { lost, sent, .. } = self;
        let outage =
            if *lost > 0 { format!(", longest outage {}", time(self.outage)) } else { String::new() };
        let why = self.tolerated.filter(|_| *lost > 0).map(|why| format!("; {why}")).unwrap_or_default();
        format!("{repaired}; {lost} of {sent} pings lost{outage}{why}")
    }
}

/// All that was found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Damage, in the order it was done.
    pub(crate) rows: Vec<Row>,
    /// The headlines of matrices of pings that had losses.
    pub(crate) matrices: Vec<String>,
}

impl Report {
    /// What is wrong. Nothing, if the demo went well.
    pub(crate) fn problems(&self) -> Vec<String> {
        let matrices = self.matrices.iter().map(|headline| format!("pings between all pods: {headline}"));
        matrices.chain(self.rows.iter().filter_map(Row::verdict)).collect()
    }

    /// The summary.
    pub(crate) fn show(&self) -> String {
        let header = [
            ("fault", Align::Left),
            ("times", Align::Right),
            ("repaired", Align::Right),
            ("worst", Align::Right),
            ("pings lost", Align::Right),
            ("outage", Align::Right),
            ("", Align::Left),
        ];
        let rows = self.rows.iter().map(|row| {
            let worst = row.repairs.iter().max().copied();
            vec![
                row.fault.clone(),
                row.repairs.len().to_string(),
                worst.map_or_else(|| "-".to_owned(), |_| time(median(&row.repairs))),
                worst.map_or_else(|| "-".to_owned(), time),
                format!("{} of {}", row.lost, row.sent),
                if row.lost == 0 { "none".to_owned() } else { time(row.outage) },
                if row.verdict().is_none() { "ok" } else { "FAILED" }.to_owned(),
            ]
        });
        table(&header, &rows.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ms: &[u64]) -> Row {
        let repairs = ms.iter().map(|ms| Duration::from_millis(*ms)).collect();
        Row { fault: "route".into(), repairs, sent: 100, ..Row::default() }
    }

    fn problems(row: Row) -> Vec<String> {
        Report { rows: vec![row], matrices: Vec::new() }.problems()
    }

    #[test]
    fn a_slow_or_missing_repair_is_a_problem() {
        assert!(problems(row(&[1, 5000])).is_empty());
        assert_eq!(problems(row(&[1, 5001])), ["route: repaired after 5.00 s, limit 5.00 s"]);
        assert_eq!(problems(row(&[])), ["route: not repaired"]);
        let lossy = Row { problem: Some("2 pings lost".into()), ..row(&[1]) };
        assert_eq!(problems(lossy), ["route: 2 pings lost"]);
        let report = Report { rows: Vec::new(), matrices: vec!["1 of 2 lost".into()] };
        assert_eq!(report.problems(), ["pings between all pods: 1 of 2 lost"]);
    }

    #[test]
    fn the_summary_has_a_line_for_each() {
        let report = Report { rows: vec![row(&[3, 1, 2]), row(&[])], matrices: Vec::new() };
        let text = report.show();
        let lines = text.lines().collect::<Vec<_>>();
        assert!(lines[1].contains("2.00 ms") && lines[1].contains("3.00 ms") && lines[1].ends_with("ok"));
        assert!(lines[2].ends_with("FAILED"), "{text}");
    }

    #[test]
    fn headlines_say_what_was_lost() {
        assert_eq!(row(&[3, 1, 2]).headline(), "2.00 ms, worst of 3 3.00 ms; 0 of 100 pings lost");
        let lossy = Row { lost: 2, outage: Duration::from_millis(3), ..row(&[1]) };
        assert_eq!(lossy.headline(), "1.00 ms; 2 of 100 pings lost, longest outage 3.00 ms");
        let tolerated = Row { tolerated: Some("as expected"), ..lossy };
        assert!(tolerated.headline().ends_with("3.00 ms; as expected"), "{}", tolerated.headline());
    }
}
