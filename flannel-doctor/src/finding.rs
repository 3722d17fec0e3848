//! What a check finds.

use std::fmt;
use std::io;

use flannel_core::error::chain;
use flannel_core::kernel::KernelError;
use flannel_core::netns::NetnsError;
use serde::Serialize;

/// How bad a finding is. The order is that of badness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The check does not apply to this host, or could not be done; the evidence says why.
    Skipped,
    /// All is well.
    Ok,
    /// Worth knowing. Nothing is lost by it now.
    Note,
    /// It costs something, or will.
    Warning,
    /// Packets are lost, or pods can't start.
    Failure,
}

impl Verdict {
    /// All verdicts, the best first.
    pub const ALL: [Self; 5] = [Self::Skipped, Self::Ok, Self::Note, Self::Warning, Self::Failure];

    /// The exit code of a program for a report whose worst verdict this is: 0 up to a note, 3 for a warning, 4 for a
    /// failure. 1 and 2 are what programs use for failures of their own and for bad usage.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Skipped | Self::Ok | Self::Note => 0,
            Self::Warning => 3,
            Self::Failure => 4,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Skipped => "skipped",
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Failure => "failure",
        })
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub verdict: Verdict,
    /// What was seen, one fact a line; for a skipped check the reason.
    pub evidence: Vec<String>,
    /// What to do, in one line; `None` if there is nothing to do.
    pub fix: Option<String>,
}

impl Finding {
    fn new(verdict: Verdict, evidence: impl Into<String>, fix: Option<String>) -> Self {
        Self { verdict, evidence: vec![evidence.into()], fix }
    }

    pub(crate) fn ok(evidence: impl Into<String>) -> Self {
        Self::new(Verdict::Ok, evidence, None)
    }

    pub(crate) fn skipped(reason: impl Into<String>) -> Self {
        Self::new(Verdict::Skipped, reason, None)
    }

    pub(crate) fn note(evidence: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Verdict::Note, evidence, Some(fix.into()))
    }

    pub(crate) fn warning(evidence: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Verdict::Warning, evidence, Some(fix.into()))
    }

    pub(crate) fn failure(evidence: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Verdict::Failure, evidence, Some(fix.into()))
    }

    /// The two as one: all evidence, the worse verdict, and what to do about that.
    #[must_use]
    fn and(self, other: Self) -> Self {
        let (mut worse, other) = if other.verdict > self.verdict { (other, self) } else { (self, other) };
        worse.evidence.extend(other.evidence);
        worse
    }

    /// All of them as one, or that all is well.
    pub(crate) fn of_all(findings: impl IntoIterator<Item = Self>, fine: impl FnOnce() -> String) -> Self {
        findings.into_iter().reduce(Self::and).unwrap_or_else(|| Self::ok(fine()))
    }
}

/// Why a check could not be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skip(pub(crate) String);

impl Skip {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// A file could not be read.
    pub(crate) fn unread(path: &str, error: &io::Error) -> Self {
        Self(format!("{path} can't be read: {error}"))
    }
}

impl From<KernelError> for Skip {
    fn from(error: KernelError) -> Self {
        Self(chain(&error))
    }
}

impl From<NetnsError> for Skip {
    fn from(error: NetnsError) -> Self {
        Self(chain(&error))
    }
}

/// What a check returns.
pub(crate) type Checked = Result<Finding, Skip>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_counts_and_nothing_seen_is_lost() {
        let all = [Finding::note("a", "do a"), Finding::failure("b", "do b"), Finding::warning("c", "do c")];
        let one = Finding::of_all(all, || unreachable!("there are some"));
        assert_eq!(one.verdict, Verdict::Failure);
        assert_eq!(one.evidence, ["b", "a", "c"]);
        assert_eq!(one.fix.as_deref(), Some("do b"));
        assert_eq!(Finding::of_all([], || "fine".to_owned()), Finding::ok("fine"));
    }

    #[test]
    fn exit_codes_grow_with_the_verdict() {
        assert_eq!(Verdict::ALL.map(Verdict::exit_code), [0, 0, 0, 3, 4]);
        assert!(Verdict::ALL.is_sorted());
    }
}
