//! What is written to the TUN for each item.

use std::ops::Range;

use super::{Coalescer, Item, NONE};
use crate::packet::checksum::Sum;
use crate::packet::transport::{TCP, UDP};
use crate::packet::{IPV6_HEADER, IpHeader, put16};
use crate::vnet::VnetHeader;

/// Room for the virtio-net header and the headers of an aggregate: IPv6 and the longest TCP.
pub(crate) const MAX_HEAD: usize = VnetHeader::LEN + 40 + 60;

/// The beginning of a write, before the payload pieces: the virtio-net header, and an aggregate's headers.
#[derive(Debug)]
pub(crate) struct Head {
    bytes: [u8; MAX_HEAD],
    len: usize,
    packets: usize,
}

impl Head {
    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// How many packets the write contains.
    pub(crate) fn packets(&self) -> usize {
        self.packets
    }
}

impl Coalescer {
    /// What is written first for item `index`.
    pub(crate) fn head(&self, buffer: &[u8], index: usize) -> Head {
        let item = &self.items[index];
        let mut head = Head { bytes: [0; MAX_HEAD], len: VnetHeader::LEN, packets: item.count.into() };
        if item.count > 1 {
            item.write_headers(buffer, &mut head);
        }
        head
    }

    /// What follows the head of item `index`: all of a single packet, or the payloads of an aggregate.
    pub(crate) fn body(&self, index: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let item = &self.items[index];
        let single = (item.count == 1).then(|| range(item.first));
        let from = if item.count == 1 { NONE } else { item.pieces };
        single.into_iter().chain(self.pieces_from(from))
    }

    /// The packets of item `index` one by one, as they came.
    pub(crate) fn packets(&self, index: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let item = &self.items[index];
        let header_len = usize::from(item.header_len);
        self.pieces_from(item.pieces).map(move |payload| payload.start - header_len..payload.end)
    }

    fn pieces_from(&self, first: u32) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut next = first;
        std::iter::from_fn(move || {
            let piece = self.pieces.get(next as usize)?;
            next = piece.next;
            Some(range((piece.start, piece.end)))
        })
    }
}

fn range((start, end): (u32, u32)) -> Range<usize> {
    start as usize..end as usize
}

impl Item {
    /// Writes the headers of all its packets as one.
    fn write_headers(&self, buffer: &[u8], head: &mut Head) {
        let (ip_len, header_len) = (usize::from(self.ip_header_len), usize::from(self.header_len));
        let first = &buffer[range(self.first)];
        let ip = IpHeader::parse(first).expect("it was parsed when it was pushed");
        head.len = VnetHeader::LEN + header_len;
        let (vnet, rest) = head.bytes.split_at_mut(VnetHeader::LEN);
        let headers = &mut rest[..header_len];
        headers.copy_from_slice(&first[..header_len]);
        let transport_len = header_len - ip_len + self.payload_len as usize;
        if ip.source.is_ipv4() {
            put16(headers, 2, (ip_len + transport_len) as u16);
            put16(headers, 10, 0);
            let checksum = Sum::default().bytes(&headers[..ip_len]).checksum();
            put16(headers, 10, checksum);
        } else {
            put16(headers, 4, (ip_len - IPV6_HEADER + transport_len) as u16);
        }
        let pseudo = ip.pseudo_sum(first, transport_len).folded();
        let transport = &mut headers[ip_len..];
        let (gso_type, csum_offset) = match (ip.protocol, ip.source.is_ipv4()) {
            (TCP, true) => (VnetHeader::GSO_TCPV4, 16),
            (TCP, false) => (VnetHeader::GSO_TCPV6, 16),
            _ => (VnetHeader::GSO_UDP_L4, 6),
        };
        if ip.protocol == TCP {
            transport[13] = self.flags;
        } else {
            debug_assert_eq!(ip.protocol, UDP);
            put16(transport, 4, transport_len as u16);
        }
        put16(transport, csum_offset, pseudo);
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CHECKSUM,
            gso_type,
            header_len: header_len as u16,
            gso_size: self.gso_size,
            csum_start: ip_len as u16,
            csum_offset: csum_offset as u16,
        };
        vnet.copy_from_slice(&header.to_bytes());
    }
}
