//! Decodes message bodies as objects, addresses and routes. Pure, and never panics.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use neli::FromBytesWithInput;
use neli::consts::rtnl::{IfaF, Ntf, Nud, RtScope, RtTable, Rta, RtaType, RtmF, Rtn};
use neli::rtnl::{Ifaddrmsg, Ndmsg, Rtmsg};
use neli::types::{Buffer, RtBuffer};

use super::message::{Message, UnreadableMessage, attribute, attributes, number, u16_at, u32_at};
use super::next_hops::NextHops;
use super::wire::{
    AF_BRIDGE, RTA_NH_ID, RTA_PREF, RTA_VIA, RTAX_LOCK, RTAX_MTU, RTNH_F_ONLINK, family_of, read_ip,
    read_ip_of, read_mac,
};
use crate::addr::{Family, LinkIndex, Mtu, Subnet, Vni};
use crate::dataplane::{Address, FdbEntry, Neighbour, Object, ObjectKey, Route, Through};
use crate::kernel::{Exit, LinkAddress, RouteLookup};

/// The preference "medium" (RFC 4191 section 2.1), which every route has by default.
const PREF_MEDIUM: &[u8] = &[0];

/// What a message about an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// There is an object.
    Present(Object),
    /// The entry with this key is not an [`Object`], or does not exist.
    Absent(ObjectKey),
    /// It is about something else.
    Irrelevant,
}

impl Sight {
    /// The object, if there is one.
    pub(super) fn present(self) -> Option<Object> {
        if let Self::Present(object) = self { Some(object) } else { None }
    }

    /// The key that the message is about.
    pub(super) fn key(self) -> Option<ObjectKey> {
        match self {
            Self::Present(object) => Some(object.key()),
            Self::Absent(key) => Some(key),
            Self::Irrelevant => None,
        }
    }
}

/// Reads an attribute, if it is there.
fn read<T: RtaType, V>(
    within: &RtBuffer<T, Buffer>,
    number: u16,
    read: impl Fn(&[u8]) -> Result<V, UnreadableMessage>,
) -> Result<Option<V>, UnreadableMessage> {
    attribute(within, number).map(read).transpose()
}

/// A link index from a signed field; 0 and below mean none.
fn link(index: i32) -> Result<LinkIndex, UnreadableMessage> {
    u32::try_from(index).map(LinkIndex).map_err(|_| "negative link index".into())
}

/// An address of a link; `None` if it is of another family than IPv4 and IPv6, or without an address.
pub(super) fn address(message: &Message<'_>) -> Result<Option<LinkAddress>, UnreadableMessage> {
    let body: Ifaddrmsg = message.body_as()?;
    let Some(family) = family_of((*body.ifa_family()).into()) else { return Ok(None) };
    let attrs = body.rtattrs();
    // On a point-to-point link IFA_ADDRESS is the address of the other end.
    let local = read(attrs, libc::IFA_LOCAL, read_ip_of(family))?;
    let Some(addr) =
        local.map_or_else(|| read(attrs, libc::IFA_ADDRESS, read_ip_of(family)), |addr| Ok(Some(addr)))?
    else {
        return Ok(None);
    };
    let addr = IpNetwork::new(addr, *body.ifa_prefixlen()).map_err(|_| "prefix longer than the address")?;
    let flags = read(attrs, libc::IFA_FLAGS, number)?.unwrap_or(u32::from(body.ifa_flags().bits()));
    let has = |flag: IfaF| flags & u32::from(flag.bits()) != 0;
    Ok(Some(LinkAddress {
        link: LinkIndex(*body.ifa_index()),
        addr,
        global: *body.ifa_scope() == RtScope::Universe,
        deprecated: has(IfaF::DEPRECATED),
        permanent: has(IfaF::PERMANENT),
        temporary: has(IfaF::TEMPORARY),
        tentative: has(IfaF::TENTATIVE),
    }))
}

/// An address as an object.
pub(super) fn address_sight(message: &Message<'_>) -> Result<Sight, UnreadableMessage> {
    Ok(address(message)?.map_or(Sight::Irrelevant, |LinkAddress { link, addr, .. }| {
        Sight::Present(Object::Address(Address { link, addr }))
    }))
}

/// A neighbour or FDB entry.
pub(super) fn neighbour_sight(message: &Message<'_>) -> Result<Sight, UnreadableMessage> {
    let body: Ndmsg = message.body_as()?;
    match u8::from(*body.ndm_family()) {
        AF_BRIDGE => fdb(&body),
        other => family_of(other).map_or(Ok(Sight::Irrelevant), |family| neighbour(&body, family)),
    }
}

fn neighbour(body: &Ndmsg, family: Family) -> Result<Sight, UnreadableMessage> {
    let attrs = body.rtattrs();
    if body.ndm_flags().contains(Ntf::PROXY) {
        return Ok(Sight::Irrelevant);
    }
    let Some(addr) = read(attrs, libc::NDA_DST, read_ip_of(family))? else { return Ok(Sight::Irrelevant) };
    let link = link(*body.ndm_index())?;
    let mac = attribute(attrs, libc::NDA_LLADDR).and_then(read_mac);
    Ok(match mac.filter(|_| body.ndm_state().contains(Nud::PERMANENT)) {
        Some(mac) => Sight::Present(Object::Neighbour(Neighbour { link, addr, mac })),
        None => Sight::Absent(ObjectKey::Neighbour(link, addr)),
    })
}

fn fdb(body: &Ndmsg) -> Result<Sight, UnreadableMessage> {
    let attrs = body.rtattrs();
    let (dst, mac) =
        (read(attrs, libc::NDA_DST, read_ip)?, attribute(attrs, libc::NDA_LLADDR).and_then(read_mac));
    // Entries of a bridge have no remote, those with a next-hop group neither.
    let (Some(dst), Some(mac), true) = (dst, mac, body.ndm_flags().contains(Ntf::SELF)) else {
        return Ok(Sight::Irrelevant);
    };
    let port = |payload: &[u8]| payload.try_into().map(u16::from_be_bytes).map_err(|_| "bad port".into());
    let vni = |payload: &[u8]| Vni::new(number(payload)?).map_err(|_| "bad VNI".into());
    let entry = FdbEntry {
        link: link(*body.ndm_index())?,
        mac,
        dst,
        port: read(attrs, libc::NDA_PORT, port)?,
        vni: read(attrs, libc::NDA_VNI, vni)?,
        via: read(attrs, libc::NDA_IFINDEX, number)?.map(LinkIndex),
    };
    // 0x80 and 0xc0 (with NOARP) are the same to the driver.
    Ok(if body.ndm_state().contains(Nud::PERMANENT) {
        Sight::Present(Object::Fdb(entry))
    } else {
        Sight::Absent(ObjectKey::Fdb(entry))
    })
}

/// A route. [`Sight::Irrelevant`] if it is not in the main table, is cached, or is for one TOS only.
///
/// For a route through a next-hop object, `next_hops` has gateway and link: the kernel reports them only if
/// `net.ipv4.nexthop_compat_mode` is on. A route through an unknown object is not ours.
pub(super) fn route_sight(message: &Message<'_>, next_hops: &NextHops) -> Result<Sight, UnreadableMessage> {
    let body: Rtmsg = message.body_as()?;
    let Some(family) = family_of((*body.rtm_family()).into()) else { return Ok(Sight::Irrelevant) };
    let attrs = body.rtattrs();
    let in_main = table(&body)? == u32::from(u8::from(RtTable::Main));
    if !in_main || *body.rtm_tos() != 0 || body.rtm_flags().contains(RtmF::CLONED) {
        return Ok(Sight::Irrelevant);
    }
    let base = read(attrs, libc::RTA_DST, read_ip_of(family))?.unwrap_or(family.unspecified());
    let dst = Subnet::exact(base, *body.rtm_dst_len()).ok_or("destination is no subnet")?;
    let mut route = Route {
        dst,
        metric: read(attrs, libc::RTA_PRIORITY, number)?.unwrap_or(0),
        via: gateway(attrs, family)?,
        link: read(attrs, libc::RTA_OIF, number)?.map(LinkIndex),
        onlink: body.rtm_flags().bits() & RTNH_F_ONLINK != 0,
        through: Through::Itself,
        protocol: (*body.rtm_protocol()).into(),
        mtu: attribute(attrs, libc::RTA_METRICS).and_then(locked_mtu),
        plain: is_plain(&body, family),
    };
    if let Some(id) = read(attrs, RTA_NH_ID, number)? {
        route.plain = false;
        if let Some((entry, through)) = next_hops.resolve(id) {
            (route.link, route.via) = (Some(entry.link), entry.gateway);
            if let Some(through) = through {
                (route.through, route.onlink) = (through, true);
                route.plain = through == Through::Object && is_plain(&body, family);
            }
        }
    }
    if *body.rtm_type() == Rtn::Blackhole {
        // For IPv6 the kernel reports the loopback link, although the route was created without one.
        (route.link, route.via, route.onlink, route.through) = (None, None, false, Through::Nowhere);
    }
    Ok(Sight::Present(Object::Route(route)))
}

fn table(body: &Rtmsg) -> Result<u32, UnreadableMessage> {
    let short = u32::from(u8::from(*body.rtm_table()));
    Ok(read(body.rtattrs(), libc::RTA_TABLE, number)?.unwrap_or(short))
}

fn gateway(attrs: &RtBuffer<Rta, Buffer>, family: Family) -> Result<Option<IpAddr>, UnreadableMessage> {
    let via = |payload: &[u8]| read_ip(payload.get(2..).unwrap_or(&[]));
    Ok(read(attrs, libc::RTA_GATEWAY, read_ip_of(family))?.or(read(attrs, RTA_VIA, via)?))
}

/// The locked MTU in the metrics of a route; `None` if they are others, or more.
fn locked_mtu(metrics: &[u8]) -> Option<Mtu> {
    let metrics =
        RtBuffer::<u16, Buffer>::from_bytes_with_input(&mut std::io::Cursor::new(metrics), metrics.len())
            .ok()?;
    let (mut lock, mut mtu) = (None, None);
    for (kind, payload) in attributes(&metrics) {
        match kind {
            RTAX_LOCK => lock = Some(number(payload).ok()?),
            RTAX_MTU => mtu = Some(number(payload).ok()?),
            _ => return None,
        }
    }
    mtu.filter(|mtu| *mtu != 0 && lock == Some(1 << RTAX_MTU)).map(Mtu)
}

/// Whether a route has only attributes that we write.
fn is_plain(body: &Rtmsg, family: Family) -> bool {
    let known = attributes(body.rtattrs()).all(|(kind, payload)| match kind {
        libc::RTA_TABLE
        | libc::RTA_DST
        | libc::RTA_OIF
        | libc::RTA_GATEWAY
        | libc::RTA_PRIORITY
        | RTA_NH_ID => true,
        // struct rta_cacheinfo, of which all but the expiry is statistics.
        libc::RTA_CACHEINFO => u32_at(payload, 8) == Some(0),
        RTA_PREF => payload == PREF_MEDIUM,
        libc::RTA_METRICS => locked_mtu(payload).is_some(),
        _ => false,
    });
    let direct = attribute(body.rtattrs(), libc::RTA_GATEWAY).is_none();
    let scope = match *body.rtm_scope() {
        RtScope::Universe => true,
        RtScope::Link => family == Family::V4 && direct,
        _ => false,
    };
    let kind = matches!(body.rtm_type(), Rtn::Unicast | Rtn::Blackhole);
    known && scope && kind && *body.rtm_src_len() == 0
}

/// The answer to a look-up, or a route in that form; `None` if it leads nowhere.
pub(super) fn lookup(message: &Message<'_>) -> Result<Option<RouteLookup>, UnreadableMessage> {
    let body: Rtmsg = message.body_as()?;
    let family = family_of((*body.rtm_family()).into()).ok_or("route of an unknown family")?;
    if !matches!(body.rtm_type(), Rtn::Unicast | Rtn::Local | Rtn::Broadcast | Rtn::Multicast | Rtn::Anycast)
    {
        return Ok(None);
    }
    let attrs = body.rtattrs();
    let link = read(attrs, libc::RTA_OIF, number)?.map(LinkIndex);
    let several =
        read(attrs, libc::RTA_MULTIPATH, |payload| next_hops_of(payload, family))?.unwrap_or_default();
    let links = link.into_iter().chain(several.iter().map(|(link, _)| *link));
    Ok(Some(RouteLookup {
        exit: Exit::of(links),
        via: gateway(attrs, family)?.or_else(|| several.iter().find_map(|(_, via)| *via)),
        source: read(attrs, libc::RTA_PREFSRC, read_ip_of(family))?,
        metric: read(attrs, libc::RTA_PRIORITY, number)?.unwrap_or(0),
    }))
}

/// The next hops of a multipath route (`struct rtnexthop`, each followed by attributes): link and gateway.
fn next_hops_of(
    mut payload: &[u8],
    family: Family,
) -> Result<Vec<(LinkIndex, Option<IpAddr>)>, UnreadableMessage> {
    const HEADER: usize = 8;
    let mut found = Vec::new();
    while !payload.is_empty() {
        let len = usize::from(u16_at(payload, 0).ok_or("next hop cut short")?);
        let one = payload.get(..len).filter(|one| one.len() >= HEADER).ok_or("next hop of a wrong length")?;
        let link = u32_at(one, 4).map(LinkIndex).ok_or("next hop without a link")?;
        let attrs = RtBuffer::<Rta, Buffer>::from_bytes_with_input(
            &mut std::io::Cursor::new(&one[HEADER..]),
            len - HEADER,
        );
        let attrs = attrs.map_err(|error| UnreadableMessage(error.to_string().into()))?;
        found.push((link, gateway(&attrs, family)?));
        payload = payload.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(found)
}

/// A default route of the main table; `None` if it is another route.
pub(super) fn default_route(message: &Message<'_>) -> Result<Option<RouteLookup>, UnreadableMessage> {
    let body: Rtmsg = message.body_as()?;
    let is_default = *body.rtm_dst_len() == 0 && *body.rtm_type() == Rtn::Unicast;
    match route_sight(message, &NextHops::default())? {
        Sight::Present(_) if is_default => lookup(message),
        _ => Ok(None),
    }
}
