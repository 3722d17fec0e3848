//! What a check finds.

use std::error::Error;
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

    /// All of them as one, or that all is well: the worst verdict, and evidence and fixes of all, the worst first. Each fix
    /// is named once. What is more than an operator reads is a number.
    pub(crate) fn of_all(findings: impl IntoIterator<Item = Self>, fine: impl FnOnce() -> String) -> Self {
        let mut findings: Vec<Self> = findings.into_iter().collect();
        let Some(verdict) = findings.iter().map(|finding| finding.verdict).max() else {
            return Self::ok(fine());
        };
        // A stable sort: within a verdict the order stays.
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.verdict));
        let (mut evidence, mut fixes): (Vec<String>, Vec<String>) = Default::default();
        for finding in findings {
            evidence.extend(finding.evidence);
            fixes.extend(finding.fix.filter(|fix| !fixes.contains(fix)));
        }
        let more = evidence.len().saturating_sub(MOST_EVIDENCE);
        if more > 0 {
            evidence.truncate(MOST_EVIDENCE);
            evidence.push(format!("and {more} more of this kind"));
        }
        let fix = (!fixes.is_empty()).then(|| listed(&fixes, MOST_FIXES, "; "));
        Self { verdict, evidence, fix }
    }
}

/// The most lines of evidence, and the most fixes, that a finding shows.
const MOST_EVIDENCE: usize = 20;
const MOST_FIXES: usize = 8;

/// The first names, and how many there are besides.
pub(crate) fn sample(names: &[impl AsRef<str>]) -> String {
    listed(names, 5, ", ")
}

fn listed(items: &[impl AsRef<str>], most: usize, between: &str) -> String {
    let first = items.iter().take(most).map(AsRef::as_ref).collect::<Vec<_>>().join(between);
    match items.len().saturating_sub(most) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Whether an error is that this process lacks a right, by it or by one that it comes from.
pub(crate) fn is_denied(error: &(dyn Error + 'static)) -> bool {
    let by_itself = error.downcast_ref::<io::Error>().is_some_and(|error| {
        // What our own code refuses has this kind, too, but no number of the kernel's.
        matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM))
            || error.get_ref().is_some_and(|inner| is_denied(inner))
    });
    by_itself || error.source().is_some_and(is_denied)
}

/// Why a check could not be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skip(pub(crate) String);

impl Skip {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// A file could not be read.
    pub(crate) fn unread(path: impl fmt::Display, error: &io::Error) -> Self {
        if is_denied(error) {
            return Self::denied(format!("{path} can't be read: {error}"));
        }
        Self(format!("{path} can't be read: {error}"))
    }

    /// This process lacks the right to see it, which says nothing about the host.
    pub(crate) fn denied(what: impl fmt::Display) -> Self {
        Self(format!("{what}; ask as root"))
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
        assert_eq!(one.evidence, ["b", "c", "a"]);
        assert_eq!(one.fix.as_deref(), Some("do b; do c; do a"));
        let same = [Finding::warning("a", "do it"), Finding::warning("b", "do it")];
        assert_eq!(Finding::of_all(same, String::new).fix.as_deref(), Some("do it"));
        assert_eq!(Finding::of_all([], || "fine".to_owned()), Finding::ok("fine"));
    }

    #[test]
    fn what_nobody_reads_is_a_number() {
        let many = (0..100).map(|number| Finding::warning(format!("{number}"), format!("do {number}")));
        let one = Finding::of_all(many, String::new);
        assert_eq!((one.evidence.len(), one.evidence[20].as_str()), (21, "and 80 more of this kind"));
        assert!(one.fix.as_deref().unwrap().ends_with("do 7 and 92 more"), "{one:?}");
        assert_eq!(sample(&["a", "b"]), "a, b");
        assert_eq!(sample(&["a", "b", "c", "d", "e", "f"]), "a, b, c, d, e and 1 more");
    }

    #[test]
    fn a_missing_right_is_told_from_what_we_refuse() {
        let denied = io::Error::from_raw_os_error(libc::EACCES);
        assert!(
            is_denied(&denied) && is_denied(&io::Error::other(io::Error::from_raw_os_error(libc::EPERM)))
        );
        assert!(!is_denied(&io::Error::new(io::ErrorKind::PermissionDenied, "others can write there")));
        assert!(Skip::unread("/a", &denied).0.ends_with("; ask as root"));
    }

    #[test]
    fn exit_codes_grow_with_the_verdict() {
        assert_eq!(Verdict::ALL.map(Verdict::exit_code), [0, 0, 0, 3, 4]);
        assert!(Verdict::ALL.is_sorted());
    }
}
