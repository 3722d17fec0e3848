//! Events as lines.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::Look;
use super::paint::Style;
use super::table::{Cell, table};
use crate::wire::{Event, Object};

/// An event as a line: when, what, and its fields.
pub fn event(event: &Event, look: Look) -> String {
    let fields: Vec<_> = event.fields.iter().filter_map(|(name, value)| field(name, value)).collect();
    // So that the fields of most events begin in one column.
    let name = if fields.is_empty() { event.event.clone() } else { format!("{:<16}", event.event) };
    let row = vec![
        Cell::new(time(event), Style::Dim),
        Cell::new(name, style(&event.event)),
        fields.join(" ").into(),
    ];
    table(&[row], look)
}

/// The time in UTC, which logs of several nodes have in common.
fn time(event: &Event) -> String {
    let time = Timestamp::try_from(event.time.0).unwrap_or_default();
    format!("{time:.3}")
}

/// A field as `name=value`; nothing for one without a value.
fn field(name: &str, value: &Value) -> Option<String> {
    let text = match value {
        Value::Null => return None,
        Value::String(text) if text.is_empty() || text.contains([' ', '=', '"']) => format!("{text:?}"),
        Value::String(text) => text.clone(),
        Value::Array(list) if list.is_empty() => return None,
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(","),
        Value::Object(map) if map.is_empty() => return None,
        Value::Object(map) if map.contains_key("destination") => {
            let object =
                Object::deserialize(value).map_or_else(|_| plain(value), |object| object.to_string());
            format!("{object:?}")
        }
        Value::Object(map) => map.values().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    };
    Some(format!("{name}={text}"))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn style(event: &str) -> Style {
    let is = |words: &[&str]| words.iter().any(|word| event.split('-').any(|part| part == *word));
    if is(&["lost", "refused", "rejected", "unusable", "failed", "cut", "cuts", "contested", "not", "away"]) {
        Style::Bad
    } else if is(&["repaired", "recreated", "replaced", "left", "waiting", "moved", "stays"]) {
        Style::Fair
    } else if is(&["ready", "back", "accepted", "acquired"]) {
        Style::Good
    } else {
        Style::Plain
    }
}
