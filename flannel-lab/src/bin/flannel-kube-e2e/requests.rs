//! What an agent asked the API server, counted from the audit log.

use std::collections::BTreeMap;
use std::fmt;

use flannel_lab::kube_apiserver::Audited;

/// What the Go agent asks at its start where `NODE_NAME` is set: its own node twice (what it published before,
/// and the operator's annotations), all nodes and a watch of them, and two patches (annotations, condition).
pub(crate) const GO_START: [(&str, u64); 4] = [("get", 2), ("list", 1), ("watch", 1), ("patch", 2)];
/// What it asks at a start that changes nothing: the condition is patched all the same.
pub(crate) const GO_RESTART: [(&str, u64); 4] = [("get", 2), ("list", 1), ("watch", 1), ("patch", 1)];

/// What only asks how far the server's history goes, and reads one node.
const POSITION: &str = "position";
/// A watch that begins with all objects, where the server doesn't know of such: it refuses without any work.
const NO_WATCH_LIST: &str = "watch-list refused";

/// Requests by verb, and apart from these what costs the server next to nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Requests(BTreeMap<String, u64>);

impl Requests {
    /// Counts requests once each: a watch when it begins, others when they are answered.
    pub(crate) fn count(audited: &[Audited]) -> Self {
        let mut counts = BTreeMap::new();
        for request in audited.iter().filter(|request| is_counted(request)) {
            *counts.entry(kind(request).to_owned()).or_default() += 1;
        }
        Self(counts)
    }

    /// Of one verb.
    pub(crate) fn of(&self, verb: &str) -> u64 {
        self.0.get(verb).copied().unwrap_or_default()
    }

    /// A verb of which there are more than these, or that isn't among them; one question for a watch-list is free.
    pub(crate) fn beyond(&self, limits: &[(&str, u64)]) -> Option<&str> {
        let limits = || limits.iter().chain(&[(NO_WATCH_LIST, 1)]);
        let limit = |verb: &str| limits().find(|(known, _)| *known == verb).map_or(0, |(_, limit)| *limit);
        self.0.iter().find(|(verb, count)| **count > limit(verb)).map(|(verb, _)| verb.as_str())
    }
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.0.iter().map(|(verb, count)| format!("{count} {verb}")).collect::<Vec<_>>();
        f.write_str(&if counts.is_empty() { "none".to_owned() } else { counts.join(", ") })
    }
}

fn kind(request: &Audited) -> &str {
    let asks = |parameter: &str| {
        request.uri.split_once('?').is_some_and(|(_, query)| query.split('&').any(|it| it == parameter))
    };
    match &*request.verb {
        "list" if asks("limit=1") => POSITION,
        "watch" if request.code == 422 && asks("sendInitialEvents=true") => NO_WATCH_LIST,
        verb => verb,
    }
}

/// A refused watch has no beginning, only an end.
fn is_counted(request: &Audited) -> bool {
    if request.verb == "watch" && request.code == 200 { !request.ended } else { request.ended }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audited(verb: &str, code: u16, ended: bool) -> Audited {
        Audited {
            user: String::new(),
            from: None,
            verb: verb.to_owned(),
            resource: "nodes".to_owned(),
            name: String::new(),
            uri: String::new(),
            user_agent: String::new(),
            code,
            ended,
        }
    }

    #[test]
    fn a_watch_counts_once() {
        let log = [
            audited("get", 200, true),
            audited("watch", 200, false),
            audited("watch", 200, true),
            audited("watch", 403, true),
        ];
        let requests = Requests::count(&log);
        assert_eq!(requests.to_string(), "1 get, 2 watch");
        assert_eq!((requests.of("watch"), requests.of("list")), (2, 0));
        assert_eq!(requests.beyond(&GO_START), Some("watch"));
        assert_eq!(Requests::count(&log[..3]).beyond(&GO_START), None);
        assert_eq!(Requests::default().to_string(), "none");
    }

    #[test]
    fn what_costs_nothing_counts_apart() {
        let asked = |verb, code, query: &str| Audited {
            uri: format!("/api/v1/nodes?{query}"),
            ..audited(verb, code, true)
        };
        let log = [
            asked("list", 200, "limit=500"),
            asked("list", 200, "limit=1"),
            asked("watch", 422, "watch=true&sendInitialEvents=true"),
            asked("watch", 422, "watch=true"),
        ];
        let requests = Requests::count(&log);
        assert_eq!(requests.to_string(), "1 list, 1 position, 1 watch, 1 watch-list refused");
        assert_eq!(requests.beyond(&GO_START), Some(POSITION));
        assert_eq!(Requests::count(&log[2..]).beyond(&GO_START), None);
    }
}
