//! The log on stderr.

use std::io::IsTerminal;

use flannel_control::log::{Levels, Limited, LogLevels};
use flannel_flags::Unread;
use tracing::warn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::cli::{self, Common, LogFormat};

/// Sets up the log of this process. Records of the `log` crate go there, too.
pub(crate) fn set_up(flags: &Common) -> LogLevels {
    let levels = Levels { verbosity: flags.verbosity, modules: flags.vmodule.clone() };
    let (filter, levels) = LogLevels::new(levels);
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match flags.log_format {
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            quiet(fmt::layer()).with_ansi(colour).boxed()
        }
        LogFormat::Json => quiet(fmt::layer()).json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(Limited::new(layer).with_filter(filter)).init();
    levels
}

/// Warns of variables that look like the agent's and that it does not read.
pub(crate) fn name_unread_variables() {
    let environment = std::env::vars_os();
    let environment = environment
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
    for Unread { name, meant, .. } in cli::unread_variables(environment) {
        let meant = meant.unwrap_or_else(|| "none like it; see flanneld --help".to_owned());
        warn!(variable = name, meant, "variable has no effect: no flag is read from it");
    }
}

/// A layer on stderr that does not panic when stderr is closed.
fn quiet<S, N, E>(layer: fmt::Layer<S, N, E>) -> fmt::Layer<S, N, E, fn() -> std::io::Stderr>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let stderr: fn() -> std::io::Stderr = std::io::stderr;
    layer.with_writer(stderr).log_internal_errors(false)
}
