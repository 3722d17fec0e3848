//! Which lines are logged: klog's verbosity, in general and for single modules.

use std::fmt;
use std::str::FromStr;

use tracing::subscriber::Interest;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Filter};

use flannel_core::error::Expected;

/// Which records are logged: a filter for a layer of a `tracing` subscriber.
///
/// Verbosity 0 and less is info, 1 to 3 debug, 4 and more trace. It is that of the crates of this workspace. Client
/// libraries log every frame, so they stay at info unless a pattern names them; the Kubernetes library, whose errors the
/// status has, is off.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Levels {
    /// klog's number, for what no pattern names.
    pub verbosity: i64,
    /// Those of single modules. The first pattern that names a target counts.
    pub modules: Vec<ModuleLevel>,
}

/// The verbosity of single modules, as of klog's `--vmodule`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleLevel {
    /// A glob (`*` and `?`) for a crate, a module, or a whole path such as `flannel_core::netlink`.
    pub pattern: String,
    /// The verbosity.
    pub verbosity: i64,
}

impl fmt::Display for ModuleLevel {
    /// As it is parsed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.pattern, self.verbosity)
    }
}

impl FromStr for ModuleLevel {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let parse = || {
            let (pattern, verbosity) = text.split_once('=')?;
            let verbosity = verbosity.parse().ok().filter(|_| !pattern.is_empty())?;
            Some(Self { pattern: pattern.to_owned(), verbosity })
        };
        parse().ok_or(Expected("pattern=N"))
    }
}

impl ModuleLevel {
    /// Parses a list as of klog's `--vmodule`, such as `netlink=5,h2=2`; it may be empty.
    pub fn list(text: &str) -> Result<Vec<Self>, Expected> {
        let items = text.split(',').filter(|item| !item.is_empty()).map(str::parse).collect::<Result<_, _>>();
        items.map_err(|_: Expected| Expected("a comma-separated list of pattern=N"))
    }
}

/// A list as it is parsed.
pub(super) fn list_of(modules: &[ModuleLevel]) -> String {
    modules.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

impl fmt::Display for Levels {
    /// For people, with the flags that ask for the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (--v={}", level(self.verbosity).as_str().to_ascii_lowercase(), self.verbosity)?;
        if self.modules.is_empty() {
            f.write_str(")")
        } else {
            write!(f, " --vmodule={})", list_of(&self.modules))
        }
    }
}

/// By the hint, a line of a level that nobody asked for costs one comparison.
impl<S> Filter<S> for Levels {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        *metadata.level() <= self.of(metadata.target())
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if *metadata.level() <= self.of(metadata.target()) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.highest())
    }
}

impl Levels {
    /// The level of a target: that of the first pattern that names it, else the general one. The Kubernetes library logs
    /// an error for each of our attempts, which our own status has.
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
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::{Layer, Registry, registry, reload};

    use super::*;

    /// Names the levels of the lines that it gets.
    #[derive(Default, Clone)]
    struct Seen(Arc<Mutex<Vec<Level>>>);

    impl<S: tracing::Subscriber> Layer<S> for Seen {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(*event.metadata().level());
        }
    }

    #[test]
    fn levels_can_change_while_a_line_is_known() {
        let seen = Seen::default();
        let (levels, handle) = reload::Layer::new(Levels::default());
        let _guard = tracing::subscriber::set_default(registry().with(seen.clone().with_filter(levels)));
        // The same line each time, as tracing remembers of each whether anybody wants it.
        let lines = || {
            tracing::info!(target: "flannel_core::x", "a line");
            tracing::debug!(target: "flannel_core::x", "a line");
            tracing::debug!(target: "flannel_core::netlink", "a line");
            std::mem::take(&mut *seen.0.lock().unwrap())
        };
        assert_eq!(lines(), [Level::INFO]);
        handle.reload(Levels { verbosity: 1, modules: Vec::new() }).unwrap();
        assert_eq!(lines(), [Level::INFO, Level::DEBUG, Level::DEBUG]);
        let modules = vec![ModuleLevel { pattern: "netlink".into(), verbosity: 4 }];
        handle.reload(Levels { verbosity: 0, modules }).unwrap();
        assert_eq!(lines(), [Level::INFO, Level::DEBUG]);
        assert_eq!(handle.clone_current().unwrap().to_string(), "info (--v=0 --vmodule=netlink=4)");
        handle.reload(Levels::default()).unwrap();
        assert_eq!(lines(), [Level::INFO]);
    }

    #[test]
    fn modules_are_a_list_of_patterns() {
        let modules = ModuleLevel::list("netlink=5,flannel_*=-2,").unwrap();
        assert_eq!(list_of(&modules), "netlink=5,flannel_*=-2");
        assert_eq!(ModuleLevel::list(""), Ok(Vec::new()));
        for bad in ["netlink", "=1", "netlink=", "netlink=x", "netlink=1;h2=2"] {
            let error = ModuleLevel::list(bad).unwrap_err();
            assert_eq!(error.to_string(), "not a comma-separated list of pattern=N", "{bad}");
        }
    }

    #[test]
    fn what_nobody_asked_for_is_switched_off() {
        for (verbosity, hint) in [(0, LevelFilter::INFO), (2, LevelFilter::DEBUG), (9, LevelFilter::TRACE)] {
            let levels = Levels { verbosity, modules: Vec::new() };
            assert_eq!(Filter::<Registry>::max_level_hint(&levels), Some(hint), "{verbosity}");
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
            ModuleLevel { pattern: "h2".into(), verbosity: 9 },
            ModuleLevel { pattern: "netlink".into(), verbosity: 0 },
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
