//! The audit log: one JSON object a line.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;

use crate::LabError;

/// A request, as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audited {
    /// Whose token it was: `system:serviceaccount:kube-flannel:flannel`.
    pub user: String,
    /// Where it came from.
    pub from: Option<IpAddr>,
    /// What it wants: `get`, `list`, `watch`, `patch`, ....
    pub verb: String,
    /// Of what: `nodes`, `nodes/status`, `pods`.
    pub resource: String,
    /// The name of the object, empty for all.
    pub name: String,
    /// Path and query.
    pub uri: String,
    /// The client, as it calls itself.
    pub user_agent: String,
    /// The HTTP status of the answer.
    pub code: u16,
    /// Whether it is the end of a request; a watch has a line for its beginning, too.
    pub ended: bool,
}

pub(super) fn read(file: &Path) -> Result<Vec<Audited>, LabError> {
    let text = fs::read_to_string(file).map_err(LabError::io(format!("reading {}", file.display())))?;
    // The last line may be half written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| parse(line).ok_or_else(|| LabError::unexpected("the audit log", line))).collect()
}

fn parse(line: &str) -> Option<Audited> {
    let event: Value = serde_json::from_str(line).ok()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &event["objectRef"];
    let resource = match object["subresource"].as_str() {
        Some(sub) => format!("{}/{sub}", text(&object["resource"])),
        None => text(&object["resource"]),
    };
    Some(Audited {
        user: text(&event["user"]["username"]),
        from: event["sourceIPs"][0].as_str().and_then(|ip| ip.parse().ok()),
        verb: event["verb"].as_str()?.to_owned(),
        resource,
        name: text(&object["name"]),
        uri: event["requestURI"].as_str()?.to_owned(),
        user_agent: text(&event["userAgent"]),
        code: u16::try_from(event["responseStatus"]["code"].as_u64()?).ok()?,
        ended: event["stage"] == "ResponseComplete",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_who_asked_what() {
        let line = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"1",
            "stage":"ResponseComplete","requestURI":"/api/v1/nodes/n1/status","verb":"patch",
            "user":{"username":"system:serviceaccount:kube-flannel:flannel","groups":["a"]},
            "sourceIPs":["192.168.77.11"],"userAgent":"flanneld/0.1",
            "objectRef":{"resource":"nodes","name":"n1","apiVersion":"v1","subresource":"status"},
            "responseStatus":{"metadata":{},"code":403}}"#;
        let audited = parse(line).unwrap();
        assert_eq!(audited.user, "system:serviceaccount:kube-flannel:flannel");
        assert_eq!(audited.from, Some([192, 168, 77, 11].into()));
        assert_eq!((audited.verb.as_str(), audited.resource.as_str()), ("patch", "nodes/status"));
        assert_eq!((audited.name.as_str(), audited.code, audited.ended), ("n1", 403, true));
        assert_eq!(audited.user_agent, "flanneld/0.1");
        assert_eq!(parse("{}"), None);
    }
}
