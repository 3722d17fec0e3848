//! The log level of a running agent: what is logged by klog's numbers, how a request at the control socket changes it, and
//! a limit for lines that repeat. These are parts of a subscriber; the embedding program makes and sets it.
//!
//! ```no_run
//! use flannel_control::ControlServer;
//! use flannel_control::log::{Levels, Limited, LogLevels, REQUEST};
//! use tracing_subscriber::layer::SubscriberExt as _;
//! use tracing_subscriber::util::SubscriberInitExt as _;
//! use tracing_subscriber::{Layer as _, fmt, registry};
//!
//! # fn set_up(path: &std::path::Path) -> Result<(), flannel_control::BindError> {
//! let (filter, levels) = LogLevels::new(Levels { verbosity: 1, ..Levels::default() });
//! registry().with(Limited::new(fmt::layer()).with_filter(filter)).init();
//! let server = ControlServer::bind(path)?.request(REQUEST, move |fields| levels.answer(&fields));
//! # drop(server);
//! # Ok(())
//! # }
//! ```

mod levels;
mod limits;

use serde_json::{Map, Value, json};
use tracing::{info, warn};
use tracing_subscriber::{Registry, reload};

pub use self::levels::{Levels, ModuleLevel};
pub use self::limits::Limited;
use crate::protocol::{Refusal, RefusalKind, Request};
use crate::{Client, ClientError};

/// The name of the request. Its fields are `v`, a whole number as of klog's `--v`, and `vmodule`, a text as of its
/// `--vmodule`; what is left out stays. The answer has both, and `text` for people.
pub const REQUEST: &str = "log-level";
/// The verbosity, a number as of `--v`.
const VERBOSITY: &str = "v";
/// Those of single modules, a text as of `--vmodule`.
const MODULES: &str = "vmodule";
/// Both, as people read them. Only in answers.
const TEXT: &str = "text";

/// Changes the levels of a log while the process runs. `S` is the subscriber below the filter.
#[derive(Debug)]
pub struct LogLevels<S = Registry>(reload::Handle<Levels, S>);

impl<S> Clone for LogLevels<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> LogLevels<S> {
    /// A filter with these levels, and what changes it.
    pub fn new(levels: Levels) -> (reload::Layer<Levels, S>, Self) {
        let (filter, handle) = reload::Layer::new(levels);
        (filter, Self(handle))
    }

    /// The present levels.
    pub fn get(&self) -> Levels {
        self.0.clone_current().unwrap_or_default()
    }

    /// Sets them, until the process ends, and logs what they were.
    pub fn set(&self, levels: &Levels) {
        let before = self.get();
        match self.0.reload(levels.clone()) {
            Ok(()) => info!(%before, after = %levels, "log level changed"),
            Err(error) => warn!(%error, "log level not changed"),
        }
    }

    /// Answers [`REQUEST`] in the agent: sets what it asks for, and says what there is then.
    pub fn answer(&self, fields: &Map<String, Value>) -> Result<Value, Refusal> {
        if !fields.is_empty() {
            self.set(&wanted(self.get(), fields)?);
        }
        let levels = self.get();
        let modules = levels::list_of(&levels.modules);
        Ok(json!({ VERBOSITY: levels.verbosity, MODULES: modules, TEXT: levels.to_string() }))
    }
}

/// The levels that a request asks for, where others stay.
fn wanted(mut levels: Levels, fields: &Map<String, Value>) -> Result<Levels, Refusal> {
    let bad = |name: &str, what: &str| {
        let message = format!("request {REQUEST}: field {name} is not {what}");
        Refusal::new(RefusalKind::BadField, message)
    };
    for (name, value) in fields {
        match name.as_str() {
            VERBOSITY => levels.verbosity = value.as_i64().ok_or_else(|| bad(name, "a whole number"))?,
            MODULES => {
                let text = value.as_str().ok_or_else(|| bad(name, "a text"))?;
                levels.modules = ModuleLevel::list(text).map_err(|expected| bad(name, expected.0))?;
            }
            other => return Err(bad(other, "known")),
        }
    }
    Ok(levels)
}

/// Asks an agent to set its verbosity, and that of single modules (of none for an empty list), each if it is given. It
/// returns what the agent logs then, as people read it.
pub fn ask(
    client: &Client,
    verbosity: Option<i64>,
    modules: Option<&[ModuleLevel]>,
) -> Result<String, ClientError> {
    let mut request = Request::new(REQUEST);
    if let Some(verbosity) = verbosity {
        request = request.with(VERBOSITY, verbosity);
    }
    if let Some(modules) = modules {
        request = request.with(MODULES, levels::list_of(modules));
    }
    let answer = client.ask(&request)?;
    let answer: Value = serde_json::from_str(answer.get()).map_err(ClientError::Unreadable)?;
    Ok(answer[TEXT].as_str().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_does_not_name_stays() {
        let modules = |text: &str| ModuleLevel::list(text).unwrap();
        let before = Levels { verbosity: 1, modules: modules("netlink=4") };
        let after = |fields: Value| wanted(before.clone(), fields.as_object().unwrap());
        assert_eq!(after(json!({ "v": 4 })).unwrap(), Levels { verbosity: 4, ..before.clone() });
        let other = Levels { modules: modules("h2=9,peers=2"), ..before.clone() };
        assert_eq!(after(json!({ "vmodule": "h2=9,peers=2" })).unwrap(), other);
        let none: Vec<ModuleLevel> = Vec::new();
        assert_eq!(after(json!({ "vmodule": "" })).unwrap().modules, none);
        for (fields, why) in [
            (json!({ "v": "debug" }), "field v is not a whole number"),
            (json!({ "vmodule": "netlink" }), "field vmodule is not a comma-separated list of pattern=N"),
            (json!({ "level": 1 }), "field level is not known"),
        ] {
            let refusal = after(fields).unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::BadField);
            assert!(refusal.message.contains(why), "{refusal}");
        }
    }
}
