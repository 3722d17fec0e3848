//! JSON objects as Go's `encoding/json` reads them into a struct: names match in any case, unknown names
//! are ignored, and the last of several spellings of a name wins.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The members of a JSON object by lower-case name, with their values unparsed.
#[derive(Debug, Default)]
pub struct GoObject(BTreeMap<String, Box<RawValue>>);

impl GoObject {
    /// Reads a JSON object.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The JSON text of a name's value, as it was written; `None` if the name is absent.
    pub fn raw(&self, name: &str) -> Option<&str> {
        self.0.get(&name.to_ascii_lowercase()).map(|value| value.get())
    }

    /// The decoded value of a name; `None` if it is absent or `null`, which in Go leaves the default.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, serde_json::Error> {
        self.raw(name).map_or(Ok(None), serde_json::from_str::<Option<T>>)
    }

    /// The lower-case names that are there.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl<'de> Deserialize<'de> for GoObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = GoObject;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<GoObject, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    members.insert(name.to_ascii_lowercase(), value);
                }
                Ok(GoObject(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_in_any_case_and_keeps_the_last() {
        let object = GoObject::parse(r#"{"Network":"a","network":"b","X":{"y":[1]},"n":null}"#).unwrap();
        assert_eq!(object.get::<String>("NETWORK").unwrap().as_deref(), Some("b"));
        assert_eq!(object.raw("x").unwrap(), r#"{"y":[1]}"#);
        assert_eq!(object.get::<bool>("n").unwrap(), None);
        assert_eq!(object.get::<bool>("absent").unwrap(), None);
        assert!(object.get::<bool>("network").is_err());
        assert!(GoObject::parse("[]").is_err() && GoObject::parse("{} x").is_err());
    }
}
