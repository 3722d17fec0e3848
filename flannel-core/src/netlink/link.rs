//! Links, in both directions: changes -> request messages, messages -> [`Link`]. Pure.

use std::net::IpAddr;

use neli::FromBytesWithInput;
use neli::consts::nl::NlmF;
use neli::consts::rtnl::{Iff, Ifla, IflaInfo, RtAddrFamily, Rtm};
use neli::rtnl::{Ifinfomsg, IfinfomsgBuilder, Rtattr};
use neli::types::{Buffer, RtBuffer};

use super::message::{Datagram, Message, Undecodable, attribute, attributes, number, string};
use super::wire::{attr, index, ip, read_mac};
use crate::addr::{LinkIndex, MacAddr, Mtu, Vni};
use crate::kernel::{Link, LinkOp, VxlanLink};

/// The kind of our devices (`IFLA_INFO_KIND`).
const VXLAN: &str = "vxlan";

/// `IFLA_VXLAN_*` of `linux/if_link.h`, which neli lacks.
mod vxlan {
    pub(super) const ID: u16 = 1;
    pub(super) const GROUP: u16 = 2;
    pub(super) const LINK: u16 = 3;
    pub(super) const LOCAL: u16 = 4;
    pub(super) const TTL: u16 = 5;
    pub(super) const TOS: u16 = 6;
    pub(super) const LEARNING: u16 = 7;
    pub(super) const LIMIT: u16 = 9;
    pub(super) const PORT_RANGE: u16 = 10;
    pub(super) const PROXY: u16 = 11;
    pub(super) const RSC: u16 = 12;
    pub(super) const L2MISS: u16 = 13;
    pub(super) const L3MISS: u16 = 14;
    pub(super) const PORT: u16 = 15;
    pub(super) const GROUP6: u16 = 16;
    pub(super) const LOCAL6: u16 = 17;
    pub(super) const UDP_CSUM: u16 = 18;
    pub(super) const UDP_ZERO_CSUM6_TX: u16 = 19;
    pub(super) const UDP_ZERO_CSUM6_RX: u16 = 20;
    pub(super) const REMCSUM_TX: u16 = 21;
    pub(super) const REMCSUM_RX: u16 = 22;
    pub(super) const GBP: u16 = 23;
    pub(super) const REMCSUM_NOPARTIAL: u16 = 24;
    pub(super) const COLLECT_METADATA: u16 = 25;
    pub(super) const LABEL: u16 = 26;
    pub(super) const GPE: u16 = 27;
    pub(super) const TTL_INHERIT: u16 = 28;
    pub(super) const DF: u16 = 29;
    pub(super) const VNIFILTER: u16 = 30;
    pub(super) const LOCALBYPASS: u16 = 31;
    pub(super) const LABEL_POLICY: u16 = 32;
    pub(super) const MC_ROUTE: u16 = 34;
}

/// Appends the message for a change, with a request for an answer.
pub(super) fn change(datagram: &mut Datagram, op: &LinkOp, seq: u32) {
    let (kind, flags, body) = match op {
        LinkOp::CreateVxlan { name, mac, mtu, vxlan } => {
            (Rtm::Newlink, NlmF::CREATE | NlmF::EXCL, create_vxlan(name, *mac, *mtu, vxlan))
        }
        LinkOp::ChangeVxlan(link, vxlan) => (Rtm::Newlink, NlmF::empty(), change_vxlan(*link, vxlan)),
        LinkOp::SetMtu(link, mtu) => (Rtm::Newlink, NlmF::empty(), with(*link, [attr(Ifla::Mtu, mtu.0)])),
        LinkOp::SetMac(link, mac) => (Rtm::Newlink, NlmF::empty(), with(*link, [attr(Ifla::Address, mac.0)])),
        LinkOp::SetUp(link) => (Rtm::Newlink, NlmF::empty(), of(*link).up()),
        LinkOp::Delete(link) => (Rtm::Dellink, NlmF::empty(), of(*link)),
    };
    datagram.push(kind, flags | NlmF::ACK, seq, body.build().expect("all fields are set"));
}

/// What a change does, for errors: a verb phrase.
pub(super) fn describe(op: &LinkOp) -> String {
    match op {
        LinkOp::CreateVxlan { name, .. } => format!("create link {name}"),
        LinkOp::ChangeVxlan(link, _) => format!("change the VXLAN attributes of link {link}"),
        LinkOp::SetMtu(link, mtu) => format!("set the MTU of link {link} to {mtu}"),
        LinkOp::SetMac(link, mac) => format!("set the MAC of link {link} to {mac}"),
        LinkOp::SetUp(link) => format!("set link {link} up"),
        LinkOp::Delete(link) => format!("delete link {link}"),
    }
}

fn of(link: LinkIndex) -> IfinfomsgBuilder {
    IfinfomsgBuilder::default().ifi_family(RtAddrFamily::Unspecified).ifi_index(index(link))
}

fn with(link: LinkIndex, attrs: impl IntoIterator<Item = Rtattr<Ifla, Buffer>>) -> IfinfomsgBuilder {
    of(link).rtattrs(attrs.into_iter().collect())
}

/// What to read all links by. Statistics are left out, being most of it.
pub(super) fn all_links() -> Ifinfomsg {
    link_of(LinkIndex(0), None)
}

/// What to read the link of a name by.
pub(super) fn link_named(name: &str) -> Ifinfomsg {
    link_of(LinkIndex(0), Some(name))
}

/// What to read the link of a number by.
pub(super) fn link_at(index: LinkIndex) -> Ifinfomsg {
    link_of(index, None)
}

fn link_of(index: LinkIndex, name: Option<&str>) -> Ifinfomsg {
    let skip_stats = attr(Ifla::ExtMask, libc::RTEXT_FILTER_SKIP_STATS.cast_unsigned());
    let name = name.map(|name| attr(Ifla::Ifname, name));
    with(index, [skip_stats].into_iter().chain(name)).build().expect("all fields are set")
}

/// The attributes of Go flannel's devices (pkg/backend/vxlan/device.go, newVXLANDevice).
fn create_vxlan(name: &str, mac: MacAddr, mtu: Mtu, link: &VxlanLink) -> IfinfomsgBuilder {
    let mut data = vec![attr(vxlan::ID, link.vni.get())];
    data.extend(link.lower.map(|lower| attr(vxlan::LINK, lower.0)));
    data.extend(link.local.map(local));
    data.push(attr(vxlan::PORT, link.port.to_be_bytes()));
    data.push(attr(vxlan::LEARNING, u8::from(link.learning)));
    for off in [vxlan::TTL, vxlan::TOS, vxlan::PROXY, vxlan::RSC, vxlan::L2MISS, vxlan::L3MISS] {
        data.push(attr(off, 0_u8));
    }
    for off in [vxlan::UDP_ZERO_CSUM6_TX, vxlan::UDP_ZERO_CSUM6_RX] {
        data.push(attr(off, 0_u8));
    }
    if link.gbp {
        data.push(attr(vxlan::GBP, ())); // its presence says it
    }
    let attrs = [
        attr(Ifla::Ifname, name),
        attr(Ifla::Mtu, mtu.0),
        attr(Ifla::Address, mac.0),
        attr(Ifla::Txqlen, 0_u32),
        link_info(data),
    ];
    with(LinkIndex(0), attrs)
}

/// The kernel keeps what is not named, so only what may change is sent, and a local address that is absent
/// here stays. The VNI is there as a safeguard: if the index now is another device's, the kernel refuses.
fn change_vxlan(index: LinkIndex, link: &VxlanLink) -> IfinfomsgBuilder {
    let mut data = vec![attr(vxlan::ID, link.vni.get()), attr(vxlan::LEARNING, u8::from(link.learning))];
    data.extend(link.local.map(local));
    with(index, [link_info(data)])
}

fn local(addr: IpAddr) -> Rtattr<u16, Buffer> {
    attr(if addr.is_ipv4() { vxlan::LOCAL } else { vxlan::LOCAL6 }, ip(addr))
}

fn link_info(data: Vec<Rtattr<u16, Buffer>>) -> Rtattr<Ifla, Buffer> {
    let data: RtBuffer<u16, Buffer> = data.into_iter().collect();
    let info: RtBuffer<IflaInfo, Buffer> =
        [attr(IflaInfo::Kind, VXLAN), attr(IflaInfo::Data, data)].into_iter().collect();
    attr(Ifla::Linkinfo, info)
}

/// A link; `None` for a message that is about a bridge port.
pub(super) fn link(message: &Message<'_>) -> Result<Option<Link>, Undecodable> {
    let body: Ifinfomsg = message.body_as()?;
    if *body.ifi_family() != RtAddrFamily::Unspecified {
        return Ok(None);
    }
    let attrs = body.rtattrs();
    let info = attribute(attrs, libc::IFLA_LINKINFO).map(nested).transpose()?;
    let info = |number| info.as_ref().and_then(|info| attribute(info, number));
    let kind = info(libc::IFLA_INFO_KIND).map(string);
    let vxlan = match (kind.as_deref(), info(libc::IFLA_INFO_DATA)) {
        (Some(VXLAN), Some(data)) => Some(vxlan_link(&nested(data)?)?),
        _ => None,
    };
    let properties = attribute(attrs, libc::IFLA_PROP_LIST).map(nested).transpose()?;
    let altnames = properties.iter().flat_map(attributes).filter(|(kind, _)| *kind == libc::IFLA_ALT_IFNAME);
    Ok(Some(Link {
        index: index_of(&body)?,
        name: attribute(attrs, libc::IFLA_IFNAME).map(string).ok_or("link without a name")?,
        altnames: altnames.map(|(_, name)| string(name)).collect(),
        kind,
        master: attribute(attrs, libc::IFLA_MASTER).map(number).transpose()?.map(LinkIndex),
        mac: attribute(attrs, libc::IFLA_ADDRESS).and_then(read_mac),
        mtu: Mtu(attribute(attrs, libc::IFLA_MTU).map_or(Ok(0), number)?),
        up: body.ifi_flags().contains(Iff::UP),
        carrier: body.ifi_flags().contains(Iff::LOWERUP),
        loopback: body.ifi_flags().contains(Iff::LOOPBACK),
        vxlan,
    }))
}

/// Which link is gone; `None` for a message that is about a bridge port.
pub(super) fn gone(message: &Message<'_>) -> Result<Option<(LinkIndex, String)>, Undecodable> {
    let body: Ifinfomsg = message.body_as()?;
    if *body.ifi_family() != RtAddrFamily::Unspecified {
        return Ok(None);
    }
    let name = attribute(body.rtattrs(), libc::IFLA_IFNAME).map(string).unwrap_or_default();
    Ok(Some((index_of(&body)?, name)))
}

fn index_of(body: &Ifinfomsg) -> Result<LinkIndex, Undecodable> {
    u32::try_from(*body.ifi_index()).map(LinkIndex).map_err(|_| "negative link index".into())
}

fn nested(payload: &[u8]) -> Result<RtBuffer<u16, Buffer>, Undecodable> {
    RtBuffer::from_bytes_with_input(&mut std::io::Cursor::new(payload), payload.len())
        .map_err(|error| Undecodable(error.to_string().into()))
}

fn vxlan_link(data: &RtBuffer<u16, Buffer>) -> Result<VxlanLink, Undecodable> {
    let flag = |number| attribute(data, number).is_some_and(is_set);
    let vni = attribute(data, vxlan::ID).map_or(Ok(0), number)?;
    let port = attribute(data, vxlan::PORT).and_then(|port| port.try_into().ok()).map(u16::from_be_bytes);
    let v4 = attribute(data, vxlan::LOCAL).and_then(|addr| <[u8; 4]>::try_from(addr).ok()).map(IpAddr::from);
    let v6 =
        attribute(data, vxlan::LOCAL6).and_then(|addr| <[u8; 16]>::try_from(addr).ok()).map(IpAddr::from);
    Ok(VxlanLink {
        vni: Vni::new(vni).map_err(|_| "VNI out of range")?,
        port: port.ok_or("VXLAN device without a port")?,
        local: v4.or(v6),
        lower: attribute(data, vxlan::LINK).map(number).transpose()?.filter(|link| *link != 0).map(LinkIndex),
        learning: flag(vxlan::LEARNING),
        gbp: attribute(data, vxlan::GBP).is_some(),
        foreign: attributes(data).any(|(kind, value)| is_foreign(kind, value)),
    })
}

fn is_set(payload: &[u8]) -> bool {
    payload.iter().any(|byte| *byte != 0)
}

/// Whether an attribute has a value that we never give it. Those that change no packet of ours (ageing)
/// and those that this code does not know count as ours.
fn is_foreign(kind: u16, value: &[u8]) -> bool {
    match kind {
        vxlan::GROUP | vxlan::GROUP6 | vxlan::GPE | vxlan::REMCSUM_NOPARTIAL => true,
        // On unless switched off.
        vxlan::UDP_CSUM | vxlan::LOCALBYPASS => !is_set(value),
        vxlan::TTL
        | vxlan::TTL_INHERIT
        | vxlan::TOS
        | vxlan::DF
        | vxlan::LABEL
        | vxlan::LABEL_POLICY
        | vxlan::LIMIT
        | vxlan::PORT_RANGE
        | vxlan::PROXY
        | vxlan::RSC
        | vxlan::L2MISS
        | vxlan::L3MISS
        | vxlan::UDP_ZERO_CSUM6_TX
        | vxlan::UDP_ZERO_CSUM6_RX
        | vxlan::REMCSUM_TX
        | vxlan::REMCSUM_RX
        | vxlan::COLLECT_METADATA
        | vxlan::VNIFILTER
        | vxlan::MC_ROUTE => is_set(value),
        _ => false,
    }
}
