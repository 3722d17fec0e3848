//! Reads the command line of a program, and the environment behind it.

use clap::error::ErrorKind;
use clap::{Command, FromArgMatches};

use crate::error::UsageError;
use crate::explain::explain;
use crate::given::{Flag, Given};
use crate::go;
use crate::program::{Program, VERSION, Words};

/// What is asked for.
#[derive(Debug)]
pub enum Read<'a, T> {
    /// Print this help.
    Help(String),
    /// Print the version: the flag `--version` was given.
    Version,
    /// Do this.
    Line(Line<'a, T>),
}

/// A command line that could be read.
#[derive(Debug)]
#[non_exhaustive]
pub struct Line<'a, T> {
    /// The values.
    pub value: T,
    /// The flags that they come from.
    pub given: Given<'a>,
}

impl Program {
    /// Reads the command line (without the program's name) and the environment, by a function that gives the value of a
    /// variable. The first argument decides: a command, or a flag.
    pub fn read<T: FromArgMatches>(
        &self,
        args: &[String],
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Read<'_, T>, UsageError> {
        let (name, args) = match args.split_first() {
            Some((name, args)) if !name.starts_with('-') => (Some(name), args),
            _ => (None, args),
        };
        // A command that does not exist has no flags; clap says so.
        let command = name.map_or(Some(&self.command), |name| self.command.find_subcommand(name));
        let words = command.and_then(|command| self.words_of(command));
        let (flags, letters) = match (command, words) {
            (None, _) => (Vec::new(), &[][..]),
            (Some(_), Some(Words::Letters)) => (Vec::new(), args),
            (Some(command), words) => (go::flags(self, args, command, words)?, &[][..]),
        };
        let mut given = Given { program: self, flags };
        let read = |given: &Given<'_>| {
            let letters = letters.iter().map(|arg| if arg == "-?" { "-h".to_owned() } else { arg.clone() });
            let words = [self.name().to_owned()].into_iter().chain(name.cloned()).chain(letters);
            let flags = given.flags.iter().map(ToString::to_string);
            let matches = self.command.clone().try_get_matches_from(words.chain(flags))?;
            // Upstream looks at the version before the environment.
            let is_version = matches.try_get_one(VERSION).is_ok_and(|given| given == Some(&true));
            T::from_arg_matches(&matches).map(|value| (value, is_version))
        };
        let mut value = match read(&given) {
            Ok((_, true)) => return Ok(Read::Version),
            Ok((value, false)) => value,
            Err(help) if help.kind() == ErrorKind::DisplayHelp => {
                return Ok(Read::Help(help.render().to_string()));
            }
            Err(error) => return Err(explain(&error, &given)),
        };
        let found = command.map_or_else(Vec::new, |command| self.environment(&given, command, variable));
        if !found.is_empty() {
            given.flags.extend(found);
            value = read(&given).map_err(|error| explain(&error, &given))?.0;
        }
        Ok(Read::Line(Line { value, given }))
    }

    /// The flags of the program that a command has, that were not given, and that the environment has. An empty variable
    /// counts as unset.
    fn environment(
        &self,
        given: &Given<'_>,
        command: &Command,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Vec<Flag> {
        let from = |name: &str| {
            let origin = self.variable_of(name).filter(|_| !given.has(name))?;
            let value = variable(&origin).filter(|value| !value.is_empty())?;
            Some(Flag { name: name.to_owned(), value: Some(value), variable: Some(origin) })
        };
        command.get_arguments().filter_map(|flag| from(flag.get_long()?)).collect()
    }
}
