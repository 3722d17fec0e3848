//! Errors of ICMP and `ICMPv6` as routers send them (RFC 792, RFC 1812 section 4.3.2, RFC 4443).

use std::net::IpAddr;

use flannel_core::addr::Mtu;

use super::checksum::Sum;
use super::transport::{ICMP, ICMPV6};
use super::{Fragment, IPV4_HEADER, IPV6_HEADER, IpHeader, is_group, is_host_source, put16, put32};

/// What is reported to the sender of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IcmpError {
    /// The TTL or hop limit ran out here.
    TimeExceeded,
    /// No peer has this destination.
    NoRoute,
    /// The destination is in our own subnet, but no pod or host here has it.
    HostUnreachable,
    /// The packet is larger than this, and may not be fragmented.
    TooBig(Mtu),
}

/// The largest error in bytes, which is IPv6's minimum MTU (RFC 4443 section 2.4 c).
pub(crate) const MAX_ERROR: usize = 1280;
/// The largest IPv4 error (RFC 1812 section 4.3.2.3).
const MAX_ERROR_V4: usize = 576;
const ICMP_HEADER: usize = 8;
/// Our errors' own TTL.
const HOP_LIMIT: u8 = 64;

impl IcmpError {
    /// Type, code and the second word of the ICMP header.
    fn code(self, v4: bool) -> (u8, u8, u32) {
        match (self, v4) {
            (Self::TimeExceeded, true) => (11, 0, 0),
            (Self::NoRoute, true) => (3, 0, 0),
            (Self::HostUnreachable, true) => (3, 1, 0),
            (Self::TooBig(mtu), true) => (3, 4, mtu.0.min(0xffff)),
            (Self::TimeExceeded, false) => (3, 0, 0),
            (Self::NoRoute, false) => (1, 0, 0),
            (Self::HostUnreachable, false) => (1, 3, 0),
            (Self::TooBig(mtu), false) => (2, 0, mtu.0),
        }
    }
}

/// Whether a packet may be answered with an error at all (RFC 1812 section 4.3.2.7, RFC 4443 section 2.4 e).
///
/// Never about errors, later fragments, groups, or packets whose source isn't one host. Unlike Go flannel,
/// which leaves every ICMP packet unanswered, echoes are answered.
pub(crate) fn may_answer(error: IcmpError, packet: &[u8], ip: &IpHeader) -> bool {
    let to_group =
        is_group(ip.destination) && !(ip.destination.is_ipv6() && matches!(error, IcmpError::TooBig(_)));
    if ip.fragment == Fragment::Later || !is_host_source(ip.source) || to_group {
        return false;
    }
    let kind = packet[..ip.total_len].get(ip.header_len).copied();
    match ip.protocol {
        ICMP if ip.source.is_ipv4() => matches!(kind, Some(0 | 8 | 13 | 14 | 15 | 16)),
        ICMPV6 if ip.source.is_ipv6() => kind.is_some_and(|kind| kind >= 128),
        _ => true,
    }
}

/// Writes the error about `packet` into `out` and returns its length; `None` if there must not be one,
/// or `from` is of the other family.
///
/// `from` is our own address: this node's in the overlay.
pub(crate) fn build(
    error: IcmpError,
    packet: &[u8],
    ip: &IpHeader,
    from: IpAddr,
    out: &mut [u8; MAX_ERROR],
) -> Option<usize> {
    if !may_answer(error, packet, ip) {
        return None;
    }
    let packet = &packet[..ip.total_len];
    match (from, ip.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let quoted = packet.len().min(MAX_ERROR_V4 - IPV4_HEADER - ICMP_HEADER);
            let total = IPV4_HEADER + ICMP_HEADER + quoted;
            let (header, body) = out[..total].split_at_mut(IPV4_HEADER);
            header.fill(0);
            header[0] = 0x45;
            header[1] = 0xc0; // internetwork control, as Linux marks its own
            put16(header, 2, total as u16);
            header[8] = HOP_LIMIT;
            header[9] = ICMP;
            header[12..16].copy_from_slice(&from.octets());
            header[16..20].copy_from_slice(&to.octets());
            let checksum = Sum::default().bytes(header).checksum();
            put16(header, 10, checksum);
            fill(error.code(true), &packet[..quoted], Sum::default(), body);
            Some(total)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let quoted = packet.len().min(MAX_ERROR - IPV6_HEADER - ICMP_HEADER);
            let len = ICMP_HEADER + quoted;
            let (header, body) = out[..IPV6_HEADER + len].split_at_mut(IPV6_HEADER);
            header.fill(0);
            header[0] = 0x60;
            put16(header, 4, len as u16);
            header[6] = ICMPV6;
            header[7] = HOP_LIMIT;
            header[8..24].copy_from_slice(&from.octets());
            header[24..40].copy_from_slice(&to.octets());
            let pseudo = Sum::default().bytes(&header[8..40]).word(len as u16).word(ICMPV6.into());
            fill(error.code(false), &packet[..quoted], pseudo, body);
            Some(IPV6_HEADER + len)
        }
        _ => None,
    }
}

fn fill((kind, code, word): (u8, u8, u32), quoted: &[u8], pseudo: Sum, body: &mut [u8]) {
    body[..ICMP_HEADER].copy_from_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
    put32(body, 4, word);
    body[ICMP_HEADER..].copy_from_slice(quoted);
    let checksum = pseudo.bytes(body).checksum();
    put16(body, 2, checksum);
}
