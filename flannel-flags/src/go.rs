//! Reads the syntax of Go's `flag` package.

use clap::{Arg, Command};

use crate::error::UsageError;
use crate::given::Flag;
use crate::program::{Program, Words, find};
use crate::{shown, value};

/// Reads the flags of a command.
///
/// One or two dashes; `-name=value` or `-name value`; a boolean takes a value only after `=`. Flags end at `--` or the
/// first argument that is none. Go ignores what follows, which hides `--ip-masq false`; here it is an error.
pub(crate) fn flags(
    program: &Program,
    args: &[String],
    command: &Command,
    words: Option<Words>,
) -> Result<Vec<Flag>, UsageError> {
    let mut given: Vec<Flag> = Vec::new();
    let mut rest = args.iter().peekable();
    let stands_for =
        |name: &str, word: &String| Flag { name: name.to_owned(), value: Some(word.clone()), variable: None };
    match words {
        Some(Words::First(name)) => {
            given.extend(rest.next_if(|arg| !arg.starts_with('-')).map(|word| stands_for(name, word)));
        }
        Some(Words::Leading(name)) => {
            while let Some(word) = rest.next_if(|arg| !arg.starts_with('-')) {
                given.push(stands_for(name, word));
            }
        }
        Some(Words::Letters) | None => {}
    }
    while let Some(arg) = rest.next() {
        let text = match arg.strip_prefix('-') {
            None | Some("") => return Err(unexpected(program, arg, &given, command)),
            Some("-") => match rest.next() {
                // Nothing says what it is, so it may be a password.
                Some(_) => return Err(leftover(program, shown::HIDDEN, None)),
                None => break,
            },
            Some(text) => text.strip_prefix('-').unwrap_or(text),
        };
        if text.starts_with(['-', '=']) {
            // Not its value, which may be a password.
            return Err(UsageError(format!("bad flag syntax: {}", shown::argument(program, arg))));
        }
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let Some(flag) = find(command, name) else {
            let name = if name == "h" { "help" } else { name }.to_owned();
            given.push(Flag { name, value: None, variable: None });
            break;
        };
        let value = match value {
            Some(value) => value,
            None if flag.is_require_equals_set() => "true".to_owned(),
            None => rest.next().cloned().ok_or_else(|| needs_value(name))?,
        };
        given.push(Flag { name: name.to_owned(), value: Some(value), variable: None });
    }
    Ok(given)
}

/// What is wrong with an argument that is no flag.
fn unexpected(program: &Program, arg: &str, given: &[Flag], command: &Command) -> UsageError {
    let is_delicate = |flag: &Flag| program.is_delicate(&flag.name);
    let (last, is_secret) = (given.last(), given.last().is_some_and(is_delicate));
    if !is_secret && program.command.find_subcommand(arg).is_some() {
        return UsageError(format!("the command {arg} goes before all flags"));
    }
    let meant = last.filter(|last| find(command, &last.name).is_some_and(Arg::is_require_equals_set));
    let meant = meant.filter(|_| value::boolean(arg).is_ok());
    // What follows a secret may be a part of it, whatever stands between them.
    let is_hidden = meant.is_none() && given.iter().any(is_delicate);
    let shown = if is_hidden { shown::HIDDEN.to_owned() } else { shown::argument(program, arg) };
    match (meant, program.words_of(command)) {
        (None, Some(Words::First(name) | Words::Leading(name))) => UsageError(format!(
            "unexpected argument {shown:?}; give it before all flags, or as --{name}={shown}"
        )),
        (meant, _) => leftover(program, &shown, meant),
    }
}

/// An argument after the flags, and the boolean before it whose value it seems to be.
pub(crate) fn leftover(program: &Program, arg: &str, boolean: Option<&Flag>) -> UsageError {
    let hint = match boolean {
        Some(Flag { name, .. }) => format!("did you mean --{name}={arg}?"),
        None => format!("{} takes flags only, and reads none after it", program.name()),
    };
    UsageError(format!("unexpected argument {arg:?}; {hint}"))
}

pub(crate) fn needs_value(name: &str) -> UsageError {
    UsageError(format!("flag --{name} needs a value"))
}
