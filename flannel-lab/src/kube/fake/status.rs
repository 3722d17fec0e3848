//! Errors as the API server writes them: `Status` objects of `meta.k8s.io/v1`.
//!
//! Texts and reasons: apimachinery, `pkg/api/errors/errors.go`.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Why a request was not served.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    code: StatusCode,
    reason: &'static str,
    message: String,
    metadata: Value,
    details: Value,
    retry_after: Option<u32>,
}

impl Failure {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        let (metadata, details) = (json!({}), Value::Null);
        Self { code, reason, message: message.into(), metadata, details, retry_after: None }
    }

    fn about(mut self, kind: &str, name: &str) -> Self {
        self.details = json!({ "name": name, "kind": kind });
        self
    }

    /// The client is not known.
    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// There is no such object.
    pub(super) fn not_found(kind: &str, name: &str) -> Self {
        let message = format!("{kind} {name:?} not found");
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(kind, name)
    }

    /// There is nothing of that kind.
    pub(super) fn no_such_resource() -> Self {
        let message = "the server could not find the requested resource";
        let mut failure = Self::new(StatusCode::NOT_FOUND, "NotFound", message);
        failure.details = json!({});
        failure
    }

    /// The object can't be used in that way.
    pub(super) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    /// The request makes no sense.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// The object is another one by now.
    pub(super) fn conflict(name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on nodes {name:?}: {why}");
        Self::new(StatusCode::CONFLICT, "Conflict", message).about("nodes", name)
    }

    /// The object would have these wrong fields: path, kind of the mistake, and a word about it.
    pub(super) fn invalid(
        group: &str,
        kind: &str,
        name: &str,
        fields: &[(&str, &'static str, String)],
    ) -> Self {
        let texts: Vec<_> = fields.iter().map(|(path, _, what)| format!("{path}: {what}")).collect();
        let texts = if texts.len() == 1 { texts[0].clone() } else { format!("[{}]", texts.join(", ")) };
        let full = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let message = format!("{full} {name:?} is invalid: {texts}");
        let mut failure = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
        let causes = fields
            .iter()
            .map(|(path, reason, what)| json!({ "reason": reason, "message": what, "field": path }));
        failure.details = json!({ "kind": kind, "causes": causes.collect::<Vec<_>>() });
        if !name.is_empty() {
            failure.details["name"] = json!(name);
        }
        if !group.is_empty() {
            failure.details["group"] = json!(group);
        }
        failure
    }

    /// A body in a format that is none of a patch.
    pub(super) fn unsupported_media_type() -> Self {
        let message = "the body of the request was in an unknown format - accepted media types include: \
                       application/json-patch+json, application/merge-patch+json, \
                       application/strategic-merge-patch+json, application/apply-patch+yaml";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    /// An answer in none of the formats that the client takes.
    pub(super) fn not_acceptable() -> Self {
        let message = "only the following media types are accepted: application/json";
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    /// The history of a watch was forgotten.
    pub(super) fn too_old(wanted: u64, oldest: u64) -> Self {
        let message = format!("too old resource version: {wanted} ({oldest})");
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// The state that a list's pages come from was forgotten. Going on by `token` gets the rest as it is now.
    pub(super) fn expired_continue(token: &str) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. You can \
                       start a new list without the continue parameter, or use the continue token in this \
                       response to retrieve the remainder of the results. Continuing with the provided token \
                       results in an inconsistent list - objects that were created, modified, or deleted between \
                       the time the first chunk was returned and now may show up in the list.";
        let mut failure = Self::new(StatusCode::GONE, "Expired", message);
        failure.metadata = json!({ "continue": token });
        failure
    }

    /// A revision that is not there yet.
    pub(super) fn too_large(wanted: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {wanted}, current: {current}");
        let mut failure = Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message);
        let cause = json!({ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" });
        failure.details = json!({ "causes": [cause], "retryAfterSeconds": 1 });
        failure.retry_after = Some(1);
        failure
    }

    /// A failure that a test asked for.
    pub(super) fn of_code(code: u16) -> Self {
        let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let (reason, message) = match code.as_u16() {
            400 => ("BadRequest", "the request is said to be bad"),
            401 => return Self::unauthorized(),
            403 => (
                "Forbidden",
                "nodes is forbidden: User \"system:serviceaccount:kube-flannel:flannel\" cannot access resource \"nodes\" in API group \"\" at the cluster scope",
            ),
            404 => return Self::no_such_resource(),
            405 => return Self::method_not_allowed(),
            409 => (
                "Conflict",
                "Operation cannot be fulfilled: the object has been modified; please apply your changes to the latest version and try again",
            ),
            410 => ("Expired", "The resourceVersion for the provided list is too old."),
            415 => return Self::unsupported_media_type(),
            422 => ("Invalid", "the object is said to be invalid"),
            429 => {
                ("TooManyRequests", "The apiserver is processing too many requests, please try again later")
            }
            500 => ("InternalError", "Internal error occurred: etcdserver: request timed out"),
            503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
            504 => ("Timeout", "request did not complete within the allotted timeout"),
            _ => ("", "failed, as a test wants it"),
        };
        let mut failure = Self::new(code, reason, message);
        if matches!(code.as_u16(), 429 | 503 | 504) {
            failure.retry_after = Some(1);
            failure.details = json!({ "retryAfterSeconds": 1 });
        }
        failure
    }

    /// The object.
    pub(super) fn object(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": self.message,
            "code": self.code.as_u16(),
        });
        if !self.reason.is_empty() {
            status["reason"] = json!(self.reason);
        }
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.object().to_string()));
        *response.status_mut() = self.code;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}
