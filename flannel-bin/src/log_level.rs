//! `flanneld log-level`: shows or sets how much the running agent logs, by its control socket.

use std::io::{self, Write as _};
use std::process::ExitCode;

use flannel_control::protocol::{Refusal, RefusalKind, Request};
use flannel_control::{Client, ClientError, socket_of};
use flannel_core::error::chain;
use serde_json::{Map, Value, json};

use crate::cli::{LogLevelOptions, vmodules};
use crate::logs::{Levels, LogLevels};

/// The name of the request. Its fields are those of the answer, and each may be left out.
pub(crate) const REQUEST: &str = "log-level";
/// The verbosity, a number as of `--v`.
const VERBOSITY: &str = "v";
/// Those of single modules, a text as of `--vmodule`.
const MODULES: &str = "vmodule";
/// Both, as people read them. Only in answers.
const TEXT: &str = "text";

/// Answers the request in the agent: sets what it asks for, and says what there is then.
pub(crate) fn answer(levels: &LogLevels, fields: &Map<String, Value>) -> Result<Value, Refusal> {
    if !fields.is_empty() {
        levels.set(&wanted(levels.get(), fields)?);
    }
    let levels = levels.get();
    let modules: Vec<String> = levels.modules.iter().map(ToString::to_string).collect();
    Ok(json!({ VERBOSITY: levels.verbosity, MODULES: modules.join(","), TEXT: levels.to_string() }))
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
                levels.modules = vmodules(text).map_err(|expected| bad(name, expected))?;
            }
            other => return Err(bad(other, "known")),
        }
    }
    Ok(levels)
}

/// Asks the agent of this host, and prints what it logs now.
pub(crate) fn run(options: &LogLevelOptions) -> ExitCode {
    let mut request = Request::new(REQUEST);
    if let Some(verbosity) = options.level {
        request = request.with(VERBOSITY, verbosity);
    }
    if options.sets_modules {
        let modules: Vec<String> = options.modules.iter().map(ToString::to_string).collect();
        request = request.with(MODULES, modules.join(","));
    }
    match ask(&Client::new(socket_of(&options.subnet_file)), &request) {
        Ok(text) => {
            // A closed stdout is no failure.
            let _ = writeln!(io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "flanneld log-level: {}", chain(&error));
            ExitCode::from(2)
        }
    }
}

fn ask(client: &Client, request: &Request) -> Result<String, ClientError> {
    let answer = client.ask(request)?;
    let answer: Value = serde_json::from_str(answer.get()).map_err(ClientError::Unreadable)?;
    Ok(answer[TEXT].as_str().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::VModule;

    #[test]
    fn what_a_request_does_not_name_stays() {
        let modules = |text: &str| vmodules(text).unwrap();
        let before = Levels { verbosity: 1, modules: modules("netlink=4") };
        let after = |fields: Value| wanted(before.clone(), fields.as_object().unwrap());
        assert_eq!(after(json!({ "v": 4 })).unwrap(), Levels { verbosity: 4, ..before.clone() });
        let other = Levels { modules: modules("h2=9,peers=2"), ..before.clone() };
        assert_eq!(after(json!({ "vmodule": "h2=9,peers=2" })).unwrap(), other);
        let none: Vec<VModule> = Vec::new();
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
