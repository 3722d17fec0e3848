//! How much of an object a client wants: the whole of it, or its metadata alone.
//!
//! Rules: Kubernetes' documentation, "Kubernetes API Concepts", "Metadata-only fetches"; what is refused, from apiserver,
//! `pkg/endpoints/handlers/negotiation` and `response.go`.

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;

use super::seen::Request;
use super::status::Failure;

/// What a server does when it is asked for metadata alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MetadataOnly {
    /// It sends that, as Kubernetes does since 1.15.
    #[default]
    Served,
    /// It does not know that, and takes the next kind of answer that the client accepts.
    Unknown,
    /// It answers 406 to each request that names it, whatever else the client accepts.
    Refused,
}

/// In which form objects are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Whole,
    /// As `PartialObjectMetadata`.
    Metadata,
}

/// The first form among those a client accepts in which we can answer.
pub(super) fn negotiate(
    headers: &HeaderMap,
    request: &Request,
    metadata: MetadataOnly,
) -> Result<View, Failure> {
    let accepted: Vec<&str> =
        headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    if accepted.is_empty() {
        return Ok(View::Whole);
    }
    let is_list = request.path == "/api/v1/nodes" && !request.is_watch();
    for kind in accepted.iter().flat_map(|kinds| kinds.split(',')).map(str::trim) {
        let mut words = kind.split(';').map(str::trim);
        if !["application/json", "application/*", "*/*"].contains(&words.next().unwrap_or_default()) {
            continue;
        }
        let parameter = |name: &str| words.clone().find_map(|word| word.strip_prefix(name));
        let wanted = match parameter("as=") {
            None => return Ok(View::Whole),
            Some("PartialObjectMetadata") => false,
            Some("PartialObjectMetadataList") => true,
            // Tables and the like are other objects in the same format.
            Some(_) => continue,
        };
        match metadata {
            MetadataOnly::Unknown => continue,
            MetadataOnly::Refused => return Err(Failure::not_acceptable()),
            MetadataOnly::Served => {}
        }
        if (parameter("g="), parameter("v=")) != (Some("meta.k8s.io"), Some("v1")) {
            continue;
        }
        // A list is no object, and no list is in a watch; the real server finds that out after it has chosen.
        return if wanted == is_list { Ok(View::Metadata) } else { Err(Failure::not_acceptable()) };
    }
    Err(Failure::not_acceptable())
}
