//! Reading the attributes of a message of `nf_tables`, whose numbers are in network order. Pure.

use std::io::Cursor;

use neli::FromBytesWithInput;
use neli::types::{Buffer, RtBuffer};

use super::super::message::{UnreadableMessage, attribute, string};

pub(super) type Attributes = RtBuffer<u16, Buffer>;

pub(super) fn parse(bytes: &[u8]) -> Result<Attributes, UnreadableMessage> {
    Attributes::from_bytes_with_input(&mut Cursor::new(bytes), bytes.len())
        .map_err(|_| "broken attributes".into())
}

pub(super) fn number(payload: &[u8]) -> Result<u32, UnreadableMessage> {
    payload.try_into().map(u32::from_be_bytes).map_err(|_| "attribute is no 32-bit number".into())
}

pub(super) fn long(payload: &[u8]) -> Result<u64, UnreadableMessage> {
    payload.try_into().map(u64::from_be_bytes).map_err(|_| "attribute is no 64-bit number".into())
}

/// An attribute that is a number; 0 without it.
pub(super) fn number_of(within: &Attributes, kind: u16) -> Result<u32, UnreadableMessage> {
    attribute(within, kind).map(number).transpose().map(Option::unwrap_or_default)
}

/// Attributes within an attribute.
pub(super) fn nested(within: &Attributes, kind: u16) -> Result<Option<Attributes>, UnreadableMessage> {
    attribute(within, kind).map(parse).transpose()
}

pub(super) fn text(within: &Attributes, kind: u16) -> Result<String, UnreadableMessage> {
    attribute(within, kind).map(string).ok_or_else(|| "a name is missing".into())
}
