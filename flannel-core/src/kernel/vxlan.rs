//! The attributes of a VXLAN device (`IFLA_VXLAN_*` of `linux/if_link.h`), in both directions. Pure.
//!
//! Backends bring kinds of their own ([`LinkKind`]). Core knows this one because it recognises the device of an earlier
//! VXLAN backend by its VNI, whichever backend runs now.

use std::net::IpAddr;

use super::{LinkAttr, LinkKind};
use crate::addr::{LinkIndex, Vni};

const ID: u16 = 1;
const GROUP: u16 = 2;
const LINK: u16 = 3;
const LOCAL: u16 = 4;
const TTL: u16 = 5;
const TOS: u16 = 6;
const LEARNING: u16 = 7;
const LIMIT: u16 = 9;
const PORT_RANGE: u16 = 10;
const PROXY: u16 = 11;
const RSC: u16 = 12;
const L2MISS: u16 = 13;
const L3MISS: u16 = 14;
const PORT: u16 = 15;
const GROUP6: u16 = 16;
const LOCAL6: u16 = 17;
const UDP_CSUM: u16 = 18;
const UDP_ZERO_CSUM6_TX: u16 = 19;
const UDP_ZERO_CSUM6_RX: u16 = 20;
const REMCSUM_TX: u16 = 21;
const REMCSUM_RX: u16 = 22;
const GBP: u16 = 23;
const REMCSUM_NOPARTIAL: u16 = 24;
const COLLECT_METADATA: u16 = 25;
const LABEL: u16 = 26;
const GPE: u16 = 27;
const TTL_INHERIT: u16 = 28;
const DF: u16 = 29;
const VNIFILTER: u16 = 30;
const LOCALBYPASS: u16 = 31;
const LABEL_POLICY: u16 = 32;
const MC_ROUTE: u16 = 34;

/// The attributes of a VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanLink {
    /// `IFLA_VXLAN_ID`.
    pub vni: Vni,
    /// UDP destination port. The kernel's default is 8472.
    pub port: u16,
    /// The source address of outer packets.
    pub local: Option<IpAddr>,
    /// The underlay link.
    pub lower: Option<LinkIndex>,
    /// Whether the device learns FDB entries from traffic.
    pub learning: bool,
    /// Whether group-based policy marks are carried.
    pub gbp: bool,
    /// Whether an attribute is set that we never set: a group or default remote, proxy, RSC, L2/L3 miss, metadata
    /// collection, a fixed TTL or TOS, no UDP checksums, a source port range ..
    pub foreign: bool,
}

impl VxlanLink {
    /// The kernel's name of the kind.
    pub const KIND: &str = "vxlan";

    /// The attributes with which to create the device, those of Go flannel (`pkg/backend/vxlan/device.go`,
    /// `newVXLANDevice`). `foreign` is ignored.
    pub fn to_kind(&self) -> LinkKind {
        let mut attrs = vec![LinkAttr::new(ID, self.vni.get().to_ne_bytes())];
        attrs.extend(self.lower.map(|lower| LinkAttr::new(LINK, lower.0.to_ne_bytes())));
        attrs.extend(self.local.map(local));
        attrs.push(LinkAttr::new(PORT, self.port.to_be_bytes()));
        attrs.push(LinkAttr::new(LEARNING, [u8::from(self.learning)]));
        let off = [TTL, TOS, PROXY, RSC, L2MISS, L3MISS, UDP_ZERO_CSUM6_TX, UDP_ZERO_CSUM6_RX];
        attrs.extend(off.map(|off| LinkAttr::new(off, [0])));
        // A flag: its presence is the value.
        attrs.extend(self.gbp.then(|| LinkAttr::new(GBP, [])));
        LinkKind::new(Self::KIND, attrs)
    }

    /// The attributes with which to change `learning` and `local`: the kernel can't change the others. It keeps
    /// attributes that are not named, so a local address stays if there is none here. The VNI is a safeguard: if
    /// another device has the index by now, the kernel refuses.
    pub fn to_change(&self) -> LinkKind {
        let mut attrs = vec![
            LinkAttr::new(ID, self.vni.get().to_ne_bytes()),
            LinkAttr::new(LEARNING, [u8::from(self.learning)]),
        ];
        attrs.extend(self.local.map(local));
        LinkKind::new(Self::KIND, attrs)
    }

    /// Reads the attributes of a device from the kernel. An error says what is wrong with them.
    pub(crate) fn of_kind(kind: &LinkKind) -> Result<Self, &'static str> {
        let flag = |number| kind.get(number).is_some_and(is_set);
        let word = |number| match kind.get(number) {
            Some(value) => {
                value.try_into().map(u32::from_ne_bytes).map_err(|_| "attribute is no 32-bit number")
            }
            None => Ok(0),
        };
        let port = kind.get(PORT).and_then(|port| port.try_into().ok()).map(u16::from_be_bytes);
        let v4 = kind.get(LOCAL).and_then(|addr| <[u8; 4]>::try_from(addr).ok()).map(IpAddr::from);
        let v6 = kind.get(LOCAL6).and_then(|addr| <[u8; 16]>::try_from(addr).ok()).map(IpAddr::from);
        Ok(Self {
            vni: Vni::new(word(ID)?).map_err(|_| "VNI out of range")?,
            port: port.ok_or("VXLAN device without a port")?,
            local: v4.or(v6),
            lower: Some(word(LINK)?).filter(|link| *link != 0).map(LinkIndex),
            learning: flag(LEARNING),
            gbp: kind.get(GBP).is_some(),
            foreign: kind.attrs.iter().any(is_foreign),
        })
    }
}

/// The attributes in the words of `ip link`; `None` if there is one that we never set.
pub(super) fn words(kind: &LinkKind, link: impl Fn(LinkIndex) -> String) -> Option<String> {
    let words = kind.attrs.iter().map(|LinkAttr { number, value }| {
        let word = || Some(u32::from_ne_bytes(value.as_slice().try_into().ok()?));
        Some(match *number {
            ID => format!(" id {}", word()?),
            LINK => format!(" dev {}", link(LinkIndex(word()?))),
            LOCAL => format!(" local {}", IpAddr::from(<[u8; 4]>::try_from(value.as_slice()).ok()?)),
            LOCAL6 => format!(" local {}", IpAddr::from(<[u8; 16]>::try_from(value.as_slice()).ok()?)),
            PORT => format!(" dstport {}", u16::from_be_bytes(value.as_slice().try_into().ok()?)),
            LEARNING => if is_set(value) { " learning" } else { " nolearning" }.to_owned(),
            GBP => " gbp".to_owned(),
            _ if is_set(value) => return None,
            _ => String::new(),
        })
    });
    words.collect()
}

fn local(addr: IpAddr) -> LinkAttr {
    match addr {
        IpAddr::V4(addr) => LinkAttr::new(LOCAL, addr.octets()),
        IpAddr::V6(addr) => LinkAttr::new(LOCAL6, addr.octets()),
    }
}

fn is_set(payload: &[u8]) -> bool {
    payload.iter().any(|byte| *byte != 0)
}

/// Whether an attribute has a value that we never set. Attributes that do not affect our packets (ageing), and those
/// that this code does not know, don't count.
fn is_foreign(attr: &LinkAttr) -> bool {
    match attr.number {
        GROUP | GROUP6 | GPE | REMCSUM_NOPARTIAL => true,
        // On unless switched off.
        UDP_CSUM | LOCALBYPASS => !is_set(&attr.value),
        TTL | TTL_INHERIT | TOS | DF | LABEL | LABEL_POLICY | LIMIT | PORT_RANGE | PROXY | RSC | L2MISS
        | L3MISS | UDP_ZERO_CSUM6_TX | UDP_ZERO_CSUM6_RX | REMCSUM_TX | REMCSUM_RX | COLLECT_METADATA
        | VNIFILTER | MC_ROUTE => is_set(&attr.value),
        _ => false,
    }
}
