//! What an agent asked the API server, counted from the audit log.

use std::collections::BTreeMap;
use std::fmt;

use flannel_lab::kube::real::Audited;

/// What the Go agent asks at its start where `NODE_NAME` is set: its own node twice (what it published before,
/// and the operator's annotations), all nodes and a watch of them, and two patches (annotations, condition).
pub(crate) const GO_START: [(&str, u64); 4] = [("get", 2), ("list", 1), ("watch", 1), ("patch", 2)];
/// What it asks at a start that changes nothing: the condition is patched all the same.
pub(crate) const GO_RESTART: [(&str, u64); 4] = [("get", 2), ("list", 1), ("watch", 1), ("patch", 1)];

/// What only asks how far the server's history goes, and reads one node.
const POSITION: &str = "position";
/// A node, no older than what a watch showed of it, which the server has in its memory: for the podCIDRs of a node that
/// joined, and for the own condition. Go's watch of whole objects has both.
const FROM_MEMORY: &str = "get from memory";
/// How many of these a start may need: a few nodes join, and their kubelets report.
const MOST_FROM_MEMORY: u64 = 10;
/// A watch that begins with all objects, where the server doesn't know of such: it refuses without any work.
const NO_WATCH_LIST: &str = "watch-list refused";

/// The parameter that asks for one.
const WATCH_LIST: &str = "sendInitialEvents=true";

/// Requests by verb, and apart from these what costs the server next to nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Requests(BTreeMap<String, u64>);

impl Requests {
    /// Counts requests: a watch when it is asked for, others when they are answered.
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

    /// A verb of which there are more than these, or that isn't among them; one question for a watch-list is free, and few
    /// nodes from the server's memory are.
    pub(crate) fn beyond(&self, limits: &[(&str, u64)]) -> Option<&str> {
        let limits = || limits.iter().chain(&[(NO_WATCH_LIST, 1), (FROM_MEMORY, MOST_FROM_MEMORY)]);
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
        "get" if request.uri.contains("?resourceVersion=") => FROM_MEMORY,
        "watch" if request.code == Some(422) && asks(WATCH_LIST) => NO_WATCH_LIST,
        // It ends with the list, and a watch of metadata goes on from there.
        "watch" if asks(WATCH_LIST) => "list",
        verb => verb,
    }
}

/// A question for a watch-list is one or the other thing by its answer.
fn is_counted(request: &Audited) -> bool {
    request.ended || request.verb == "watch" && (request.code.is_some() || !request.uri.contains(WATCH_LIST))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audited(verb: &str, code: Option<u16>, ended: bool) -> Audited {
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
    fn a_watch_counts_when_it_is_asked_for() {
        let log = [
            audited("get", Some(200), true),
            audited("watch", None, false),
            audited("watch", Some(403), true),
        ];
        let requests = Requests::count(&log);
        assert_eq!(requests.to_string(), "1 get, 2 watch");
        assert_eq!((requests.of("watch"), requests.of("list")), (2, 0));
        assert_eq!(requests.beyond(&GO_START), Some("watch"));
        assert_eq!(Requests::count(&log[..2]).beyond(&GO_START), None);
        assert_eq!(Requests::default().to_string(), "none");
    }

    #[test]
    fn what_costs_nothing_counts_apart() {
        let asked = |verb, code, query: &str| Audited {
            uri: format!("/api/v1/nodes?{query}"),
            ..audited(verb, code, code.is_some())
        };
        let log = [
            asked("list", Some(200), "limit=500"),
            asked("list", Some(200), "limit=1"),
            asked("watch", Some(422), "watch=true&sendInitialEvents=true"),
            asked("watch", Some(422), "watch=true"),
            asked("watch", None, "watch=true&sendInitialEvents=true"),
            asked("get", Some(200), "resourceVersion=17"),
        ];
        let requests = Requests::count(&log);
        assert_eq!(
            requests.to_string(),
            "1 get from memory, 1 list, 1 position, 1 watch, 1 watch-list refused"
        );
        assert_eq!(requests.beyond(&GO_START), Some(POSITION));
        assert_eq!(Requests::count(&log[2..]).beyond(&GO_START), None);
    }
}
