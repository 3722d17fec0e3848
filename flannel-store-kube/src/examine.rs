//! What the API server says about itself, this node, and this node's rights, for an operator who looks for a fault.

use std::sync::Arc;
use std::time::SystemTime;

use flannel_core::error::chain;
use flannel_core::subnet::{
    ClockGap, Examination, NodeFacts, NodeRecord, Right, RightAnswer, Server, ServerAnswer,
};
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Store;
use super::client::{CallError, post};
use super::options::NodeIdentity;

/// Where a client asks what it may do.
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// What an agent does with the API (README.md): verb, resource, subresource.
const NEEDED: [(&str, &str, &str); 4] =
    [("get", "nodes", ""), ("list", "nodes", ""), ("watch", "nodes", ""), ("patch", "nodes", "status")];

impl Store {
    pub(super) async fn examine(self: &Arc<Self>) -> Examination {
        let (server, node, rights) = tokio::join!(self.server(), self.node_record(), self.rights());
        Examination::default().servers([server]).node(node).rights(rights)
    }

    async fn server(&self) -> Server {
        let name = self.clients.server();
        let limit = self.options.timeouts.request;
        let ask = async {
            // The first request opens the connection, which is not what is measured.
            self.clients.version(limit).await?;
            let (start, asked) = (Instant::now(), SystemTime::now());
            let (text, date) = self.clients.version(limit).await?;
            let took = start.elapsed();
            let clock = date.map(|date| ClockGap::between(date, asked, SystemTime::now()));
            Ok::<_, CallError>(ServerAnswer::new(took, version(&text)).clock(clock))
        };
        Server { answer: ask.await.map_err(|error| error.to_string()), name }
    }

    async fn node_record(&self) -> NodeRecord {
        match self.read_own().await {
            Ok(own) => {
                let subnets = own.node.pod_cidrs.iter().flatten().map(ToString::to_string);
                let facts = NodeFacts::new(&*own.node.name, subnets);
                NodeRecord::Read(facts.published(own.node.published()))
            }
            Err(error) => NodeRecord::Unread(chain(&error)),
        }
    }

    async fn rights(&self) -> Vec<Right> {
        let pods = matches!(&self.options.node, NodeIdentity::Pod { .. }).then_some(("get", "pods", ""));
        join_all(NEEDED.into_iter().chain(pods).map(|needed| self.right(needed))).await
    }

    /// Asks the server by a `SelfSubjectAccessReview`, which it answers without storing it.
    async fn right(&self, (verb, resource, subresource): (&str, &str, &str)) -> Right {
        let slash = if subresource.is_empty() { "" } else { "/" };
        let what = format!("{verb} {resource}{slash}{subresource}");
        let mut attributes = json!({ "verb": verb, "resource": resource });
        if !subresource.is_empty() {
            attributes["subresource"] = subresource.into();
        }
        if let (NodeIdentity::Pod { namespace, .. }, "pods") = (&self.options.node, resource) {
            attributes["namespace"] = namespace.as_str().into();
        }
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": attributes },
        });
        let request = post(REVIEWS, &review);
        let asked = self.clients.call("ask what we may do", request, self.options.timeouts.request).await;
        let answer = match asked {
            Ok(text) => answer(&text),
            Err(error) => RightAnswer::Unknown(error.to_string()),
        };
        Right { what, answer }
    }
}

/// The version in an answer to `/version`.
fn version(text: &str) -> String {
    let said: Value = serde_json::from_str(text).unwrap_or_default();
    said["gitVersion"].as_str().unwrap_or_default().to_owned()
}

/// What a review says.
fn answer(text: &str) -> RightAnswer {
    let said: Value = serde_json::from_str(text).unwrap_or_default();
    let status = &said["status"];
    let reason = [&status["reason"], &status["evaluationError"]].into_iter().filter_map(Value::as_str);
    let reason = reason.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
    match status["allowed"].as_bool() {
        Some(true) => RightAnswer::Allowed,
        Some(false) => RightAnswer::Denied(reason),
        None => RightAnswer::Unknown("the answer has no status.allowed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let denied = |why: &str| RightAnswer::Denied(why.to_owned());
        for (text, want) in [
            (r#"{"status":{"allowed":true,"reason":"RBAC: allowed by x"}}"#, RightAnswer::Allowed),
            (r#"{"status":{"allowed":false}}"#, denied("")),
            (r#"{"status":{"allowed":false,"reason":"no","evaluationError":"y"}}"#, denied("no; y")),
            ("<html>", RightAnswer::Unknown("the answer has no status.allowed".to_owned())),
        ] {
            assert_eq!(answer(text), want, "{text}");
        }
        assert_eq!(version(r#"{"gitVersion":"v1.33.0"}"#), "v1.33.0");
        assert_eq!(version("nonsense"), "");
    }
}
