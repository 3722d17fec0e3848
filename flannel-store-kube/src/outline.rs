//! Finds a few strings in an object that is too large to be kept in memory, while its bytes stream by.

/// The deepest nesting of a wanted string.
const DEEPEST: usize = 4;
/// The longest string that is kept, in bytes. (A name has 253 characters at most, each of which may be written as an
/// escape.)
const LONGEST: usize = 2 << 10;

/// The path to a string: names of members, from the outermost.
type Path = &'static [&'static str];

/// Looks for strings in a JSON object that arrives in pieces. It does not validate the JSON: in invalid JSON it finds
/// anything or nothing.
#[derive(Debug)]
pub(super) struct Outline {
    wanted: &'static [Path],
    found: Vec<Option<String>>,
    /// How many brackets are open, and which of the first few belong to objects.
    depth: usize,
    is_object: [bool; DEEPEST],
    /// The names of the members around the present position.
    names: [String; DEEPEST],
    /// The present string in its JSON form, unless it is too long.
    text: Vec<u8>,
    place: Place,
}

/// The position in the JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the name of a member, or an element.
    Name,
    /// After the colon.
    Value,
    InString {
        is_name: bool,
        is_escaped: bool,
    },
}

impl Outline {
    /// Looks for the strings at these paths.
    pub(super) fn of(wanted: &'static [Path]) -> Self {
        Self {
            wanted,
            found: vec![None; wanted.len()],
            depth: 0,
            is_object: [false; DEEPEST],
            names: <_>::default(),
            text: Vec::new(),
            place: Place::Name,
        }
    }

    /// Processes the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.step(*byte);
        }
    }

    /// The strings that were found, in the order of the paths.
    pub(super) fn found(&self) -> impl Iterator<Item = Option<&str>> {
        self.found.iter().map(Option::as_deref)
    }

    fn step(&mut self, byte: u8) {
        match (self.place, byte) {
            (Place::InString { is_name, is_escaped }, _) => {
                if self.text.len() <= LONGEST {
                    self.text.push(byte);
                }
                self.place = if byte == b'"' && !is_escaped {
                    self.end(is_name);
                    Place::Value
                } else {
                    Place::InString { is_name, is_escaped: byte == b'\\' && !is_escaped }
                };
            }
            (place, b'"') => {
                self.text = vec![byte];
                self.place = Place::InString { is_name: place == Place::Name, is_escaped: false };
            }
            (_, b':') => self.place = Place::Value,
            (_, b',') => self.place = Place::Name,
            (_, b'{' | b'[') => {
                if let Some(is_object) = self.is_object.get_mut(self.depth) {
                    *is_object = byte == b'{';
                    self.names[self.depth].clear();
                }
                (self.depth, self.place) = (self.depth + 1, Place::Name);
            }
            (_, b'}' | b']') => (self.depth, self.place) = (self.depth.saturating_sub(1), Place::Value),
            _ => {}
        }
    }

    /// Handles the end of a string.
    fn end(&mut self, is_name: bool) {
        let Some(last) = self.depth.checked_sub(1).filter(|last| *last < DEEPEST) else { return };
        if !self.is_object[..=last].iter().all(|is_object| *is_object) {
            return;
        }
        if is_name {
            self.names[last] = serde_json::from_slice(&self.text).unwrap_or_default();
            return;
        }
        let is_here = |path: &Path| path.len() == self.depth && path.iter().eq(&self.names[..self.depth]);
        let Some(index) = self.wanted.iter().position(is_here) else { return };
        if self.found[index].is_none() {
            self.found[index] = serde_json::from_slice(&self.text).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WANTED: &[Path] = &[&["type"], &["object", "metadata", "name"]];

    fn outline(parts: &[&[u8]]) -> Vec<Option<String>> {
        let mut outline = Outline::of(WANTED);
        for part in parts {
            outline.push(part);
        }
        outline.found().map(|found| found.map(str::to_owned)).collect()
    }

    #[test]
    fn finds_strings_by_their_path() {
        let found =
            |kind: Option<&str>, name: Option<&str>| vec![kind.map(str::to_owned), name.map(str::to_owned)];
        for (text, want) in [
            (r#"{"type":"ADDED","object":{"metadata":{"name":"n1"}}}"#, found(Some("ADDED"), Some("n1"))),
            (
                r#"{ "object" : { "metadata" : { "name" : "n1" } } , "type" : "X" }"#,
                found(Some("X"), Some("n1")),
            ),
            // Names of other things.
            (
                r#"{"object":{"name":"x","metadata":{"labels":{"name":"y"},"name":"n1"},"spec":{"name":"z"}}}"#,
                found(None, Some("n1")),
            ),
            (
                r#"{"object":{"metadata":{"a":["name","b"],"b":[{"name":"y"}],"name":"n1"}}}"#,
                found(None, Some("n1")),
            ),
            (r#"{"object":[{"metadata":{"name":"x"}}]}"#, found(None, None)),
            (r#"{"object":{"metadata":["name","x"]}}"#, found(None, None)),
            // Values that look like members.
            (
                r#"{"object":{"a":"\"metadata\":{\"name\":\"x\"","metadata":{"b":"name","name":"n1"}}}"#,
                found(None, Some("n1")),
            ),
            (r#"{"object":{"met\u0061data":{"name":"n\u0031"}}}"#, found(None, Some("n1"))),
            (r#"{"object":{"metadata":{"name":"n1","name":"n2"}}}"#, found(None, Some("n1"))),
            (r#"{"object":{"metadata":{"name":7,"x":"y"}}}"#, found(None, None)),
            ("", found(None, None)),
            ("}}]]{", found(None, None)),
        ] {
            assert_eq!(outline(&[text.as_bytes()]), want, "{text}");
            for at in 0..=text.len() {
                let (left, right) = text.as_bytes().split_at(at);
                assert_eq!(outline(&[left, right]), want, "{text} cut at {at}");
            }
        }
        let long = "x".repeat(LONGEST);
        assert_eq!(outline(&[format!(r#"{{"type":"{long}"}}"#).as_bytes()]), found(None, None));
    }

    #[test]
    fn keeps_little_of_what_it_sees() {
        let mut outline = Outline::of(WANTED);
        for piece in [b"[".as_slice(), b"\"", &[b'x'; 999]] {
            (0..1000).for_each(|_| outline.push(piece));
        }
        assert!(outline.text.capacity() <= 2 * LONGEST + 2);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in r#"([\[\]{}:," \\a]|"object":|"metadata":|"name":"n"){0,40}"#) {
            outline(&[text.as_bytes()]);
        }
    }
}
