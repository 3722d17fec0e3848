//! Rules and sets in recorded answers of the kernel, for tests and fuzzing.

use std::collections::BTreeMap;

use super::super::message::{UnreadableMessage, attribute, split, string};
use super::attrs::Attrs;
use super::encode::NEW_ELEMENTS;
use super::fields::parse;
use super::parts::parts;
use super::value::{Element, SeenRule, TableFamily, Term};
use super::{decode, expr};

/// What was recorded.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    /// Rules with the families of their tables and the names of their chains.
    pub(crate) rules: Vec<(TableFamily, String, SeenRule)>,
    /// The elements of sets and maps.
    pub(crate) sets: BTreeMap<String, Vec<Option<Element>>>,
}

/// A rule of ours as it is read when the kernel has it.
///
/// # Panics
/// If it can't be read.
pub(crate) fn written(terms: &[Term]) -> SeenRule {
    let mut list = Attrs::default();
    expr::rule(&mut list, terms);
    let list = parse(&list.into_bytes()).expect("it was just written");
    SeenRule { handle: 1, parts: parts(&list).expect("it was just written") }
}

/// Reads datagrams one after the other. What is unreadable is left out.
pub(crate) fn recorded(datagrams: &[u8]) -> Recorded {
    let mut recorded = Recorded::default();
    for message in split(datagrams).flatten() {
        let Some(family) = message.body.first().and_then(|family| decode::family(*family)) else { continue };
        if let Ok(Some((_, (chain, rule)))) = decode::rule_parts(&message) {
            recorded.rules.push((family, chain, rule));
        }
        let set = || -> Result<Option<String>, UnreadableMessage> {
            let is_of = u16::from(message.kind) & 0xff == NEW_ELEMENTS;
            let attributes = message.body.get(4..).filter(|_| is_of).map(parse).transpose()?;
            Ok(attributes.as_ref().and_then(|it| attribute(it, 2)).map(string))
        };
        if let (Ok(Some(set)), Ok(Some(elements))) = (set(), decode::any_elements(&message)) {
            recorded.sets.entry(set).or_default().extend(elements);
        }
    }
    recorded
}
