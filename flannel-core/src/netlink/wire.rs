//! Parts of messages about routes, neighbours and next hops, in both directions: constants that neli lacks, families,
//! addresses, attributes. Pure, and never panics.

use std::net::IpAddr;

use neli::consts::rtnl::{RtAddrFamily, RtaType};
use neli::rtnl::{Rtattr, RtattrBuilder};
use neli::types::Buffer;
use neli::{Size, ToBytes};

use super::message::UnreadableMessage;
use crate::addr::{Family, LinkIndex, MacAddr};

/// `AF_BRIDGE`: the family of FDB entries.
pub(super) const AF_BRIDGE: u8 = 7;
/// `RTNH_F_ONLINK` in `rtm_flags`. Not in neli, whose `From` would drop it.
pub(super) const RTNH_F_ONLINK: u32 = 4;
/// `RTA_VIA`: a gateway of another family than the route's.
pub(super) const RTA_VIA: u16 = 18;
/// `RTA_PREF`: the router preference of an IPv6 route.
pub(super) const RTA_PREF: u16 = 20;
/// `RTAX_LOCK` in `RTA_METRICS`: a bit for the number of each metric that is locked.
pub(super) const RTAX_LOCK: u16 = 1;
/// `RTAX_MTU` in `RTA_METRICS`.
pub(super) const RTAX_MTU: u16 = 2;
/// `RTA_NH_ID`: the id of a next-hop object.
pub(super) const RTA_NH_ID: u16 = 30;

/// The kernel's number of a family.
pub(super) fn family(family: Family) -> RtAddrFamily {
    match family {
        Family::V4 => RtAddrFamily::Inet,
        Family::V6 => RtAddrFamily::Inet6,
    }
}

/// The family of a kernel number, of those that we handle.
pub(super) fn family_of(number: u8) -> Option<Family> {
    match i32::from(number) {
        libc::AF_INET => Some(Family::V4),
        libc::AF_INET6 => Some(Family::V6),
        _ => None,
    }
}

/// An attribute.
pub(super) fn attr<T: RtaType, P: Size + ToBytes>(kind: T, payload: P) -> Rtattr<T, Buffer> {
    RtattrBuilder::default()
        .rta_type(kind)
        .rta_payload(payload)
        .build()
        .expect("both fields are set and memory can be written")
}

/// The bytes of an address, as attributes carry it.
pub(super) fn ip(addr: IpAddr) -> Buffer {
    match addr {
        IpAddr::V4(addr) => Buffer::from(addr.octets().as_slice()),
        IpAddr::V6(addr) => Buffer::from(addr.octets().as_slice()),
    }
}

/// Reads an address of either family.
pub(super) fn read_ip(payload: &[u8]) -> Result<IpAddr, UnreadableMessage> {
    let v4 = || <[u8; 4]>::try_from(payload).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(payload).map(IpAddr::from);
    v4().or_else(|_| v6()).map_err(|_| "attribute is no IP address".into())
}

/// Reads an address of one family.
pub(super) fn read_ip_of(family: Family) -> impl Fn(&[u8]) -> Result<IpAddr, UnreadableMessage> {
    move |payload| {
        let addr = read_ip(payload)?;
        if Family::of(addr) == family { Ok(addr) } else { Err("address of another family".into()) }
    }
}

/// Reads a MAC; `None` if the hardware address has not 48 bits.
pub(super) fn read_mac(payload: &[u8]) -> Option<MacAddr> {
    payload.try_into().ok().map(MacAddr)
}

/// A link index for a signed field of the kernel. Real indices are small and positive.
pub(super) fn index(link: LinkIndex) -> i32 {
    link.0.cast_signed()
}
