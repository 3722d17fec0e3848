//! From the underlay to the TUN.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd;

use super::{Context, Io};
use crate::coalesce::{Coalesce, Coalescer, MAX_PACKETS};
use crate::counters::DropReason;
use crate::forward::{Inbound, PeerIndex, Sender};
use crate::packet::{IpHeader, decrement_hop_limit};
use crate::passage::{Batch, Cipher as _, Opened};
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
    /// Opened packets, each where its datagram is in `incoming`; nothing where there is no cipher.
    opened: Vec<u8>,
    coalescer: Coalescer,
    /// How many slots the next call gets.
    slots: usize,
    /// Whether the kernel has refused a super-packet, so that none are written any more.
    single_writes: bool,
}

/// One sender's packets, to be counted together.
struct Accepted {
    sender: Sender,
    peer: Option<PeerIndex>,
    packets: u64,
    bytes: u64,
}

impl RxPath {
    pub(super) fn new(io: &Io, opens: bool) -> Self {
        let offloads = io.tun.offloads();
        let which = Coalesce {
            // Writing needs no offload but the header. If the options ask for none, none is used.
            tcp: offloads.vnet_header && offloads.tso,
            udp: offloads.vnet_header && offloads.uso,
        };
        let one_by_one = io.sockets.iter().any(|(_, socket)| !socket.batch());
        let incoming = Incoming::new(if one_by_one { 1 } else { SLOTS }, one_by_one);
        let opened = vec![0; if opens { incoming.buffer().len() } else { 0 }];
        Self {
            incoming,
            opened,
            // An opened packet is authentic, so its inner checksum needn't show that. The kernel's WireGuard also tells
            // the stack that all checksums of such packets have been checked.
            coalescer: Coalescer::new(which, PACKETS).trusting(opens),
            slots: SLOTS,
            single_writes: false,
        }
    }

    /// Receives one batch and writes it to the TUN.
    pub(super) fn turn<B: Batch>(
        &mut self,
        socket: &UnderlaySocket,
        batch: &mut B,
        context: &mut Context<'_>,
    ) {
        // An error here is one that the network reported about an earlier datagram; taking it clears it.
        let Ok(count) = self.incoming.receive(socket.as_fd(), self.slots) else { return };
        if count == 0 {
            return;
        }
        context.tally.received.batches += 1;
        let mut bytes = 0;
        for slot in 0..count {
            let datagram = self.incoming.datagram(slot);
            bytes += datagram.range.len();
            context.tally.received.trains += 1;
            self.handle(&datagram, batch, context);
        }
        self.flush::<B>(context);
        self.slots = (BATCH * count / bytes.max(1)).clamp(FEWEST_SLOTS, SLOTS);
    }

    /// Decides about each packet of a datagram or train.
    fn handle<B: Batch>(&mut self, datagram: &Datagram, batch: &mut B, context: &mut Context<'_>) {
        let count = datagram.range.len().div_ceil(datagram.segment.max(1)).max(1);
        if datagram.truncated {
            return context.tally.dropped(DropReason::Oversized, count);
        }
        let Some(source) = datagram.source else {
            return context.tally.dropped(DropReason::UnknownSender, count);
        };
        // With a cipher no address proves anything, and each datagram says who sent it.
        let sender = if batch.cipher().is_some() { Sender::Stranger } else { batch.sender(source.ip()) };
        if sender == Sender::Stranger && batch.cipher().is_none() {
            return context.tally.dropped(DropReason::UnknownSender, count);
        }
        if datagram.range.is_empty() {
            return context.tally.dropped(DropReason::Truncated, 1);
        }
        if !is_worth_cutting(datagram.range.len(), datagram.segment) {
            return context.tally.dropped(DropReason::TinySegments, count);
        }
        let mut accepted = Accepted { sender, peer: None, packets: 0, bytes: 0 };
        let mut start = datagram.range.start;
        while start < datagram.range.end {
            let end = (start + datagram.segment).min(datagram.range.end);
            if self.coalescer.is_full() {
                self.flush::<B>(context);
            }
            match self.admit_packet(start..end, sender, source, batch, context) {
                Ok(None) => {}
                Ok(Some((sender, peer, len))) => {
                    if accepted.peer != peer {
                        accepted.count(batch);
                        accepted.peer = peer;
                    }
                    accepted.sender = sender;
                    accepted.packets += 1;
                    accepted.bytes += len as u64;
                    context.tally.received.packets += 1;
                    context.tally.received.bytes += len as u64;
                }
                Err(reason) => context.tally.dropped(reason, 1),
            }
            start = end;
        }
        accepted.count(batch);
    }

    /// Adds one packet to the batch, or returns why not; `None` if the datagram was no packet but a message of the
    /// tunnel.
    fn admit_packet<B: Batch>(
        &mut self,
        range: Range<usize>,
        mut sender: Sender,
        source: SocketAddr,
        batch: &mut B,
        context: &mut Context<'_>,
    ) -> Result<Option<(Sender, Option<PeerIndex>, usize)>, DropReason> {
        let packet = if let Some(cipher) = batch.cipher() {
            let opened = &mut self.opened[range.clone()];
            match cipher.open(source, &self.incoming.buffer()[range.clone()], opened)? {
                Opened::Message => return Ok(None),
                Opened::Packet(peer, len) => {
                    sender = Sender::Peer(peer);
                    opened.get_mut(..len).ok_or(DropReason::Truncated)?
                }
            }
        } else {
            &mut self.incoming.buffer_mut()[range.clone()]
        };
        let ip = IpHeader::parse(packet)?;
        let packet = &mut packet[..ip.total_len];
        if !ip.is_intact(packet) {
            return Err(DropReason::BadChecksum);
        }
        match batch.inbound(sender, source.ip(), &ip) {
            Inbound::Accept(peer) => {
                if B::IS_HOP {
                    decrement_hop_limit(packet);
                }
                let range = range.start..range.start + ip.total_len;
                self.coalescer.push(plain::<B>(&self.incoming, &self.opened), range, &ip);
                Ok(Some((sender, peer, ip.total_len)))
            }
            Inbound::Drop(reason, error) => {
                context.report(error, packet, &ip, batch);
                Err(reason)
            }
        }
    }

    /// Writes the batch to the TUN.
    fn flush<B: Batch>(&mut self, context: &mut Context<'_>) {
        let tun = &context.io.tun;
        let buffer = plain::<B>(&self.incoming, &self.opened);
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

/// The buffer in which packets are that can be written to the TUN.
fn plain<'a, B: Batch>(incoming: &'a Incoming, opened: &'a [u8]) -> &'a [u8] {
    if B::SEALS { opened } else { incoming.buffer() }
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
    fn count<B: Batch>(&mut self, batch: &mut B) {
        if let Some(peer) = self.peer.filter(|_| self.packets > 0) {
            batch.received(self.sender, peer, self.packets, self.bytes);
        }
        (self.packets, self.bytes) = (0, 0);
    }
}
