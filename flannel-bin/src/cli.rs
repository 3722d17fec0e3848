//! What the operator asked for: flags, environment, and the checks that need no system. clap reads them (`flags`,
//! `value`), once `go` has turned Go's syntax into clap's; nothing of what clap says that may hold a password is shown.

mod flags;
mod go;
mod servers;
mod shown;
#[cfg(test)]
mod tests;
mod value;
mod variables;

use std::error::Error as _;

use clap::FromArgMatches as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use flannel_core::probe::ProbeInterval;

use flags::CommandLine;
pub(crate) use flags::{
    CleanupOptions, Common, DockerOptions, DoctorOptions, EventsOptions, InstallOptions, LogLevelOptions,
    Options, StatusOptions, Task,
};
use go::Given;
pub(crate) use value::{LogFormat, Part, ReportForm, Store};
pub(crate) use variables::{Unread, unread as unread_variables};

/// What the process is to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Print this.
    Help(String),
    /// Print the version.
    Version,
    /// Be the agent.
    Run(Box<Options>),
    /// Something else.
    Task(Task),
}

/// Why a command line or an environment can't be used, in words that show no password.
pub(crate) type CliError = String;

/// Reads the command line (without the program's name) and the environment. The first argument decides: a command, or a
/// flag of the agent.
pub(crate) fn command(
    args: &[String],
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Command, CliError> {
    let all = flags::command();
    let (name, args) = match args.split_first() {
        Some((name, args)) if !name.starts_with('-') => (Some(name), args),
        _ => (None, args),
    };
    // A command that does not exist has no flags; clap says so.
    let command = name.map_or(Some(&all), |name| all.find_subcommand(name));
    let (mut given, letters) = match command {
        Some(command) if command.get_name() == "docker-opts" => (Vec::new(), args),
        Some(command) if command.get_name() == "doctor" => (checks_and_flags(args, command, &all)?, &[][..]),
        Some(command) => (go::flags(args, command, &all)?, &[][..]),
        None => (Vec::new(), &[][..]),
    };
    let read = |given: &[Given]| {
        let letters = letters.iter().map(|arg| if arg == "-?" { "-h".to_owned() } else { arg.clone() });
        let words = ["flanneld".to_owned()].into_iter().chain(name.cloned()).chain(letters);
        let matches = all.clone().try_get_matches_from(words.chain(given.iter().map(ToString::to_string)));
        matches.and_then(|matches| CommandLine::from_arg_matches(&matches))
    };
    let mut line = match read(&given) {
        Ok(line) => line,
        Err(help) if help.kind() == ErrorKind::DisplayHelp => {
            return Ok(Command::Help(help.render().to_string()));
        }
        Err(error) => return Err(explain(&error, &given)),
    };
    // Upstream looks at the version before the environment.
    if line.version {
        return Ok(Command::Version);
    }
    let found = command.map_or_else(Vec::new, |command| go::environment(&given, command, &all, variable));
    if !found.is_empty() {
        given.extend(found);
        line = read(&given).map_err(|error| explain(&error, &given))?;
    }
    match line.task {
        None => {
            line.agent.check(&given)?;
            line.agent.shown = shown_of(&given, &all);
            Ok(Command::Run(Box::new(line.agent)))
        }
        Some(mut task) => {
            match &mut task {
                Task::Cleanup(options) => options.common.check(&given)?,
                Task::LogLevel(options) => {
                    options.sets_modules = given.iter().any(|given| given.name == "modules");
                }
                Task::Status(options) => options.check()?,
                Task::Doctor(options) => {
                    options.common.check(&given)?;
                    options.names_store = given.iter().any(|given| names_store(&given.name));
                    options.shown = shown_of(&given, &all);
                }
                _ => {}
            }
            Ok(Command::Task(task))
        }
    }
}

/// The flags of the doctor. Checks can be given as words before them.
fn checks_and_flags(
    args: &[String],
    command: &clap::Command,
    all: &clap::Command,
) -> Result<Vec<Given>, CliError> {
    let words = args.iter().take_while(|arg| !arg.starts_with('-')).count();
    let (words, flags) = args.split_at(words);
    let check = |name: &String| Given { name: "check".to_owned(), value: Some(name.clone()), variable: None };
    Ok(words.iter().map(check).chain(go::flags(flags, command, all)?).collect())
}

/// Whether a flag says where the store is, or how to get in.
fn names_store(flag: &str) -> bool {
    flag == "store" || flag.starts_with("etcd-") || flag.starts_with("kube")
}

/// How to see what a command line could have.
pub(crate) fn help_of(args: &[String]) -> String {
    match args.first().filter(|name| flags::command().find_subcommand(name).is_some()) {
        Some(name) => format!("flanneld {name} --help lists its flags."),
        None => "flanneld --help lists all flags and commands.".to_owned(),
    }
}

/// The name and version of this program.
pub(crate) fn version() -> &'static str {
    concat!("flanneld ", env!("CARGO_PKG_VERSION"))
}

/// Says what clap found, with no more of the command line than may be shown.
fn explain(error: &clap::Error, given: &[Given]) -> CliError {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.last().cloned(),
        _ => None,
    };
    // As in its usage: `--iface <NAME|IP>`.
    let arg = text(ContextKind::InvalidArg).unwrap_or_default();
    let name = arg.trim_start_matches('-').split([' ', '[', '=']).next().unwrap_or_default();
    let meant = |wrong: &str, kind| {
        let is_near =
            |near: &String| strsim::levenshtein(wrong, near.trim_start_matches('-')) <= 1 + wrong.len() / 4;
        text(kind).filter(is_near).map(|near| format!("; did you mean {near}?")).unwrap_or_default()
    };
    match error.kind() {
        ErrorKind::UnknownArgument if !arg.starts_with('-') => go::leftover(&shown::argument(&arg), None),
        ErrorKind::UnknownArgument => {
            let name = shown::argument(arg.trim_start_matches('-'));
            let near = meant(&name, ContextKind::SuggestedArg);
            // The rest of a password with a space in it begins with a dash, too.
            let is_delicate = given.iter().rev().nth(1).is_some_and(Given::is_delicate) && near.is_empty();
            format!("unknown flag --{}{near}", if is_delicate { shown::HIDDEN } else { &name })
        }
        ErrorKind::InvalidSubcommand => {
            let name = shown::argument(&text(ContextKind::InvalidSubcommand).unwrap_or_default());
            format!("unknown command {name:?}{}", meant(&name, ContextKind::SuggestedSubcommand))
        }
        ErrorKind::ValueValidation => {
            let value = text(ContextKind::InvalidValue).unwrap_or_default();
            let expected = error.source().map(ToString::to_string).unwrap_or_default();
            bad_value(name, &value, &expected, given)
        }
        ErrorKind::InvalidValue => go::needs_value(name),
        other => other.to_string(),
    }
}

fn bad_value(name: &str, value: &str, expected: &str, given: &[Given]) -> CliError {
    format!("{}: {:?} is not {expected}", origin(name, given), shown::value(name, value))
}

/// The flag or variable that a value comes from.
fn origin(name: &str, given: &[Given]) -> String {
    let variable = given.iter().find(|given| given.name == name).and_then(|given| given.variable.clone());
    variable.unwrap_or_else(|| format!("--{name}"))
}

/// The value of a flag, as it was given.
fn value_of(name: &str, given: &[Given]) -> String {
    // Of a flag that is given twice the last one counts.
    let value = given.iter().rev().find(|given| given.name == name).and_then(|given| given.value.clone());
    value.unwrap_or_default()
}

/// The flags that differ from their defaults, with secrets hidden.
fn shown_of(given: &[Given], all: &clap::Command) -> String {
    let show = |Given { name, value, .. }: &Given| {
        let value = value.as_deref()?;
        let is_default = go::find(all, name)?.get_default_values().iter().any(|default| default == value);
        (!is_default).then(|| format!("--{name}={}", shown::value(name, value)))
    };
    given.iter().filter_map(show).collect::<Vec<_>>().join(" ")
}

impl Options {
    /// Checks what is no matter of one flag.
    fn check(&mut self, given: &[Given]) -> Result<(), CliError> {
        if !self.log_backtrace_at.is_empty() {
            let origin = origin("log_backtrace_at", given);
            return Err(format!(
                "not supported by this version: stack traces in the log ({origin}); leave it out"
            ));
        }
        if self.ready_peers.is_some() && self.probe == ProbeInterval::Off {
            let origin = origin("ready-peers", given);
            return Err(format!("{origin} needs probes; leave it out, or leave out --probe=off"));
        }
        let has_name = |given: &Given| given.name == "iptables-forward-rules";
        self.requires_forward_rules = self.iptables_forward_rules && given.iter().any(has_name);
        self.common.check(given)
    }
}

impl StatusOptions {
    fn check(&self) -> Result<(), CliError> {
        if self.diff && (self.watch || !self.peer.is_empty()) {
            return Err("--diff is a question of its own; leave out --watch and --peer".to_owned());
        }
        if self.watch && !self.peer.is_empty() {
            return Err("--watch shows all peers; leave out --peer".to_owned());
        }
        Ok(())
    }
}

impl Common {
    fn check(&self, given: &[Given]) -> Result<(), CliError> {
        if self.kube_subnet_mgr && self.store != Store::Etcd {
            return Err("--kube-subnet-mgr and --store name two stores; leave out one of them".to_owned());
        }
        if self.kube_subnet_mgr && self.net_config_path.is_none() {
            return Err(bad_value("net-config-path", "", "a path", given));
        }
        if self.etcd_certfile.is_some() != self.etcd_keyfile.is_some() {
            return Err("--etcd-certfile and --etcd-keyfile need each other".to_owned());
        }
        if !self.etcd_password.reveal().is_empty() && self.etcd_username.is_empty() {
            let origin = origin("etcd-password", given);
            return Err(format!("{origin} needs --etcd-username, since etcd asks for both"));
        }
        let wrong = match &self.store {
            _ if self.kube_subnet_mgr => servers::kube(self),
            Store::Etcd => servers::etcd(self),
            Store::Local(_) => None,
        };
        wrong.map_or(Ok(()), |servers::Wrong { flag, expected }| {
            Err(bad_value(flag, &value_of(flag, given), &expected, given))
        })
    }
}

/// What an agent does of which nothing is said but this.
impl From<Common> for Options {
    fn from(common: Common) -> Self {
        let matches = flags::command().get_matches_from(["flanneld"]);
        let line = CommandLine::from_arg_matches(&matches).expect("all flags have defaults");
        Self { common, ..line.agent }
    }
}
