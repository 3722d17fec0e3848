//! Forwarding settings of links, for which the kernel sends notifications (`linux/netconf.h`).

use std::io::Cursor;

use neli::FromBytesWithInput;
use neli::consts::rtnl::Rtm;
use neli::types::{Buffer, RtBuffer};

use super::message::{Message, UnreadableMessage, attribute, number};
use super::wire::family_of;
use crate::addr::{Family, LinkIndex};
use crate::kernel::{ConfOf, Forwarding};

/// The message type of a notification.
pub(super) const NEW: u16 = libc::RTM_NEWNETCONF;
/// `NETCONFA_IFINDEX`.
const IFINDEX: u16 = 1;
/// `NETCONFA_FORWARDING`.
const FORWARDING: u16 = 2;
/// `NETCONFA_IFINDEX_ALL`.
const ALL: i32 = -1;
/// `NETCONFA_IFINDEX_DEFAULT`.
const DEFAULT: i32 = -2;
/// `struct netconfmsg`, a byte, with its padding.
const BODY: usize = 4;

/// The message type of a request.
pub(super) fn get() -> Rtm {
    Rtm::from(libc::RTM_GETNETCONF)
}

/// The body of a request for the settings of all links of a family: `struct netconfmsg`, a byte, with its padding.
pub(super) fn of(family: Family) -> u32 {
    let number = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    u32::from_ne_bytes([u8::try_from(number).expect("a family number is small"), 0, 0, 0])
}

/// The forwarding setting in a message; `None` if it is about something else.
pub(super) fn forwarding(message: &Message<'_>) -> Result<Option<Forwarding>, UnreadableMessage> {
    let Some(family) = message.body.first().copied().and_then(family_of) else { return Ok(None) };
    let attrs = message.body.get(BODY..).ok_or("netconf message is too short")?;
    let attrs = RtBuffer::<u16, Buffer>::from_bytes_with_input(&mut Cursor::new(attrs), attrs.len())
        .map_err(|_| "attributes of a netconf message can't be read")?;
    let value = |of| attribute(&attrs, of).map(number).transpose();
    let (Some(index), Some(on)) = (value(IFINDEX)?, value(FORWARDING)?) else { return Ok(None) };
    let of = match index.cast_signed() {
        ALL => ConfOf::All,
        DEFAULT => ConfOf::Default,
        _ => ConfOf::Link(LinkIndex(index)),
    };
    Ok(Some(Forwarding { family, of, on: on != 0 }))
}
