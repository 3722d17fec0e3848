//! An event, whose fields depend on what happened.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;

use super::Moment;

/// An event: its number and time, what happened, and the fields of that.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// Its number.
    pub seq: u64,
    /// When it happened.
    pub time: Moment,
    /// What happened, such as `peer-added`.
    pub event: String,
    /// Its further fields, in the agent's order.
    pub fields: Vec<(String, Value)>,
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Event;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Event, M::Error> {
        let mut event = Event::default();
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "seq" => event.seq = map.next_value()?,
                "time" => event.time = map.next_value()?,
                "event" => event.event = map.next_value()?,
                _ => event.fields.push((name, map.next_value()?)),
            }
        }
        if event.event.is_empty() { Err(M::Error::missing_field("event")) } else { Ok(event) }
    }
}
