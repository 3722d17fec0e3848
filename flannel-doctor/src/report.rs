//! The findings of all checks, as a table or as JSON.

use std::fmt::{self, Write as _};
use std::io;
use std::time::Duration;

use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

use crate::finding::{Finding, Verdict};

/// The version of the JSON form. It changes when a field changes its meaning or goes.
const VERSION: u32 = 1;

/// How a report is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReportForm {
    /// Lines for people.
    #[default]
    Table,
    /// A JSON object.
    Json,
}

/// One check that was done.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Examined {
    /// The name of the check.
    pub check: &'static str,
    /// What it found.
    pub finding: Finding,
    /// How long it took.
    pub took: Duration,
}

/// What the doctor found. Its JSON has `version`, `verdict` and `checks`, each with `check`, `verdict`, `evidence`, `fix`
/// and `seconds`.
#[derive(Debug, Clone, PartialEq)]
pub struct Report(Vec<Examined>);

impl Report {
    pub(crate) fn new(checks: Vec<Examined>) -> Self {
        Self(checks)
    }

    /// The checks, in their usual order.
    pub fn checks(&self) -> &[Examined] {
        &self.0
    }

    /// What a check found; `None` if it was not done.
    pub fn of(&self, name: &str) -> Option<&Finding> {
        self.0.iter().find(|done| done.check == name).map(|done| &done.finding)
    }

    /// The worst verdict.
    pub fn verdict(&self) -> Verdict {
        self.0.iter().map(|done| done.finding.verdict).max().unwrap_or(Verdict::Skipped)
    }

    /// How many checks have a verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.0.iter().filter(|done| done.finding.verdict == verdict).count()
    }

    /// Writes the report.
    pub fn write(&self, form: ReportForm, out: &mut impl io::Write) -> io::Result<()> {
        match form {
            ReportForm::Table => write!(out, "{self}"),
            ReportForm::Json => writeln!(out, "{}", self.to_json()),
        }
    }

    /// The report as one JSON object.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

impl Serialize for Examined {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Examined", 5)?;
        fields.serialize_field("check", self.check)?;
        fields.serialize_field("verdict", &self.finding.verdict)?;
        fields.serialize_field("evidence", &self.finding.evidence)?;
        fields.serialize_field("fix", &self.finding.fix)?;
        fields.serialize_field("seconds", &self.took.as_secs_f64())?;
        fields.end()
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Report", 3)?;
        fields.serialize_field("version", &VERSION)?;
        fields.serialize_field("verdict", &self.verdict())?;
        fields.serialize_field("checks", &self.0)?;
        fields.end()
    }
}

impl fmt::Display for Report {
    /// A table, the worst first, with the fix below each finding that has one, and a line of counts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|done| done.check.len()).max().unwrap_or(0);
        let mut all: Vec<&Examined> = self.0.iter().collect();
        // A stable sort: within a verdict the usual order stays. What was skipped comes last by itself.
        all.sort_by_key(|done| std::cmp::Reverse(done.finding.verdict));
        for Examined { check, finding, .. } in all {
            let mut evidence = finding.evidence.iter();
            let first = evidence.next().map_or("", String::as_str);
            writeln!(f, "{:<7}  {check:<width$}  {first}", finding.verdict)?;
            for line in evidence {
                writeln!(f, "{:<7}  {:<width$}  {line}", "", "")?;
            }
            if let Some(fix) = &finding.fix {
                writeln!(f, "{:<7}  {:<width$}  fix: {fix}", "", "")?;
            }
        }
        let mut counts = String::new();
        for verdict in Verdict::ALL.into_iter().rev() {
            let comma = if counts.is_empty() { "" } else { ", " };
            let number = self.count(verdict);
            let plural = if number != 1 && verdict >= Verdict::Note { "s" } else { "" };
            write!(counts, "{comma}{number} {verdict}{plural}")?;
        }
        writeln!(f, "{counts}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let done = |check, finding| Examined { check, finding, took: Duration::from_millis(20) };
        let mut two = Finding::failure("eth0 is down", "`ip link set eth0 up`");
        two.evidence.push("eth1 is down".to_owned());
        Report::new(vec![
            done("agents", Finding::ok("one agent runs (pid 7)")),
            done("kernel-tun", Finding::skipped("no namespace")),
            done("underlay-address", two),
        ])
    }

    #[test]
    fn the_worst_comes_first() {
        let want = "\
failure  underlay-address  eth0 is down
                           eth1 is down
                           fix: `ip link set eth0 up`
ok       agents            one agent runs (pid 7)
skipped  kernel-tun        no namespace
1 failure, 0 warnings, 0 notes, 1 ok, 1 skipped
";
        assert_eq!(report().to_string(), want);
    }

    #[test]
    fn json_has_the_same() {
        let json: serde_json::Value = serde_json::from_str(&report().to_json()).unwrap();
        assert_eq!((json["version"].as_u64(), json["verdict"].as_str()), (Some(1), Some("failure")));
        let last = &json["checks"][2];
        assert_eq!(
            (&last["check"], &last["evidence"][1]),
            (&"underlay-address".into(), &"eth1 is down".into())
        );
        assert_eq!((&last["fix"], &last["seconds"]), (&"`ip link set eth0 up`".into(), &0.02.into()));
        assert!(json["checks"][0]["fix"].is_null());
    }
}
