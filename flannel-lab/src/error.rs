//! What can go wrong in the lab.

use std::error::Error;
use std::io;
use std::process::ExitStatus;
use std::time::Duration;

/// A step of the lab failed. The message names the step; for a program, its command line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// A program the step needs isn't installed.
    #[error("program {program} isn't in PATH; Debian package: {package}")]
    MissingProgram {
        /// The program's name.
        program: String,
        /// The Debian package that ships it.
        package: &'static str,
    },
    /// A program couldn't be started at all.
    #[error("starting `{command}`")]
    Spawn {
        /// The command line.
        command: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program ran and reported failure.
    #[error("`{command}` failed with {status}: {stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to stderr (stdout where stderr was empty).
        stderr: String,
    },
    /// A system call of our own failed.
    #[error("{what}")]
    Io {
        /// What was tried, on which object.
        what: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A program or file said something that we can't read.
    #[error("{what}: can't make sense of {output:?}")]
    Unexpected {
        /// What was being read.
        what: String,
        /// The part in question.
        output: String,
    },
    /// A condition didn't come true in time.
    #[error("waited {waited:?} for {what}; last seen: {last}")]
    Timeout {
        /// The condition.
        what: String,
        /// How long it was waited for.
        waited: Duration,
        /// What the last look at it showed.
        last: String,
    },
    /// A process that should be running isn't.
    #[error("{name} ended with {status}; the end of its log:\n{log}")]
    Ended {
        /// The process's name in the lab.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last lines of output.
        log: String,
    },
    /// The caller asked for something that the lab can't build.
    #[error("{0}")]
    Invalid(String),
}

impl LabError {
    /// Wraps a system call's failure; for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source: source.into() }
    }

    pub(crate) fn unexpected(what: impl Into<String>, output: impl Into<String>) -> Self {
        Self::Unexpected { what: what.into(), output: output.into() }
    }
}

/// The text of an error and of all its causes. One that the text ends with already is not said again.
pub fn chain(error: &dyn Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}
