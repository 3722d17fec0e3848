//! A page of a list, taken apart as it comes: 500 nodes have 1.5 to 10 MB, of which only one node at a time is held.

/// What is longer is no node, and no list without its items: etcd takes 1.5 MB at most.
const LONGEST: usize = 8 << 20;

/// Splits the JSON of a list into its items and the rest. That both are JSON is for their readers to see.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    /// The list without its items.
    rest: Vec<u8>,
    /// What of an item has come.
    item: Vec<u8>,
    /// How many brackets are open.
    depth: usize,
    place: Place,
}

/// Where in the text we are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Place {
    in_items: bool,
    in_string: bool,
    is_escaped: bool,
}

/// Inside of the array of items.
const ITEMS: usize = 2;

impl Splitter {
    /// Takes the next bytes, and hands out the items that end in them.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        mut found: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        // From where on bytes belong to the item, or to the rest.
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
        let into = match (self.place.in_items, self.depth) {
            (true, ITEMS) => return Ok(()),
            (true, _) => &mut self.item,
            (false, _) => &mut self.rest,
        };
        into.extend_from_slice(&bytes[start..]);
        if into.len() > LONGEST { Err(format!("an object of more than {LONGEST} bytes")) } else { Ok(()) }
    }

    /// The list without its items.
    pub(super) fn rest(&self) -> &[u8] {
        &self.rest
    }

    fn end_item(
        &mut self,
        end: &[u8],
        found: &mut impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        if self.item.is_empty() {
            return found(end);
        }
        self.item.extend_from_slice(end);
        let done = found(&self.item);
        self.item.clear();
        done
    }
}

/// Whether a text ends with the name `items`, of which the value follows.
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
            splitter.take(part, |item| {
                items.push(String::from_utf8_lossy(item).into_owned());
                Ok(())
            })?;
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
