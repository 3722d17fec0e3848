//! Objects as they go over the wire. Each version is encoded once, for lists, watches and single answers alike.

use axum::body::Bytes;
use serde_json::Value;

/// What single objects have in front, and the items of a list don't.
const KIND: &str = r#""kind":"Node","apiVersion":"v1","#;

/// The end of a line of a watch.
const TAIL: &str = "}\n";

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Added,
    Modified,
    Deleted,
}

impl Change {
    fn head(self) -> &'static str {
        match self {
            Self::Added => r#"{"type":"ADDED","object":{"#,
            Self::Modified => r#"{"type":"MODIFIED","object":{"#,
            Self::Deleted => r#"{"type":"DELETED","object":{"#,
        }
    }
}

/// One version of a node: the line that announced it, in which object and list item are to be found.
#[derive(Debug, Clone)]
pub(super) struct Encoded {
    line: Bytes,
    /// Where the object is, without its opening brace.
    at: usize,
}

impl Encoded {
    /// Encodes an object that has neither kind nor version.
    pub(super) fn new(change: Change, object: &Value) -> Self {
        let object = object.to_string();
        let head = change.head();
        let mut line = String::with_capacity(head.len() + KIND.len() + object.len() + TAIL.len());
        line.push_str(head);
        line.push_str(KIND);
        line.push_str(&object[1..]);
        line.push_str(TAIL);
        Self { line: line.into(), at: head.len() }
    }

    /// The line of a watch that announced it.
    pub(super) fn line(&self) -> Bytes {
        self.line.clone()
    }

    /// The line of a watch that begins with it.
    pub(super) fn added(&self) -> Bytes {
        let head = Change::Added.head();
        if self.line.starts_with(head.as_bytes()) {
            return self.line();
        }
        [head.as_bytes(), &self.line[self.at..]].concat().into()
    }

    /// The object by itself.
    pub(super) fn object(&self) -> Bytes {
        self.line.slice(self.at - 1..self.line.len() - TAIL.len())
    }

    /// Puts the object into a list.
    pub(super) fn push_item(&self, list: &mut Vec<u8>) {
        list.push(b'{');
        list.extend_from_slice(&self.line[self.at + KIND.len()..self.line.len() - TAIL.len()]);
    }

    /// How many bytes it has in a list.
    pub(super) fn item_len(&self) -> usize {
        self.line.len() - self.at
    }

    /// The object, without kind and version.
    pub(super) fn value(&self) -> Value {
        let mut item = Vec::with_capacity(self.item_len());
        self.push_item(&mut item);
        serde_json::from_slice(&item).expect("it was a JSON object when it was encoded")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_text_serves_all() {
        let value = json!({ "metadata": { "name": "a" } });
        let added = Encoded::new(Change::Added, &value);
        let modified = Encoded::new(Change::Modified, &value);
        let object = r#"{"kind":"Node","apiVersion":"v1","metadata":{"name":"a"}}"#;
        assert_eq!(added.line(), format!("{{\"type\":\"ADDED\",\"object\":{object}}}\n"));
        assert_eq!(modified.line(), format!("{{\"type\":\"MODIFIED\",\"object\":{object}}}\n"));
        assert_eq!((added.added(), modified.added()), (added.line(), added.line()));
        assert_eq!((added.object(), modified.object()), (object.into(), object.into()));
        let mut list = Vec::new();
        modified.push_item(&mut list);
        assert_eq!(list, br#"{"metadata":{"name":"a"}}"#);
        assert_eq!(modified.value(), value);
    }
}
