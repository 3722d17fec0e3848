//! Cuts super-packets from the TUN into the packets that go on the wire.
//!
//! The kernel passes up to 64 KB of one TCP or UDP flow with one set of headers. Each segment needs its own headers,
//! but its payload is not copied: a segment is a rebuilt header and a range of the super-packet. This module also
//! completes checksums that the kernel left to the device.

use std::ops::Range;

use flannel_core::addr::Family;

use crate::packet::checksum::Sum;
use crate::packet::transport::{TCP, TcpHeader, UDP, UDP_HEADER, flags};
use crate::packet::{Fragment, IPV6_HEADER, IpHeader, be16, put16, put32};
use crate::vnet::VnetHeader;

/// Room for the headers of any super-packet that is cut: IP with options or extension headers, and TCP.
pub(crate) const MAX_HEADERS: usize = 192;

/// The smallest payload of a segment, in bytes: the kernel's smallest MSS of 48 bytes less 40 of TCP options.
pub(crate) const MIN_SEGMENT: usize = 8;
/// The most segments of one super-packet, or datagrams of one train. The kernel makes up to 128; TCP with an MSS below
/// 128 can have more, and after a loss has fewer.
pub(crate) const MAX_SEGMENTS: usize = 512;

/// Whether to cut `len` bytes into segments of `size`. Each segment costs as much as a packet, so one super-packet of
/// 64 KiB in segments of one byte would delay all others by milliseconds.
pub(crate) fn is_worth_cutting(len: usize, size: usize) -> bool {
    len <= size || size >= MIN_SEGMENT && len.div_ceil(size) <= MAX_SEGMENTS
}

/// What is wrong with a packet's offload header, or with the packet it describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentError {
    /// A kind of super-packet that we never asked for.
    UnknownKind,
    /// The kind contradicts the IP header.
    WrongProtocol,
    /// The segment size is zero.
    NoSegmentSize,
    /// Segments below [`MIN_SEGMENT`] bytes, or more than [`MAX_SEGMENTS`] of them.
    TinySegments,
    /// A super-packet that is a fragment.
    Fragment,
    /// The transport header is incomplete, or its length is wrong.
    TransportHeader,
    /// There are more headers than [`MAX_HEADERS`].
    HeadersTooLong,
    /// The checksum's field is outside the packet.
    ChecksumPlace,
}

/// What becomes of one packet from the TUN.
#[derive(Debug)]
pub(crate) enum Cut {
    /// It is sent as it is; its checksum is complete now.
    Whole,
    /// It is sent in segments.
    Segments(Segments),
}

/// Completes or cuts the packet that `vnet` describes. `ip` was parsed from it, and it is `total_len` long.
pub(crate) fn cut(vnet: VnetHeader, packet: &mut [u8], ip: &IpHeader) -> Result<Cut, SegmentError> {
    let kind = match vnet.gso_type & !VnetHeader::GSO_ECN {
        VnetHeader::GSO_NONE => {
            complete(vnet, packet, ip)?;
            return Ok(Cut::Whole);
        }
        VnetHeader::GSO_TCPV4 if ip.family() == Family::V4 => TCP,
        VnetHeader::GSO_TCPV6 if ip.family() == Family::V6 => TCP,
        VnetHeader::GSO_UDP_L4 => UDP,
        VnetHeader::GSO_TCPV4 | VnetHeader::GSO_TCPV6 => return Err(SegmentError::WrongProtocol),
        _ => return Err(SegmentError::UnknownKind),
    };
    if ip.protocol != kind {
        return Err(SegmentError::WrongProtocol);
    }
    if ip.fragment != Fragment::Whole {
        return Err(SegmentError::Fragment);
    }
    Segments::new(vnet, packet, ip).map(Cut::Segments)
}

fn complete(vnet: VnetHeader, packet: &mut [u8], ip: &IpHeader) -> Result<(), SegmentError> {
    if vnet.flags & VnetHeader::NEEDS_CHECKSUM == 0 {
        return Ok(());
    }
    let start = usize::from(vnet.csum_start);
    let field = start + usize::from(vnet.csum_offset);
    if start < ip.header_len || field + 2 > packet.len() {
        return Err(SegmentError::ChecksumPlace);
    }
    let mut checksum = Sum::default().bytes(&packet[start..]).checksum();
    if checksum == 0 && ip.protocol == UDP {
        checksum = 0xffff; // zero would mean "none" (RFC 768)
    }
    put16(packet, field, checksum);
    Ok(())
}

/// The parts of a super-packet, in order.
#[derive(Debug)]
pub(crate) struct Segments {
    ip: IpHeader,
    header_len: usize,
    total_len: usize,
    gso_size: usize,
    sequence: u32,
    identification: u16,
    flags: u8,
    count: usize,
    next: usize,
    /// The kernel's sum of the pseudo header without the length. It is used for packets with options or extension
    /// headers, one of which may be a source route: then its last hop counts instead of the destination.
    pseudo: Option<Sum>,
}

impl Segments {
    fn new(vnet: VnetHeader, packet: &[u8], ip: &IpHeader) -> Result<Self, SegmentError> {
        let gso_size = usize::from(vnet.gso_size);
        if gso_size == 0 {
            return Err(SegmentError::NoSegmentSize);
        }
        let transport = &packet[ip.header_len..];
        let (transport_len, sequence, flags) = if ip.protocol == TCP {
            let tcp = TcpHeader::parse(transport).ok_or(SegmentError::TransportHeader)?;
            (tcp.header_len, tcp.sequence, tcp.flags)
        } else if transport.len() >= UDP_HEADER {
            (UDP_HEADER, 0, 0)
        } else {
            return Err(SegmentError::TransportHeader);
        };
        let header_len = ip.header_len + transport_len;
        if header_len > MAX_HEADERS {
            return Err(SegmentError::HeadersTooLong);
        }
        let payload = packet.len() - header_len;
        if !is_worth_cutting(payload, gso_size) {
            return Err(SegmentError::TinySegments);
        }
        let partial =
            vnet.flags & VnetHeader::NEEDS_CHECKSUM != 0 && usize::from(vnet.csum_start) == ip.header_len;
        let pseudo = (partial && !ip.is_plain).then(|| {
            let field = be16(transport, if ip.protocol == TCP { 16 } else { 6 });
            let len = transport.len();
            Sum::default().word(field).word(!((len >> 16) as u16)).word(!(len as u16))
        });
        Ok(Self {
            ip: *ip,
            header_len,
            total_len: packet.len(),
            gso_size,
            sequence,
            identification: be16(packet, 4),
            flags,
            count: payload.div_ceil(gso_size).max(1),
            next: 0,
            pseudo,
        })
    }

    /// How many there are in all: at least one.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of the headers that each begins with.
    pub(crate) fn header_len(&self) -> usize {
        self.header_len
    }

    /// Bytes of each segment but the last, which can be shorter.
    pub(crate) fn full_len(&self) -> usize {
        self.header_len + self.gso_size.min(self.total_len - self.header_len)
    }

    /// Writes the next segment's headers to `header`, which is [`header_len`](Self::header_len) long, and
    /// returns where in the packet its payload is. `packet` is the one that was cut.
    pub(crate) fn next(&mut self, packet: &[u8], header: &mut [u8]) -> Option<Range<usize>> {
        if self.next == self.count {
            return None;
        }
        let (index, ip_len) = (self.next, self.ip.header_len);
        self.next += 1;
        let start = self.header_len + index * self.gso_size;
        let payload = start..(start + self.gso_size).min(self.total_len);
        let transport_len = self.header_len - ip_len + payload.len();

        header.copy_from_slice(&packet[..self.header_len]);
        if self.ip.family() == Family::V4 {
            put16(header, 2, (ip_len + transport_len) as u16);
            put16(header, 4, self.identification.wrapping_add(index as u16));
            put16(header, 10, 0);
            let checksum = Sum::default().bytes(&header[..ip_len]).checksum();
            put16(header, 10, checksum);
        } else {
            put16(header, 4, (ip_len - IPV6_HEADER + transport_len) as u16);
        }
        let pseudo = match self.pseudo {
            Some(sum) => sum.word((transport_len >> 16) as u16).word(transport_len as u16),
            None => self.ip.pseudo_sum(packet, transport_len),
        };
        let transport = &mut header[ip_len..];
        if self.ip.protocol == TCP {
            put32(transport, 4, self.sequence.wrapping_add((index * self.gso_size) as u32));
            transport[13] = self.flags_of(index);
            put16(transport, 16, 0);
            let sum = pseudo.bytes(transport).bytes(&packet[payload.clone()]);
            put16(transport, 16, sum.checksum());
        } else {
            put16(transport, 4, transport_len as u16);
            put16(transport, 6, 0);
            let checksum = pseudo.bytes(transport).bytes(&packet[payload.clone()]).checksum();
            put16(transport, 6, if checksum == 0 { 0xffff } else { checksum });
        }
        Some(payload)
    }

    /// FIN and PSH belong to the last byte, CWR to the first (RFC 3168 section 6.1.2).
    fn flags_of(&self, index: usize) -> u8 {
        let mut kept = self.flags;
        if index + 1 < self.count {
            kept &= !(flags::FIN | flags::PSH);
        }
        if index > 0 {
            kept &= !flags::CWR;
        }
        kept
    }
}

#[cfg(test)]
mod tests;
