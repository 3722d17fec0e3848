//! Lists of nodes: whole ones, pages, and those of an older revision.
//!
//! Rules: Kubernetes' documentation, "Kubernetes API Concepts", "Resource versions"; their texts from
//! apimachinery, `pkg/apis/meta/internalversion/validation/validation.go`.

use std::fmt::Write;
use std::ops::Bound;
use std::sync::Arc;

use serde_json::{Value, json};

use super::encoded::Encoded;
use super::seen::Request;
use super::status::Failure;
use super::store::Store;
use super::view::View;

/// What a list or a watch asks for.
#[derive(Debug, Clone)]
pub(super) struct Selection {
    /// The revision asked for; `None` for the present one.
    pub(super) revision: Option<u64>,
    /// The one node that is asked for.
    name: Option<String>,
}

impl Selection {
    pub(super) fn of(request: &Request) -> Result<Self, Failure> {
        let revision = request.parameter("resourceVersion").map(|text| {
            let what =
                format!("Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax");
            let wrong = ("resourceVersion", "FieldValueInvalid", what);
            text.parse().map_err(|_| Failure::invalid("meta.k8s.io", "ListOptions", "", &[wrong]))
        });
        if request.parameter("labelSelector").is_some() {
            return Err(Failure::bad_request("this server has no label selectors"));
        }
        let name = request.parameter("fieldSelector").map(|selector| {
            let name = selector.strip_prefix("metadata.name=").map(|name| name.trim_start_matches('='));
            name.map(str::to_owned)
                .ok_or_else(|| Failure::bad_request(format!("field label not supported: {selector}")))
        });
        Ok(Self { revision: revision.transpose()?, name: name.transpose()? })
    }

    pub(super) fn takes(&self, name: &str) -> bool {
        self.name.as_deref().is_none_or(|wanted| wanted == name)
    }
}

/// The options that contradict each other, as the real server says it.
pub(super) fn check(request: &Request, watch_list: bool) -> Result<(), Failure> {
    let mut wrong: Vec<(&str, &'static str, String)> = Vec::new();
    let mut forbid = |path: &'static str, why: &str| {
        wrong.push((path, "FieldValueForbidden", format!("Forbidden: {why}")));
    };
    let matching = request.parameter("resourceVersionMatch");
    let initial = request.flag("sendInitialEvents");
    let field = "resourceVersionMatch";
    if matching.is_some() && request.parameter("continue").is_some() {
        forbid(field, "resourceVersionMatch is forbidden when continue is provided");
    }
    let known: &[&str] = if request.is_watch() {
        if initial.is_some() && matching != Some("NotOlderThan") {
            forbid(field, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        }
        if initial.is_some() && !watch_list {
            let why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            forbid("sendInitialEvents", why);
        }
        if initial.is_none() && matching.is_some() {
            let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            forbid(field, why);
        }
        &["NotOlderThan"]
    } else {
        if matching.is_some() && request.parameter("resourceVersion").is_none() {
            forbid(field, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if matching == Some("Exact") && request.parameter("resourceVersion") == Some("0") {
            forbid(field, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
        if initial.is_some() {
            forbid("sendInitialEvents", "sendInitialEvents is forbidden for list");
        }
        &["Exact", "NotOlderThan"]
    };
    if let Some(matching) = matching.filter(|matching| !known.contains(matching)) {
        let known: Vec<_> = known.iter().map(|name| format!("{name:?}")).collect();
        let what = format!("Unsupported value: {matching:?}: supported values: {}", known.join(", "));
        wrong.push((field, "FieldValueNotSupported", what));
    }
    if wrong.is_empty() { Ok(()) } else { Err(Failure::invalid("meta.k8s.io", "ListOptions", "", &wrong)) }
}

/// Refuses a single object that must not be older than a revision which is yet to come.
pub(super) fn check_reached(store: &Store, request: &Request) -> Result<(), Failure> {
    let current = store.revision();
    match Selection::of(request)?.revision {
        Some(wanted) if wanted > current => Err(Failure::too_large(wanted, current)),
        _ => Ok(()),
    }
}

/// A whole list or a page of it, encoded.
pub(super) fn list(store: &Store, request: &Request, view: View) -> Result<Vec<u8>, Failure> {
    let selection = Selection::of(request)?;
    let limit = request.parameter("limit").map(str::parse::<usize>).transpose();
    let limit = limit.map_err(|error| Failure::bad_request(format!("limit: {error}")))?;
    let mut limit = limit.filter(|limit| *limit > 0);
    let current = store.revision();
    let (revision, start) = match request.parameter("continue") {
        Some(_) if selection.revision.is_some_and(|revision| revision > 0) => {
            return Err(Failure::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        Some(token) => {
            let token = Continue::read(token);
            let token = token.ok_or_else(|| Failure::bad_request("continue key is not valid"))?;
            (token.revision.unwrap_or(current), token.start)
        }
        None => {
            let is_exact = request.parameter("resourceVersionMatch") == Some("Exact");
            let is_exact = is_exact || limit.is_some() && request.parameter("resourceVersionMatch").is_none();
            let revision = match selection.revision {
                // Any will do: the answer comes from the server's memory, which knows no pages.
                Some(0) => {
                    limit = None;
                    current
                }
                Some(wanted) if wanted > current => return Err(Failure::too_large(wanted, current)),
                Some(wanted) if is_exact => wanted,
                _ => current,
            };
            (revision, String::new())
        }
    };
    let expired = || match request.parameter("continue") {
        Some(_) => Failure::expired_continue(&Continue { revision: None, start: start.clone() }.write()),
        None => Failure::too_old(revision, store.oldest()),
    };
    let nodes = store.nodes_at(revision).ok_or_else(expired)?;
    let mut found = nodes
        .range::<str, _>((Bound::Included(start.as_str()), Bound::Unbounded))
        .filter(|(name, _)| selection.takes(name))
        .map(|(name, node)| (name.clone(), node));
    let items: Vec<_> = found.by_ref().take(limit.unwrap_or(usize::MAX)).collect();
    let next = found.next().map(|(name, _)| {
        let token = Continue { revision: Some(revision), start: name.to_string() }.write();
        (token, found.count() + 1)
    });
    let rest = next.map(|(token, rest)| (token, selection.name.is_none().then_some(rest)));
    Ok(encode(&items, revision, rest, view))
}

fn encode(
    items: &[(Arc<str>, &Arc<Encoded>)],
    revision: u64,
    rest: Option<(String, Option<usize>)>,
    view: View,
) -> Vec<u8> {
    let mut metadata = json!({ "resourceVersion": revision.to_string() });
    if let Some((token, remaining)) = rest {
        metadata["continue"] = json!(token);
        if let Some(remaining) = remaining {
            metadata["remainingItemCount"] = json!(remaining);
        }
    }
    let (kind, version) = match view {
        View::Whole => ("NodeList", "v1"),
        View::Metadata => ("PartialObjectMetadataList", "meta.k8s.io/v1"),
    };
    let mut list =
        format!(r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{metadata},"items":["#).into_bytes();
    list.reserve(items.iter().map(|(_, node)| node.item_len(view) + 1).sum::<usize>() + 2);
    for (at, (_, node)) in items.iter().enumerate() {
        if at > 0 {
            list.push(b',');
        }
        node.push_item(view, &mut list);
    }
    list.extend_from_slice(b"]}");
    list
}

/// Where the next page begins. Clients can't read it: it is written in hexadecimal digits.
#[derive(Debug, PartialEq, Eq)]
struct Continue {
    /// `None`: as the nodes are when it is asked for.
    revision: Option<u64>,
    start: String,
}

impl Continue {
    fn write(&self) -> String {
        let token = json!({ "v": "meta.k8s.io/v1", "rv": self.revision, "start": self.start }).to_string();
        token.bytes().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }

    fn read(hex: &str) -> Option<Self> {
        let pairs = hex.as_bytes().chunks(2).map(|pair| {
            let digits = std::str::from_utf8(pair).ok().filter(|digits| digits.len() == 2)?;
            u8::from_str_radix(digits, 16).ok()
        });
        let token: Value = serde_json::from_slice(&pairs.collect::<Option<Vec<_>>>()?).ok()?;
        Some(Self { revision: token["rv"].as_u64(), start: token["start"].as_str()?.to_owned() })
    }
}
