//! The extension backend's keys in the network config. Pure. Upstream: `pkg/backend/extension/extension.go`.

use std::time::Duration;

use flannel_core::config::{BackendConfig, ConfigError};
use flannel_core::reconcile::AppliedConfig;
use serde_json::Value;

use crate::words::{Template, WordsError};

/// The name under which the backend publishes leases.
pub(crate) const KIND: &str = "extension";

/// The keys that have an effect.
pub(crate) const KEYS: [&str; 5] =
    ["PreStartupCommand", "PostStartupCommand", "SubnetAddCommand", "SubnetRemoveCommand", "CommandTimeout"];
pub(crate) const PRE_STARTUP: &str = KEYS[0];
pub(crate) const POST_STARTUP: &str = KEYS[1];
pub(crate) const SUBNET_ADD: &str = KEYS[2];
pub(crate) const SUBNET_REMOVE: &str = KEYS[3];
const TIMEOUT: &str = KEYS[4];

/// A key that upstream's samples have, and that its code never read.
pub(crate) const SHUTDOWN: &str = "ShutdownCommand";

/// How long a command may run, in seconds: the default, and the most.
const USUAL_TIMEOUT: u64 = 30;
const LONGEST_TIMEOUT: u64 = 600;

/// The keys of `"Backend": {"Type": "extension", ..}`. A command that is absent or empty is not run.
///
/// A command is a string, which is split into words as a shell does it, or a list of arguments. There is no shell; see the
/// crate's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtensionConfig {
    /// Run before the lease is acquired; what it prints becomes the lease's backend data.
    pub(crate) pre_startup: Option<Template>,
    /// Run with this node's own values once it has its lease.
    pub(crate) post_startup: Option<Template>,
    /// Run for each other node that has a lease.
    pub(crate) subnet_add: Option<Template>,
    /// Run for each other node whose lease is gone.
    pub(crate) subnet_remove: Option<Template>,
    /// How long each may run.
    pub(crate) timeout: Duration,
}

impl ExtensionConfig {
    /// Reads and checks the keys. An error never shows a command, since there may be secrets in it.
    pub fn parse(backend: &BackendConfig) -> Result<Self, ConfigError> {
        let seconds: i64 = backend.get(TIMEOUT)?.unwrap_or(0);
        let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds <= LONGEST_TIMEOUT);
        let seconds = seconds.ok_or_else(|| {
            let problem =
                format!("must be 0 (the default, {USUAL_TIMEOUT} s) or from 1 to {LONGEST_TIMEOUT} seconds");
            let value = backend.get::<Value>(TIMEOUT).ok().flatten().map(|value| value.to_string());
            ConfigError::new(format!("Backend.{TIMEOUT}"), value, problem)
        })?;
        Ok(Self {
            pre_startup: command(backend, PRE_STARTUP)?,
            post_startup: command(backend, POST_STARTUP)?,
            subnet_add: command(backend, SUBNET_ADD)?,
            subnet_remove: command(backend, SUBNET_REMOVE)?,
            timeout: Duration::from_secs(if seconds == 0 { USUAL_TIMEOUT } else { seconds }),
        })
    }

    /// The config that results from applying to this one all changes of `next` that need no restart, and the keys that
    /// differ. The commands of a start have been run.
    pub(crate) fn towards(&self, next: Self) -> (Self, AppliedConfig) {
        let named = |keys: &[(bool, &str)]| {
            let changed = keys.iter().filter(|(differs, _)| *differs);
            changed.map(|(_, key)| format!("Backend.{key}")).collect()
        };
        let live = named(&[
            (self.subnet_add != next.subnet_add, SUBNET_ADD),
            (self.subnet_remove != next.subnet_remove, SUBNET_REMOVE),
            (self.timeout != next.timeout, TIMEOUT),
        ]);
        let restart = named(&[
            (self.pre_startup != next.pre_startup, PRE_STARTUP),
            (self.post_startup != next.post_startup, POST_STARTUP),
        ]);
        let (pre_startup, post_startup) = (self.pre_startup.clone(), self.post_startup.clone());
        (Self { pre_startup, post_startup, ..next }, AppliedConfig::new(live, restart))
    }
}

/// Reads a command: a string, as upstream has it, or a list of arguments. An error does not show it, since there may be
/// secrets in it.
fn command(backend: &BackendConfig, key: &str) -> Result<Option<Template>, ConfigError> {
    let wrong = |problem: String| ConfigError::new(format!("Backend.{key}"), None, problem);
    let of_words = |error: WordsError| wrong(error.to_string());
    match backend.get::<Value>(key)? {
        None => Ok(None),
        Some(Value::String(text)) => Template::split(&text).map_err(of_words),
        Some(Value::Array(list)) => {
            let words = list.into_iter().map(|word| match word {
                Value::String(word) => Ok(word),
                _ => Err(wrong("is a list with something else than strings".to_owned())),
            });
            Template::of_list(&words.collect::<Result<Vec<_>, _>>()?).map_err(of_words)
        }
        Some(_) => Err(wrong("must be a string, or a list of strings".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::config::{LeaseSource, NetworkConfig};

    use super::*;

    fn parse(keys: &str) -> Result<ExtensionConfig, ConfigError> {
        let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"extension"{keys}}}}}"#);
        ExtensionConfig::parse(&NetworkConfig::parse(&text, LeaseSource::Store).unwrap().backend)
    }

    fn words(command: Option<Template>) -> Vec<String> {
        command.map(|command| command.fill(|_| None)).unwrap_or_default()
    }

    #[test]
    fn a_command_is_a_string_or_a_list_or_none() {
        let config = parse("").unwrap();
        assert_eq!((config.subnet_add, config.timeout), (None, Duration::from_secs(30)));
        for value in [r#""""#, r#"" ""#, "null", "[]"] {
            assert_eq!(
                parse(&format!(r#","SubnetAddCommand":{value}"#)).unwrap().subnet_add,
                None,
                "{value}"
            );
        }
        for value in [r#""a 'b c'""#, r#"["a","b c"]"#] {
            let config = parse(&format!(r#","subnetaddcommand":{value}"#)).unwrap();
            assert_eq!(words(config.subnet_add), ["a", "b c"]);
        }
    }

    #[test]
    fn the_wrong_key_is_named_and_no_command_is_shown() {
        for (keys, key, word) in [
            (r#","PreStartupCommand":"a | secret""#, PRE_STARTUP, "has |"),
            (r#","PostStartupCommand":1"#, POST_STARTUP, "a list of strings"),
            (r#","SubnetAddCommand":["a",1]"#, SUBNET_ADD, "something else than strings"),
            (r#","SubnetRemoveCommand":["","secret"]"#, SUBNET_REMOVE, "no program"),
            (r#","CommandTimeout":601"#, TIMEOUT, "from 1 to 600"),
            (r#","CommandTimeout":-1"#, TIMEOUT, "from 1 to 600"),
        ] {
            let error = parse(keys).unwrap_err();
            assert_eq!(error.key, format!("Backend.{key}"));
            let text = error.to_string();
            assert!(text.contains(word) && !text.contains("secret"), "{text}");
        }
    }

    #[test]
    fn commands_for_peers_are_live_and_those_of_the_start_are_not() {
        for (from, to, live, restart) in [
            ("", "", "", ""),
            (r#","SubnetAddCommand":"a b""#, r#","SubnetAddCommand":["a","b"]"#, "", ""),
            (
                "",
                r#","SubnetAddCommand":"a","SubnetRemoveCommand":"b","CommandTimeout":5"#,
                "SubnetAddCommand SubnetRemoveCommand CommandTimeout",
                "",
            ),
            (
                r#","PreStartupCommand":"a""#,
                r#","PostStartupCommand":"b""#,
                "",
                "PreStartupCommand PostStartupCommand",
            ),
        ] {
            let (from, to) = (parse(from).unwrap(), parse(to).unwrap());
            let (now, taken) = from.towards(to.clone());
            let named = |keys: Vec<String>| keys.join(" ").replace("Backend.", "");
            assert_eq!((named(taken.live).as_str(), named(taken.restart).as_str()), (live, restart));
            assert_eq!((now.pre_startup, now.post_startup), (from.pre_startup, from.post_startup));
            assert_eq!((now.subnet_add, now.timeout), (to.subnet_add, to.timeout));
        }
    }
}
