//! The CNI error object, which the plugin prints when it fails. Specification: CNI 1.1.0, section 5, "Error".

use std::fmt;

use serde_json::{Map, Value, json};

/// The codes of the CNI specification that this plugin uses, and its own from 100 on.
pub mod code {
    /// The config's `cniVersion`, or the verb in that version, isn't supported.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A `CNI_*` variable is missing or invalid.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// A file can't be read or written.
    pub const IO: u32 = 5;
    /// Invalid JSON, or wrong types in it.
    pub const DECODING: u32 = 6;
    /// The network config contradicts itself or the rules.
    pub const INVALID_CONFIG: u32 = 7;
    /// A temporary failure: the runtime may try again.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: ADD can't be served now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: ADD can't be served, and existing containers may have no network.
    pub const NOT_AVAILABLE_LIMITED: u32 = 51;
    /// A required plugin isn't in `CNI_PATH`.
    pub const NO_DELEGATE: u32 = 100;
    /// The delegate failed without an error object.
    pub const DELEGATE_DIED: u32 = 101;
    /// The bridge has an address of another subnet.
    pub const STALE_BRIDGE: u32 = 102;
    /// The record of an attachment can't be read.
    pub const BAD_RECORD: u32 = 103;
    /// There is no record of the attachment to check.
    pub const NO_RECORD: u32 = 104;
    /// The attachment's addresses are of a subnet that this node no longer has.
    pub const OLD_SUBNET: u32 = 105;
}

/// A CNI error: a code, what was tried and why it failed, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniError {
    /// One of [`code`], or that of a delegate.
    pub code: u32,
    /// One line: what was tried, and why it failed.
    pub msg: String,
    /// What to check and what to do; may be empty.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same with further details after those that it has.
    pub fn with_details(mut self, details: impl AsRef<str>) -> Self {
        if !self.details.is_empty() && !details.as_ref().is_empty() {
            self.details.push_str("; ");
        }
        self.details.push_str(details.as_ref());
        self
    }

    /// The same with what was tried in front of the message.
    pub fn context(mut self, tried: &str) -> Self {
        self.msg = format!("{tried}: {}", self.msg);
        self
    }

    /// A failed file operation.
    pub(crate) fn io(what: impl fmt::Display, source: &std::io::Error) -> Self {
        Self::new(code::IO, format!("{what}: {source}"))
    }

    /// The JSON object for stdout, for a version of the specification.
    pub fn to_json(&self, cni_version: &str) -> Value {
        let mut object = json!({ "cniVersion": cni_version, "code": self.code, "msg": self.msg });
        let details = if self.details.is_empty() { usual_advice(self.code) } else { &self.details };
        object["details"] = json!(details);
        object
    }

    /// Reads a delegate's error object; `None` if it is none.
    pub fn from_json(bytes: &[u8]) -> Option<Self> {
        let object: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
        let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let code = object.get("code")?.as_u64()?;
        Some(Self { code: u32::try_from(code).ok()?, msg: text("msg"), details: text("details") })
    }
}

/// The default advice for an error code, for errors without details of their own and for those of a delegate.
fn usual_advice(code: u32) -> &'static str {
    match code {
        code::INVALID_ENVIRONMENT => {
            "the container runtime sets the CNI_* variables; by hand, see the CNI specification, section 2"
        }
        code::IO => {
            "see whether the file system is full or mounted read-only, and whether the plugin runs as root"
        }
        code::DECODING | code::INVALID_CONFIG | code::INCOMPATIBLE_VERSION => {
            "correct the network config, usually a file in /etc/cni/net.d"
        }
        code::TRY_AGAIN => "the container runtime tries again",
        _ => "see the log of the container runtime, which has what plugins wrote to stderr",
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.msg, self.code)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, "; {}", self.details) }
    }
}

impl std::error::Error for CniError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_written_and_read() {
        let error = CniError::new(7, "bad").with_details("look").with_details("").with_details("there");
        assert_eq!(
            error.to_json("1.0.0").to_string(),
            r#"{"cniVersion":"1.0.0","code":7,"details":"look; there","msg":"bad"}"#
        );
        assert_eq!(CniError::from_json(error.to_json("1.0.0").to_string().as_bytes()), Some(error.clone()));
        assert_eq!(error.context("tried").to_string(), "tried: bad (code 7); look; there");
        assert_eq!(CniError::new(5, "x").to_string(), "x (code 5)");
        // No error is without a word of what to do.
        for code in [1, 4, 5, 6, 7, 11, 50, 101, 999] {
            let object = CniError::new(code, "x").to_json("1.0.0");
            assert!(object["details"].as_str().is_some_and(|details| !details.is_empty()), "{object}");
        }
        for no_error in ["", "[]", "{}", r#"{"code":"7"}"#, r#"{"code":-1}"#, r#"{"code":4294967296}"#] {
            assert_eq!(CniError::from_json(no_error.as_bytes()), None, "{no_error}");
        }
    }
}
