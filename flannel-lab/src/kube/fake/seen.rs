//! What clients asked for.

use std::collections::BTreeMap;
use std::time::Instant;

use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use axum::http::{HeaderName, request};

/// A request, as it came. Those that faults answered are among them.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method: `GET`, `PATCH`.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The query, decoded. Of two values with one name the last.
    pub query: BTreeMap<String, String>,
    /// The media types that the client takes.
    pub accept: Option<String>,
    /// The media type of the body.
    pub content_type: Option<String>,
    /// Who the client says that it is.
    pub user_agent: Option<String>,
    /// The bearer token.
    pub token: Option<String>,
    /// The body; empty if there is none.
    pub body: String,
    /// When it came.
    pub at: Instant,
}

impl Request {
    pub(super) fn new(parts: &request::Parts, body: &[u8]) -> Self {
        let header = |name: HeaderName| {
            let value = parts.headers.get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Self {
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            query: query(parts.uri.query().unwrap_or_default()),
            accept: header(ACCEPT),
            content_type: header(CONTENT_TYPE),
            user_agent: header(USER_AGENT),
            token: header(AUTHORIZATION).and_then(|text| text.strip_prefix("Bearer ").map(str::to_owned)),
            body: String::from_utf8_lossy(body).into_owned(),
            at: Instant::now(),
        }
    }

    /// Whether it asks for a watch.
    pub fn is_watch(&self) -> bool {
        self.flag("watch").unwrap_or_default()
    }

    /// A parameter that is true or false; `None` if it isn't there. As Go reads it: anything but these is true.
    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        let value = self.query.get(name)?;
        Some(!["false", "0", "False", "FALSE", "f", "F"].contains(&value.as_str()))
    }

    /// A parameter that isn't empty.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// How many requests came, by what they asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lists of nodes: whole ones and first pages.
    pub lists: u64,
    /// Further pages of lists.
    pub pages: u64,
    /// Watches.
    pub watches: u64,
    /// Single objects that were read.
    pub gets: u64,
    /// Patches.
    pub patches: u64,
    /// Everything else: `/version`, `/readyz`, what is not served.
    pub others: u64,
}

impl Counts {
    pub(super) fn note(&mut self, request: &Request) {
        let is_list = request.path == "/api/v1/nodes";
        let counter = match request.method.as_str() {
            "PATCH" => &mut self.patches,
            "GET" if is_list && request.is_watch() => &mut self.watches,
            "GET" if is_list && request.parameter("continue").is_some() => &mut self.pages,
            "GET" if is_list => &mut self.lists,
            "GET" if request.path.starts_with("/api/") => &mut self.gets,
            _ => &mut self.others,
        };
        *counter += 1;
    }
}

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.map(|(name, value)| (decode(name), decode(value))).collect()
}

/// Undoes percent-encoding, and `+` for a space. What is no valid escape stays.
pub(super) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        if let Some(byte) = escaped {
            decoded.push(byte);
            at += 3;
        } else {
            decoded.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
            at += 1;
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let found = query("watch=1&limit=500&continue=a%2Bb%3D&empty&x=a+b&bad=%zz&cut=%2");
        let want = [
            ("bad", "%zz"),
            ("continue", "a+b="),
            ("cut", "%2"),
            ("empty", ""),
            ("limit", "500"),
            ("watch", "1"),
            ("x", "a b"),
        ];
        let found: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, want);
    }
}
