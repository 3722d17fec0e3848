//! Further ways to receive, beside the one that a lease's own type names: a member of the value that Go flannel ignores.

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::BackendData;
use crate::addr::PerFamily;
use crate::gojson::GoObject;

/// A further way by which a node can receive, beside the one that its lease names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reception {
    /// The backend's kind as `Backend.Type` of the network config has it, such as `udp` or `wireguard`.
    pub kind: String,
    /// What that backend would publish for each family in a lease of its own.
    pub backend_data: PerFamily<BackendData>,
}

impl Reception {
    /// The most that a lease may have.
    pub const MOST: usize = 8;

    /// Reads a list. An element that is unreadable, of a kind that was already there, or beyond [`Self::MOST`] is passed
    /// over: the lease stays usable by its own type, and by the others.
    ///
    /// # Errors
    /// If the text is no JSON list.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, serde_json::Error> {
        let elements: Vec<Box<RawValue>> = serde_json::from_str(text)?;
        let mut all: Vec<Self> = Vec::new();
        for reception in elements.iter().filter_map(|element| Self::parse(element.get())) {
            if all.len() < Self::MOST && all.iter().all(|known| known.kind != reception.kind) {
                all.push(reception);
            }
        }
        Ok(all)
    }

    fn parse(text: &str) -> Option<Self> {
        let object = GoObject::parse(text).ok()?;
        let kind: String = object.get("Type").ok()??;
        let data = |name| BackendData::parse(object.raw(name)?).ok()?;
        (!kind.is_empty())
            .then(|| Self { kind, backend_data: PerFamily { v4: data("Data"), v6: data("V6Data") } })
    }

    /// Writes a list as [`Self::parse_list`] reads it.
    pub fn write_list(all: &[Self]) -> String {
        serde_json::to_string(all).expect("strings and raw JSON always encode")
    }
}

impl Serialize for Reception {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Wire<'a> {
            #[serde(rename = "Type")]
            kind: &'a str,
            #[serde(rename = "Data", skip_serializing_if = "Option::is_none")]
            data: Option<&'a BackendData>,
            #[serde(rename = "V6Data", skip_serializing_if = "Option::is_none")]
            v6_data: Option<&'a BackendData>,
        }
        let PerFamily { v4, v6 } = &self.backend_data;
        Wire { kind: &self.kind, data: v4.as_ref(), v6_data: v6.as_ref() }.serialize(serializer)
    }
}
