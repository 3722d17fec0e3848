//! Words for what clap found wrong.

use std::error::Error as _;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::error::UsageError;
use crate::given::Given;
use crate::{go, shown};

/// Says what clap found, with no more of the command line than may be shown.
pub(crate) fn explain(error: &clap::Error, given: &Given<'_>) -> UsageError {
    let program = given.program;
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.last().cloned(),
        _ => None,
    };
    // As in its usage: `--iface <NAME|IP>`.
    let arg = text(ContextKind::InvalidArg).unwrap_or_default();
    let name = arg.trim_start_matches('-').split([' ', '[', '=']).next().unwrap_or_default();
    let meant = |wrong: &str, kind| {
        let is_near =
            |near: &String| strsim::levenshtein(wrong, near.trim_start_matches('-')) <= 1 + wrong.len() / 4;
        text(kind).filter(is_near).map(|near| format!("; did you mean {near}?")).unwrap_or_default()
    };
    match error.kind() {
        ErrorKind::UnknownArgument if !arg.starts_with('-') => {
            go::leftover(program, &shown::argument(program, &arg), None)
        }
        ErrorKind::UnknownArgument => {
            let name = shown::argument(program, arg.trim_start_matches('-'));
            let near = meant(&name, ContextKind::SuggestedArg);
            // The rest of a password with a space in it begins with a dash, too.
            let before = given.flags.iter().rev().nth(1);
            let is_delicate = before.is_some_and(|flag| program.is_delicate(&flag.name)) && near.is_empty();
            UsageError(format!("unknown flag --{}{near}", if is_delicate { shown::HIDDEN } else { &name }))
        }
        ErrorKind::InvalidSubcommand => {
            let name = shown::argument(program, &text(ContextKind::InvalidSubcommand).unwrap_or_default());
            UsageError(format!("unknown command {name:?}{}", meant(&name, ContextKind::SuggestedSubcommand)))
        }
        ErrorKind::ValueValidation => {
            let value = text(ContextKind::InvalidValue).unwrap_or_default();
            let expected = error.source().map(ToString::to_string).unwrap_or_default();
            given.bad_value(name, &value, &expected)
        }
        ErrorKind::InvalidValue => go::needs_value(name),
        other => UsageError(other.to_string()),
    }
}
