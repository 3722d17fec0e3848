//! Decoding of netlink messages as one function of bytes, for fuzzing.

use super::message::{Datagram, Message, split};
use super::next_hops::{self, NextHops};
use super::{decode, encode, events, link, nftables};
use crate::dataplane::{NextHop, Object, Op, Route, Through};
use crate::kernel::KernelEvent;

/// A port that nobody sends from.
const OWN_PORT: u32 = u32::MAX;
/// The id of a next-hop object that is encoded again.
const NUMBER: u32 = 0x6600_0007;

/// Decodes a datagram with all decoders.
///
/// # Panics
/// If a message reaches past its datagram, if bytes after the datagram make a difference, or if an object is not the
/// same after encoding and decoding.
pub(crate) fn datagram(data: &[u8]) {
    let within = data.as_ptr_range();
    for message in split(data).flatten() {
        let body = message.body.as_ptr_range();
        assert!(body.is_empty() || within.start <= body.start && body.end <= within.end);
        every_way(&message);
    }
    let seen = decoded(data);
    for object in seen.iter().filter_map(|event| match event {
        KernelEvent::Put(object) => Some(object),
        _ => None,
    }) {
        again(object);
    }
    // Bytes after the datagram in its buffer belong to an earlier one.
    let mut longer = data.to_vec();
    longer.extend([0xff; 64]);
    assert_eq!(decoded(&longer[..data.len()]), seen);
}

fn decoded(datagram: &[u8]) -> Vec<KernelEvent> {
    let mut events = Vec::new();
    events::decode_all(datagram, OWN_PORT, &mut NextHops::default(), &mut events);
    events
}

/// Runs all decoders on each message: a dump chooses its decoder by the request, not by the kind of the answer.
pub(super) fn every_way(message: &Message<'_>) {
    _ = message.verdict();
    _ = link::link(message);
    _ = link::gone(message);
    _ = decode::address(message);
    _ = decode::address_sight(message);
    _ = decode::neighbour_sight(message);
    _ = decode::route_sight(message, &NextHops::default());
    _ = next_hops::decode(message);
    _ = decode::default_route(message);
    _ = decode::lookup(message);
    nftables::every_way(message);
}

fn again(object: &Object) {
    // Only objects that we write are encoded again. Others are routes with attributes that our type lacks, or through
    // an object that only earlier bytes name, and links with indices over 31 bits.
    let number = match object {
        Object::Route(
            Route { plain: false, .. } | Route { through: Through::Object | Through::Spare(_), .. },
        )
        | Object::NextHop(NextHop { spare: Some(_), .. }) => return,
        Object::NextHop(next_hop) => next_hop.link.0,
        Object::Route(route) => route.link.map_or(0, |link| link.0),
        Object::Address(address) => address.link.0,
        Object::Neighbour(neighbour) => neighbour.link.0,
        Object::Fdb(entry) => entry.link.0,
    };
    if i32::try_from(number).is_err() {
        return;
    }
    let mut datagram = Datagram::default();
    let next_hop = matches!(object, Object::NextHop(_)).then_some(NUMBER);
    encode::op(&mut datagram, &Op::Create(*object), next_hop, 1, false);
    assert_eq!(decoded(datagram.bytes()), [KernelEvent::Put(*object)]);
}
