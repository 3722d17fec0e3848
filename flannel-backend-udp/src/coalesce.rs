//! Merges packets of one flow into super-packets for the TUN.
//!
//! One write of 64 KB to the TUN costs the kernel hardly more than one of 1400 bytes. So consecutive packets of a flow
//! are merged, by the rules of the kernel's own GRO: when the kernel cuts the super-packet again, the original packets
//! result. Payloads aren't copied: an aggregate is a new header and a list of ranges in the receive buffer.
//!
//! Aggregates are written in the order in which they were begun, and a packet joins only the newest one of its flow, so
//! flows stay in order.

mod flow;
mod output;

use std::ops::Range;

use self::flow::{FlowKey, FlowTable};
use crate::packet::transport::{TCP, TcpHeader, UDP, UDP_HEADER, UdpHeader, flags};
use crate::packet::{Fragment, IpHeader, be16};
use crate::segment::MIN_SEGMENT;

/// Packets in one aggregate at most: the kernel's limit for UDP.
pub(crate) const MAX_PACKETS: usize = 64;
/// Bytes of an aggregate at most: what IP can describe.
const MAX_TOTAL: usize = 65535;

/// Which protocols are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Coalesce {
    /// TCP.
    pub tcp: bool,
    /// UDP.
    pub udp: bool,
}

/// No piece.
const NONE: u32 = u32::MAX;

/// A packet's payload in the receive buffer, and the next one of the same aggregate.
#[derive(Debug, Clone, Copy)]
struct Piece {
    start: u32,
    end: u32,
    next: u32,
}

/// A packet that leaves alone, or an aggregate.
#[derive(Debug, Clone, Copy)]
struct Item {
    /// The first packet in the buffer, headers and all.
    first: (u32, u32),
    key: FlowKey,
    ip_header_len: u16,
    header_len: u16,
    /// Payload bytes of the first packet: no later one has more.
    gso_size: u16,
    /// Packets in it.
    count: u16,
    payload_len: u32,
    next_sequence: u32,
    /// All packets' TCP flags.
    flags: u8,
    /// Whether no further packet can join.
    closed: bool,
    pieces: u32,
    last_piece: u32,
}

/// Collects the packets of one batch. All memory is allocated at the start.
#[derive(Debug)]
pub(crate) struct Coalescer {
    which: Coalesce,
    /// Whether transport checksums are taken for right.
    trusts: bool,
    items: Vec<Item>,
    pieces: Vec<Piece>,
    flows: FlowTable,
    capacity: usize,
}

/// The transport part of a packet that may be merged with others.
struct Candidate {
    key: FlowKey,
    header_len: usize,
    sequence: u32,
    flags: u8,
    /// Whether it may begin or join an aggregate. Otherwise it ends the aggregate of its flow.
    mergeable: bool,
}

impl Coalescer {
    /// Room for `capacity` packets in a batch.
    pub(crate) fn new(which: Coalesce, capacity: usize) -> Self {
        Self {
            which,
            trusts: false,
            items: Vec::with_capacity(capacity),
            pieces: Vec::with_capacity(capacity),
            flows: FlowTable::new(capacity),
            capacity,
        }
    }

    /// The same for packets of which somebody else knows that they are as they were sent.
    pub(crate) fn trusting(self, trusts: bool) -> Self {
        Self { trusts, ..self }
    }

    /// Whether the batch must be written before another packet can be added.
    pub(crate) fn is_full(&self) -> bool {
        self.pieces.len() == self.capacity
    }

    /// Takes the packet at `range` of the buffer; `ip` was parsed from it. It mustn't be full.
    pub(crate) fn push(&mut self, buffer: &[u8], range: Range<usize>, ip: &IpHeader) {
        let packet = &buffer[range.clone()];
        match self.candidate(packet, ip) {
            None => {
                // No packet of the same flow may overtake it.
                if ip.fragment != Fragment::Whole || !ip.is_plain {
                    self.flows.forget_all();
                }
                self.add(range, ip, None);
            }
            Some(found) => {
                if !(found.mergeable && self.join(buffer, &range, ip, &found)) {
                    self.add(range, ip, Some(&found));
                }
            }
        }
    }

    /// Forgets the batch.
    pub(crate) fn clear(&mut self) {
        self.items.clear();
        self.pieces.clear();
        self.flows.forget_all();
    }

    /// How many writes the batch takes.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// The candidate of a packet, if its protocol is merged; `None` for all others.
    fn candidate(&self, packet: &[u8], ip: &IpHeader) -> Option<Candidate> {
        if ip.fragment != Fragment::Whole || !ip.is_plain {
            return None;
        }
        let transport = &packet[ip.header_len..];
        let (transport_len, sequence, bits, sound) = match ip.protocol {
            TCP if self.which.tcp => {
                let tcp = TcpHeader::parse(transport)?;
                let sound = tcp.flags & !flags::PSH == flags::ACK;
                (tcp.header_len, tcp.sequence, tcp.flags, sound)
            }
            UDP if self.which.udp => {
                let udp = UdpHeader::parse(transport)?;
                (UDP_HEADER, 0, 0, udp.checksum != 0 && udp.len == transport.len())
            }
            _ => return None,
        };
        let header_len = ip.header_len + transport_len;
        // The kernel does not check a super-packet's checksum, so the checksum of each part must be right.
        let mergeable = sound
            && packet.len() > header_len
            && (self.trusts || ip.pseudo_sum(packet, transport.len()).bytes(transport).is_intact());
        let key = FlowKey::new(packet, ip);
        Some(Candidate { key, header_len, sequence, flags: bits, mergeable })
    }

    /// Adds the packet to the newest aggregate of its flow, if it is its exact continuation.
    fn join(&mut self, buffer: &[u8], range: &Range<usize>, ip: &IpHeader, found: &Candidate) -> bool {
        let Some(index) = self.flows.newest(&found.key) else { return false };
        let item = &mut self.items[index as usize];
        let payload = range.len() - found.header_len;
        let fits = !item.closed
            && item.key == found.key
            && usize::from(item.header_len) == found.header_len
            && payload <= usize::from(item.gso_size)
            && usize::from(item.count) < MAX_PACKETS
            && found.header_len + item.payload_len as usize + payload <= MAX_TOTAL
            && (ip.protocol == UDP || item.next_sequence == found.sequence)
            && same_headers(item, buffer, &buffer[range.clone()], ip);
        if !fits {
            return false;
        }
        item.count += 1;
        item.payload_len += payload as u32;
        item.next_sequence = item.next_sequence.wrapping_add(payload as u32);
        item.flags |= found.flags;
        item.closed = payload < usize::from(item.gso_size) || found.flags & flags::PSH != 0;
        let piece = self.pieces.len() as u32;
        self.pieces[item.last_piece as usize].next = piece;
        item.last_piece = piece;
        self.pieces.push(Piece {
            start: (range.start + found.header_len) as u32,
            end: range.end as u32,
            next: NONE,
        });
        true
    }

    /// Begins an item with the packet.
    fn add(&mut self, range: Range<usize>, ip: &IpHeader, found: Option<&Candidate>) {
        let header_len = found.map_or(ip.header_len, |found| found.header_len);
        let payload = range.len() - header_len;
        let index = self.items.len() as u32;
        let piece = self.pieces.len() as u32;
        if let Some(found) = found {
            self.flows.set_newest(&found.key, index);
        }
        self.items.push(Item {
            first: (range.start as u32, range.end as u32),
            key: found.map_or(FlowKey::default(), |found| found.key),
            ip_header_len: ip.header_len as u16,
            header_len: header_len as u16,
            gso_size: payload as u16,
            count: 1,
            payload_len: payload as u32,
            next_sequence: found.map_or(0, |found| found.sequence.wrapping_add(payload as u32)),
            flags: found.map_or(0, |found| found.flags),
            // Aggregates with segments that another node's `cut` would refuse are not made.
            closed: payload < MIN_SEGMENT
                || found.is_none_or(|found| !found.mergeable || found.flags & flags::PSH != 0),
            pieces: piece,
            last_piece: piece,
        });
        self.pieces.push(Piece {
            start: (range.start + header_len) as u32,
            end: range.end as u32,
            next: NONE,
        });
    }
}

/// Whether all header fields that a cut super-packet couldn't restore are the same.
fn same_headers(item: &Item, buffer: &[u8], packet: &[u8], ip: &IpHeader) -> bool {
    let first = &buffer[item.first.0 as usize..item.first.1 as usize];
    let ip_same = if ip.source.is_ipv4() {
        // With DF the identification has no meaning (RFC 6864); without it, cutting counts it up.
        let counts_up = ip.dont_fragment || be16(packet, 4) == be16(first, 4).wrapping_add(item.count);
        first[1] == packet[1] && first[6..9] == packet[6..9] && counts_up
    } else {
        first[..4] == packet[..4] && first[7] == packet[7]
    };
    if ip.protocol == UDP || !ip_same {
        return ip_same;
    }
    let at = usize::from(item.ip_header_len);
    let (first, packet) =
        (&first[at..usize::from(item.header_len)], &packet[at..usize::from(item.header_len)]);
    // Acknowledgement, then window, then urgent pointer and options; flags have been looked at.
    first[8..13] == packet[8..13] && first[14..16] == packet[14..16] && first[18..] == packet[18..]
}

#[cfg(test)]
mod tests;
