//! The log on stderr.

mod limits;

use std::io::IsTerminal;
use std::sync::Arc;

use tracing::{Level, warn};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::{Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use self::limits::Limited;
use crate::cli::{self, Common, LogFormat, VModule};

/// Sets up the log of this process. Records of the `log` crate go there, too.
pub(crate) fn set_up(flags: &Common) {
    let levels = Levels { verbosity: flags.verbosity, modules: flags.vmodule.clone() };
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match flags.log_format {
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            quiet(fmt::layer()).with_ansi(colour).boxed()
        }
        LogFormat::Json => quiet(fmt::layer()).json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(Limited(layer, Arc::default()).with_filter(filter(levels))).init();
}

/// Warns of variables that look like the agent's and that it does not read.
pub(crate) fn name_unread_variables() {
    let environment = std::env::vars_os();
    let environment = environment
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
    for cli::Unread { name, meant } in cli::unread_variables(environment) {
        let meant = meant.unwrap_or_else(|| "none like it; see flanneld --help".to_owned());
        warn!(variable = name, meant, "variable has no effect: no flag is read from it");
    }
}

/// The lines that are logged. By the hint, a line of a level that nobody asked for costs one comparison.
fn filter(levels: Levels) -> impl Filter<Registry> {
    let hint = levels.highest();
    filter_fn(move |meta| *meta.level() <= levels.of(meta.target())).with_max_level_hint(hint)
}

/// A layer on stderr that does not panic when stderr is closed.
fn quiet<S, N, E>(layer: fmt::Layer<S, N, E>) -> fmt::Layer<S, N, E, fn() -> std::io::Stderr>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let stderr: fn() -> std::io::Stderr = std::io::stderr;
    layer.with_writer(stderr).log_internal_errors(false)
}

/// Which records are logged.
struct Levels {
    verbosity: i64,
    modules: Vec<VModule>,
}

impl Levels {
    /// The level of a target: that of the first pattern that names it, else the general one. Client libraries log every
    /// frame, so they stay at info unless a pattern names them. The Kubernetes library logs an error for each of our
    /// attempts, which our own status has, so it is off.
    fn of(&self, target: &str) -> LevelFilter {
        match self.modules.iter().find(|module| names(&module.pattern, target)) {
            Some(module) => level(module.verbosity).into(),
            None if target.starts_with("flannel") => level(self.verbosity).into(),
            None if target.starts_with("kube_client") => LevelFilter::OFF,
            None => LevelFilter::INFO,
        }
    }

    fn highest(&self) -> LevelFilter {
        let modules = self.modules.iter().map(|module| level(module.verbosity));
        LevelFilter::from_level(modules.fold(level(self.verbosity), Ord::max))
    }
}

fn level(verbosity: i64) -> Level {
    match verbosity {
        ..=0 => Level::INFO,
        1..=3 => Level::DEBUG,
        4.. => Level::TRACE,
    }
}

/// Whether a pattern names a target: as a whole, or one of the modules on its path.
fn names(pattern: &str, target: &str) -> bool {
    let mut ends = target.match_indices("::").map(|(end, _)| end).chain([target.len()]);
    glob(pattern.as_bytes(), target.as_bytes())
        || target.split("::").any(|module| glob(pattern.as_bytes(), module.as_bytes()))
        || ends.any(|end| pattern == &target[..end])
}

/// Whether a text matches a pattern with `*` and `?`.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|skip| glob(rest, &text[skip..])),
        ([b'?', rest @ ..], [_, text @ ..]) => glob(rest, text),
        ([a, rest @ ..], [b, text @ ..]) => a == b && glob(rest, text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_asked_for_is_switched_off() {
        for (verbosity, hint) in [(0, LevelFilter::INFO), (2, LevelFilter::DEBUG), (9, LevelFilter::TRACE)] {
            let filter = filter(Levels { verbosity, modules: Vec::new() });
            assert_eq!(filter.max_level_hint(), Some(hint), "{verbosity}");
        }
    }

    #[test]
    fn patterns_name_crates_modules_and_paths() {
        for (pattern, target, want) in [
            ("netlink", "flannel_core::netlink::batch", true),
            ("flannel_core", "flannel_core::netlink", true),
            ("flannel_core::netlink", "flannel_core::netlink::batch", true),
            ("flannel_core::net", "flannel_core::netlink", false),
            ("net*", "flannel_core::netlink", true),
            ("n?tlink", "flannel_core::netlink", true),
            ("link", "flannel_core::netlink", false),
            ("*", "anything", true),
        ] {
            assert_eq!(names(pattern, target), want, "{pattern} {target}");
        }
    }

    #[test]
    fn verbosity_is_that_of_klog() {
        let modules = vec![
            VModule { pattern: "h2".into(), verbosity: 9 },
            VModule { pattern: "netlink".into(), verbosity: 0 },
        ];
        let levels = Levels { verbosity: 2, modules };
        assert_eq!(levels.of("flannel_core::underlay"), Level::DEBUG);
        assert_eq!(levels.of("flannel_core::netlink"), Level::INFO);
        assert_eq!(levels.of("hyper::proto"), Level::INFO);
        assert_eq!(levels.of("h2::codec"), Level::TRACE);
        assert_eq!(levels.highest(), LevelFilter::TRACE);
        let quiet = Levels { verbosity: -3, modules: Vec::new() };
        assert_eq!(quiet.of("kube_client::client::builder"), LevelFilter::OFF);
        assert_eq!((quiet.of("flanneld::run"), quiet.highest()), (LevelFilter::INFO, LevelFilter::INFO));
    }
}
