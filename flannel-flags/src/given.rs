//! The flags that were given, on the command line or by variables.

use std::fmt;

use crate::error::UsageError;
use crate::program::{Program, find};
use crate::shown;

/// A flag as clap reads it: `--name=value`.
#[derive(Clone)]
#[non_exhaustive]
pub struct Flag {
    /// Its name, without dashes.
    pub name: String,
    /// `None` if the flag is for clap to answer: one that does not exist, or `--help`.
    pub value: Option<String>,
    /// The environment variable that it comes from, else the command line.
    pub variable: Option<String>,
}

/// As clap reads it, so a value that may be a password is in it. [`Given::shown`] is for people.
impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}", self.name)?;
        self.value.as_ref().map_or(Ok(()), |value| write!(f, "={value}"))
    }
}

/// Without the value, which may be a password.
impl fmt::Debug for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flag").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The flags of a command line and of the variables behind it.
#[derive(Debug, Clone)]
pub struct Given<'a> {
    pub(crate) program: &'a Program,
    pub(crate) flags: Vec<Flag>,
}

impl Given<'_> {
    /// All of them, in their order, variables last.
    pub fn flags(&self) -> &[Flag] {
        &self.flags
    }

    /// Whether a flag was given, with whatever value.
    pub fn has(&self, name: &str) -> bool {
        self.flags.iter().any(|flag| flag.name == name)
    }

    /// What people call a flag: the variable that it comes from, else its name with two dashes.
    pub fn origin(&self, name: &str) -> String {
        let variable =
            self.flags.iter().find(|flag| flag.name == name).and_then(|flag| flag.variable.clone());
        variable.unwrap_or_else(|| format!("--{name}"))
    }

    /// The value of a flag, as it was given; empty if it was not. It may be a password.
    pub fn value_of(&self, name: &str) -> &str {
        // Of a flag that is given twice the last one counts.
        let value =
            self.flags.iter().rev().find(|flag| flag.name == name).and_then(|flag| flag.value.as_deref());
        value.unwrap_or_default()
    }

    /// The error that the value of a flag is not what it should be, in words that continue "it is not", such as `a path`.
    /// The value is shown as far as it can be no password.
    pub fn bad_value(&self, name: &str, value: &str, expected: &str) -> UsageError {
        let shown = shown::value(self.program, name, value);
        UsageError(format!("{}: {shown:?} is not {expected}", self.origin(name)))
    }

    /// The flags that differ from their defaults, with secrets hidden, for a log.
    pub fn shown(&self) -> String {
        let show = |Flag { name, value, .. }: &Flag| {
            let value = value.as_deref()?;
            let flag = find(&self.program.command, name)?;
            let is_default = flag.get_default_values().iter().any(|default| default == value);
            (!is_default).then(|| format!("--{name}={}", shown::value(self.program, name, value)))
        };
        self.flags.iter().filter_map(show).collect::<Vec<_>>().join(" ")
    }
}
