//! What the operator asked for: flags, environment, and the checks that need no system.

mod args;
mod flags;
mod options;
#[cfg(test)]
mod tests;
mod usage;

use std::fmt;

pub(crate) use options::{LogFormat, Options, StoreChoice, VModule};
pub(crate) use usage::{usage, version};

/// What the process is to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Print the usage.
    Help,
    /// Print the version.
    Version,
    /// Be the agent.
    Run(Box<Options>),
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A flag on the command line, by name.
    Flag(&'static str),
    /// An environment variable.
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// A command line or environment that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CliError {
    /// An argument that looks like a flag but has no name.
    #[error("bad flag syntax: {0}")]
    Syntax(String),
    /// An argument that is not UTF-8.
    #[error("argument {0} is not valid UTF-8")]
    NotUtf8(String),
    /// A flag that does not exist.
    #[error("unknown flag --{name}{}", nearest.map(|near| format!("; did you mean --{near}?")).unwrap_or_default())]
    Unknown {
        /// Its name.
        name: String,
        /// A flag with almost this name.
        nearest: Option<&'static str>,
    },
    /// A flag at the end of the line without its value.
    #[error("flag --{0} needs a value")]
    NeedsValue(&'static str),
    /// A value that can't be used.
    #[error("{origin}: {value:?} is not {expected}")]
    BadValue {
        /// Where it was given.
        origin: Origin,
        /// The value.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// An argument after the flags.
    #[error("unexpected argument {arg:?}{}", boolean.map_or_else(
        || "; flanneld takes flags only, and reads none after it".to_owned(),
        |name| format!("; did you mean --{name}={arg}?"),
    ))]
    Leftover {
        /// The argument.
        arg: String,
        /// The flag before it, if the argument seems to be its value.
        boolean: Option<&'static str>,
    },
    /// Something that this version can't do.
    #[error("not supported by this version: {what} ({origin}); leave it out")]
    NotSupported {
        /// Where it was asked for.
        origin: Origin,
        /// What it is.
        what: &'static str,
    },
    /// Flags that contradict each other.
    #[error("{0}")]
    Conflict(String),
}

/// Reads the command line (without the program's name) and the environment.
pub(crate) fn command(
    args: &[String],
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Command, CliError> {
    let mut given = match args::parse(args)? {
        args::Line::Help => return Ok(Command::Help),
        args::Line::Flags(given) => given,
    };
    // Upstream looks at the version before the environment.
    let last = given.iter().rfind(|given| given.flag.name == "version");
    if last.is_some_and(|given| args::parse_bool(&given.value) == Some(true)) {
        return Ok(Command::Version);
    }
    args::add_environment(&mut given, variable)?;
    Ok(Command::Run(Box::new(Options::from_given(&given)?)))
}
