//! Checked views of packets: no code here reads past the received bytes, or trusts a length without a check.

pub(crate) mod bucket;
pub(crate) mod checksum;
pub(crate) mod icmp;
pub(crate) mod transport;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_core::addr::Family;

use self::checksum::Sum;

/// Bytes of an IPv4 header without options.
pub(crate) const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header without extension headers.
pub(crate) const IPV6_HEADER: usize = 40;

/// What is wrong with an IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderError {
    /// There are fewer bytes than a header has, or fewer than it announces.
    Truncated,
    /// The version is neither 4 nor 6.
    Version,
    /// The header's length is impossible, or larger than the packet's.
    Length,
}

/// Whether a packet is a part of a larger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// It is not a fragment.
    Whole,
    /// It is the first part, and has the transport header.
    First,
    /// It is a later part, without ports.
    Later,
}

/// The parts of an IPv4 or IPv6 header that forwarding needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct IpHeader {
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: IpAddr,
    /// Bytes before the transport header, with options or extension headers.
    pub header_len: usize,
    /// Bytes of the whole packet. The received bytes can be longer, but are never fewer.
    pub total_len: usize,
    /// The transport protocol, after all extension headers.
    pub protocol: u8,
    /// The TTL, or hop limit.
    pub hop_limit: u8,
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// IPv4's DF flag; true for IPv6, which routers don't fragment.
    pub dont_fragment: bool,
    /// Whether there are neither options nor extension headers.
    pub is_plain: bool,
}

impl IpHeader {
    /// Reads the header and checks it against the bytes at hand. Doesn't look at its checksum.
    pub fn parse(packet: &[u8]) -> Result<Self, HeaderError> {
        match packet.first().ok_or(HeaderError::Truncated)? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => Err(HeaderError::Version),
        }
    }

    /// Whether it goes to a multicast or broadcast address.
    pub fn is_to_group(&self) -> bool {
        is_group(self.destination)
    }

    /// The address family.
    pub fn family(&self) -> Family {
        Family::of(self.source)
    }

    fn parse_v4(packet: &[u8]) -> Result<Self, HeaderError> {
        if packet.len() < IPV4_HEADER {
            return Err(HeaderError::Truncated);
        }
        let header_len = usize::from(packet[0] & 0x0f) * 4;
        let total_len = usize::from(be16(packet, 2));
        if header_len < IPV4_HEADER || total_len < header_len {
            return Err(HeaderError::Length);
        }
        if packet.len() < total_len {
            return Err(HeaderError::Truncated);
        }
        let word = be16(packet, 6);
        let fragment = match (word & 0x1fff, word & 0x2000) {
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First,
            _ => Fragment::Later,
        };
        Ok(Self {
            source: Ipv4Addr::from_octets(array(packet, 12)).into(),
            destination: Ipv4Addr::from_octets(array(packet, 16)).into(),
            header_len,
            total_len,
            protocol: packet[9],
            hop_limit: packet[8],
            fragment,
            dont_fragment: word & 0x4000 != 0,
            is_plain: header_len == IPV4_HEADER,
        })
    }

    fn parse_v6(packet: &[u8]) -> Result<Self, HeaderError> {
        if packet.len() < IPV6_HEADER {
            return Err(HeaderError::Truncated);
        }
        let total_len = IPV6_HEADER + usize::from(be16(packet, 4));
        if packet.len() < total_len {
            return Err(HeaderError::Truncated);
        }
        let chain = ExtensionHeaders::walk(packet[6], &packet[..total_len]);
        Ok(Self {
            source: Ipv6Addr::from_octets(array(packet, 8)).into(),
            destination: Ipv6Addr::from_octets(array(packet, 24)).into(),
            header_len: chain.end,
            total_len,
            protocol: chain.protocol,
            hop_limit: packet[7],
            fragment: chain.fragment,
            dont_fragment: true,
            is_plain: chain.end == IPV6_HEADER,
        })
    }

    /// Whether the header's own checksum is right; IPv6 has none.
    pub(crate) fn is_intact(&self, packet: &[u8]) -> bool {
        self.family() == Family::V6 || Sum::default().bytes(&packet[..self.header_len]).is_intact()
    }

    /// The sum of the pseudo header for a transport header and payload of `len` bytes.
    ///
    /// `packet` is the one this was read from. Not for one with a source route, whose last hop counts
    /// instead.
    pub(crate) fn pseudo_sum(&self, packet: &[u8], len: usize) -> Sum {
        let addresses = if self.source.is_ipv4() { &packet[12..20] } else { &packet[8..40] };
        Sum::default()
            .bytes(addresses)
            .word(u16::from(self.protocol))
            .word((len >> 16) as u16)
            .word(len as u16)
    }
}

/// The result of following the extension headers of an IPv6 packet (RFC 8200 section 4).
///
/// An incomplete chain is not an error, since routers don't check it. It ends as "no next header".
struct ExtensionHeaders {
    protocol: u8,
    end: usize,
    fragment: Fragment,
}

impl ExtensionHeaders {
    const NO_NEXT_HEADER: u8 = 59;

    fn walk(first: u8, packet: &[u8]) -> Self {
        let mut chain = Self { protocol: first, end: IPV6_HEADER, fragment: Fragment::Whole };
        // Hosts never send more than eight.
        for _ in 0..8 {
            let Some(&[next, len, high, low]) = packet.get(chain.end..chain.end + 4) else { break };
            let bytes = match chain.protocol {
                0 | 43 | 60 | 135 => (usize::from(len) + 1) * 8,
                51 => (usize::from(len) + 2) * 4,
                44 => {
                    let word = u16::from_be_bytes([high, low]);
                    chain.fragment = match (word & 0xfff8, word & 1) {
                        (0, 0) => Fragment::Whole,
                        (0, _) => Fragment::First,
                        _ => Fragment::Later,
                    };
                    8
                }
                _ => return chain,
            };
            if chain.end + bytes > packet.len() {
                break;
            }
            (chain.protocol, chain.end) = (next, chain.end + bytes);
            if chain.fragment == Fragment::Later {
                return chain;
            }
        }
        if matches!(chain.protocol, 0 | 43 | 44 | 51 | 60 | 135) {
            chain.protocol = Self::NO_NEXT_HEADER;
        }
        chain
    }
}

/// Decrements the TTL or hop limit of a parsed packet, and updates the checksum.
///
/// A value of zero stays.
pub(crate) fn decrement_hop_limit(packet: &mut [u8]) {
    if packet[0] >> 4 == 6 {
        packet[7] = packet[7].saturating_sub(1);
        return;
    }
    let old = be16(packet, 8);
    packet[8] = packet[8].saturating_sub(1);
    let checksum = checksum::updated(be16(packet, 10), old, be16(packet, 8));
    put16(packet, 10, checksum);
}

/// Whether this can be the source address of a packet: it must be a host's, or the packet can't be answered.
pub(crate) fn is_host_source(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.octets()[0] != 0 && !addr.is_loopback() && addr.octets()[0] < 224,
        IpAddr::V6(addr) => !addr.is_unspecified() && !addr.is_loopback() && !addr.is_multicast(),
    }
}

/// Whether this is a multicast or broadcast address.
pub(crate) fn is_group(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_multicast() || addr.is_broadcast(),
        IpAddr::V6(addr) => addr.is_multicast(),
    }
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the range has N bytes")
}

#[cfg(test)]
mod tests;
