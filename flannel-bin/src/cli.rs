//! What the operator asked for: flags, environment, and the checks that need no system.

mod args;
mod flags;
mod options;
mod shown;
mod subcommands;
#[cfg(test)]
mod tests;
mod usage;

use std::fmt;

use crate::docker_opts::DockerOptions;
use crate::install_cni::InstallOptions;
use flags::FLAGS;
pub(crate) use options::{CleanupOptions, KubeFlags, LogFormat, Options, StoreChoice, VModule};
use subcommands::{SUBCOMMANDS, Task};
pub(crate) use usage::version;

/// What the process is to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Print this.
    Help(String),
    /// Print the version.
    Version,
    /// Be the agent.
    Run(Box<Options>),
    /// Remove what the agent left on this host.
    Cleanup(Box<CleanupOptions>),
    /// Install the CNI plugin.
    InstallCni(InstallOptions),
    /// Write options for Docker.
    DockerOpts(DockerOptions),
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
    /// An argument that is not UTF-8, by its number: it may hold a password.
    #[error("argument number {0} is not valid UTF-8")]
    NotUtf8(usize),
    /// A flag that does not exist.
    #[error("unknown flag --{name}{}", nearest.map(|near| format!("; did you mean --{near}?")).unwrap_or_default())]
    Unknown {
        /// Its name.
        name: String,
        /// A flag with almost this name.
        nearest: Option<&'static str>,
    },
    /// A command that does not exist.
    #[error("unknown command {name:?}{}", nearest.map(|near| format!("; did you mean {near}?")).unwrap_or_default())]
    UnknownCommand {
        /// Its name.
        name: String,
        /// A command with almost this name.
        nearest: Option<&'static str>,
    },
    /// A command after flags.
    #[error("the command {0} goes before all flags")]
    Misplaced(&'static str),
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

/// Reads the command line (without the program's name) and the environment. The first argument decides: a
/// command, or a flag of the agent.
pub(crate) fn command(
    args: &[String],
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Command, CliError> {
    match args.split_first() {
        Some((name, args)) if !name.starts_with('-') => subcommand(name, args, variable),
        _ => agent(args, variable),
    }
}

fn agent(args: &[String], variable: impl Fn(&str) -> Option<String>) -> Result<Command, CliError> {
    let flags: Vec<_> = FLAGS.iter().collect();
    let mut given = match args::parse(args, &flags)? {
        args::Line::Help => return Ok(Command::Help(usage::usage())),
        args::Line::Flags(given) => given,
    };
    // Upstream looks at the version before the environment.
    let last = given.iter().rfind(|given| given.flag.name == "version");
    if last.is_some_and(|given| args::parse_bool(&given.value) == Some(true)) {
        return Ok(Command::Version);
    }
    args::add_environment(&mut given, &flags, variable)?;
    Ok(Command::Run(Box::new(Options::from_given(&given)?)))
}

fn subcommand(
    name: &str,
    args: &[String],
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Command, CliError> {
    let Some(subcommand) = subcommands::find(name) else {
        let nearest = args::nearest(name, SUBCOMMANDS.iter().map(|subcommand| subcommand.name));
        return Err(CliError::UnknownCommand { name: shown::argument(name), nearest });
    };
    let flags = subcommand.flags();
    let args = match subcommand.task {
        Task::DockerOpts => &args::letters(args, &flags),
        _ => args,
    };
    let mut given = match args::parse(args, &flags)? {
        args::Line::Help => return Ok(Command::Help(usage::usage_of(subcommand))),
        args::Line::Flags(given) => given,
    };
    args::add_environment(&mut given, &flags, variable)?;
    Ok(match subcommand.task {
        Task::Cleanup => Command::Cleanup(Box::new(CleanupOptions::from_given(&given)?)),
        Task::InstallCni => Command::InstallCni(InstallOptions::from_given(&given, &flags)?),
        Task::DockerOpts => Command::DockerOpts(DockerOptions::from_given(&given, &flags)?),
    })
}

/// How to see what a command line could have.
pub(crate) fn help_of(args: &[String]) -> String {
    match args.first().and_then(|name| subcommands::find(name)) {
        Some(subcommand) => format!("flanneld {} --help lists its flags.", subcommand.name),
        None => "flanneld --help lists all flags and commands.".to_owned(),
    }
}
