//! What the operator asked for: flags, environment, and the checks that need no system. `flags` declares the flags, `value`
//! has parsers of their values, and [`flannel_flags`] reads them.

mod flags;
mod servers;
#[cfg(test)]
mod tests;
mod value;

use clap::FromArgMatches as _;
use flannel_core::probe::ProbeInterval;
use flannel_flags::{Given, Line, Read, Unread};

use flags::CommandLine;
pub(crate) use flags::{
    CleanupOptions, Common, DockerOptions, DoctorOptions, EventsOptions, InstallOptions, LogLevelOptions,
    OpenRunOptions, Options, RotateKeyOptions, StatusOptions, Task,
};
pub(crate) use value::{LogFormat, Part, Store};

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

/// Reads the command line (without the program's name) and the environment.
pub(crate) fn command(
    args: &[String],
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Command, CliError> {
    let program = flags::program();
    let Line { value: CommandLine { task, mut agent, .. }, given, .. } = match program.read(args, variable)? {
        Read::Help(text) => return Ok(Command::Help(text)),
        Read::Version => return Ok(Command::Version),
        Read::Line(line) => line,
    };
    let Some(mut task) = task else {
        agent.check(&given)?;
        agent.shown = given.shown();
        return Ok(Command::Run(Box::new(agent)));
    };
    match &mut task {
        Task::Cleanup(options) => options.common.check(&given)?,
        Task::LogLevel(options) => options.sets_modules = given.has("modules"),
        Task::Status(options) => options.check()?,
        Task::Doctor(options) => {
            options.common.check(&given)?;
            options.names_store = given.flags().iter().any(|flag| names_store(&flag.name));
            options.names_servers = given.has("etcd-endpoints");
            if given.has("bundle") && options.bundle.is_none() {
                return Err(given.bad_value("bundle", "", "a path").into());
            }
            options.shown = given.shown();
        }
        _ => {}
    }
    Ok(Command::Task(task))
}

/// Whether a flag says where the store is, or how to get in.
fn names_store(flag: &str) -> bool {
    flag == "store" || flag.starts_with("etcd-") || flag.starts_with("kube")
}

/// How to see what a command line could have.
pub(crate) fn help_of(args: &[String]) -> String {
    flags::program().hint(args)
}

/// The variables that look like the agent's and that no flag has.
pub(crate) fn unread_variables(environment: impl IntoIterator<Item = (String, String)>) -> Vec<Unread> {
    flags::program().unread(environment)
}

/// The name and version of this program.
pub(crate) fn version() -> &'static str {
    concat!("flanneld ", env!("CARGO_PKG_VERSION"))
}

impl Options {
    /// Checks what is no matter of one flag.
    fn check(&mut self, given: &Given<'_>) -> Result<(), CliError> {
        if !self.log_backtrace_at.is_empty() {
            let origin = given.origin("log_backtrace_at");
            return Err(format!(
                "not supported by this version: stack traces in the log ({origin}); leave it out"
            ));
        }
        if self.ready_peers.is_some() && self.probe == ProbeInterval::Off {
            let origin = given.origin("ready-peers");
            return Err(format!("{origin} needs probes; leave it out, or leave out --probe=off"));
        }
        self.requires_forward_rules = self.iptables_forward_rules && given.has("iptables-forward-rules");
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
    fn check(&self, given: &Given<'_>) -> Result<(), CliError> {
        if self.kube_subnet_mgr && self.store != Store::Etcd {
            return Err("--kube-subnet-mgr and --store name two stores; leave out one of them".to_owned());
        }
        if self.kube_subnet_mgr && self.net_config_path.is_none() {
            return Err(given.bad_value("net-config-path", "", "a path").into());
        }
        if self.etcd_certfile.is_some() != self.etcd_keyfile.is_some() {
            return Err("--etcd-certfile and --etcd-keyfile need each other".to_owned());
        }
        if !self.etcd_password.reveal().is_empty() && self.etcd_username.is_empty() {
            let origin = given.origin("etcd-password");
            return Err(format!("{origin} needs --etcd-username, since etcd asks for both"));
        }
        let wrong = match &self.store {
            _ if self.kube_subnet_mgr => servers::kube(self),
            Store::Etcd => servers::etcd(self),
            Store::Local(_) => None,
        };
        wrong.map_or(Ok(()), |servers::Wrong { flag, expected }| {
            Err(given.bad_value(flag, given.value_of(flag), &expected).into())
        })
    }
}

/// What an agent does of which nothing is said but this.
impl From<Common> for Options {
    fn from(common: Common) -> Self {
        let matches = flags::program().command().clone().get_matches_from(["flanneld"]);
        let line = CommandLine::from_arg_matches(&matches).expect("all flags have defaults");
        Self { common, ..line.agent }
    }
}
