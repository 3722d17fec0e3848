//! The protocol: one request a connection, in JSON, with a version.
//!
//! A client connects, sends one object in one line, and reads until the end:
//!
//! ```text
//! {"version":1,"request":"status"}
//! {"version":1,"answer":{"phase":{"name":"running"},"ready":true,..}}
//! ```
//!
//! | request | fields | answer |
//! |---|---|---|
//! | `status` | `watch`, `every_s` | the status ([`AgentStatus`](flannel_core::agent::AgentStatus) as JSON); with `watch` one now and one after each change, at most four a second, and with `every_s` one at least that often |
//! | `events` | `follow` | a line for each event that the agent remembers, oldest first, and with `follow` for those that happen then |
//! | `peer` | `lease` | the kernel objects of a peer, with the commands that show them |
//! | `command` | `name` | what the backend does, in words (`text`): `rotate-key` of wireguard changes this node's key |
//! | `diff` | | what differs between desired and observed state, with the commands that the agent would carry out |
//!
//! A request that is not understood is answered by `{"version":1,"error":{"kind":"unknown-request","message":".."}}`
//! ([`Refusal`]). New fields in answers are no new version; clients ignore those that they don't know.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The version of the protocol.
pub const VERSION: u64 = 1;

/// The longest request in bytes.
pub const MOST_REQUEST: usize = 16 << 10;

/// A request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Request {
    version: u64,
    #[serde(rename = "request")]
    name: String,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

impl Request {
    /// A request without fields.
    pub fn new(name: impl Into<String>) -> Self {
        Self { version: VERSION, name: name.into(), fields: Map::new() }
    }

    /// The same with a field.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(field.to_owned(), value.into());
        self
    }

    /// The name of what is asked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its fields, besides version and name.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// Reads a request.
    pub fn parse(text: &[u8]) -> Result<Self, Refusal> {
        let malformed = |why: String| Refusal::new(RefusalKind::Malformed, why);
        let value: Value = serde_json::from_slice(text)
            .map_err(|error| malformed(format!("the request is no JSON: {error}")))?;
        let Value::Object(mut fields) = value else {
            return Err(malformed("the request is no JSON object".to_owned()));
        };
        match fields.remove("version") {
            Some(version) if version == VERSION => {}
            Some(other) => {
                let why = format!("version {other} is not spoken here; this agent speaks version {VERSION}");
                return Err(Refusal::new(RefusalKind::UnknownVersion, why));
            }
            None => return Err(malformed(format!("field version is missing; it is {VERSION}"))),
        }
        match fields.remove("request") {
            Some(Value::String(name)) => Ok(Self { version: VERSION, name, fields }),
            Some(other) => Err(malformed(format!("field request is {other}, and not a text"))),
            None => Err(malformed("field request is missing".to_owned())),
        }
    }

    /// Reads the fields as a value whose type refuses what it does not know.
    pub(crate) fn fields_as<T: DeserializeOwned>(self) -> Result<T, Refusal> {
        let Self { name, fields, .. } = self;
        serde_json::from_value(Value::Object(fields))
            .map_err(|error| Refusal::new(RefusalKind::BadField, format!("request {name}: {error}")))
    }
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct Refusal {
    /// What kind of reason it is.
    pub kind: RefusalKind,
    /// The reason in words.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// The kinds of reasons for a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RefusalKind {
    /// The request is no JSON object with `version` and `request`, or is too long.
    Malformed,
    /// The agent speaks another version of the protocol.
    UnknownVersion,
    /// The agent does not know this request.
    UnknownRequest,
    /// A field is unknown, missing or has a value that can't be used.
    BadField,
    /// Too many clients are connected.
    Busy,
    /// The agent can't answer now: its network does not run yet, or it has ended.
    NotNow,
    /// The agent tried, and failed.
    Failed,
    /// A kind of a newer agent.
    #[serde(other)]
    Other,
}

impl fmt::Display for RefusalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A line that the agent sends.
#[derive(Debug, Serialize)]
pub(crate) struct Line<'a, T> {
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<&'a T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Refusal>,
}

impl<'a, T> Line<'a, T> {
    pub(crate) fn answer(answer: &'a T) -> Self {
        Self { version: VERSION, answer: Some(answer), error: None }
    }
}

impl<'a> Line<'a, ()> {
    pub(crate) fn error(error: &'a Refusal) -> Self {
        Self { version: VERSION, answer: None, error: Some(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_they_are_written() {
        let request = Request::new("status").with("watch", true);
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"version":1,"request":"status","watch":true}"#);
        assert_eq!(Request::parse(text.as_bytes()), Ok(request));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, kind, why) in [
            ("status", RefusalKind::Malformed, "the request is no JSON: "),
            ("[1]", RefusalKind::Malformed, "no JSON object"),
            (r#"{"request":"status"}"#, RefusalKind::Malformed, "field version is missing; it is 1"),
            (
                r#"{"version":2,"request":"status"}"#,
                RefusalKind::UnknownVersion,
                "version 2 is not spoken here; this agent speaks version 1",
            ),
            (r#"{"version":1}"#, RefusalKind::Malformed, "field request is missing"),
            (r#"{"version":1,"request":7}"#, RefusalKind::Malformed, "field request is 7, and not a text"),
        ] {
            let refusal = Request::parse(text.as_bytes()).unwrap_err();
            assert_eq!(refusal.kind, kind, "{text}");
            assert!(refusal.message.contains(why), "{text}: {refusal}");
        }
    }

    #[test]
    fn lines_have_a_version_and_one_of_two_things() {
        let refusal = Refusal::new(RefusalKind::NotNow, "later");
        assert_eq!(serde_json::to_string(&Line::answer(&7)).unwrap(), r#"{"version":1,"answer":7}"#);
        assert_eq!(
            serde_json::to_string(&Line::error(&refusal)).unwrap(),
            r#"{"version":1,"error":{"kind":"not-now","message":"later"}}"#
        );
        assert_eq!(RefusalKind::BadField.to_string(), "bad-field");
        assert_eq!(serde_json::from_str::<RefusalKind>(r#""of-tomorrow""#).unwrap(), RefusalKind::Other);
    }
}
