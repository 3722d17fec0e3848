//! Turns command lines with the syntax of Go's `flag` package, and the environment behind them, into what clap reads.

use std::fmt;

use clap::{Arg, Command};

use super::{CliError, shown, value};

/// A flag as clap reads it: `--name=value`.
pub(super) struct Given {
    pub(super) name: String,
    /// `None` if the flag is for clap to answer: one that does not exist, or `--help`.
    pub(super) value: Option<String>,
    /// The environment variable that it comes from, else the command line.
    pub(super) variable: Option<String>,
}

impl Given {
    /// Whether the value may hold a password.
    pub(super) fn is_delicate(&self) -> bool {
        shown::DELICATE.contains(&&*self.name)
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}", self.name)?;
        self.value.as_ref().map_or(Ok(()), |value| write!(f, "={value}"))
    }
}

/// Reads the flags of a command.
///
/// One or two dashes; `-name=value` or `-name value`; a boolean takes a value only after `=`. Flags end at `--` or the
/// first argument that is none. Upstream ignores what follows, which hides `--ip-masq false`; here it is an error.
pub(super) fn flags(args: &[String], command: &Command, all: &Command) -> Result<Vec<Given>, CliError> {
    let mut given: Vec<Given> = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let text = match arg.strip_prefix('-') {
            // The first word can stand for a flag.
            None if given.is_empty() && word_of(command).is_some() => {
                let name = word_of(command).unwrap_or_default().to_owned();
                given.push(Given { name, value: Some(arg.clone()), variable: None });
                continue;
            }
            None | Some("") => return Err(unexpected(arg, &given, command, all)),
            Some("-") => match rest.next() {
                // Nothing says what it is, so it may be a password.
                Some(_) => return Err(leftover(shown::HIDDEN, None)),
                None => break,
            },
            Some(text) => text.strip_prefix('-').unwrap_or(text),
        };
        if text.starts_with(['-', '=']) {
            // Not its value, which may be a password.
            return Err(format!("bad flag syntax: {}", shown::argument(arg)));
        }
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let Some(flag) = find(command, name) else {
            let name = if name == "h" { "help" } else { name }.to_owned();
            given.push(Given { name, value: None, variable: None });
            break;
        };
        let value = match value {
            Some(value) => value,
            None if flag.is_require_equals_set() => "true".to_owned(),
            None => rest.next().cloned().ok_or_else(|| needs_value(name))?,
        };
        given.push(Given { name: name.to_owned(), value: Some(value), variable: None });
    }
    Ok(given)
}

/// The flags of the agent that a command has, that were not given, and that the environment has. An empty variable counts
/// as unset. As upstream, none says `--version`.
pub(super) fn environment(
    given: &[Given],
    command: &Command,
    all: &Command,
    variable: impl Fn(&str) -> Option<String>,
) -> Vec<Given> {
    let from = |name: &str| {
        let origin = variable_of(all, name).filter(|_| !given.iter().any(|given| given.name == name))?;
        let value = variable(&origin).filter(|value| !value.is_empty())?;
        Some(Given { name: name.to_owned(), value: Some(value), variable: Some(origin) })
    };
    command.get_arguments().filter_map(|flag| from(flag.get_long()?)).collect()
}

/// The flag whose value the first word of a command is.
fn word_of(command: &Command) -> Option<&'static str> {
    (command.get_name() == "log-level").then_some("level")
}

/// The environment variable behind a flag.
pub(super) fn variable_of(all: &Command, name: &str) -> Option<String> {
    find(all, name).filter(|_| name != "version")?;
    Some(format!("FLANNELD_{}", name.to_ascii_uppercase().replace('-', "_")))
}

pub(super) fn find<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|flag| flag.get_long() == Some(name))
}

/// What is wrong with an argument that is no flag.
fn unexpected(arg: &str, given: &[Given], command: &Command, all: &Command) -> CliError {
    let (last, is_secret) = (given.last(), given.last().is_some_and(Given::is_delicate));
    if !is_secret && all.find_subcommand(arg).is_some() {
        return format!("the command {arg} goes before all flags");
    }
    let meant = last.filter(|last| find(command, &last.name).is_some_and(Arg::is_require_equals_set));
    let meant = meant.filter(|_| value::boolean(arg).is_ok());
    // What follows a secret may be a part of it, whatever stands between them.
    let is_hidden = meant.is_none() && given.iter().any(Given::is_delicate);
    leftover(&if is_hidden { shown::HIDDEN.to_owned() } else { shown::argument(arg) }, meant)
}

/// An argument after the flags, and the boolean before it whose value it seems to be.
pub(super) fn leftover(arg: &str, boolean: Option<&Given>) -> CliError {
    let hint = match boolean {
        Some(Given { name, .. }) => format!("did you mean --{name}={arg}?"),
        None => "flanneld takes flags only, and reads none after it".to_owned(),
    };
    format!("unexpected argument {arg:?}; {hint}")
}

pub(super) fn needs_value(name: &str) -> CliError {
    format!("flag --{name} needs a value")
}
