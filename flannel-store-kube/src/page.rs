//! Splits a page of a list while it arrives: 500 nodes have 1.5 to 10 MB, of which only one node at a time is kept in
//! memory.

use super::client::{ENDLESS, MAX_OBJECT};
use super::outline::Outline;

/// An item of a list.
#[derive(Debug)]
pub(super) enum Item<'a> {
    /// The JSON of an item.
    Whole(&'a [u8]),
    /// The name of an item that is too large, if it could be found.
    TooLarge(Option<String>),
}

/// Splits the JSON of a list into its items and the rest. It does not validate either; their readers do.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    /// The list without its items.
    rest: Vec<u8>,
    /// The part of an item that has arrived.
    item: Vec<u8>,
    /// The outline of an item that is too large, and how much of it has arrived.
    outline: Option<(Outline, usize)>,
    /// How many brackets are open.
    depth: usize,
    place: Place,
}

/// The position in the JSON text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Place {
    in_items: bool,
    in_string: bool,
    is_escaped: bool,
}

/// Inside of the array of items.
const ITEMS: usize = 2;

impl Splitter {
    /// Processes the next bytes, and passes on the items that end in them.
    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        mut found: impl FnMut(Item<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        // The start of the bytes that belong to the item, or to the rest.
        let mut start = 0;
        for (at, byte) in bytes.iter().copied().enumerate() {
            let between = self.place.in_items && self.depth == ITEMS;
            if self.place.is_escaped {
                self.place.is_escaped = false;
            } else if self.place.in_string {
                self.place.is_escaped = byte == b'\\';
                self.place.in_string = byte != b'"';
            } else if matches!(byte, b'{' | b'[') {
                if between {
                    start = at;
                } else if self.depth == ITEMS - 1 && byte == b'[' {
                    self.rest.extend_from_slice(&bytes[start..at]);
                    start = at;
                    self.place.in_items = is_name_of_items(&self.rest);
                    if self.place.in_items {
                        self.rest.push(byte);
                    }
                }
                self.depth += 1;
            } else if matches!(byte, b'}' | b']') {
                self.depth = self.depth.checked_sub(1).ok_or("brackets that don't match")?;
                if self.place.in_items && self.depth == ITEMS {
                    self.end_item(&bytes[start..=at], &mut found)?;
                } else if between {
                    self.place.in_items = false;
                    start = at;
                }
            } else if between && !matches!(byte, b',' | b' ' | b'\t' | b'\r' | b'\n') {
                return Err("an item that is no object".to_owned());
            } else {
                self.place.in_string = byte == b'"';
            }
        }
        match (self.place.in_items, self.depth) {
            (true, ITEMS) => {}
            (true, _) => self.keep(&bytes[start..]),
            (false, _) => self.rest.extend_from_slice(&bytes[start..]),
        }
        if self.rest.len() > MAX_OBJECT {
            return Err(format!("more than {MAX_OBJECT} bytes beside the items"));
        }
        if self.outline.as_ref().is_some_and(|(_, seen)| *seen > ENDLESS) {
            return Err(format!("an item of more than {ENDLESS} bytes"));
        }
        Ok(())
    }

    /// Adds bytes to the item, as long as it is not too large.
    fn keep(&mut self, bytes: &[u8]) {
        if self.outline.is_none() && self.item.len() + bytes.len() > MAX_OBJECT {
            let mut outline = Outline::of(&[&["metadata", "name"]]);
            outline.push(&std::mem::take(&mut self.item));
            self.outline = Some((outline, MAX_OBJECT));
        }
        match &mut self.outline {
            Some((outline, seen)) => {
                outline.push(bytes);
                *seen += bytes.len();
            }
            None => self.item.extend_from_slice(bytes),
        }
    }

    /// The list without its items.
    pub(super) fn rest(&self) -> &[u8] {
        &self.rest
    }

    fn end_item(
        &mut self,
        end: &[u8],
        found: &mut impl FnMut(Item<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        if self.item.is_empty() && self.outline.is_none() && end.len() <= MAX_OBJECT {
            return found(Item::Whole(end));
        }
        self.keep(end);
        let done = match self.outline.take() {
            Some((outline, _)) => found(Item::TooLarge(outline.found().next().flatten().map(str::to_owned))),
            None => found(Item::Whole(&self.item)),
        };
        self.item.clear();
        done
    }
}

/// Whether a text ends with the member name `items`.
fn is_name_of_items(text: &[u8]) -> bool {
    let name = text.trim_ascii_end().strip_suffix(b":").map(<[u8]>::trim_ascii_end);
    name.is_some_and(|name| name.ends_with(br#""items""#))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(parts: &[&[u8]]) -> Result<(Vec<String>, String), String> {
        let (mut splitter, mut items) = (Splitter::default(), Vec::new());
        for part in parts {
            splitter.push(part, |item| {
                items.push(match item {
                    Item::Whole(item) => String::from_utf8_lossy(item).into_owned(),
                    Item::TooLarge(name) => format!("too large: {name:?}"),
                });
                Ok(())
            })?;
            assert!(splitter.item.capacity() <= 2 * MAX_OBJECT);
        }
        Ok((items, String::from_utf8_lossy(splitter.rest()).into_owned()))
    }

    const LIST: &str = r#"{"kind":"x:[\"","metadata":{"items":[1,{"a":[]}],"n":[{}]},"items": [
        {"a":"}]\\","b":[{"items":[{}]}]} , {},{"é":"\"{"}],"more":[[]]}"#;

    fn want() -> (Vec<String>, String) {
        let items = [r#"{"a":"}]\\","b":[{"items":[{}]}]}"#, "{}", r#"{"é":"\"{"}"#].map(str::to_owned);
        let rest = r#"{"kind":"x:[\"","metadata":{"items":[1,{"a":[]}],"n":[{}]},"items": [],"more":[[]]}"#;
        (items.into(), rest.to_owned())
    }

    #[test]
    fn finds_items_wherever_the_text_is_cut() {
        assert_eq!(split(&[LIST.as_bytes()]).unwrap(), want());
        for at in 0..=LIST.len() {
            let (left, right) = LIST.as_bytes().split_at(at);
            assert_eq!(split(&[left, right]).unwrap(), want(), "{at}");
        }
        let bytes: Vec<&[u8]> = LIST.as_bytes().chunks(1).collect();
        assert_eq!(split(&bytes).unwrap(), want());
    }

    #[test]
    fn an_item_of_any_size_is_known_by_its_name() {
        let large = |len: usize| {
            let filler = MAX_OBJECT + len - r#"{"a":"","metadata":{"name":"n2"}}"#.len();
            format!(r#"{{"a":"{}","metadata":{{"name":"n2"}}}}"#, "x".repeat(filler))
        };
        let list = |item: &str| format!(r#"{{"items":[{{"n":1}},{item},{{"n":3}}],"more":1}}"#);
        let (fits, too_large) = (large(0), large(1));
        let rest = r#"{"items":[],"more":1}"#;
        for (item, what) in [(&fits, &fits), (&too_large, &"too large: Some(\"n2\")".to_owned())] {
            let text = list(item);
            let want =
                (vec![r#"{"n":1}"#.to_owned(), what.clone(), r#"{"n":3}"#.to_owned()], rest.to_owned());
            assert!(split(&[text.as_bytes()]).unwrap() == want);
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(100_000).collect();
            assert!(split(&pieces).unwrap() == want);
        }
        let nameless =
            split(&[list(&format!("{{\"a\":[\"{}\"]}}", "x".repeat(MAX_OBJECT))).as_bytes()]).unwrap();
        assert_eq!(nameless.0[1], "too large: None");
        for (start, most) in [("", MAX_OBJECT), (r#"{"items":[{"a":""#, ENDLESS)] {
            let (endless, mut splitter) = (vec![b' '; 1 << 20], Splitter::default());
            splitter.push(start.as_bytes(), |_| Ok(())).unwrap();
            let taken = (0..100_usize).find(|_| splitter.push(&endless, |_| Ok(())).is_err()).unwrap();
            assert!((most >> 20).abs_diff(taken) <= 1, "{taken} megabytes of what has no end");
        }
    }

    #[test]
    fn lists_without_items_are_whole() {
        for text in [r#"{"items":null}"#, r#"{"items":[]}"#, r#"{"metadata":{}}"#, "", "null"] {
            assert_eq!(split(&[text.as_bytes()]).unwrap(), (vec![], text.to_owned()));
        }
        for text in [r#"{"items":[1]}"#, r#"{"items":["x"]}"#, "}", r#"{"items":[null]}"#] {
            assert!(split(&[text.as_bytes()]).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in r#"([\[\]{}:," \\a]|"items":){0,40}"#, at in 0..40_usize) {
            let at = at.min(text.len());
            let (left, right) = text.as_bytes().split_at(at);
            let (whole, parts) = (split(&[text.as_bytes()]), split(&[left, right]));
            prop_assert_eq!(whole, parts);
        }
    }
}
