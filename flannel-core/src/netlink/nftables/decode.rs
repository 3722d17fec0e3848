//! Decodes messages of `nf_tables`. Pure. Tables of others are read as far as it matters, and their content is never
//! trusted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::message::{Message, UnreadableMessage, attribute, attributes, string};
use super::encode::{
    NEW_CHAIN, NEW_ELEMENTS, NEW_GENERATION, NEW_RULE, NEW_SET, NEW_TABLE, SET_DYNAMIC, key_type,
};
use super::fields::{Attributes, long, nested, number, number_of, parse, text};
use super::parts::{self, verdict_of};
use super::value::{Counted, Element, Hook, HookKind, Key, SeenRule, Set, TableFamily};
use crate::addr::Family;

/// Bytes of `struct nfgenmsg`, of which the first is the family.
const HEADER: usize = 4;

/// A value with the name of its table; `None` for another kind of message.
type InTable<T> = Result<Option<(String, T)>, UnreadableMessage>;

/// The attributes of a message of this kind, if it is about a table of one of our families.
fn of_kind(message: &Message<'_>, kind: u16) -> Result<Option<Attributes>, UnreadableMessage> {
    let (header, rest) = message.body.split_at_checked(HEADER).ok_or("message shorter than its header")?;
    if u16::from(message.kind) & 0xff != kind || family(header[0]).is_none() {
        return Ok(None);
    }
    parse(rest).map(Some)
}

pub(super) fn family(number: u8) -> Option<TableFamily> {
    TableFamily::ALL.into_iter().find(|family| family.number() == number)
}

/// The number of the present rule set, which is another one after each transaction.
pub(super) fn generation(message: &Message<'_>) -> Result<Option<u32>, UnreadableMessage> {
    if u16::from(message.kind) & 0xff != NEW_GENERATION {
        return Ok(None);
    }
    let attrs = message.body.get(HEADER..).ok_or("message shorter than its header")?;
    attribute(&parse(attrs)?, 1).map(number).transpose()
}

/// The name of a table, its flags, and how many chains, sets and other objects it has.
pub(super) fn table(message: &Message<'_>) -> InTable<(u32, u32)> {
    let Some(attrs) = of_kind(message, NEW_TABLE)? else { return Ok(None) };
    Ok(Some((text(&attrs, 1)?, (number_of(&attrs, 2)?, number_of(&attrs, 3)?))))
}

/// The table of a chain, its name, and its hook, if it is a base chain.
pub(super) fn chain(message: &Message<'_>) -> InTable<(String, Option<Hook>)> {
    let Some(attrs) = of_kind(message, NEW_CHAIN)? else { return Ok(None) };
    let hook = nested(&attrs, 4)?.map(|it| hook(&it, &attrs)).transpose()?;
    Ok(Some((text(&attrs, 1)?, (text(&attrs, 3)?, hook))))
}

fn hook(hook: &Attributes, chain: &Attributes) -> Result<Hook, UnreadableMessage> {
    let [number, priority] = [1, 2].map(|kind| attribute(hook, kind).map(number).transpose());
    let (number, priority) = (number?, priority?);
    let kind = attribute(chain, 7).map(string).unwrap_or_default();
    let kind = if number.is_some() && priority.is_some() { HookKind::of(&kind) } else { HookKind::Other };
    Ok(Hook {
        kind,
        number: number.unwrap_or(u32::MAX),
        priority: priority.unwrap_or_default().cast_signed(),
        link: attribute(hook, 3).map(string),
        drops: number_of(chain, 5)? == 0,
    })
}

/// The table of a rule, its chain, and its comment; an empty one if it has none.
pub(super) fn rule(message: &Message<'_>) -> Result<Option<(String, String, String)>, UnreadableMessage> {
    let Some(attrs) = of_kind(message, NEW_RULE)? else { return Ok(None) };
    let comment = attribute(&attrs, 7).and_then(comment).unwrap_or_default();
    Ok(Some((text(&attrs, 1)?, text(&attrs, 2)?, comment)))
}

/// The table of a rule, its chain, and the rule.
pub(super) fn rule_parts(message: &Message<'_>) -> InTable<(String, SeenRule)> {
    let Some(attrs) = of_kind(message, NEW_RULE)? else { return Ok(None) };
    let handle = attribute(&attrs, 3).map(long).transpose()?.ok_or("a rule without a handle")?;
    let list = nested(&attrs, 4)?;
    let parts = list.as_ref().map(parts::parts).transpose()?.unwrap_or_default();
    Ok(Some((text(&attrs, 1)?, (text(&attrs, 2)?, SeenRule { handle, parts }))))
}

/// The table of a rule that counts, its chain, and how many packets its first counter has counted.
pub(super) fn counted_rule(message: &Message<'_>) -> InTable<(String, u64)> {
    let Some(attrs) = of_kind(message, NEW_RULE)? else { return Ok(None) };
    let Some(list) = attribute(&attrs, 4) else { return Ok(None) };
    for (_, payload) in attributes(&parse(list)?) {
        let expression = parse(payload)?;
        if attribute(&expression, 1).map(string).as_deref() == Some("counter") {
            let counted = (text(&attrs, 2)?, packets(&expression)?.unwrap_or_default());
            return Ok(Some((text(&attrs, 1)?, counted)));
        }
    }
    Ok(None)
}

/// The packets that an expression `counter` has counted.
fn packets(expression: &Attributes) -> Result<Option<u64>, UnreadableMessage> {
    let data = attribute(expression, 2).map(parse).transpose()?;
    data.as_ref().and_then(|it| attribute(it, 2)).map(long).transpose()
}

/// The comment in the user data of a rule: entries of type, length, bytes.
fn comment(mut data: &[u8]) -> Option<String> {
    while let [kind, len, rest @ ..] = data {
        let (value, rest) = rest.split_at_checked(usize::from(*len))?;
        if *kind == 0 {
            return Some(string(value));
        }
        data = rest;
    }
    None
}

/// The table of a set, and the set if it can be one of ours.
pub(super) fn set(message: &Message<'_>) -> InTable<Option<Set>> {
    let Some(attrs) = of_kind(message, NEW_SET)? else { return Ok(None) };
    let field = |kind| attribute(&attrs, kind).map(number).transpose().map(Option::unwrap_or_default);
    let (flags, kind) = (field(3)?, (field(4)?, field(5)?));
    let keys = Family::ALL.into_iter().flat_map(|family| [Key::Addr(family), Key::Pair(family)]);
    let key = keys.into_iter().find(|key| key_type(*key) == kind);
    let dynamic = match flags {
        0 => Some(None),
        SET_DYNAMIC => {
            let description = attribute(&attrs, 9).map(parse).transpose()?;
            let size = description.as_ref().and_then(|it| attribute(it, 1)).map(number).transpose()?;
            Some(size.zip(attribute(&attrs, 11).map(long).transpose()?))
        }
        _ => None,
    };
    let name = text(&attrs, 2)?;
    let set = key.zip(dynamic).map(|(key, dynamic)| Set { name, key, dynamic });
    Ok(Some((text(&attrs, 1)?, set)))
}

/// Elements of any set or map; `None` for one that can't be expressed.
pub(super) fn any_elements(message: &Message<'_>) -> Result<Option<Vec<Option<Element>>>, UnreadableMessage> {
    let Some(attrs) = of_kind(message, NEW_ELEMENTS)? else { return Ok(None) };
    let Some(list) = nested(&attrs, 3)? else { return Ok(None) };
    let elements = attributes(&list).map(|(_, payload)| any_element(&parse(payload)?));
    elements.collect::<Result<_, _>>().map(Some)
}

/// `None` for an element of a set of concatenated intervals.
fn any_element(attrs: &Attributes) -> Result<Option<Element>, UnreadableMessage> {
    // NFTA_SET_ELEM_KEY_END
    if attribute(attrs, 10).is_some() {
        return Ok(None);
    }
    let key = nested(attrs, 1)?.and_then(|key| attribute(&key, 1).map(<[u8]>::to_vec)).unwrap_or_default();
    let verdict = match nested(attrs, 2)?.map(|data| nested(&data, 2)).transpose()?.flatten() {
        Some(verdict) => Some(verdict_of(&verdict)?),
        None => None,
    };
    // NFT_SET_ELEM_INTERVAL_END
    Ok(Some(Element { key, is_end: number_of(attrs, 3)? & 1 != 0, verdict }))
}

/// Elements of a set.
pub(super) fn elements(message: &Message<'_>) -> Result<Option<Vec<Counted>>, UnreadableMessage> {
    let Some(attrs) = of_kind(message, NEW_ELEMENTS)? else { return Ok(None) };
    let Some(list) = attribute(&attrs, 3) else { return Ok(None) };
    let mut elements = Vec::new();
    for (_, payload) in attributes(&parse(list)?) {
        elements.extend(element(&parse(payload)?)?);
    }
    Ok(Some(elements))
}

fn element(attrs: &Attributes) -> Result<Option<Counted>, UnreadableMessage> {
    let Some(key) = attribute(attrs, 1).map(parse).transpose()? else { return Ok(None) };
    let key = attribute(&key, 1).ok_or("an element without a value")?;
    let (addr, other) = match key.len() {
        4 | 16 => (addr(key)?, None),
        8 | 32 => {
            let (first, second) = key.split_at(key.len() / 2);
            (addr(first)?, Some(addr(second)?))
        }
        _ => return Ok(None),
    };
    // NFTA_SET_ELEM_EXPR, or in its place a list of them.
    let counter = match (attribute(attrs, 7), attribute(attrs, 11)) {
        (Some(one), _) => Some(parse(one)?),
        (None, Some(list)) => {
            let list = parse(list)?;
            attributes(&list).next().map(|(_, payload)| parse(payload)).transpose()?
        }
        (None, None) => None,
    };
    let packets = counter.as_ref().map(packets).transpose()?.flatten();
    Ok(Some(Counted { addr, other, packets: packets.unwrap_or_default() }))
}

fn addr(bytes: &[u8]) -> Result<IpAddr, UnreadableMessage> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(v4).into());
    }
    let v6 =
        <[u8; 16]>::try_from(bytes).map_err(|_| UnreadableMessage::from("an element that is no address"))?;
    Ok(Ipv6Addr::from(v6).into())
}
