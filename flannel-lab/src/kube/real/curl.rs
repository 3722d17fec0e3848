//! Requests by the `curl` program: JSON over TLS, from inside a namespace.

use std::path::Path;

use serde_json::Value;

use crate::netns::Netns;
use crate::{LabError, exec};

/// Written by curl after the body, so that the two can be told apart.
const STATUS: &str = "\n%{http_code}";

/// What a request carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    content_type: &'static str,
    text: String,
}

impl Body {
    /// An object.
    pub fn json(object: &Value) -> Self {
        Self { content_type: "application/json", text: object.to_string() }
    }

    /// An object as an operator writes it; the server reads YAML itself.
    pub fn yaml(text: &str) -> Self {
        Self { content_type: "application/yaml", text: text.to_owned() }
    }

    /// A merge patch (RFC 7396).
    pub fn merge_patch(patch: &Value) -> Self {
        Self { content_type: "application/merge-patch+json", text: patch.to_string() }
    }

    /// A strategic merge patch.
    pub fn strategic_merge_patch(patch: &Value) -> Self {
        Self { content_type: "application/strategic-merge-patch+json", text: patch.to_string() }
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body; `Null` where it isn't JSON.
    pub body: Value,
    /// The request, for errors.
    request: String,
}

impl Answer {
    /// The body of an answer that says yes.
    pub fn success(self) -> Result<Value, LabError> {
        if (200..300).contains(&self.status) {
            return Ok(self.body);
        }
        let said = self.body["message"].as_str().unwrap_or("no message");
        Err(LabError::unexpected(&self.request, format!("{}: {said}", self.status)))
    }
}

/// Asks from inside a namespace; with a login, that is the authority's certificate and a bearer token.
pub(super) fn ask(
    netns: &Netns,
    login: Option<(&Path, &str)>,
    method: &str,
    url: &str,
    body: Option<Body>,
) -> Result<Answer, LabError> {
    exec::find("curl")?;
    let mut curl = netns.command("curl");
    curl.args(["--silent", "--show-error", "--max-time", "20", "--write-out", STATUS, "--request", method]);
    if let Some((ca, token)) = login {
        curl.arg("--cacert").arg(ca).args(["--header", &format!("Authorization: Bearer {token}")]);
    }
    let text = match body {
        None => String::new(),
        Some(body) => {
            let content_type = format!("Content-Type: {}", body.content_type);
            curl.args(["--header", &content_type, "--data-binary", "@-"]);
            body.text
        }
    };
    let output = exec::output_with_input(
        {
            curl.arg(url);
            curl
        },
        &text,
    )?;
    let request = format!("{method} {url}");
    let (body, status) = output.rsplit_once('\n').ok_or_else(|| LabError::unexpected(&request, &output))?;
    let status = status.parse().map_err(|_| LabError::unexpected(&request, &output))?;
    Ok(Answer { status, body: serde_json::from_str(body).unwrap_or_default(), request })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_is_an_error_with_the_servers_words() {
        let answer = |status, body| Answer { status, body, request: "GET /x".to_owned() }.success();
        assert_eq!(answer(201, json!(1)).unwrap(), json!(1));
        let error = answer(403, json!({ "message": "nodes is forbidden" })).unwrap_err().to_string();
        assert!(error.contains("GET /x") && error.contains("403: nodes is forbidden"), "{error}");
    }
}
