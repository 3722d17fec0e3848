//! Links, in both directions: encodes changes as requests, and decodes messages as [`Link`]. Pure.

use neli::FromBytesWithInput;
use neli::consts::nl::NlmF;
use neli::consts::rtnl::{Iff, Ifla, IflaInfo, RtAddrFamily, Rtm};
use neli::rtnl::{Ifinfomsg, IfinfomsgBuilder, Rtattr};
use neli::types::{Buffer, RtBuffer};

use super::message::{Datagram, Message, UnreadableMessage, attribute, attributes, number, string};
use super::wire::{attr, index, read_mac};
use crate::addr::{LinkIndex, MacAddr, Mtu};
use crate::kernel::{Link, LinkAttr, LinkKind, LinkOp, VxlanLink};

/// Appends the message for a change, with a request for an answer.
pub(super) fn change(datagram: &mut Datagram, op: &LinkOp, seq: u32) {
    let (kind, flags, body) = match op {
        LinkOp::Create { name, mac, mtu, kind } => {
            (Rtm::Newlink, NlmF::CREATE | NlmF::EXCL, create(name, *mac, *mtu, kind))
        }
        LinkOp::Change(link, kind) => (Rtm::Newlink, NlmF::empty(), with(*link, [link_info(kind)])),
        LinkOp::SetMtu(link, mtu) => (Rtm::Newlink, NlmF::empty(), with(*link, [attr(Ifla::Mtu, mtu.0)])),
        LinkOp::SetMac(link, mac) => (Rtm::Newlink, NlmF::empty(), with(*link, [attr(Ifla::Address, mac.0)])),
        LinkOp::SetUp(link) => (Rtm::Newlink, NlmF::empty(), of(*link).up()),
        LinkOp::Delete(link) => (Rtm::Dellink, NlmF::empty(), of(*link)),
    };
    datagram.push(kind, flags | NlmF::ACK, seq, body.build().expect("all fields are set"));
}

fn of(link: LinkIndex) -> IfinfomsgBuilder {
    IfinfomsgBuilder::default().ifi_family(RtAddrFamily::Unspecified).ifi_index(index(link))
}

fn with(link: LinkIndex, attrs: impl IntoIterator<Item = Rtattr<Ifla, Buffer>>) -> IfinfomsgBuilder {
    of(link).rtattrs(attrs.into_iter().collect())
}

/// The request for all links, without statistics, which are most of the answer.
pub(super) fn all_links() -> Ifinfomsg {
    link_of(LinkIndex(0), None)
}

/// The request for a link by name.
pub(super) fn link_named(name: &str) -> Ifinfomsg {
    link_of(LinkIndex(0), Some(name))
}

/// The request for a link by index.
pub(super) fn link_at(index: LinkIndex) -> Ifinfomsg {
    link_of(index, None)
}

fn link_of(index: LinkIndex, name: Option<&str>) -> Ifinfomsg {
    let skip_stats = attr(Ifla::ExtMask, libc::RTEXT_FILTER_SKIP_STATS.cast_unsigned());
    let name = name.map(|name| attr(Ifla::Ifname, name));
    with(index, [skip_stats].into_iter().chain(name)).build().expect("all fields are set")
}

/// A link without a queue, as Go flannel's devices are.
fn create(name: &str, mac: Option<MacAddr>, mtu: Option<Mtu>, kind: &LinkKind) -> IfinfomsgBuilder {
    let mut attrs = vec![attr(Ifla::Ifname, name)];
    attrs.extend(mtu.map(|mtu| attr(Ifla::Mtu, mtu.0)));
    attrs.extend(mac.map(|mac| attr(Ifla::Address, mac.0)));
    attrs.extend([attr(Ifla::Txqlen, 0_u32), link_info(kind)]);
    with(LinkIndex(0), attrs)
}

fn link_info(kind: &LinkKind) -> Rtattr<Ifla, Buffer> {
    let data = kind.attrs.iter().map(|own| attr(own.number, Buffer::from(own.value.as_slice())));
    let data: RtBuffer<u16, Buffer> = data.collect();
    let info: RtBuffer<IflaInfo, Buffer> =
        [attr(IflaInfo::Kind, kind.name.as_str()), attr(IflaInfo::Data, data)].into_iter().collect();
    attr(Ifla::Linkinfo, info)
}

/// The kind of a link with its attributes; `None` for hardware.
pub(super) fn kind(message: &Message<'_>) -> Result<Option<LinkKind>, UnreadableMessage> {
    let body: Ifinfomsg = message.body_as()?;
    let Some(info) = attribute(body.rtattrs(), libc::IFLA_LINKINFO).map(nested).transpose()? else {
        return Ok(None);
    };
    kind_of(&info)
}

fn kind_of(info: &RtBuffer<u16, Buffer>) -> Result<Option<LinkKind>, UnreadableMessage> {
    let Some(name) = attribute(info, libc::IFLA_INFO_KIND).map(string) else { return Ok(None) };
    let data = attribute(info, libc::IFLA_INFO_DATA).map(nested).transpose()?;
    let attrs = data.iter().flat_map(attributes).map(|(number, value)| LinkAttr::new(number, value));
    Ok(Some(LinkKind::new(name, attrs)))
}

/// A link; `None` for a message that is about a bridge port.
pub(super) fn link(message: &Message<'_>) -> Result<Option<Link>, UnreadableMessage> {
    let body: Ifinfomsg = message.body_as()?;
    if *body.ifi_family() != RtAddrFamily::Unspecified {
        return Ok(None);
    }
    let attrs = body.rtattrs();
    let info = attribute(attrs, libc::IFLA_LINKINFO).map(nested).transpose()?;
    let name = info.as_ref().and_then(|info| attribute(info, libc::IFLA_INFO_KIND)).map(string);
    // [`Link`] has no attributes of other kinds.
    let vxlan = match &info {
        Some(info) if name.as_deref() == Some(VxlanLink::KIND) => kind_of(info)?,
        _ => None,
    };
    // A message about a device that is being deleted may lack them.
    let vxlan =
        vxlan.filter(|kind| !kind.attrs.is_empty()).map(|kind| VxlanLink::of_kind(&kind)).transpose()?;
    let properties = attribute(attrs, libc::IFLA_PROP_LIST).map(nested).transpose()?;
    let altnames = properties.iter().flat_map(attributes).filter(|(kind, _)| *kind == libc::IFLA_ALT_IFNAME);
    Ok(Some(Link {
        index: index_of(&body)?,
        name: attribute(attrs, libc::IFLA_IFNAME).map(string).ok_or("link without a name")?,
        altnames: altnames.map(|(_, name)| string(name)).collect(),
        kind: name,
        master: attribute(attrs, libc::IFLA_MASTER).map(number).transpose()?.map(LinkIndex),
        mac: attribute(attrs, libc::IFLA_ADDRESS).and_then(read_mac),
        mtu: Mtu(attribute(attrs, libc::IFLA_MTU).map_or(Ok(0), number)?),
        up: body.ifi_flags().contains(Iff::UP),
        carrier: body.ifi_flags().contains(Iff::LOWERUP),
        loopback: body.ifi_flags().contains(Iff::LOOPBACK),
        vxlan,
    }))
}

/// The link that is gone; `None` for a message that is about a bridge port.
pub(super) fn gone(message: &Message<'_>) -> Result<Option<(LinkIndex, String)>, UnreadableMessage> {
    let body: Ifinfomsg = message.body_as()?;
    if *body.ifi_family() != RtAddrFamily::Unspecified {
        return Ok(None);
    }
    let name = attribute(body.rtattrs(), libc::IFLA_IFNAME).map(string).unwrap_or_default();
    Ok(Some((index_of(&body)?, name)))
}

fn index_of(body: &Ifinfomsg) -> Result<LinkIndex, UnreadableMessage> {
    u32::try_from(*body.ifi_index()).map(LinkIndex).map_err(|_| "negative link index".into())
}

fn nested(payload: &[u8]) -> Result<RtBuffer<u16, Buffer>, UnreadableMessage> {
    RtBuffer::from_bytes_with_input(&mut std::io::Cursor::new(payload), payload.len())
        .map_err(|error| UnreadableMessage(error.to_string().into()))
}
