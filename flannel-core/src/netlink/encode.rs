//! Encodes operations on objects as request messages. Pure.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use neli::consts::nl::NlmF;
use neli::consts::rtnl::{
    Ifa, IfaF, Nda, Ntf, Nud, RtAddrFamily, RtScope, RtTable, Rta, Rtm, RtmF, Rtn, Rtprot,
};
use neli::rtnl::{Ifaddrmsg, IfaddrmsgBuilder, Ndmsg, NdmsgBuilder, Rtattr, Rtmsg, RtmsgBuilder};
use neli::types::{Buffer, RtBuffer};

use super::message::Datagram;
use super::next_hops;
use super::wire::{
    AF_BRIDGE, RTA_NH_ID, RTA_VIA, RTAX_LOCK, RTAX_MTU, RTNH_F_ONLINK, attr, family, index, ip,
};
use crate::addr::{Family, LinkIndex};
use crate::dataplane::{Address, FdbEntry, Neighbour, Object, Op, Route, Through};

/// Appends the message for one operation.
///
/// Only routes and next-hop objects are created exclusively (`NLM_F_EXCL`). The others are on our own devices, where an
/// entry with the same key is our own leftover. A next-hop object is always new, with an id that must be free.
///
/// `next_hop` is the kernel's id of the next-hop object that the operation is about. Creating a route through a
/// next-hop object needs it; deleting one does not.
pub(super) fn op(datagram: &mut Datagram, op: &Op, next_hop: Option<u32>, seq: u32, ack: bool) {
    let put = match op {
        Op::Create(Object::Route(_) | Object::NextHop(_)) | Op::Replace(Object::NextHop(_)) => {
            NlmF::CREATE | NlmF::EXCL
        }
        Op::Create(_) | Op::Replace(_) => NlmF::CREATE | NlmF::REPLACE,
        Op::Delete(_) => NlmF::empty(),
    };
    let flags = if ack { put | NlmF::ACK } else { put };
    let delete = matches!(op, Op::Delete(_));
    let kind = |new, del| if delete { del } else { new };
    match op.object() {
        Object::Address(it) => datagram.push(kind(Rtm::Newaddr, Rtm::Deladdr), flags, seq, address(it)),
        Object::Neighbour(it) => datagram.push(kind(Rtm::Newneigh, Rtm::Delneigh), flags, seq, neighbour(it)),
        Object::Fdb(it) => datagram.push(kind(Rtm::Newneigh, Rtm::Delneigh), flags, seq, fdb(it)),
        Object::NextHop(it) => {
            let number = next_hop.unwrap_or_default();
            let body = if delete { next_hops::delete(number) } else { next_hops::create(number, it) };
            datagram.push(Rtm::from(if delete { next_hops::DEL } else { next_hops::NEW }), flags, seq, body);
        }
        Object::Route(it) if delete => {
            datagram.push(Rtm::Delroute, flags, seq, route_to_delete(it, next_hop));
        }
        Object::Route(it) => {
            let replaces = matches!(op, Op::Replace(_));
            datagram.push(Rtm::Newroute, flags, seq, route(it, next_hop, replaces));
        }
    }
}

fn address(address: &Address) -> Ifaddrmsg {
    let Address { link, addr } = *address;
    let mut attrs: RtBuffer<Ifa, Buffer> =
        [attr(Ifa::Local, ip(addr.ip())), attr(Ifa::Address, ip(addr.ip()))].into_iter().collect();
    let mut flags = IfaF::PERMANENT;
    match addr {
        IpNetwork::V4(net) if net.prefix() < 31 => {
            attrs.push(attr(Ifa::Broadcast, ip(net.broadcast().into())));
        }
        IpNetwork::V4(_) => {}
        // Duplicate address detection would keep the address unusable for about a second, and nobody on a VXLAN would
        // answer it.
        IpNetwork::V6(_) => flags |= IfaF::NODAD,
    }
    attrs.push(attr(Ifa::Flags, u32::from(flags.bits())));
    IfaddrmsgBuilder::default()
        .ifa_family(family(Family::of(addr.ip())))
        .ifa_prefixlen(addr.prefix())
        .ifa_flags(flags)
        .ifa_scope(RtScope::Universe)
        .ifa_index(link.0)
        .rtattrs(attrs)
        .build()
        .expect("all fields are set")
}

fn neighbour(neighbour: &Neighbour) -> Ndmsg {
    let Neighbour { link, addr, mac } = *neighbour;
    let attrs = [attr(Nda::Dst, ip(addr)), attr(Nda::Lladdr, mac.0)];
    neighbour_message(family(Family::of(addr)), link, Ntf::empty(), attrs)
}

fn fdb(entry: &FdbEntry) -> Ndmsg {
    let FdbEntry { link, mac, dst, port, vni, via } = *entry;
    let attrs = [attr(Nda::Lladdr, mac.0), attr(Nda::Dst, ip(dst))]
        .into_iter()
        .chain(port.map(|port| attr(Nda::Port, port.to_be_bytes())))
        .chain(vni.map(|vni| attr(Nda::Vni, vni.get())))
        .chain(via.map(|via| attr(Nda::Ifindex, via.0)));
    neighbour_message(RtAddrFamily::from(AF_BRIDGE), link, Ntf::SELF, attrs)
}

fn neighbour_message(
    family: RtAddrFamily,
    link: LinkIndex,
    flags: Ntf,
    attrs: impl IntoIterator<Item = Rtattr<Nda, Buffer>>,
) -> Ndmsg {
    NdmsgBuilder::default()
        .ndm_family(family)
        .ndm_index(index(link))
        .ndm_state(Nud::PERMANENT)
        .ndm_flags(flags)
        .ndm_type(Rtn::Unicast)
        .rtattrs(attrs.into_iter().collect())
        .build()
        .expect("all fields are set")
}

fn route(route: &Route, number: Option<u32>, replaces: bool) -> Rtmsg {
    // RTNH_F_ONLINK is not among neli's flags. For a route through a next-hop object, that object has the flag.
    let onlink = route.onlink && route.through == Through::Itself;
    let flags = RtmF::from_bits_retain(if onlink { RTNH_F_ONLINK } else { 0 });
    let mut attrs = next_hop(route, number);
    attrs.extend(metrics(route, replaces));
    route_message(route, attrs)
        .rtm_protocol(Rtprot::from(route.protocol))
        .rtm_scope(RtScope::Universe)
        .rtm_type(kind(route))
        .rtm_flags(flags)
        .build()
        .expect("all fields are set")
}

/// The message that identifies exactly this route. In a deletion `RT_SCOPE_NOWHERE` and 0 mean "any".
///
/// A route that is not plain may have several next hops, a next-hop object or none, and would not match a gateway here.
/// So it is identified by destination, metric and protocol. The protocol always counts, so that a route with which
/// somebody has replaced ours meanwhile is not deleted.
fn route_to_delete(route: &Route, number: Option<u32>) -> Rtmsg {
    let (next_hop, kind) =
        if route.plain { (next_hop(route, number), kind(route)) } else { (Vec::new(), Rtn::Unspec) };
    route_message(route, next_hop)
        .rtm_protocol(Rtprot::from(route.protocol))
        .rtm_scope(RtScope::Nowhere)
        .rtm_type(kind)
        .build()
        .expect("all fields are set")
}

fn kind(route: &Route) -> Rtn {
    if route.through == Through::Nowhere { Rtn::Blackhole } else { Rtn::Unicast }
}

fn next_hop(route: &Route, number: Option<u32>) -> Vec<Rtattr<Rta, Buffer>> {
    if matches!(route.through, Through::Object | Through::Spare(_)) {
        return number.map(|number| attr(Rta::from(RTA_NH_ID), number)).into_iter().collect();
    }
    let gateway = route.via.map(|via| {
        if Family::of(via) == route.dst.family() {
            return attr(Rta::Gateway, ip(via));
        }
        // struct rtvia: the family as u16, then the address.
        let number = u16::from(u8::from(family(Family::of(via))));
        let mut payload = Buffer::from(number.to_ne_bytes().as_slice());
        payload.extend_from_slice(ip(via).as_ref());
        attr(Rta::from(RTA_VIA), payload)
    });
    gateway.into_iter().chain(route.link.map(|link| attr(Rta::Oif, link.0))).collect()
}

/// The metrics of a route that is put, if it needs any.
///
/// For an IPv4 route through a next-hop object without metrics in the request, the kernel takes those of a route that
/// goes through the object already (`fib_find_info_nh`), such as the route that is replaced. An MTU of 0 is none.
fn metrics(route: &Route, replaces: bool) -> Option<Rtattr<Rta, Buffer>> {
    let metrics = match route.mtu {
        Some(mtu) => vec![attr(RTAX_LOCK, 1_u32 << RTAX_MTU), attr(RTAX_MTU, mtu.0)],
        None if replaces && route.next_hop().is_some() => vec![attr(RTAX_MTU, 0_u32)],
        None => return None,
    };
    Some(attr(Rta::Metrics, metrics.into_iter().collect::<RtBuffer<u16, Buffer>>()))
}

fn route_message(route: &Route, attrs: Vec<Rtattr<Rta, Buffer>>) -> RtmsgBuilder {
    let metric = (route.metric != 0).then(|| attr(Rta::Priority, route.metric));
    RtmsgBuilder::default()
        .rtm_family(family(route.dst.family()))
        .rtm_dst_len(route.dst.prefix())
        .rtm_src_len(0)
        .rtm_tos(0)
        .rtm_table(RtTable::Main)
        .rtattrs([attr(Rta::Dst, ip(route.dst.base()))].into_iter().chain(attrs).chain(metric).collect())
}

/// The request for the route to an address.
pub(super) fn lookup(dst: IpAddr) -> Rtmsg {
    RtmsgBuilder::default()
        .rtm_family(family(Family::of(dst)))
        .rtm_dst_len(Family::of(dst).bits())
        .rtm_src_len(0)
        .rtm_tos(0)
        .rtm_table(RtTable::Unspec)
        .rtm_protocol(Rtprot::Unspec)
        .rtm_scope(RtScope::Universe)
        .rtm_type(Rtn::Unspec)
        .rtattrs([attr(Rta::Dst, ip(dst))].into_iter().collect())
        .build()
        .expect("all fields are set")
}

/// The filter of a route dump: the main table and, if given, the outgoing link. Strict checking allows no more.
pub(super) fn routes_of(of: Family, link: Option<LinkIndex>) -> Rtmsg {
    routes(of, Rtprot::Unspec, link)
}

/// The filter of a route dump: the main table and the protocol.
pub(super) fn routes_by(of: Family, protocol: u8) -> Rtmsg {
    routes(of, Rtprot::from(protocol), None)
}

fn routes(of: Family, protocol: Rtprot, link: Option<LinkIndex>) -> Rtmsg {
    RtmsgBuilder::default()
        .rtm_family(family(of))
        .rtm_dst_len(0)
        .rtm_src_len(0)
        .rtm_tos(0)
        .rtm_table(RtTable::Main)
        .rtm_protocol(protocol)
        .rtm_scope(RtScope::Universe)
        .rtm_type(Rtn::Unspec)
        .rtattrs(link.map(|link| attr(Rta::Oif, link.0)).into_iter().collect())
        .build()
        .expect("all fields are set")
}

/// The filter of an address dump; link 0 means all links.
pub(super) fn addresses_of(of: Family, link: LinkIndex) -> Ifaddrmsg {
    IfaddrmsgBuilder::default()
        .ifa_family(family(of))
        .ifa_prefixlen(0)
        .ifa_scope(RtScope::Universe)
        .ifa_index(link.0)
        .build()
        .expect("all fields are set")
}

/// The filter of a neighbour dump. The header's index must be 0 here: the link is an attribute.
pub(super) fn neighbours_of(of: Family, link: Option<LinkIndex>) -> Ndmsg {
    entries_of(family(of), LinkIndex(0), link.map(|link| attr(Nda::Ifindex, link.0)))
}

/// The filter of an FDB dump; link 0 means all links.
pub(super) fn fdb_of(link: LinkIndex) -> Ndmsg {
    entries_of(RtAddrFamily::from(AF_BRIDGE), link, None)
}

fn entries_of(family: RtAddrFamily, link: LinkIndex, filter: Option<Rtattr<Nda, Buffer>>) -> Ndmsg {
    NdmsgBuilder::default()
        .ndm_family(family)
        .ndm_index(index(link))
        .ndm_state(Nud::empty())
        .ndm_type(Rtn::Unspec)
        .rtattrs(filter.into_iter().collect())
        .build()
        .expect("all fields are set")
}
