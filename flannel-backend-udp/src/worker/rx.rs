//! From the underlay to the TUN.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::AsFd;

use super::{Context, Io};
use crate::coalesce::{Coalesce, Coalescer, MAX_PACKETS};
use crate::counters::DropReason;
use crate::forward::{ForwardingTable, Inbound, Lookup, PeerIndex, Sender};
use crate::packet::{IpHeader, decrement_hop_limit};
use crate::segment::is_worth_cutting;
use crate::socket::UnderlaySocket;
use crate::socket::sys::{Datagram, Incoming};

/// Slots for datagrams, or trains, in one call. Without GRO, this is what makes coalescing possible.
const SLOTS: usize = 64;
/// The fewest slots, and the bytes that a call may return: more than fits into the cache is no gain.
const FEWEST_SLOTS: usize = 2;
const BATCH: usize = 128 << 10;
/// Packets in one batch at most.
const PACKETS: usize = 4096;

/// The buffers for one batch from a socket.
pub(super) struct RxPath {
    incoming: Incoming,
    coalescer: Coalescer,
    /// How many slots the next call gets.
    slots: usize,
    /// Whether the kernel has refused a super-packet, so that none are written any more.
    single_writes: bool,
}

/// One sender's packets, to be counted together.
#[derive(Default)]
struct Accepted {
    peer: Option<PeerIndex>,
    packets: u64,
    bytes: u64,
}

impl RxPath {
    pub(super) fn new(io: &Io) -> Self {
        let offloads = io.tun.offloads();
        let which = Coalesce {
            // Writing needs no offload but the header. If the options ask for none, none is used.
            tcp: offloads.vnet_header && offloads.tso,
            udp: offloads.vnet_header && offloads.uso,
        };
        let one_by_one = io.sockets.iter().any(|(_, socket)| !socket.batch());
        Self {
            incoming: Incoming::new(if one_by_one { 1 } else { SLOTS }, one_by_one),
            coalescer: Coalescer::new(which, PACKETS),
            slots: SLOTS,
            single_writes: false,
        }
    }

    /// Receives one batch and writes it to the TUN.
    pub(super) fn turn(
        &mut self,
        socket: &UnderlaySocket,
        table: &ForwardingTable,
        context: &mut Context<'_>,
    ) {
        // An error here is one that the network reported about an earlier datagram; taking it clears it.
        let Ok(count) = self.incoming.receive(socket.as_fd(), self.slots) else { return };
        if count == 0 {
            return;
        }
        context.tally.received.batches += 1;
        let mut lookup = Lookup::new(table);
        let mut bytes = 0;
        for slot in 0..count {
            let datagram = self.incoming.datagram(slot);
            bytes += datagram.range.len();
            context.tally.received.trains += 1;
            self.handle(&datagram, &mut lookup, context);
        }
        self.flush(context);
        self.slots = (BATCH * count / bytes.max(1)).clamp(FEWEST_SLOTS, SLOTS);
    }

    /// Decides about each packet of a datagram or train.
    fn handle(&mut self, datagram: &Datagram, lookup: &mut Lookup<'_>, context: &mut Context<'_>) {
        let count = datagram.range.len().div_ceil(datagram.segment.max(1)).max(1);
        if datagram.truncated {
            return context.tally.dropped(DropReason::Oversized, count);
        }
        let sender = datagram.source.map_or(Sender::Stranger, |source| lookup.sender(source));
        let Some(source) = datagram.source.filter(|_| sender != Sender::Stranger) else {
            return context.tally.dropped(DropReason::UnknownSender, count);
        };
        if datagram.range.is_empty() {
            return context.tally.dropped(DropReason::Truncated, 1);
        }
        if !is_worth_cutting(datagram.range.len(), datagram.segment) {
            return context.tally.dropped(DropReason::TinySegments, count);
        }
        let mut accepted = Accepted::default();
        let mut start = datagram.range.start;
        while start < datagram.range.end {
            let end = (start + datagram.segment).min(datagram.range.end);
            if self.coalescer.is_full() {
                self.flush(context);
            }
            match self.admit_packet(start..end, sender, source, lookup, context) {
                Ok((peer, len)) => {
                    if accepted.peer != peer {
                        accepted.count(sender, lookup.table());
                        accepted.peer = peer;
                    }
                    accepted.packets += 1;
                    accepted.bytes += len as u64;
                    context.tally.received.packets += 1;
                    context.tally.received.bytes += len as u64;
                }
                Err(reason) => context.tally.dropped(reason, 1),
            }
            start = end;
        }
        accepted.count(sender, lookup.table());
    }

    /// Adds one packet to the batch, or returns why not.
    fn admit_packet(
        &mut self,
        range: Range<usize>,
        sender: Sender,
        source: std::net::IpAddr,
        lookup: &mut Lookup<'_>,
        context: &mut Context<'_>,
    ) -> Result<(Option<PeerIndex>, usize), DropReason> {
        let packet = &mut self.incoming.buffer_mut()[range.clone()];
        let ip = IpHeader::parse(packet)?;
        let packet = &mut packet[..ip.total_len];
        if !ip.is_intact(packet) {
            return Err(DropReason::BadChecksum);
        }
        match lookup.inbound(sender, source, &ip) {
            Inbound::Accept(peer) => {
                decrement_hop_limit(packet);
                let range = range.start..range.start + ip.total_len;
                self.coalescer.push(self.incoming.buffer(), range, &ip);
                Ok((peer, ip.total_len))
            }
            Inbound::Drop(reason, error) => {
                context.report(error, packet, &ip, lookup);
                Err(reason)
            }
        }
    }

    /// Writes the batch to the TUN.
    fn flush(&mut self, context: &mut Context<'_>) {
        let tun = &context.io.tun;
        let buffer = self.incoming.buffer();
        let mut refused = false;
        for index in 0..self.coalescer.len() {
            let head = self.coalescer.head(buffer, index);
            if head.packets() > 1 && !self.single_writes {
                let mut parts = [IoSlice::new(&[]); MAX_PACKETS + 1];
                parts[0] = IoSlice::new(head.bytes());
                let mut used = 1;
                for (part, range) in parts[1..].iter_mut().zip(self.coalescer.body(index)) {
                    *part = IoSlice::new(&buffer[range]);
                    used += 1;
                }
                match retry(|| tun.write(&parts[..used])) {
                    Ok(()) => {
                        context.tally.received.tun_packets += 1;
                        continue;
                    }
                    // This kernel can't cut this kind of super-packet. The original packets are still in the buffer.
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = true,
                    Err(_) => {
                        context.tally.dropped(DropReason::TunRefused, head.packets());
                        continue;
                    }
                }
            }
            let none = [0; crate::vnet::VnetHeader::LEN];
            for range in self.coalescer.packets(index) {
                let parts = [IoSlice::new(&none[..tun.prefix()]), IoSlice::new(&buffer[range])];
                match retry(|| tun.write(&parts)) {
                    Ok(()) => context.tally.received.tun_packets += 1,
                    Err(_) => context.tally.dropped(DropReason::TunRefused, 1),
                }
            }
        }
        self.single_writes |= refused;
        self.coalescer.clear();
    }
}

fn retry(mut write: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        match write() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl Accepted {
    fn count(&mut self, sender: Sender, table: &ForwardingTable) {
        if let Some(peer) = self.peer.filter(|_| self.packets > 0) {
            let counters = table.counters(peer);
            counters.received(self.packets, self.bytes);
            if sender == Sender::Allowed {
                counters.admitted(self.packets);
            }
        }
        (self.packets, self.bytes) = (0, 0);
    }
}
