//! The table at the end: what was checked, what was seen, and how long it took.

use std::time::{Duration, Instant};

use crate::Fallible;

/// One line of the table.
#[derive(Debug)]
struct Row {
    what: &'static str,
    seen: String,
    took: Duration,
}

/// What was checked so far. Prints a line as soon as it is known.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Checks something; an error is what is wrong, and ends the story.
    pub(crate) fn check(
        &mut self,
        what: &'static str,
        check: impl FnOnce() -> Fallible<String>,
    ) -> Fallible<()> {
        let start = Instant::now();
        let seen = check().map_err(|error| format!("{what}: {error}"))?;
        let took = start.elapsed();
        println!("ok {:>7.2} s  {what}: {seen}", took.as_secs_f64());
        self.rows.push(Row { what, seen, took });
        Ok(())
    }

    /// The table.
    pub(crate) fn show(&self) -> String {
        let width = self.rows.iter().map(|row| row.what.len()).max().unwrap_or_default();
        let lines = self
            .rows
            .iter()
            .map(|row| format!("{:<width$}  {:>7.2} s  {}", row.what, row.took.as_secs_f64(), row.seen));
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_names_itself_and_is_no_row() {
        let mut report = Report::default();
        report.check("the sky", || Ok("blue".to_owned())).unwrap();
        let error = report.check("the sea", || Err("dry".into())).unwrap_err().to_string();
        assert_eq!(error, "the sea: dry");
        assert!(report.show().starts_with("the sky  ") && report.show().ends_with("s  blue"));
    }
}
