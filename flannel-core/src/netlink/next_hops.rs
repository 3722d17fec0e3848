//! Next-hop objects: their ids and messages. No code outside of netlink knows an id.
//!
//! For a link and a gateway there is one object of ours, the chosen one, and routes refer to its id. The map of ids is
//! filled from dumps, from our own creations, and from notifications about others' changes. Notifications of our own
//! changes are ignored: the kernel's answers already say what we did, and late notifications would look like further
//! changes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::net::IpAddr;

use neli::types::{Buffer, RtBuffer};
use neli::{FromBytesWithInput, ToBytes};

use super::message::{Message, UnreadableMessage, attribute, attributes, number, u32_at};
use super::wire::{RTNH_F_ONLINK, attr, family, family_of, ip, read_ip_of};
use crate::addr::{Family, LinkIndex};
use crate::dataplane::{NextHop, Object, ObjectKey, ROUTE_PROTOCOL, Through};
use crate::kernel::KernelEvent;
use crate::repack::repack;

/// `RTM_NEWNEXTHOP`, `RTM_DELNEXTHOP` and `RTM_GETNEXTHOP`, which neli lacks.
pub(super) const NEW: u16 = 104;
pub(super) const DEL: u16 = 105;
pub(super) const GET: u16 = 106;

/// `NHA_*` of `linux/nexthop.h`.
const ID: u16 = 1;
const OIF: u16 = 5;
const GATEWAY: u16 = 6;
/// Bytes of `struct nhmsg`: family, scope, protocol, a reserved byte, and flags.
const HEADER: usize = 8;

/// The first of our ids. Their highest byte is the protocol, so that an operator recognises them.
const FIRST: u32 = (ROUTE_PROTOCOL as u32) << 24;
const LAST: u32 = FIRST | 0x00ff_ffff;

/// The object of an id, if it has one gateway or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) link: LinkIndex,
    pub(super) gateway: Option<IpAddr>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Ours, as we write it.
    Ours,
    /// With our protocol, but other attributes than we write.
    Odd,
    /// Somebody else's.
    Foreign,
}

/// The next-hop objects of the links for which they were read.
#[derive(Debug)]
pub(super) struct NextHops {
    links: BTreeSet<LinkIndex>,
    entries: BTreeMap<u32, Entry>,
    chosen: BTreeMap<(LinkIndex, IpAddr), u32>,
    /// The id to try next.
    pub(super) next: u32,
}

impl Default for NextHops {
    fn default() -> Self {
        Self {
            links: BTreeSet::new(),
            entries: BTreeMap::new(),
            chosen: BTreeMap::new(),
            next: FIRST + fastrand::u32(..=LAST - FIRST),
        }
    }
}

impl NextHops {
    /// Replaces what is known of a link by a complete list, and returns the objects in it.
    pub(super) fn read(
        &mut self,
        link: LinkIndex,
        list: impl IntoIterator<Item = (u32, Entry)>,
    ) -> Vec<NextHop> {
        self.links.insert(link);
        let list: BTreeMap<u32, Entry> = list.into_iter().filter(|(_, entry)| entry.link == link).collect();
        let old: Vec<u32> = self.on(link).map(|(number, _)| number).collect();
        for number in old {
            if list.get(&number) != self.entries.get(&number) {
                self.forget(number);
            }
        }
        let known = self.entries.len();
        for (number, entry) in list {
            self.learn(number, entry);
        }
        if self.entries.len() / 2 > known {
            self.repack();
        }
        self.on(link).filter_map(|(number, entry)| self.object(number, entry)).collect()
    }

    fn on(&self, link: LinkIndex) -> impl Iterator<Item = (u32, Entry)> + '_ {
        let entries = self.entries.iter().map(|(number, entry)| (*number, *entry));
        entries.filter(move |(_, entry)| entry.link == link)
    }

    /// Records the object of an id. The first one of its link and gateway becomes the chosen one.
    pub(super) fn learn(&mut self, number: u32, entry: Entry) {
        self.entries.insert(number, entry);
        if let (Kind::Ours, Some(gateway)) = (entry.kind, entry.gateway) {
            self.chosen.entry((entry.link, gateway)).or_insert(number);
        }
    }

    /// Records that an id is no longer in use. No other object becomes the chosen one, since that must not change for
    /// existing routes.
    pub(super) fn forget(&mut self, number: u32) -> Option<NextHop> {
        let entry = self.entries.get(&number).copied()?;
        let object = self.object(number, entry);
        self.entries.remove(&number);
        if let Some(gateway) = entry.gateway
            && self.chosen.get(&(entry.link, gateway)) == Some(&number)
        {
            self.chosen.remove(&(entry.link, gateway));
        }
        object
    }

    /// Forgets a link and everything on it.
    pub(super) fn forget_link(&mut self, link: LinkIndex) {
        if self.links.remove(&link) {
            self.entries.retain(|_, entry| entry.link != link);
            self.chosen.retain(|(of, _), _| *of != link);
        }
    }

    /// The object of an id, if it is ours.
    fn object(&self, number: u32, Entry { link, gateway, kind }: Entry) -> Option<NextHop> {
        let gateway = gateway.filter(|_| kind != Kind::Foreign)?;
        let spare = (self.chosen.get(&(link, gateway)) != Some(&number)).then_some(number);
        Some(NextHop { link, gateway, spare })
    }

    /// The id of an object.
    pub(super) fn number_of(&self, next_hop: &NextHop) -> Option<u32> {
        let NextHop { link, gateway, spare } = *next_hop;
        spare.or_else(|| self.chosen.get(&(link, gateway)).copied())
    }

    /// The gateway and link of a route with this id, and its [`Through`] if the object is ours; `None` if the id is
    /// unknown.
    pub(super) fn resolve(&self, number: u32) -> Option<(Entry, Option<Through>)> {
        let entry = *self.entries.get(&number)?;
        let through = |object: NextHop| object.spare.map_or(Through::Object, Through::Spare);
        Some((entry, self.object(number, entry).map(through)))
    }

    /// An id for a new object. The kernel decides whether it is free.
    pub(super) fn new_number(&mut self) -> u32 {
        loop {
            let number = self.next;
            self.next = if number == LAST { FIRST } else { number + 1 };
            if !self.entries.contains_key(&number) {
                return number;
            }
        }
    }

    /// Ids that no object had when they were read last, beginning with the one that is tried next.
    pub(super) fn free_numbers(&self) -> impl Iterator<Item = u32> + '_ {
        (self.next..=LAST).chain(FIRST..self.next).filter(|number| !self.entries.contains_key(number))
    }

    /// Continues at another place of our range, since somebody else uses ids here.
    pub(super) fn jump(&mut self) {
        self.next = FIRST + fastrand::u32(..=LAST - FIRST);
    }

    /// Records that an object was created. It is the chosen one now.
    pub(super) fn created(&mut self, number: u32, NextHop { link, gateway, .. }: NextHop) {
        self.entries.insert(number, Entry { link, gateway: Some(gateway), kind: Kind::Ours });
        self.chosen.insert((link, gateway), number);
    }

    /// Frees memory that many creations in a row left unused.
    pub(super) fn repack(&mut self) {
        repack(&mut self.entries);
        repack(&mut self.chosen);
    }

    /// Applies a notification about somebody else's change.
    pub(super) fn announced(
        &mut self,
        message: &Message<'_>,
        events: &mut Vec<KernelEvent>,
    ) -> Result<(), UnreadableMessage> {
        let Some((number, entry)) = decode(message)? else {
            // It may be a group, for example, with an id that was one of ours.
            if let Some(number) = number_in(message)? {
                events.extend(self.gone(number));
            }
            return Ok(());
        };
        let deleted = u16::from(message.kind) == DEL;
        if deleted || self.entries.get(&number).is_some_and(|known| *known != entry) {
            events.extend(self.gone(number));
        }
        if !deleted && self.links.contains(&entry.link) {
            self.learn(number, entry);
            let object = self.object(number, entry);
            events.extend(object.map(|object| KernelEvent::Put(Object::NextHop(object))));
        }
        Ok(())
    }

    fn gone(&mut self, number: u32) -> Option<KernelEvent> {
        let NextHop { link, gateway, spare } = self.forget(number)?;
        Some(KernelEvent::Gone(ObjectKey::NextHop(link, gateway, spare)))
    }
}

/// The body of a message that creates an object.
pub(super) fn create(number: u32, NextHop { link, gateway, .. }: &NextHop) -> Buffer {
    let attrs = [attr(ID, number), attr(OIF, link.0), attr(GATEWAY, ip(*gateway))];
    body(u8::from(family(Family::of(*gateway))), ROUTE_PROTOCOL, RTNH_F_ONLINK, &attrs.into_iter().collect())
}

/// The body of a message that deletes an object.
pub(super) fn delete(number: u32) -> Buffer {
    body(0, 0, 0, &[attr(ID, number)].into_iter().collect())
}

/// The filter of a next-hop dump.
pub(super) fn of_link(link: LinkIndex) -> Buffer {
    body(0, 0, 0, &[attr(OIF, link.0)].into_iter().collect())
}

fn body(family: u8, protocol: u8, flags: u32, attrs: &RtBuffer<u16, Buffer>) -> Buffer {
    let mut bytes = Cursor::new(vec![family, 0, protocol, 0]);
    bytes.set_position(4);
    bytes.get_mut().extend(flags.to_ne_bytes());
    bytes.set_position(HEADER as u64);
    attrs.to_bytes(&mut bytes).expect("writing to memory can't fail");
    Buffer::from(bytes.into_inner())
}

fn attributes_of(message: &Message<'_>) -> Result<RtBuffer<u16, Buffer>, UnreadableMessage> {
    let attrs = message.body.get(HEADER..).ok_or("next hop shorter than its header")?;
    RtBuffer::from_bytes_with_input(&mut Cursor::new(attrs), attrs.len())
        .map_err(|error| UnreadableMessage(error.to_string().into()))
}

fn number_in(message: &Message<'_>) -> Result<Option<u32>, UnreadableMessage> {
    attribute(&attributes_of(message)?, ID).map(number).transpose()
}

/// An object with its id; `None` for groups, blackholes and others without a link of their own.
pub(super) fn decode(message: &Message<'_>) -> Result<Option<(u32, Entry)>, UnreadableMessage> {
    let attrs = attributes_of(message)?;
    let (Some(id), Some(oif)) = (attribute(&attrs, ID), attribute(&attrs, OIF)) else { return Ok(None) };
    let Some(of) = family_of(message.body[0]) else { return Ok(None) };
    let gateway = attribute(&attrs, GATEWAY).map(read_ip_of(of)).transpose()?;
    let flags = u32_at(message.body, 4).unwrap_or_default();
    let as_we_write =
        flags & RTNH_F_ONLINK != 0 && attributes(&attrs).all(|(kind, _)| matches!(kind, ID | OIF | GATEWAY));
    let kind = match message.body[2] {
        ROUTE_PROTOCOL if as_we_write => Kind::Ours,
        ROUTE_PROTOCOL => Kind::Odd,
        _ => Kind::Foreign,
    };
    Ok(Some((number(id)?, Entry { link: LinkIndex(number(oif)?), gateway, kind })))
}
