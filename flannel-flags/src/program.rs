//! A program with flags, and what clap does not know of it.

use clap::{Arg, Command};

/// How a command reads words that are no flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Words {
    /// Its first word is the value of this flag.
    First(&'static str),
    /// Each word before its flags is a value of this flag.
    Leading(&'static str),
    /// All are for clap: flags are letters, as `getopts` of a shell takes them. `-?` asks for help.
    Letters,
}

/// A program whose flags have Go's syntax. Its commands stand before all flags; the program without a command has flags
/// of its own, which the environment has variables for.
#[derive(Debug, Clone)]
#[must_use]
pub struct Program {
    pub(crate) command: Command,
    pub(crate) prefix: &'static str,
    pub(crate) mistaken: Option<&'static str>,
    pub(crate) passwords: &'static [&'static str],
    pub(crate) users: &'static [&'static str],
    pub(crate) urls: &'static [&'static str],
    words: Vec<(&'static str, Words)>,
}

/// The flag that has no variable, as in upstream, and that is answered without a look at variables.
pub(crate) const VERSION: &str = "version";

impl Program {
    /// A program with the name and the flags of a command, without variables and secrets. The flags should have Go's
    /// meaning: [`as_in_go`](crate::as_in_go).
    pub fn new(command: Command) -> Self {
        let none = &[];
        Self {
            command,
            prefix: "",
            mistaken: None,
            passwords: none,
            users: none,
            urls: none,
            words: Vec::new(),
        }
    }

    /// What variables begin with: the variable of a flag is its name in capitals behind this, with `_` for `-`.
    pub fn variables(self, prefix: &'static str) -> Self {
        Self { prefix, ..self }
    }

    /// A prefix that other programs have variables with, too, and that is easily mistaken for this program's. Of these
    /// [`unread`](Self::unread) names only those that a flag has.
    pub fn mistaken_prefix(self, prefix: &'static str) -> Self {
        Self { mistaken: Some(prefix), ..self }
    }

    /// Flags whose values are secrets. Nothing of them is shown.
    pub fn passwords(self, passwords: &'static [&'static str]) -> Self {
        Self { passwords, ..self }
    }

    /// Flags whose values are names of users. People put passwords behind a colon in them.
    pub fn users(self, users: &'static [&'static str]) -> Self {
        Self { users, ..self }
    }

    /// Flags whose values are URLs, separated by commas. People put passwords into them.
    pub fn urls(self, urls: &'static [&'static str]) -> Self {
        Self { urls, ..self }
    }

    /// How a command reads words; those of one that is not named are errors.
    pub fn words(mut self, command: &'static str, words: Words) -> Self {
        self.words.push((command, words));
        self
    }

    /// Its flags.
    pub fn command(&self) -> &Command {
        &self.command
    }

    /// The name of the program.
    pub fn name(&self) -> &str {
        self.command.get_name()
    }

    /// The environment variable behind a flag; `None` for one that the program without a command does not have.
    pub fn variable_of(&self, flag: &str) -> Option<String> {
        find(&self.command, flag).filter(|_| flag != VERSION && !self.prefix.is_empty())?;
        Some(format!("{}{}", self.prefix, flag.to_ascii_uppercase().replace('-', "_")))
    }

    /// How to see what a command line could have.
    pub fn hint(&self, args: &[String]) -> String {
        let program = self.name();
        match args.first().filter(|name| self.command.find_subcommand(name).is_some()) {
            Some(name) => format!("{program} {name} --help lists its flags."),
            None => format!("{program} --help lists all flags and commands."),
        }
    }

    /// How a command reads words.
    pub(crate) fn words_of(&self, command: &Command) -> Option<Words> {
        let (_, words) = self.words.iter().find(|(name, _)| *name == command.get_name())?;
        Some(*words)
    }

    /// Whether the value of a flag may hold a password.
    pub(crate) fn is_delicate(&self, flag: &str) -> bool {
        self.delicate().any(|delicate| delicate == flag)
    }

    /// The flags whose values may hold a password.
    pub(crate) fn delicate(&self) -> impl Iterator<Item = &'static str> {
        self.passwords.iter().chain(self.urls).copied()
    }
}

/// A flag of a command by its name.
pub(crate) fn find<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|flag| flag.get_long() == Some(name))
}
