//! What an agent asked the API server, counted from the audit log.

use std::collections::BTreeMap;
use std::fmt;

use flannel_lab::kube_apiserver::Audited;

/// What the Go agent asks at its start where `NODE_NAME` is set: its own node twice (what it published before,
/// and the operator's annotations), all nodes and a watch of them, and two patches (annotations, condition).
pub(crate) const GO_START: [(&str, u64); 4] = [("get", 2), ("list", 1), ("watch", 1), ("patch", 2)];
/// What it asks at a start that changes nothing: the condition is patched all the same.
pub(crate) const GO_RESTART: [(&str, u64); 4] = [("get", 2), ("list", 1), ("watch", 1), ("patch", 1)];

/// Requests by verb.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Requests(BTreeMap<String, u64>);

impl Requests {
    /// Counts requests once each: a watch when it begins, others when they are answered.
    pub(crate) fn count(audited: &[Audited]) -> Self {
        let mut counts = BTreeMap::new();
        for request in audited.iter().filter(|request| is_counted(request)) {
            *counts.entry(request.verb.clone()).or_default() += 1;
        }
        Self(counts)
    }

    /// Of one verb.
    pub(crate) fn of(&self, verb: &str) -> u64 {
        self.0.get(verb).copied().unwrap_or_default()
    }

    /// A verb of which there are more than these, or that isn't among them.
    pub(crate) fn beyond(&self, limits: &[(&str, u64)]) -> Option<&str> {
        let limit =
            |verb: &str| limits.iter().find(|(known, _)| *known == verb).map_or(0, |(_, limit)| *limit);
        self.0.iter().find(|(verb, count)| **count > limit(verb)).map(|(verb, _)| verb.as_str())
    }
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.0.iter().map(|(verb, count)| format!("{count} {verb}")).collect::<Vec<_>>();
        f.write_str(&if counts.is_empty() { "none".to_owned() } else { counts.join(", ") })
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
}
