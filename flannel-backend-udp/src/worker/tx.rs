//! From the TUN to the underlay.

mod seal;

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use flannel_core::addr::Family;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::seal::PADDING;
use super::gso_memory::GsoMemory;
use super::train::{DATAGRAMS, TRAIN_BYTES, TRAINS, Trains, balanced, singly};
use super::{Context, Io};
use crate::counters::DropReason;
use crate::forward::{Outbound, PeerIndex};
use crate::packet::icmp::IcmpError;
use crate::packet::{IpHeader, decrement_hop_limit};
use crate::passage::Batch;
use crate::segment::{Cut, MAX_HEADERS, SegmentError, Segments, cut};
use crate::socket::UnderlaySocket;
use crate::socket::sys::{Message, Outgoing, Piece};
use crate::vnet::VnetHeader;

/// Bytes that one read can take: the prefix and the longest packet.
const READ: usize = VnetHeader::LEN + 40 + 65535;
/// Bytes of packets after which a batch is sent.
const BATCH: usize = 32 << 10;
/// Reads after which a batch is sent.
const READS: usize = 256;
/// Room for rebuilt headers.
const HEADERS: usize = 128 << 10;
/// Room for sealed datagrams: twice what a batch reads.
const SEALED: usize = 2 * (BATCH + READ);
/// How long to wait for a full socket buffer, in milliseconds.
const PATIENCE_MS: u16 = 20;

/// The buffers for one batch from the TUN.
pub(super) struct TxPath {
    packets: Vec<u8>,
    used: usize,
    headers: Vec<u8>,
    headers_used: usize,
    /// Sealed datagrams; nothing where there is no cipher.
    sealed: Vec<u8>,
    sealed_used: usize,
    trains: Trains,
    messages: Vec<Message>,
    singles: Vec<Message>,
    outgoing: Outgoing,
    refused: GsoMemory,
    /// A copy of a packet that is reported to its sender.
    reported: Vec<u8>,
}

impl TxPath {
    pub(super) fn new(io: &Io, seals: bool) -> Self {
        let one_by_one = io.sockets.iter().any(|(_, socket)| !socket.batch());
        Self {
            packets: vec![0; BATCH + READ + PADDING],
            used: 0,
            headers: vec![0; HEADERS],
            headers_used: 0,
            sealed: vec![0; if seals { SEALED } else { 0 }],
            sealed_used: 0,
            trains: Trains::new(),
            messages: Vec::with_capacity(TRAINS * DATAGRAMS),
            singles: Vec::with_capacity(DATAGRAMS),
            outgoing: Outgoing::new(512, TRAINS * DATAGRAMS * 2, one_by_one),
            refused: GsoMemory::new(),
            reported: vec![0; TRAIN_BYTES],
        }
    }

    /// Reads and sends one batch. An error is the TUN's, and final.
    pub(super) fn turn<B: Batch>(&mut self, batch: &mut B, context: &mut Context<'_>) -> io::Result<()> {
        let mut result = Ok(());
        for _ in 0..READS {
            if self.used > BATCH {
                break;
            }
            match context.io.tun.read(&mut self.packets[self.used..self.used + READ]) {
                Ok(len) => {
                    let range = self.used..self.used + len;
                    self.used = range.end;
                    self.handle(range, batch, context);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => break,
                    io::ErrorKind::Interrupted => {}
                    _ => {
                        result = Err(error);
                        break;
                    }
                },
            }
        }
        // In a test of the handover the other thread gets its chance between reading and sending.
        #[cfg(test)]
        if context.io.handover.as_ref().is_some_and(|handover| handover.restless.is_some()) {
            std::thread::yield_now();
        }
        self.flush(batch, context);
        self.used = 0;
        result
    }

    /// Decides about one packet, as it was read, and queues what is to be sent.
    fn handle<B: Batch>(&mut self, mut range: Range<usize>, batch: &mut B, context: &mut Context<'_>) {
        let prefix = context.io.tun.prefix();
        let read = &mut self.packets[range.clone()];
        let (vnet, packet) = match read.split_at_mut_checked(prefix) {
            Some((prefix, packet)) => {
                (prefix.try_into().map(VnetHeader::from_bytes).unwrap_or_default(), packet)
            }
            None => return context.tally.dropped(DropReason::Truncated, 1),
        };
        range.start += prefix;
        let ip = match IpHeader::parse(packet) {
            Ok(ip) => ip,
            Err(error) => return context.tally.dropped(error.into(), 1),
        };
        let packet = &mut packet[..ip.total_len];
        range.end = range.start + ip.total_len;
        // The headers of a super-packet are rebuilt anyway.
        if vnet.gso_type == VnetHeader::GSO_NONE && !ip.is_intact(packet) {
            return context.tally.dropped(DropReason::BadChecksum, 1);
        }
        let cut = match cut(vnet, packet, &ip) {
            Ok(cut) => cut,
            Err(error) => return context.tally.dropped(error.into(), 1),
        };
        let (count, largest) = match &cut {
            Cut::Whole => (1, ip.total_len),
            Cut::Segments(segments) => (segments.count(), segments.full_len()),
        };
        let peer = match batch.outbound(&ip, largest) {
            Outbound::Send(peer) => peer,
            Outbound::Drop(reason, error) => {
                context.tally.dropped(reason, count);
                context.report(error, packet, &ip, batch);
                return;
            }
        };
        if B::IS_HOP {
            decrement_hop_limit(packet);
        }
        context.tally.sent.tun_packets += 1;
        match cut {
            Cut::Whole if B::SEALS => self.seal_whole(peer, &range, batch, context),
            Cut::Segments(segments) if B::SEALS => self.seal_segments(peer, &range, segments, batch, context),
            Cut::Whole => self.queue_whole(peer, range, batch, context),
            Cut::Segments(segments) => self.queue_segments(peer, &range, segments, batch, context),
        }
    }

    fn queue_whole<B: Batch>(
        &mut self,
        peer: PeerIndex,
        range: Range<usize>,
        batch: &mut B,
        context: &mut Context<'_>,
    ) {
        let len = range.len();
        if len > TRAIN_BYTES {
            return context.tally.dropped(DropReason::TooBig, 1);
        }
        if !self.trains.has_room(peer, 1, len, len) {
            self.begin(peer, len, batch, context);
        }
        self.trains.add(peer, &[Piece { is_header: false, start: range.start as u32, len: len as u32 }]);
    }

    fn queue_segments<B: Batch>(
        &mut self,
        peer: PeerIndex,
        range: &Range<usize>,
        mut segments: Segments,
        batch: &mut B,
        context: &mut Context<'_>,
    ) {
        let (count, len, header_len) = (segments.count(), segments.full_len(), segments.header_len());
        if len > TRAIN_BYTES {
            return context.tally.dropped(DropReason::TooBig, count);
        }
        let last = header_len + (range.len() - header_len) - (count - 1) * (len - header_len);
        let mut joins = self.trains.has_room(peer, count, len, last);
        let each = balanced(count, len);
        for index in 0..count {
            if self.headers_used + MAX_HEADERS > self.headers.len() {
                self.flush(batch, context);
                joins = false;
            }
            if !joins && (index % each == 0 || self.trains.is_empty()) {
                self.begin(peer, len, batch, context);
            }
            let at = self.headers_used;
            let header = &mut self.headers[at..at + header_len];
            let Some(payload) = segments.next(&self.packets[range.clone()], header) else { break };
            self.headers_used += header_len;
            let start = (range.start + payload.start) as u32;
            let header = Piece { is_header: true, start: at as u32, len: header_len as u32 };
            let payload = Piece { is_header: false, start, len: payload.len() as u32 };
            self.trains.add(peer, &[header, payload]);
        }
    }

    fn begin<B: Batch>(&mut self, peer: PeerIndex, len: usize, batch: &mut B, context: &mut Context<'_>) {
        if self.trains.is_full() {
            self.flush(batch, context);
        }
        self.trains.begin(peer, batch.endpoint(peer), len);
    }

    /// Sends all trains.
    fn flush<B: Batch>(&mut self, batch: &mut B, context: &mut Context<'_>) {
        if self.trains.is_empty() {
            return;
        }
        for (peer, datagrams, bytes) in self.trains.totals() {
            batch.sent(peer, datagrams as u64, bytes as u64);
        }
        for family in Family::ALL {
            let of_family = |message: &Message| Family::of(message.to.ip()) == family;
            self.messages.clear();
            let Some(socket) = context.io.sockets.get(family) else {
                for message in self.trains.messages().filter(of_family) {
                    context.tally.dropped(DropReason::NoSocket, message.datagrams.into());
                }
                continue;
            };
            for message in self.trains.messages().filter(of_family) {
                let whole = socket.gso() && self.refused.allows(message.to, context.now_ms);
                if whole || message.segment == 0 {
                    self.messages.push(message);
                } else {
                    self.messages.extend(singly(&message, self.trains.pieces()));
                }
            }
            let messages = std::mem::take(&mut self.messages);
            self.send(socket, &messages, batch, context);
            self.messages = messages;
        }
        self.trains.clear();
        self.headers_used = 0;
        self.sealed_used = 0;
    }

    fn send<B: Batch>(
        &mut self,
        socket: &UnderlaySocket,
        messages: &[Message],
        batch: &mut B,
        context: &mut Context<'_>,
    ) {
        let mut rest = messages;
        let mut has_waited = false;
        while let Some(next) = rest.first() {
            let pieces = self.trains.pieces();
            let datagrams = if B::SEALS { &self.sealed } else { &self.packets };
            let error = match self.outgoing.send(socket.as_fd(), rest, pieces, &self.headers, datagrams) {
                Ok(count) => {
                    let (done, later) = rest.split_at(count.min(rest.len()));
                    count_sent(done, context);
                    (rest, has_waited) = (later, false);
                    continue;
                }
                Err(error) => error,
            };
            let datagrams = usize::from(next.datagrams);
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::EAGAIN) if !has_waited => {
                    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                    // The next attempt shows whether there is room now.
                    let _ = poll(&mut fds, PollTimeout::from(PATIENCE_MS));
                    has_waited = true;
                    continue;
                }
                Some(libc::EAGAIN | libc::ENOBUFS) => {
                    context.tally.dropped(DropReason::SocketFull, datagrams);
                }
                // The outgoing link has no checksum offload, or the path's MTU has shrunk: send the datagrams one by
                // one.
                Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE) if next.segment > 0 => {
                    self.refused.refused(next.to, context.now_ms);
                    context.tally.gso_fallbacks += 1;
                    let mut singles = std::mem::take(&mut self.singles);
                    singles.clear();
                    singles.extend(singly(next, self.trains.pieces()));
                    self.send(socket, &singles, batch, context);
                    self.singles = singles;
                }
                Some(libc::EMSGSIZE) => context.tally.dropped(DropReason::TooBig, datagrams),
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN) => {
                    context.tally.dropped(DropReason::Unreachable, datagrams);
                    self.report(next, IcmpError::HostUnreachable, batch, context);
                }
                _ => context.tally.dropped(DropReason::SendFailed, datagrams),
            }
            rest = &rest[1..];
        }
    }

    /// Reports an error to the sender of a message's first packet.
    fn report<B: Batch>(
        &mut self,
        message: &Message,
        error: IcmpError,
        batch: &mut B,
        context: &mut Context<'_>,
    ) {
        if B::SEALS {
            // The datagram doesn't show whose packet it was.
            return;
        }
        let Some(first) = singly(message, self.trains.pieces()).next() else { return };
        let mut used = 0;
        for piece in &self.trains.pieces()[first.pieces.start as usize..first.pieces.end as usize] {
            let from = if piece.is_header { &self.headers } else { &self.packets };
            let (start, len) = (piece.start as usize, piece.len as usize);
            self.reported[used..used + len].copy_from_slice(&from[start..start + len]);
            used += len;
        }
        let packet = &self.reported[..used];
        if let Ok(ip) = IpHeader::parse(packet) {
            context.report(Some(error), packet, &ip, batch);
        }
    }
}

fn count_sent(done: &[Message], context: &mut Context<'_>) {
    let sent = &mut context.tally.sent;
    sent.batches += u64::from(!done.is_empty());
    for message in done {
        sent.trains += 1;
        sent.packets += u64::from(message.datagrams);
        sent.bytes += u64::from(message.bytes);
    }
}

impl From<SegmentError> for DropReason {
    fn from(error: SegmentError) -> Self {
        match error {
            SegmentError::TinySegments => Self::TinySegments,
            _ => Self::BadOffload,
        }
    }
}
