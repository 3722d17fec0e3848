//! The versions of the CNI specification that the plugin supports.

use serde_json::{Value, json};

use crate::error::{CniError, code};

/// All supported versions, oldest first.
pub const SUPPORTED: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The newest.
pub const CURRENT: &str = "1.1.0";

/// Refuses a version that isn't in [`SUPPORTED`].
pub fn check(version: &str) -> Result<(), CniError> {
    if SUPPORTED.contains(&version) {
        return Ok(());
    }
    let msg = format!("incompatible CNI version {version:?}");
    let details =
        format!("this plugin speaks {}; change cniVersion in the network config", SUPPORTED.join(", "));
    Err(CniError::new(code::INCOMPATIBLE_VERSION, msg).with_details(details))
}

/// Whether a version is at least another one; both must be in [`SUPPORTED`].
pub fn is_at_least(version: &str, since: &str) -> bool {
    let place = |version: &str| SUPPORTED.iter().position(|supported| *supported == version);
    place(version) >= place(since)
}

/// The answer to VERSION, in the version of the request if it is supported.
pub fn answer(input: &[u8]) -> Value {
    let asked = serde_json::from_slice::<Value>(input).unwrap_or_default();
    let asked = asked.get("cniVersion").and_then(Value::as_str).filter(|asked| check(asked).is_ok());
    json!({ "cniVersion": asked.unwrap_or(CURRENT), "supportedVersions": SUPPORTED })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered() {
        assert!(is_at_least("0.4.0", "0.4.0") && is_at_least("1.1.0", "0.4.0"));
        assert!(!is_at_least("0.3.1", "0.4.0") && !is_at_least("1.0.0", "1.1.0"));
        assert!(check("1.1.0").is_ok());
        for other in ["", "1", "1.2.0", "0.3.1 "] {
            assert_eq!(check(other).unwrap_err().code, code::INCOMPATIBLE_VERSION, "{other}");
        }
    }

    #[test]
    fn the_answer_is_in_the_version_of_the_question() {
        let all = r#""supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]"#;
        for (asked, version) in [
            (r#"{"cniVersion":"0.3.1"}"#, "0.3.1"),
            (r#"{"cniVersion":"9.9.9"}"#, "1.1.0"),
            (r#"{"cniVersion":1}"#, "1.1.0"),
            ("{}", "1.1.0"),
            ("", "1.1.0"),
            ("\u{0}", "1.1.0"),
        ] {
            assert_eq!(
                answer(asked.as_bytes()).to_string(),
                format!(r#"{{"cniVersion":"{version}",{all}}}"#)
            );
        }
    }
}
