//! Objects as they go over the wire. Each version is encoded once, for lists, watches and single answers alike, and once
//! more for those who want its metadata alone.

use std::sync::OnceLock;

use axum::body::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::view::View;

/// What single objects have in front, and the items of a list don't.
const KIND: &str = r#""kind":"Node","apiVersion":"v1","#;

/// What objects have in front of which only the metadata is sent, items of a list, too.
const METADATA_KIND: &str = r#""kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":"#;

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

/// One version of a node: the lines that announced it, in which object and list item are to be found.
#[derive(Debug, Clone)]
pub(super) struct Encoded {
    change: Change,
    whole: Bytes,
    /// Only made if somebody asks for it.
    metadata: OnceLock<Bytes>,
}

impl Encoded {
    /// Encodes an object that has neither kind nor version.
    pub(super) fn new(change: Change, object: &Value) -> Self {
        let object = object.to_string();
        let whole = [change.head(), KIND, &object[1..], TAIL].concat().into();
        Self { change, whole, metadata: OnceLock::new() }
    }

    /// The line of a watch that announced it.
    pub(super) fn line(&self, view: View) -> Bytes {
        self.text(view).clone()
    }

    /// The line of a watch that begins with it.
    pub(super) fn added(&self, view: View) -> Bytes {
        if self.change == Change::Added {
            return self.line(view);
        }
        [Change::Added.head().as_bytes(), &self.text(view)[self.at()..]].concat().into()
    }

    /// The object by itself.
    pub(super) fn object(&self, view: View) -> Bytes {
        let text = self.text(view);
        text.slice(self.at() - 1..text.len() - TAIL.len())
    }

    /// Puts the object into a list.
    pub(super) fn push_item(&self, view: View, list: &mut Vec<u8>) {
        let skip = match view {
            View::Whole => KIND.len(),
            View::Metadata => 0,
        };
        let text = self.text(view);
        list.push(b'{');
        list.extend_from_slice(&text[self.at() + skip..text.len() - TAIL.len()]);
    }

    /// How many bytes it has in a list, at most.
    pub(super) fn item_len(&self, view: View) -> usize {
        self.text(view).len() - self.at()
    }

    /// The object, without kind and version.
    pub(super) fn value(&self) -> Value {
        let mut item = Vec::with_capacity(self.item_len(View::Whole));
        self.push_item(View::Whole, &mut item);
        serde_json::from_slice(&item).expect("it was a JSON object when it was encoded")
    }

    /// Where the object is in a line, without its opening brace.
    fn at(&self) -> usize {
        self.change.head().len()
    }

    fn text(&self, view: View) -> &Bytes {
        match view {
            View::Whole => &self.whole,
            View::Metadata => self.metadata.get_or_init(|| self.metadata_line()),
        }
    }

    fn metadata_line(&self) -> Bytes {
        #[derive(Deserialize)]
        struct Parts<'a> {
            #[serde(borrow)]
            metadata: &'a RawValue,
        }
        let object = self.object(View::Whole);
        let parts: Parts<'_> = serde_json::from_slice(&object).expect("each object has metadata");
        [self.change.head(), METADATA_KIND, parts.metadata.get(), "}", TAIL].concat().into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_text_serves_all() {
        let value = json!({ "metadata": { "name": "a" }, "spec": {}, "status": { "metadata": 1 } });
        let added = Encoded::new(Change::Added, &value);
        let modified = Encoded::new(Change::Modified, &value);
        let whole =
            r#"{"kind":"Node","apiVersion":"v1","metadata":{"name":"a"},"spec":{},"status":{"metadata":1}}"#;
        let metadata =
            r#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"a"}}"#;
        for (view, object) in [(View::Whole, whole), (View::Metadata, metadata)] {
            assert_eq!(added.line(view), format!("{{\"type\":\"ADDED\",\"object\":{object}}}\n"));
            assert_eq!(modified.line(view), format!("{{\"type\":\"MODIFIED\",\"object\":{object}}}\n"));
            assert_eq!((added.added(view), modified.added(view)), (added.line(view), added.line(view)));
            assert_eq!((added.object(view), modified.object(view)), (object.into(), object.into()));
        }
        let (mut list, mut partial) = (Vec::new(), Vec::new());
        modified.push_item(View::Whole, &mut list);
        modified.push_item(View::Metadata, &mut partial);
        assert_eq!(serde_json::from_slice::<Value>(&list).unwrap(), value);
        assert_eq!(partial, metadata.as_bytes());
        assert_eq!(modified.value(), value);
    }
}
