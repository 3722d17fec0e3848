//! The audit log: one JSON object a line, and one or more lines a request.

use std::collections::HashMap;
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
    /// The HTTP status of the answer, once the log has it: some versions say of a watch only at its end that it
    /// was let in.
    pub code: Option<u16>,
    /// Whether it has ended. It never does in the log of a server that was killed.
    pub ended: bool,
}

pub(super) fn read(file: &Path) -> Result<Vec<Audited>, LabError> {
    let text = fs::read_to_string(file).map_err(LabError::io(format!("reading {}", file.display())))?;
    // The last line may be half written.
    parse(text.rfind('\n').map_or("", |end| &text[..end]))
}

/// The requests in the order in which they are first heard of.
fn parse(lines: &str) -> Result<Vec<Audited>, LabError> {
    let mut requests = Vec::new();
    let mut places = HashMap::new();
    for line in lines.lines() {
        let (id, request) = parse_line(line).ok_or_else(|| LabError::unexpected("the audit log", line))?;
        let place = *places.entry(id).or_insert(requests.len());
        match requests.get_mut(place) {
            Some(known) => *known = request,
            None => requests.push(request),
        }
    }
    Ok(requests)
}

/// One line, and the request that it is about.
fn parse_line(line: &str) -> Option<(String, Audited)> {
    let event: Value = serde_json::from_str(line).ok()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &event["objectRef"];
    let resource = match object["subresource"].as_str() {
        Some(sub) => format!("{}/{sub}", text(&object["resource"])),
        None => text(&object["resource"]),
    };
    let audited = Audited {
        user: text(&event["user"]["username"]),
        from: event["sourceIPs"][0].as_str().and_then(|ip| ip.parse().ok()),
        verb: event["verb"].as_str()?.to_owned(),
        resource,
        name: text(&object["name"]),
        uri: event["requestURI"].as_str()?.to_owned(),
        user_agent: text(&event["userAgent"]),
        code: event["responseStatus"]["code"].as_u64().and_then(|code| u16::try_from(code).ok()),
        ended: event["stage"] == "ResponseComplete",
    };
    Some((event["auditID"].as_str()?.to_owned(), audited))
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
        let (_, audited) = parse_line(line).unwrap();
        assert_eq!(audited.user, "system:serviceaccount:kube-flannel:flannel");
        assert_eq!(audited.from, Some([192, 168, 77, 11].into()));
        assert_eq!((audited.verb.as_str(), audited.resource.as_str()), ("patch", "nodes/status"));
        assert_eq!((audited.name.as_str(), audited.code, audited.ended), ("n1", Some(403), true));
        assert_eq!(audited.user_agent, "flanneld/0.1");
        assert_eq!(parse_line("{}"), None);
    }

    #[test]
    fn all_lines_of_a_request_make_one() {
        let line = |id: &str, verb: &str, stage: &str, status: &str| {
            format!(r#"{{"auditID":"{id}","verb":"{verb}","requestURI":"/","stage":"{stage}"{status}}}"#)
        };
        let ok = r#","responseStatus":{"code":200}"#;
        let log = [
            line("1", "watch", "RequestReceived", ""),
            line("2", "get", "ResponseComplete", ok),
            line("1", "watch", "ResponseComplete", ok),
            line("3", "watch", "RequestReceived", ""),
        ];
        let seen = |count: usize| {
            let seen = parse(&log[..count].join("\n")).unwrap();
            seen.into_iter().map(|it| (it.verb, it.code, it.ended)).collect::<Vec<_>>()
        };
        let watch = |code, ended| ("watch".to_owned(), code, ended);
        let get = ("get".to_owned(), Some(200), true);
        assert_eq!(seen(2), [watch(None, false), get.clone()]);
        assert_eq!(seen(4), [watch(Some(200), true), get, watch(None, false)]);
        assert!(parse("x").is_err());
    }
}
